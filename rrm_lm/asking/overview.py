"""The numbers of the overview."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from rrm_lm.asking.desk import Desk
from rrm_lm.asking.training import FEW, LEAST, Trainer
from rrm_lm.evaluation.statistics.agreement import agreement
from rrm_lm.feedback.store.events import FIRST, SECOND, SKIP, Answer


def overview_numbers(desk: Desk, trainer: Trainer | None) -> dict[str, Any]:
    """What the template of the overview shows."""
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
        "kinds": Counter(part for _, answer in answers for part in parts_of(answer)),
        "people": people,
        "agreement": agreed,
        "training": None if trainer is None else _training(trainer),
        "store": str(desk.store.path),
    }


def _training(trainer: Trainer) -> dict[str, Any]:
    running = trainer.process is not None and trainer.process.poll() is None
    numbers = {"least": LEAST, "few": FEW, "compared": trainer.counts()[0]}
    return {"rounds": trainer.rounds, "running": running, "problem": trainer.problem, **numbers}


def parts_of(answer: Answer) -> list[str]:
    """The kinds of feedback in an answer, in the plural."""
    kinds = {FIRST: "preferences", SECOND: "preferences", SKIP: "skips", "tie": "ties", "both_bad": "both bad"}
    found = [kinds[answer.verdict]] if answer.verdict else []
    for about in answer.about:
        found += ["critiques"] * len(about.critiques) + ["ratings"] * (about.rating is not None)
        found += ["corrections"] * bool(about.corrected)
        found += [{"goal": "goal examples", "unacceptable": "unacceptable outcomes"}[about.goal]] if about.goal else []
    return found + ["demonstrations"] * bool(answer.demonstration) + [f"“{name}”" for name in answer.criteria]


def said_what(answer: Answer) -> str:
    """An answer in a few words."""
    return ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in Counter(parts_of(answer)).items())
