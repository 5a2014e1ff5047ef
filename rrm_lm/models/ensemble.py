"""Reward ensembles: several heads on one reward adapter, how they are combined, and how much they disagree.

Every member is a linear head on the same hidden states. All are trained jointly with the adapter, each on its own
bootstrap of the prompts (the linear-layer ensemble of Zhang et al. 2024, arXiv 2401.16635, with the masks of Osband et
al. 2016, arXiv 1602.04621). Scoring takes one forward pass for any number of members.

Members disagree along directions of the hidden states that the feedback leaves undetermined, because few or no prompts
depend on them. They share all errors of the hidden states. Separate adapters would differ there too, at the cost of a
forward pass and an adapter each, but members fine-tuned from one pretrained model still share many errors (Eisenstein
et al. 2023, arXiv 2312.09244).

Comparisons determine a member's rewards only up to a constant per prompt. `center_rewards_coefficient` pulls every
member's rewards to zero, so that minimum and standard deviation are meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rrm_lm.errors import ConfigError

COMBINATIONS = ("mean", "min", "mean_minus_std")


class EnsembleReward(float):
    """A reward as a float, with the standard deviation of the ensemble members' rewards."""

    std: float  # standard deviation of the members' rewards, divided by their number

    def __new__(cls, reward: float, std: float) -> EnsembleReward:
        made = super().__new__(cls, reward)
        made.std = std
        return made

    def __reduce__(self) -> Any:
        return EnsembleReward, (float(self), self.std)


def with_added(reward: float, part: float) -> float:
    """A reward plus another part, which has no disagreement."""
    return EnsembleReward(reward + part, reward.std) if isinstance(reward, EnsembleReward) else reward + part


@dataclass(frozen=True, slots=True)
class Ensemble:
    """How members are combined into one reward.

    ``min`` and ``mean_minus_std`` are the worst-case and (with the standard deviation in place of the variance) the
    uncertainty-weighted reward of Coste et al. 2023 (arXiv 2310.02743). Raises ConfigError for no members or an unknown
    combination.
    """

    heads: int = 1  # number of members
    combine: str = "mean"  # one of :data:`COMBINATIONS`
    k: float = 1.0  # standard deviations to subtract from the mean, with mean_minus_std

    def __post_init__(self) -> None:
        for name, value, is_valid, expected in (
            ("ensemble_heads", self.heads, self.heads >= 1, "at least 1"),
            ("ensemble", self.combine, self.combine in COMBINATIONS, "one of " + ", ".join(COMBINATIONS)),
            ("ensemble_k", self.k, 0 <= self.k < float("inf"), "0 or more"),
        ):
            if not is_valid:
                raise ConfigError(f"{name} is {value!r}", where=name, expected=expected)

    def __call__(self, members: Tensor) -> Tensor:
        """Combine the members' rewards: (..., heads) -> (...)."""
        if members.shape[-1] == 1:
            return members.sum(-1)  # not a view, which a sharded model must not return
        if self.combine == "min":
            return members.amin(-1)
        mean = members.mean(-1)
        return mean if self.combine == "mean" else mean - self.k * members.std(-1, correction=0)

    def rewards(self, members: Sequence[Sequence[float]]) -> list[float]:
        """Combine each member's rewards into one per response; :class:`EnsembleReward` if there are several members."""
        if self.heads == 1:
            return [one[0] for one in members]
        if not members:
            return []
        table = torch.tensor([list(one) for one in members], dtype=torch.float64)
        found = zip(self(table).tolist(), table.std(-1, correction=0).tolist(), strict=True)
        return [EnsembleReward(reward, std) for reward, std in found]


def disagreement(rewards: Sequence[float]) -> float | None:
    """Mean standard deviation of rewards over the members; ``None`` if the rewards are not an ensemble's."""
    spreads = [reward.std for reward in rewards if isinstance(reward, EnsembleReward)]
    return sum(spreads) / len(spreads) if spreads else None
