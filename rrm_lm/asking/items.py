"""Items from files, and a check that a file still holds what the store was filled from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.reading.formats.columns import IGNORE
from rrm_lm.feedback.reading.prompts import prompt_sources
from rrm_lm.feedback.reading.tables import read_tables
from rrm_lm.feedback.records import Prompt
from rrm_lm.feedback.store.events import Item, State
from rrm_lm.settings.feedback import AskArguments


def items_of_responses(args: AskArguments) -> Iterator[Item]:
    """The items of the files of `--responses`: each two responses to a prompt, or its only one.

    A row has `prompt` and a list `responses`, and may have `notes`, a remark or a list of remarks for each response.
    Other feedback gives its responses. Raises DataError: no such file, or a row without a prompt or responses.
    """
    for name in args.responses:
        columns = {column for table in read_tables(name, split=args.split) for _, row in table.rows for column in row}
        if "responses" in columns:
            ignored = {column: IGNORE for column in ("responses", "notes") if column in columns}
            options = args.reading(args.split)
            options["columns"] = {**(options["columns"] or {}), **ignored}
            rows: list[tuple[Prompt, Mapping[str, Any]]] = []
            prompt_sources([name], **options, every_row=rows)
            for prompt, row in rows:
                yield from _pairs(prompt, row.get("responses"), row.get("notes") or [], name)
        else:
            groups: dict[Prompt, dict[str, None]] = {}
            for record in load_feedback(name, **args.reading(args.split)).records():
                texts = (getattr(record, field, None) for field in ("chosen", "rejected", "response"))
                groups.setdefault(record.prompt, {}).update(dict.fromkeys(text for text in texts if text))
            for prompt, responses in groups.items():
                yield from _pairs(prompt, list(responses), [], name)


def _pairs(prompt: Prompt, responses: Any, notes: Any, source: str) -> Iterator[Item]:
    if not isinstance(responses, list) or not all(isinstance(text, str) and text.strip() for text in responses):
        what = f"`responses` is {str(responses)[:60]!r}"
        raise DataError(what, where=f"{source}, the prompt {prompt[-1].content[:60]!r}", expected="a list of texts")
    remarks = [(note,) if isinstance(note, str) else tuple(map(str, note or ())) for note in notes]
    own = dict(zip(responses, remarks, strict=False))
    yield from pairs(prompt, responses, source=source, notes=own)


def pairs(
    prompt: Prompt, responses: Iterable[str], *, notes: dict[str, tuple[str, ...]] | None = None, **about: str
) -> Iterator[Item]:
    """Items of each two different responses to a prompt; of the response or the prompt alone if there are no two."""
    firsts: dict[str, str] = {}
    for text in responses:
        if text.strip():
            firsts.setdefault(text.strip(), text)
    for texts in combinations(firsts.values(), 2) if len(firsts) > 1 else [tuple(firsts.values())]:
        yield Item(prompt, texts, notes=tuple((notes or {}).get(text, ()) for text in texts), **about)


def check_unchanged(state: State, items: Iterable[Item], prompts: Iterable[Prompt], names: Iterable[str]) -> None:
    """Raise a DataError if a file lacks items that the store has from it: it was changed, or is another file."""
    now, prompts, names = {item.id for item in items}, set(prompts), set(names)
    gone = [
        item
        for name, item in state.items.items()
        if item.source in names and name not in now and item.prompt not in prompts
    ]
    if gone:
        raise DataError(
            f"{len(gone)} items of the store are no longer in the file, the first with the prompt "
            f"{gone[0].prompt[-1].content[:60]!r}",
            where=gone[0].source,
            expected="the rows that the store was filled from, and perhaps more",
            remedy="restore the file, or give the changed one another name or another --store",
        )
