"""Recognize the format of a file (see `shapes.FORMATS`) and map its columns to our names.

A file has one format: the first one that its columns fit. Richer formats come first. A column that is not read is
reported, or the file is refused (`unread.name_unread`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rrm_lm.errors import DataError, did_you_mean
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.formats import columns, responses, structure
from rrm_lm.feedback.reading.formats.columns import IGNORE
from rrm_lm.feedback.reading.formats.row import SUBSETS, Table
from rrm_lm.feedback.reading.formats.shapes import ABOUT_ONE, ALWAYS, FORMATS, PARTICULAR, PROMPTS, FileColumns, Format
from rrm_lm.feedback.reading.formats.unread import SINGLE, name_unread, refuse_other_text

# Names that --columns may map to.
MORE = "id chosen_model rejected_model response_a response_b preference"
COLUMNS = frozenset((*" ".join(known.reads for known in FORMATS).split(), *ALWAYS, *MORE.split(), IGNORE))


@dataclass
class Recognized:
    """A file's rows under our names, its format, properties of the file, and counts of no rows yet."""

    rows: list[dict[str, Any]]
    format: Format
    table: Table
    counts: FileCounts


def recognize_rows(
    rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None = None
) -> Recognized:
    """Recognize a file's format and columns. `rows` are all rows of the file, and `mapping` maps their column names to
    ours, for shapes that are not recognized. Raises DataError if no format fits, a column is ambiguous, or an unread
    one changes what is learned.
    """
    found, table, aliases = _named(rows, file, mapping)
    chosen = next((known for known in FORMATS if table.fit(known.needs)), None)
    if chosen is None:
        raise _unknown(FileColumns(rows), file)
    read = {*ALWAYS, *chosen.reads.split()}
    documents = {name for name in ("source", *SUBSETS) if table.is_long(name, 6)}
    read -= documents
    info = Table(columns=set(table.kinds), documents=documents)
    implicit = chosen.name == "preference pairs with implicit prompt"
    if chosen.needs == "@verdicts" and table.verdicts is not None:
        info.reader = table.verdicts
        implicit = not table.have("prompt") and table.hold("text", *table.verdicts.responses)
        read |= table.verdicts.columns
    elif chosen.needs == "@ranked":
        info.reader = table.ranked
        read.add(table.ranked)
    if table.have("rating", "label"):
        read.discard("label")  # the rating is used instead
    unused = {ours: theirs for theirs, ours in aliases.items() if ours not in read}
    if unused:
        found = [{unused.get(name, name): value for name, value in row.items()} for row in found]
        table = FileColumns(found, file)
    remarks = _name_aliases({theirs: ours for theirs, ours in aliases.items() if ours in read})
    if implicit:
        refuse_other_text(table, read, file)
    verdicts = table.verdicts.columns if chosen.needs == "@verdicts" and table.verdicts is not None else set()
    remarks += _find_scales(table, info, read - verdicts)
    if chosen.read in SINGLE and not table.have_any(*responses.RESPONSES):
        read.discard("prompt")  # the messages hold it
    unread = [
        f"{ours!r} (--columns reads {theirs!r} in its place)"
        for theirs, ours in (mapping or {}).items()
        if ours not in (mapping or {}) and any(ours in row for row in rows)
    ]
    unread += name_unread(table, read, chosen, file)
    cells = (cell for name in sorted(read) for cell in islice(table.values(name), 5000))
    remarks += structure.odd_texts(text for cell in cells for text in columns.texts_in(cell))
    info.repeats_prompt = _repeats_prompt(table, read - set(ALWAYS))
    info.is_rendered = _is_rendered(table, read)
    info.has_speakers = _has_speakers(table, read)
    named = _read_as(table, read, aliases, mapping)
    counts = FileCounts(file, chosen.name, columns=named, unread=unread, remarks=remarks)
    return Recognized(found, chosen, info, counts)


def prompt_rows(
    rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None = None
) -> Recognized | None:
    """The rows of a file of prompts only; None for feedback of a known format or a file without prompts."""
    found, table, aliases = _named(rows, file, mapping)
    if any(table.fit(known.needs) for known in FORMATS) or table.kinds.get("prompt") is None:
        return None
    unread = name_unread(table, ALWAYS, PROMPTS, file)
    read, remarks = _read_as(table, ALWAYS, aliases, mapping), _name_aliases(aliases)
    counts = FileCounts(file, PROMPTS.name, columns=read, unread=unread, remarks=remarks)
    return Recognized(found, PROMPTS, Table(columns=set(table.kinds)), counts)


def _named(
    rows: Sequence[Mapping[str, Any]], file: str, mapping: Mapping[str, str] | None
) -> tuple[list[dict[str, Any]], FileColumns, dict[str, str]]:
    """The rows under our column names, their columns, and the mapping from their names to ours."""
    renamed = rename(rows, mapping, file) if mapping else rows
    # Message lists that were written as text are parsed.
    found = [{name: _parsed(name, value) for name, value in row.items()} for row in renamed]
    if _lists_are_text(found):  # CSV files cannot hold lists
        found = [{**row, **{name: structure.parse_texts(row[name]) for name in PAIR_OF_LISTS}} for row in found]
    table = FileColumns(found, file)
    particular = next((known for known in PARTICULAR if table.fit(known.needs)), None)
    joined: dict[str, str] = {}
    if particular is None and {"instruction", "input"} <= table.kinds.keys() and not table.have("prompt"):
        for row in found:
            parts = [str(row.pop(name, None) or "") for name in ("instruction", "input")]
            row["prompt"] = "\n\n".join(filter(str.strip, parts)) or None
        table, joined = FileColumns(found, file), {"instruction and input": "prompt"}
    used = set(particular.reads.split()) if particular else set()
    if particular is None and table.verdicts is not None:
        used = table.verdicts.columns
    aliases = columns.find_aliases(table, used, file)
    if particular is not None:
        aliases = {theirs: ours for theirs, ours in aliases.items() if ours in ("system", "tools")}
    if aliases:
        found = [{aliases.get(name, name): value for name, value in row.items()} for row in found]
        table = FileColumns(found, file)
    if particular is None and table.kinds.get("rejected", "nothing") != "nothing" and not table.have("chosen"):
        single = next((name for name in ("messages", "completion", "response") if table.have(name)), None)
        if single and not table.have_any("label", *ABOUT_ONE):
            found = [_as_pair(row, single) for row in found]
            table, joined = FileColumns(found, file), joined | {single: "chosen"}
    return found, table, joined | aliases


PAIR_OF_LISTS = ("chosen", "rejected")


def _parsed(name: str, value: Any) -> Any:
    """A parsed cell. A response that is a message of another role as JSON is text."""
    parsed = structure.parse_cell(value)
    if isinstance(value, str) and parsed is not value and name in RESPONSE_COLUMNS:
        return parsed if structure.ROLE_NAMES.get(structure.role_of(parsed[-1])) == "assistant" else value
    return parsed


def _lists_are_text(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether chosen and rejected are lists of responses that were written as text, and not answers in JSON: the lists
    differ in length, or the file has columns of a benchmark.
    """

    def sizes(row: Mapping[str, Any]) -> list[int]:
        texts = (row.get(name) for name in PAIR_OF_LISTS)
        return [len(structure.parse_texts(text) or ()) if isinstance(text, str) else 0 for text in texts]

    if not rows or not all(all(sizes(row)) for row in rows):  # ends at the first row of most files
        return False
    of_benchmark = not {"num_correct", "domain", "total_completions"}.isdisjoint(rows[0])
    return of_benchmark or any(len(set(sizes(row))) > 1 for row in rows)


def _as_pair(row: dict[str, Any], single: str) -> dict[str, Any]:
    """A row with a response and a rejected one (ms-swift's rejected_response) as prompt, chosen and rejected."""
    row = dict(row)
    value = row["chosen"] = row.pop(single, None)
    if single == "messages" and isinstance(value, list):
        row |= {"prompt": value[:-1] or row.get("prompt"), "chosen": value[-1:]}
        if isinstance(rejected := row["rejected"], str):
            row["rejected"] = [{"role": "assistant", "content": rejected}]
    return row


def _read_as(
    table: FileColumns, read: Collection[str], aliases: Mapping[str, str], mapping: Mapping[str, str] | None
) -> dict[str, str]:
    """The file's name of each column that is read and not empty, and ours."""
    theirs = {ours: name for name, ours in {**(mapping or {}), **aliases}.items()}
    return {theirs.get(name, name): name for name, kind in table.kinds.items() if name in read and kind != "nothing"}


def _name_aliases(aliases: Mapping[str, str]) -> list[str]:
    renamed = ", ".join(f"{theirs!r} as {ours!r}" for theirs, ours in aliases.items())
    return [f"read {renamed}"] if renamed else []


def _find_scales(table: FileColumns, info: Table, read: set[str]) -> list[str]:
    """Set the scales of ratings that are not in [0, 1]; returns remarks about assumed scales."""
    remarks = []
    for names in (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"), ("rating",), ("label",)):
        present = [name for name in names if name in read and name in table.kinds]
        if present and not (names == ("rating",) and table.have_any("rating_min", "rating_max")):
            scale = columns.scale_of(table, present)
            if names == ("score_chosen", "score_rejected") and _fits(table, present, (0, 10)):
                scale = (0, 10)  # UltraFeedback's, even if a file has only low scores
            if scale is not None:
                info.scales.update(dict.fromkeys(present, (float(scale[0]), float(scale[1]))))
                remarks.append(f"{' and '.join(present)}: assumed to be on a scale from {scale[0]:g} to {scale[1]:g}")
    return remarks


def _fits(table: FileColumns, names: Sequence[str], scale: tuple[float, float]) -> bool:
    values = [columns.as_number(value) for name in names for value in table.values(name)]
    return all(value is not None and scale[0] <= value <= scale[1] for value in values)


def _repeats_prompt(table: FileColumns, read: set[str]) -> bool:
    """Whether at least half of all text responses begin with the text of their prompt."""
    counted = repeating = 0
    for row in table.rows[:10_000]:
        prompt = row.get("prompt")
        if isinstance(prompt, str) and prompt.strip():
            sides = [columns.texts_in(row.get(name)) for name in read & RESPONSE_COLUMNS]
            texts = [side[0].strip() for side in sides if len(side) == 1]
            counted += bool(texts)
            repeating += bool(texts) and all(text.startswith(prompt.strip()) and text != prompt for text in texts)
    return counted > 0 and repeating >= counted / 2


def _is_rendered(table: FileColumns, read: set[str]) -> bool:
    """Whether at least half of the rows have a text with a chat template's turn marks inside."""
    rows = table.rows[:2000]
    marked = sum(
        any(isinstance(text := row.get(name), str) and structure.has_turns_inside(text) for name in read)
        for row in rows
    )
    return marked > 0 and marked >= len(rows) / 2


def _has_speakers(table: FileColumns, read: set[str]) -> bool:
    """Whether at least half of the rows have a prompt "Human: ..." and a response "Assistant: ..."."""
    rows = table.rows[:2000]

    def begins(row: Mapping[str, Any], name: str, mark: str) -> bool:
        return isinstance(text := row.get(name), str) and text.lstrip().startswith(mark)

    marked = sum(
        begins(row, "prompt", structure.HUMAN)
        and any(begins(row, name, structure.ASSISTANT) for name in read & RESPONSE_COLUMNS)
        for row in rows
    )
    return marked > 0 and marked >= len(rows) / 2


RESPONSE_COLUMNS = frozenset(
    ["chosen", "rejected", "response", "completion", "response_a", "response_b", "response_0", "response_1"]
)


def _unknown(table: FileColumns, file: str) -> DataError:
    found = ", ".join(table.kinds) or "none"
    near = {
        name: ours for name in table.kinds for ours in COLUMNS if name != ours and name.lower().strip() == ours.lower()
    }
    hint = " ".join(f"{theirs}={ours}" for theirs, ours in near.items())
    return DataError(
        f"these columns match no known feedback format: {found}",
        where=file,
        expected="one of: " + "; ".join(f"{known.name} ({known.shape})" for known in FORMATS),
        remedy=f"did you mean --columns {hint}?"
        if hint
        else "say which column is which, for example --columns question=prompt better=chosen worse=rejected",
    )


def rename(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str], file: str) -> list[dict[str, Any]]:
    """Rows with renamed columns; `mapping` maps their names to ours, or to `IGNORE`.

    Other columns keep their names. A column whose name is the target of another one is dropped. Raises DataError: a
    column that no row has, an unknown target, or two columns with the same target.
    """
    present = list(dict.fromkeys(name for row in rows for name in row))
    for theirs, ours in mapping.items():
        missing = f"--columns names {theirs!r}, which the file does not have"
        unknown = f"--columns maps {theirs!r} to {ours!r}, which is not a column that is read"
        for name, names, what, expected in (
            (theirs, present, missing, "one of its columns: "),
            (ours, sorted(COLUMNS), unknown, "one of "),
        ):
            if name not in names:
                near = did_you_mean(name, names)
                raise DataError(what, where=file, expected=expected + ", ".join(names) + near)
    targets = [ours for ours in mapping.values() if ours != IGNORE]
    if len(set(targets)) != len(targets):
        raise DataError("--columns maps two columns to one name", where=file, remedy="map each to a name of its own")
    return [
        {
            mapping.get(name, name): value
            for name, value in row.items()
            if mapping.get(name) != IGNORE and (name in mapping or name not in targets)
        }
        for row in rows
    ]
