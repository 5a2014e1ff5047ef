"""The controls of the recursion experiment: notes that do not come from helpers, responses that need no reward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from rrm_lm.feedback.asking.collection import Subject
from rrm_lm.feedback.records import Prompt
from rrm_lm.recursion.assistance import Assistance
from rrm_lm.recursion.notes import Note
from rrm_lm.recursion.tasks import POINT, Domain, MainTask


class MeasuredNotes:
    """True notes on some responses, from measuring every aspect: the helpers' checks spent without helpers.

    Args:
        domain: The domain with the aspects.
        measured: The responses that are measured. Others have no notes.
    """

    def __init__(self, domain: Domain, measured: frozenset[Subject]) -> None:
        self.domain, self.measured = domain, measured
        self.aspects = [name for name in MainTask(domain).helpers if name != POINT]

    def prepare(self, subjects: Sequence[Subject]) -> None:
        pass

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        if (prompt, response) not in self.measured:
            return ()
        found = ((name, self.domain.aspects[name]) for name in self.aspects)
        return tuple(
            Note(name, one.measure(prompt, response), one.evidence(prompt, response)[0]) for name, one in found
        )

    def account(self) -> dict[str, Any]:
        return {"checks": len(self.measured) * len(self.aspects)}


class ShamNotes:
    """The notes on another response to the same prompt: as many and of the same quality, but on the wrong response.

    Args:
        assistance: The source of notes.
        subjects: The responses whose notes are exchanged.
        seed: Seed of the exchange.
    """

    def __init__(self, assistance: Assistance, subjects: Sequence[Subject], seed: int = 0) -> None:
        self.assistance = assistance
        self.other: dict[Subject, Subject] = {}
        rng, groups = random.Random(f"sham {seed}"), dict[Prompt, list[Subject]]()
        for subject in dict.fromkeys(subjects):
            groups.setdefault(subject[0], []).append(subject)
        for group in groups.values():
            rng.shuffle(group)
            self.other |= dict(
                zip(group, group[1:] + group[:1], strict=True)
            )  # one cycle: no response keeps its own notes

    def prepare(self, subjects: Sequence[Subject]) -> None:
        self.assistance.prepare(subjects)

    def notes(self, prompt: Prompt, response: str) -> tuple[Note, ...]:
        return self.assistance.notes(*self.other[prompt, response])

    def account(self) -> dict[str, Any]:
        return self.assistance.account()


def trivial_gold(domain: Domain, requests: Sequence[Prompt], designs: int = 4000) -> dict[str, float]:
    """Mean gold over requests of responses that need no reward model.

    `random` is the domain's drafts; `constant` the one draft that is best for all requests together,
    `constant_by_prompt` the best for each, both of `designs` drafts and chosen by gold, which no policy sees.
    """
    rng = random.Random("trivial")
    prompts = list(dict.fromkeys(requests))
    share = np.array([requests.count(prompt) for prompt in prompts]) / len(requests)
    drafts = list(dict.fromkeys(domain.draft(rng.choice(prompts), rng) for _ in range(designs)))
    gold = np.array([[domain.gold(prompt, draft) for draft in drafts] for prompt in prompts])
    own = [domain.gold(prompt, domain.draft(prompt, rng)) for prompt in requests for _ in range(100)]
    return {
        "random": float(np.mean(own)),
        "constant": float((share @ gold).max()),
        "constant_by_prompt": float(share @ gold.max(axis=1)),
    }
