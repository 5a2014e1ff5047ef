"""A reward model as an overseer. What it says of unlabelled responses trains another reward model: distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rrm_lm.evaluation.preferences.scorers import ResponseScorer
from rrm_lm.feedback.asking.overseers import Verdict
from rrm_lm.feedback.criteria.records import Criterion
from rrm_lm.feedback.records import Prompt


class RewardOverseer:
    """Compares responses by their rewards. The strength of a verdict is the difference of the two best rewards in nats,
    so that `rrm-lm reward --grades target` learns the same probabilities. It writes no critiques.
    """

    limit = "knows what its reward model learned"

    def __init__(self, scorer: ResponseScorer, name: str) -> None:
        self.scorer, self.name = scorer, f"reward model {name}"

    @property
    def criteria(self) -> list[Criterion]:
        """The criteria in the reward; none for a reward model without them."""
        found = getattr(self.scorer, "criteria", None)
        return [] if found is None else found.criteria

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Prefer the response with the highest reward; equal rewards are a tie, and a response without one abstains."""
        (rewards,) = self.scorer.score([prompt], [list(responses)])
        if not all(map(math.isfinite, rewards)):
            return Verdict(None, abstained="no reward")
        best, second = sorted(map(float, rewards), reverse=True)[:2]
        return Verdict(rewards.index(best), best - second) if best > second else Verdict(None)

    def critique(self, prompt: Prompt, response: str) -> str:
        return ""
