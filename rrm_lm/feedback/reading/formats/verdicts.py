"""Rows with response A, response B and a verdict: LMSYS arena, PKU-SafeRLHF, SHP, WebGPT comparisons and others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.formats.pairs import TIE_GRADE, Side, pair, split_shared
from rrm_lm.feedback.reading.formats.row import Row, as_number, is_nothing
from rrm_lm.feedback.reading.formats.structure import parse_texts, split_name
from rrm_lm.feedback.records import Message, Prompt, Record

TIE_BAD = "tie: the overseer found both responses bad"
SUFFIXES = (("a", "b"), ("0", "1"), ("1", "2"), ("first", "second"), ("left", "right"), ("one", "two"))
RESPONSE_WORDS = (
    *("response", "answer", "completion", "output", "conversation", "ref", "reply", "summary", "generation"),
    *("candidate", "option", "text"),
)
VERDICTS = (
    *("preference", "preferred", "winner", "choice", "better_response_id", "better", "human_preference"),
    *("preferred_response", "chosen", "verdict", "label", "labels", "outcome", "result", "vote"),
)
ONE_HOT_WORDS, SCORE_WORDS = ("winner", "wins", "win", "won", "preferred", "better"), ("score", "rating", "reward")
TIES = frozenset(["tie", "ties", "equal", "same", "both", "draw", "nopreference", "tiebothgood", "bothgood"])
BOTH_BAD = frozenset(["tiebothbad", "bothbad", "neither", "bothworse", "allbad"])


@dataclass(frozen=True)
class Verdicts:
    """The columns of two responses and of the verdict on them."""

    responses: tuple[str, str]  # the columns of the first and the second response
    verdict: str = ""  # the column that names the better one; "" if `marks` do
    # columns of the first and the second response that hold 1 for the better one, or scores
    marks: tuple[str, str] | tuple[()] = ()
    ties: tuple[str, ...] = ()  # columns that are 1 for a tie
    # the normalized values of the verdict column that mean the first and the second response
    words: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())

    @property
    def columns(self) -> set[str]:
        models = (pair_name(self.responses[0], "model"), pair_name(self.responses[1], "model"))
        return {*self.responses, self.verdict, *self.marks, *self.ties, *models} - {""}


def find_verdicts(kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]], file: str) -> Verdicts | None:
    """Find the columns of two responses and a verdict in a file; None if there are none. `kinds` is the kind of each
    column, as in `columns.Columns.kinds`. Raises DataError for a verdict whose direction is unclear.
    """
    found = _pair_of_columns(kinds, RESPONSE_WORDS, ("text", "messages", "transcript", "texts"))
    if found is None:
        return None
    responses, suffixes = found
    rest = {name: kind for name, kind in kinds.items() if name not in responses}
    numbers = {name: kind for name, kind in rest.items() if kind in ("number", "flag") or _spells_numbers(name, rows)}
    for name in VERDICTS:
        if rest.get(name, "nothing") in ("text", "number", "flag"):
            return Verdicts(responses, name, words=_words(name, responses, suffixes, rows, file))
    one_hot = _pair_of_columns(numbers, ONE_HOT_WORDS, tuple(set(numbers.values())))
    if one_hot is not None:
        marks = one_hot[0]
        stem = set(split_name(marks[0])) & set(split_name(marks[1]))
        ties = [
            name
            for name in numbers
            if (name not in marks and stem & set(split_name(name))) or "tie" in split_name(name)
        ]
        return Verdicts(responses, marks=marks, ties=tuple(ties))
    scores = _pair_of_columns(numbers, SCORE_WORDS, tuple(set(numbers.values())))
    return Verdicts(responses, marks=scores[0]) if scores is not None else None


def read_verdict(row: Row) -> Iterator[Record]:
    """Two responses and the better one. Ties are counted; "both bad" is counted separately."""
    verdicts: Verdicts = row.table.reader
    prompt, first, second = _responses(row, verdicts.responses)
    better, margin = _better(row, verdicts)
    if better is None:
        return
    sides = (Side(first), Side(second)) if better == 0 else (Side(second), Side(first))
    yield from pair(row, prompt, *sides, margin=margin)


def _responses(row: Row, names: tuple[str, str]) -> tuple[Prompt, str, str]:
    values = [row.require(name) for name in names]
    turns = [parse_texts(value) or [] for value in values]
    asked = parse_texts(row.values.get("prompt"))
    # Lists as in the arena: all user turns, and all turns of each model. A list as text may also be the answer itself.
    if all(turns) and (asked or all(isinstance(value, list) for value in values)):
        asked = asked or [row.text("prompt")]
        if not all(len(answers) == len(asked) for answers in turns):
            row.fail(names[0], f"has {len(turns[0])} turns and the prompt {len(asked)}", "as many responses as prompts")
        talks = [
            tuple(
                message
                for question, answer in zip(asked, answers, strict=True)
                for message in (Message("user", question), Message("assistant", answer))
            )
            for answers in turns
        ]
        prompt, first, second = split_shared(row, talks[0], talks[1], names)
        return row.in_context(prompt), first, second
    if all(isinstance(value, list) for value in values) and not row.has("prompt"):
        talks = [row.messages(name) for name in names]
        prompt, first, second = split_shared(row, talks[0], talks[1], names)
        return row.in_context(prompt), first, second
    prompt = row.prompt()
    return prompt, row.response(names[0], prompt), row.response(names[1], prompt)


def _better(row: Row, verdicts: Verdicts) -> tuple[int | None, float | None]:
    """(index of the better response, margin). The index is None for a tie, which is counted."""
    if verdicts.marks:
        values = [row.number(name) for name in verdicts.marks]
        if values[0] == values[1]:
            tied = [name for name in verdicts.ties if row.optional_number(name)]
            bad = any("bad" in name.lower() or "neither" in name.lower() for name in tied)
            row.drop(TIE_BAD if bad else TIE_GRADE)
            return None, None
        return int(values[1] > values[0]), None if verdicts.ties else abs(values[0] - values[1])
    value = row.require(verdicts.verdict)
    word = normalize(value)
    for place, name in enumerate(verdicts.responses):
        model = row.label(pair_name(name, "model"))
        if word in verdicts.words[place] or (model and normalize(model) == word) or value == row.values[name]:
            return place, None
    if word not in TIES | BOTH_BAD:
        row.fail(verdicts.verdict, f"is {value!r}", "the name of one of the two responses, or tie")
    row.drop(TIE_BAD if word in BOTH_BAD else TIE_GRADE)
    return None, None


def _words(
    name: str, responses: tuple[str, str], suffixes: tuple[str, str], rows: Sequence[Mapping[str, Any]], file: str
) -> tuple[frozenset[str], frozenset[str]]:
    values = {normalize(row[name]) for row in islice(rows, 100_000) if not is_nothing(row.get(name))} - TIES - BOTH_BAD
    words = [
        {suffix, normalize(column)}
        | {word + suffix for word in ("model", "assistant", "option", "system", *RESPONSE_WORDS)}
        for suffix, column in zip(suffixes, responses, strict=True)
    ]
    if values and values <= {"0", "1", "2", "3", "-1", "true", "false"}:
        shp = name == "labels" and "ref" in split_name(responses[0])
        if shp and values <= {"0", "1"}:
            return frozenset({"1"}), frozenset({"0"})  # SHP: 1 means that A is preferred
        unclear = name in ("label", "labels", "verdict", "result", "outcome") and values & {"0", "true", "false"}
        named = values <= set(suffixes)
        only_one = values == {"1"}  # the second of 0 and 1, or the first of 1 and 2
        if not named and (unclear or only_one or not (values <= {"0", "1"} or values <= {"1", "2"})):
            first = responses[0]
            rename = f"pass --columns {name}=preference if 0 stands for {first}; else also swap the responses"
            raise DataError(
                f"the values of {name!r} do not say which response is better: {', '.join(sorted(values))}",
                where=file,
                expected=f"the name of the better response, such as {first}, or its place, 0 or 1, in a column named "
                "preference, winner or choice",
                remedy=f"write the name of the better response instead of {name} 1" if only_one else rename,
            )
        if not named:
            words = [{"0"}, {"1"}] if values <= {"0", "1"} else [{"1"}, {"2"}]
    return frozenset(words[0]), frozenset(words[1])


def normalize(value: Any) -> str:
    """A verdict as letters and digits: "Model A" is "modela", 1.0 is "1"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r"[^a-z0-9\-]", "", str(value).lower())


def pair_name(column: str, word: str) -> str:
    """`model_a` for `response_a`: the column about the same response whose name begins with `word`."""
    parts = re.split(r"[_\-\s]", column)
    return "_".join([word, parts[-1]])


def _pair_of_columns(
    kinds: Mapping[str, str], stems: Sequence[str], allowed: Sequence[str]
) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Two columns whose names differ only in a suffix such as a and b, for the first stem that has such a pair."""
    by_words = {tuple(split_name(name)): name for name, kind in kinds.items() if kind in allowed}
    for stem in stems:
        for words, name in by_words.items():
            for one, two in SUFFIXES:
                if stem in {word.rstrip("s") for word in words} | set(words) and one in words:
                    place = len(words) - 1 - words[::-1].index(one)
                    other = by_words.get((*words[:place], two, *words[place + 1 :]))
                    if other is not None and kinds[other] == kinds[name]:
                        return (name, other), (one, two)
    return None


def _spells_numbers(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row.get(name) for row in islice(rows, 50)]
    filled = [value for value in values if not is_nothing(value)]
    return bool(filled) and all(as_number(value) is not None for value in filled)
