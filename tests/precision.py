"""Tests of numbers run on a float32 and on a bfloat16 backbone; adapters and heads are in float32 on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rrm_lm.models.pretrained import rounding


@dataclass(frozen=True)
class Precision:
    """How far apart two computations of the same numbers may be."""

    dtype: torch.dtype  # of the backbone

    def bound(self, exact: float, largest: float = 1.0) -> float:
        """`exact` in float32; in bfloat16 what :func:`rrm_lm.models.pretrained.rounding` allows for numbers up to
        `largest`.
        """
        return exact if self.dtype == torch.float32 else rounding(self.dtype, torch.device("cpu")) * largest

    def close(self, mine: Tensor | Sequence[float], theirs: Tensor | Sequence[float], exact: float = 1e-5) -> None:
        """Assert that no number is further from the other than the bound, relative to the largest in bfloat16."""
        one, other = (torch.as_tensor(numbers).detach().double() for numbers in (mine, theirs))
        assert one.shape == other.shape
        allowed = self.bound(exact * (1 + float(other.abs().max())), float(other.abs().max()))
        assert float((one - other).abs().max()) <= allowed

    def most_likely(self, model: Any, prompt: Sequence[int], response: Sequence[int]) -> None:
        """Assert that a pass over the whole has each token of the response as the most likely one; in bfloat16, its
        logit may be below the highest by the bound, relative to the largest.
        """
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].float()
        below = logits.amax(-1) - logits[range(len(response)), list(response)]
        assert float(below.max()) <= self.bound(0.0, float(logits.abs().max()))

    def same_change(
        self, one: dict[str, Tensor], other: dict[str, Tensor], before: dict[str, Tensor], exact: float
    ) -> None:
        """Assert that two trainings changed a model's parameters alike; the bound in bfloat16 is relative to the
        largest change.
        """
        changes = [{name: state[name].double() - before[name].double() for name in before} for state in (one, other)]
        largest = max(float(change.abs().max()) for change in changes[0].values())
        furthest = max(float((changes[0][name] - changes[1][name]).abs().max()) for name in before)
        assert largest > 0 and furthest <= self.bound(exact, largest)
