"""The numbers of the overview."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from rrm_lm.asking.desk import Desk
from rrm_lm.asking.training import FEW, LEAST, Trainer
from rrm_lm.evaluation.statistics.agreement import agreement
from rrm_lm.feedback.criteria.reader import read_critique, statement
from rrm_lm.feedback.store.events import BOTH_BAD, FIRST, SECOND, SKIP, TIE, Answer

_NAMED = 8  # criteria that are shown


def overview_numbers(desk: Desk, trainer: Trainer | None) -> dict[str, Any]:
    state = desk.state
    answers = state.answers()
    agreed = agreement(state.verdicts())
    speeds: dict[str, list[float]] = {}
    for event, answer in answers:
        speeds.setdefault(event.person, []).extend([] if answer.seconds is None else [answer.seconds])
    counts = Counter(event.person for event, _ in answers)
    people = [
        {
            "name": person,
            "answers": count,
            "seconds": statistics.median(speeds[person]) if speeds[person] else None,
            "agreement": agreed["people"].get(person),
        }
        for person, count in counts.most_common()
    ]
    return {
        "answers": len(answers),
        "items": len(state.items),
        "complete": sum(len(state.people_of(name)) >= desk.overlap for name in state.items),
        "said": in_words(part for _, answer in answers for part in parts_of(answer)),
        "criteria": Counter(name for _, answer in answers for name in answer.criteria),
        "named": Counter(
            wish
            for _, answer in answers
            for about in answer.about
            for wish in {wish for critique in about.critiques for wish in wishes(critique)}
        ).most_common(_NAMED),
        "people": people,
        "agreement": agreed,
        "training": None if trainer is None else _training(trainer),
        "store": str(desk.store.path),
    }


def _training(trainer: Trainer) -> dict[str, Any]:
    numbers = {"least": LEAST, "few": FEW, "compared": trainer.counts()[0]}
    return {"rounds": trainer.rounds, "running": trainer.is_running, "problem": trainer.problem, **numbers}


@lru_cache(10_000)
def wishes(critique: str) -> tuple[str, ...]:
    """What a critique asks of answers, as statements of criteria."""
    read = [reading for _, readings in read_critique(critique) for reading in readings]
    return tuple(statement(one.aspect, one.wants) for one in read)


def parts_of(answer: Answer) -> list[str]:
    """The kinds of feedback in an answer, each in the singular."""
    kinds = {FIRST: "preference", SECOND: "preference", TIE: "tie", BOTH_BAD: "pair of bad answers", SKIP: "skip"}
    found = [kinds[answer.verdict]] if answer.verdict else []
    for about in answer.about:
        found += ["critique"] * len(about.critiques) + ["rating"] * (about.rating is not None)
        found += ["correction"] * bool(about.corrected)
        found += [{"goal": "goal example", "unacceptable": "unacceptable outcome"}[about.goal]] if about.goal else []
    return found + ["demonstration"] * bool(answer.demonstration)


def in_words(parts: Iterable[str]) -> str:
    """Kinds of feedback with their counts: `1 preference, 2 critiques`."""
    counts = Counter(parts).items()
    plural = {kind: kind.replace("pair", "pairs") if kind.startswith("pair") else f"{kind}s" for kind, _ in counts}
    return ", ".join(f"{count} {kind if count == 1 else plural[kind]}" for kind, count in counts)
