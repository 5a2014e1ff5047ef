"""`rrm-lm inspect`: show how a file is read and what a model will see, before training."""

from __future__ import annotations

import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rrm_lm.api.data.inspection import Inspection, ShownRow, inspect_sources
from rrm_lm.api.data.shown import CLOSE, OPEN, READ
from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.tables import read_tables
from rrm_lm.settings.feedback import InspectArguments
from rrm_lm.storage import json_text

_WIDTH = 100  # columns
_HEAD, _TAIL = 220, 120  # characters shown of the beginning and the end of a long text
_FILES, _PARTS, _LEAKS = 8, 12, 3  # how many are shown at most


def inspect_data(args: InspectArguments) -> int:
    """Print what is in the data; returns 1 if nothing can be trained on it."""
    logging.getLogger("rrm_lm").setLevel(logging.WARNING)  # the page says it all
    try:
        found = inspect_sources(args)
    except DataError as error:
        problem = error.sentence()
        if args.json:
            print(json_text({"problem": problem}))
        else:
            _print_columns(args, problem)
        return 1
    if args.json:
        print(json_text(found.to_dict()))
    else:
        _print_inspection(found, args)
    return int(bool(found.problem))


def _print_inspection(found: Inspection, args: InspectArguments) -> None:
    """Print the findings to stdout, at most 100 columns wide."""
    console = _console()
    for file in found.read.files[:_FILES]:
        heading = Text.assemble((file.file, "bold"), f": {file.rows:,} rows, read as ", (file.format, "bold cyan"))
        console.print(heading, soft_wrap=True)  # a path on two lines could not be copied
        console.print(_grid(_file_parts(file)), "", sep="\n")
    if len(found.read.files) > _FILES:
        console.print(f"... and {len(found.read.files) - _FILES} more files\n")
    console.print(_counts(found), "", sep="\n")
    model = Path(str(args.model)).name if Path(str(args.model)).exists() else args.model
    if found.tokens is not None and found.tokens.lengths:
        table = _table(f"tokens of {model}", "median", "95%", "longest")
        for name, lengths in found.tokens.lengths.items():
            table.add_row(f"  {name}", *(f"{number:,}" for number in lengths))
        console.print(table, "", sep="\n")
    if found.rows:
        rewarded = any(READ in text for row in found.rows for text in row.responses.values())
        marks = f"; the reward is read at {READ}, words in {OPEN} {CLOSE} are learned" if rewarded else ""
        unrendered = "Rows as they were read (--model NAME shows them as a model sees them)"
        console.print(Text(f"Rows as {model} sees them{marks}" if model else unrendered, "bold"))
        for row in found.rows:
            console.print(Text(row.origin, "dim"), soft_wrap=True)
            console.print(_grid(_row_parts(row)), "", sep="\n")
    console.print(_grid(_checks(found)), "", sep="\n")
    console.print(_verdict(found, args), soft_wrap=True)


def _print_columns(args: InspectArguments, problem: str) -> None:
    """Print why the data cannot be read, and its columns, if there are any, with the values of the first row."""
    with suppress(DataError):
        table = next(
            read_tables(args.dataset[0], split=args.dataset_train_split, config=args.dataset_config, limits=args)
        )
        cells = (
            (name, _shortened(repr(value))) for name, value in (dict(table.rows[0][1]) if table.rows else {}).items()
        )
        _console().print(Text(f"{table.where}: {len(table.rows):,} rows", "bold"), soft_wrap=True)
        _console().print(_grid(cells), "", sep="\n")
    _console().print(Text.assemble(("cannot be trained on: ", "bold red"), problem), soft_wrap=True)


def _console() -> Console:
    return Console(width=min(_WIDTH, Console().width), highlight=False)


def _grid(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Labeled paragraphs; empty ones are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=10, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        if text:
            grid.add_row(f"  {label}", text if isinstance(text, Text) else Text(text))
    return grid


def _file_parts(file: FileCounts) -> Iterable[tuple[str, str]]:
    yield "columns", ", ".join(name if name == ours else f"{name} (as {ours})" for name, ours in file.columns.items())
    yield "not read", ", ".join(one for one in file.unread if "(" not in one)
    yield from (("not read", one) for one in file.unread if "(" in one)
    yield "gave", ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in file.made.items())
    yield from (("left out", f"{reason}: {tally}") for reason, tally in file.dropped.items())
    yield from (("noticed", f"{what}: {tally}") for what, tally in file.notes.items())
    yield from (("noticed", remark) for remark in file.remarks if not remark.startswith("read "))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", min_width=0 if number else 40)
    return table


def _counts(found: Inspection) -> Table:
    """Records by kind, and by source, topic and label; in training and held out."""
    table = _table("records", *found.counts)
    for kind in dict.fromkeys(kind for side in found.counts.values() for kind in side):
        sides = [side.get(kind, Counter()) for side in found.counts.values()]
        table.add_row(Text(f"  {kind}", "bold"), *(f"{side.total():,}" for side in sides))
        parts = Counter(sides[0]) + Counter(sides[1])
        shown = [name for name, _ in parts.most_common(_PARTS)] if len(parts) > 1 or kind == "ratings" else []
        for name in shown:
            table.add_row(f"    {name or 'of no source'}", *(f"{side[name]:,}" for side in sides))
        if len(parts) > len(shown) > 0:
            rest = [side.total() - sum(side[name] for name in shown) for side in sides]
            table.add_row(f"    {len(parts) - len(shown)} others", *(f"{count:,}" for count in rest))
    for what, sizes in found.sizes.items():
        if any(sizes.values()):
            table.add_row(f"  {what}", *(f"{count:,}" for count in sizes.values()))
    return table


def _row_parts(row: ShownRow) -> Iterable[tuple[str, Text]]:
    for label, text in {"prompt": row.prompt, **row.responses}.items():
        parts = re.split(f"([{READ}{OPEN}{CLOSE}])", text)
        shown = Text("".join(map(_shortened, parts)).replace("\n", "↵"))
        shown.highlight_words([READ, OPEN, CLOSE], "bold red")
        shown.highlight_words(["↵"], "dim")
        yield label, shown


def _shortened(text: str) -> str:
    if len(text) <= _HEAD + _TAIL + 40:
        return text
    return f"{text[:_HEAD]} [... {len(text) - _HEAD - _TAIL:,} characters ...] {text[-_TAIL:]}"


def _checks(found: Inspection) -> Iterable[tuple[str, str]]:
    if found.template is not None:
        lines = [*found.template.problems(), *found.template.remarks()]
        yield "template", "\n".join(lines) or f"renders all words of {found.template.checked:,} records"
    if found.tokens is not None and found.tokens.max_length is not None:
        yield "length", found.tokens.limit()
    if found.leakage is not None:
        overlaps = (found.leakage.prompts_exact, found.leakage.prompts_near, found.leakage.responses_near)
        matches = [match for overlap in overlaps for match in overlap.examples][:_LEAKS]
        rows = (
            f"{Path(one.heldout).name} ~ {Path(one.train).name} ({100 * one.similarity:.0f}%): {one.text[:50]}..."
            for one in matches
        )
        yield "leaks", "\n".join([found.leakage.summary().removeprefix("leakage check: "), *rows])
    yield "repeats", found.repeats() or "none"


def _verdict(found: Inspection, args: InspectArguments) -> Text:
    if found.problem:
        return Text.assemble(("cannot be trained on: ", "bold red"), found.problem)
    flags = f"{shlex.join(args.dataset)}{f' --model_name_or_path {args.model}' if args.model else ''}"
    text = Text("Ready. Next, for example:", "bold green")
    for command in found.commands:
        needed = "--reward_model outputs/reward --prompts" if command == "rrm-lm policy" else "--dataset_name"
        text.append(f"\n  {command} {needed} {flags}", "")
    return text
