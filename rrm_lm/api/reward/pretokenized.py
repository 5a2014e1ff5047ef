"""Pairs of token ids, as TRL prepares them."""

from __future__ import annotations

from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.text.chat import Encoded, Line
from rrm_lm.training.reward.examples import COLUMNS, ExampleBuilder, LinePair, RewardExample


def is_pretokenized(rows: Any) -> bool:
    """Whether rows hold token ids in ``chosen_ids`` and ``rejected_ids``."""
    columns = getattr(rows, "column_names", None)
    if columns is None and isinstance(rows, list | tuple) and rows and isinstance(rows[0], dict):
        columns = rows[0]
    return columns is not None and set(columns) >= set(COLUMNS)


def encode_ids(rows: Any, builder: ExampleBuilder, name: str) -> list[RewardExample]:
    """One example per pair; the shared beginning of both sequences is the prompt. Raises DataError for ids that are not
    whole numbers, or an empty sequence.
    """
    examples = []
    for number, row in enumerate(rows, 1):
        sides = [list(row[column]) for column in COLUMNS]
        where = f"{name}, row {number}"
        if not all(sides) or not all(isinstance(i, int) and i >= 0 for side in sides for i in side):
            raise DataError("a row has no token ids", where=where, expected="lists of whole numbers, none empty")
        if sides[0] == sides[1]:
            raise DataError("chosen_ids and rejected_ids are the same", where=where, remedy="remove the row")
        longest = builder.chat.max_length
        lines = [_line(side, _shared(*sides), longest) for side in sides]
        margin = row.get("margin")
        pairs = (LinePair(0, 1, None if margin is None else float(margin)),)
        encoded = Encoded(tuple((line,) for line in lines))
        examples.append(builder.lay(encoded, pairs, (), where, prompt_id=str(sides[0][: _shared(*sides)])))
    return examples


def _shared(chosen: list[int], rejected: list[int]) -> int:
    """The length of the shared beginning; at least one id remains as the response."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _line(ids: list[int], start: int, longest: int | None) -> Line:
    cut = 0 if longest is None else max(0, len(ids) - longest)
    return Line(tuple(ids[cut:]), max(0, start - cut), len(ids) - cut - 1)
