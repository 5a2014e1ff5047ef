"""`Criterion`, and its file `criteria.yaml`, which people read, edit or write by hand.

    criteria:
      - statement: is at most two sentences long
        measure: sentences            # a detector, "question", or "function: my_code.py:shortness"
        target: [0, 2]                # or direction: more, direction: less
        weight: 0.5

Only `statement` is required: without a measure, the statement is asked as a question. A saved reward model has the same
file, with fitted weights and their intervals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from rrm_lm.errors import ConfigError, DataError, did_you_mean
from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.options import refuse_repeats
from rrm_lm.storage import plain, write_text

CRITERIA_FILE = "criteria.yaml"
QUESTION, FUNCTION = "question", "function"
DIRECTIONS = ("more", "less", "target")
_LARGEST = 1e9  # weight, mean or scale, so that rewards stay finite
WEIGHT = 0.5  # of a criterion without one: reward per standard deviation of the measure


@dataclass(frozen=True, slots=True)
class Quotation:
    """A clause that named a criterion, and where it was said, such as "feedback.jsonl, row 3"."""

    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Criterion:
    """Something people want of a response, and how it is measured.

    Raises ConfigError if the measure is unknown or a value is invalid; `where` names the place.
    """

    statement: str  # completes "A good response ..."
    name: str = ""  # by default the measure or the statement, in one word
    measure: str = QUESTION  # a detector, "question", "question: TEXT", or "function: file.py:name"
    direction: str = "more"  # whether a good response has more or less of the measure, or is within `target`
    target: tuple[float, float] | None = None  # with direction target: the smallest and the largest good value
    weight: float = WEIGHT  # reward per standard deviation in the wanted direction; before fitting, the prior's mean
    low: float | None = None  # 95% interval of a fitted weight
    high: float | None = None
    mean: float | None = None  # mean and standard deviation of the measure over the training responses
    scale: float | None = None
    named: int = 0  # clauses that name it
    faults: int = 0  # of these, the ones that find fault with their response
    against: int = 0  # clauses that want the opposite
    quotations: tuple[Quotation, ...] = ()
    where: str = ""

    def __post_init__(self) -> None:
        if not self.statement.strip():
            raise ConfigError("A criterion has no statement", where=self.where, expected="what a good response does")
        kind, _, rest = self.measure.partition(":")
        if kind not in (QUESTION, FUNCTION) and self.measure not in DETECTORS:
            raise _unknown("measure", self.measure, [*DETECTORS, QUESTION, FUNCTION], self.where)
        if kind == FUNCTION and ":" not in rest:
            expected = "function: module:function or function: path/to/file.py:function"
            raise ConfigError(f"The measure {self.measure!r} names no function", where=self.where, expected=expected)
        if self.direction not in DIRECTIONS:
            raise _unknown("direction", self.direction, DIRECTIONS, self.where)
        is_range = self.target is not None and self.target[0] <= self.target[1]
        if (self.direction == "target") != is_range:
            raise ConfigError(
                f"direction is {self.direction} and target is {self.target}",
                where=self.where,
                expected="direction more or less, or a target of two numbers, the smaller first: target: [3, 5]",
            )
        if not all(abs(one) < _LARGEST for one in (self.weight, self.mean or 0.0)):
            raise ConfigError("A weight or mean is not finite, or very large", where=self.where, expected="numbers")
        if self.scale is not None and not 1 / _LARGEST < self.scale < _LARGEST:
            raise ConfigError(f"The scale is {self.scale}", where=self.where, expected="a standard deviation above 0")
        if not self.name:
            words = re.findall(r"\w+", self.statement if kind in (QUESTION, FUNCTION) else self.measure)
            object.__setattr__(self, "name", "_".join(words)[:40].lower())

    def value(self, measured: float) -> float:
        """The measure in the wanted direction: its value, its negative, or minus the distance from the target."""
        if self.direction == "target" and self.target is not None:
            return -max(self.target[0] - measured, measured - self.target[1], 0.0)
        return -measured if self.direction == "less" else measured

    @property
    def question(self) -> str:
        """What a model is asked, if the measure is a question; "" otherwise."""
        kind, _, rest = self.measure.partition(":")
        return (rest.strip() or f"Is this true of the reply: it {self.statement}?") if kind == QUESTION else ""

    @property
    def function(self) -> str:
        """The location of the Python function, if the measure is one; "" otherwise."""
        kind, _, rest = self.measure.partition(":")
        return rest.strip() if kind == FUNCTION else ""

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, in a form for YAML."""
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "where"}
        found = {name: value for name, value in found.items() if name == "weight" or value not in (None, 0, (), "")}
        if "target" in found:
            found |= {"target": list(found["target"])}
            del found["direction"]
        found["quotations"] = [{"text": one.text, "where": one.where} for one in self.quotations]
        rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in found.items()}
        return {name: value for name, value in rounded.items() if value != []}


def _unknown(what: str, given: Any, known: Iterable[str], where: str) -> ConfigError:
    known = list(known)
    hint = did_you_mean(given, known)
    return ConfigError(f"There is no {what} {given!r}{hint}", where=where, expected="one of " + ", ".join(known))


def read_criteria(path: str | Path) -> list[Criterion]:
    """Read criteria.yaml. Raises DataError if there is no such file or it is not YAML, and ConfigError, which names
    the criterion, for an unknown key or measure, an invalid value, or a name that occurs twice.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        remedy = "rrm-lm criteria --dataset my_feedback.jsonl --output criteria.yaml writes one"
        raise DataError(f"The criteria cannot be read ({reason})", where=str(path), remedy=remedy) from error
    entries = content.get("criteria") if isinstance(content, Mapping) else content
    if not isinstance(entries, list) or not entries:
        expected = "`criteria:` followed by a list, each with a statement"
        raise ConfigError("There are no criteria in the file", where=str(path), expected=expected)
    found = [_criterion(entry, f"{path}, criterion {number}") for number, entry in enumerate(entries, start=1)]
    refuse_repeats(str(path), [one.name for one in found])
    return found


def _criterion(entry: Any, where: str) -> Criterion:
    known = [item.name for item in fields(Criterion) if item.name != "where"]
    if isinstance(entry, str):
        entry = {"statement": entry}
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{entry!r} is not a criterion", where=where, expected="a mapping with a statement")
    for key in entry:
        if key not in known:
            raise _unknown("key", key, known, where)
    values: dict[str, Any] = {"statement": "", **entry, "where": where}
    try:
        if entry.get("target") is not None:
            low, high = entry["target"]
            if entry.get("direction", "target") != "target":
                raise ValueError(f"a target, and direction {entry['direction']}")
            values |= {"target": (float(low), float(high)), "direction": "target"}
        for name in ("weight", "low", "high", "mean", "scale"):
            if isinstance(entry.get(name), bool):
                raise ValueError(f"{name} is {entry[name]}")
            values |= {name: float(values[name])} if values.get(name) is not None else {}
        values["quotations"] = tuple(
            Quotation(one, "") if isinstance(one, str) else Quotation(str(one["text"]), str(one.get("where", "")))
            for one in entry.get("quotations") or ()
        )
        return Criterion(
            **{**values, "statement": str(values["statement"]), "measure": str(entry.get("measure", QUESTION))}
        )
    except (TypeError, ValueError, KeyError) as error:
        expected = "numbers, target: [low, high], and quotations with a text"
        raise ConfigError(f"A value is invalid ({error})", where=where, expected=expected) from error


def write_criteria(path: str | Path, criteria: Iterable[Criterion], comment: str = "") -> None:
    """Write criteria.yaml; the lines of `comment` come first."""
    entries = [plain(criterion.to_dict(), only_finite=False) for criterion in criteria]
    text = yaml.safe_dump({"criteria": entries}, sort_keys=False, allow_unicode=True, width=110)
    write_text(path, "".join(f"# {line}\n" for line in comment.splitlines()) + text)
