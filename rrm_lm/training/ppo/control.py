"""What steers a run from update to update: the KL coefficient, the rewards' scale, and when it has gone too far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rrm_lm.training.ppo.losses import Total


@dataclass(slots=True)
class KLControl:
    """The coefficient of the KL penalty, fixed or steered (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    Attributes:
        coefficient: What a nat of KL divergence costs.
        target: KL divergence aimed at, in nats a response; ``None`` keeps the coefficient.
        gain: How fast it moves.
    """

    coefficient: float
    target: float | None = None
    gain: float = 0.1

    def update(self, kl: float) -> None:
        """Move the coefficient: up where `kl`, the mean of the last episodes, is above the target, down below."""
        if self.target is not None:
            error = min(0.2, max(-0.2, kl / self.target - 1.0))
            self.coefficient *= 1.0 + self.gain * error


@dataclass(slots=True)
class RewardScale:
    """Mean and standard deviation of all rewards so far (Chan, Golub and LeVeque 1979: sums of batches, merged).

    Attributes:
        count, mean, squares: Of the rewards: how many, their mean, their summed squared distance from it.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, rewards: Tensor, total: Total) -> None:
        """Take in a batch; `total` sums over processes."""
        rewards = rewards.double()
        count, added = total(torch.stack([torch.ones_like(rewards).sum(), rewards.sum()])).tolist()
        mean = added / count
        squares = float(total(((rewards - mean) ** 2).sum()))
        both = self.count + count
        distance = mean - self.mean
        self.squares += squares + distance**2 * self.count * count / both
        self.mean += distance * count / both
        self.count = both

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 1.0

    def __call__(self, rewards: Tensor) -> Tensor:
        """Rewards shifted and scaled; a constant becomes zero."""
        return (rewards - self.mean) / max(self.deviation, 1e-8)


@dataclass(slots=True)
class Steering:
    """All that a checkpoint has to keep of this module."""

    kl: KLControl
    scale: RewardScale

    def state(self) -> dict[str, Any]:
        return {"kl": asdict(self.kl), "scale": asdict(self.scale)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; target and gain are the settings' of now, and so is a coefficient that is fixed."""
        if self.kl.target is not None:
            self.kl.coefficient = float(state["kl"]["coefficient"])
        self.scale = RewardScale(**state["scale"])


def runaway(name: str, value: float, most: float | None, setting: str) -> str | None:
    """Why training has to stop, or ``None``: the value is above the most, or no number."""
    if not math.isfinite(value):
        return f"{name} is {value}"
    if most is not None and value > most:
        return f"{name} is {value:.4g}, above {setting} {most:g}"
    return None
