"""State that adapts between updates: the KL coefficient, the reward scale, and the last good policy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrm_lm.models.agent_files import restore
from rrm_lm.models.sharding import gather
from rrm_lm.storage import write_json
from rrm_lm.training.processes import Total

_STEERING = "ppo_state.json"
_LAST_GOOD = "last_good.safetensors"


@dataclass(slots=True)
class KLControl:
    """The coefficient of the KL penalty, fixed or adaptive (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    coefficient: float  # the penalty per nat of KL divergence
    target: float | None = None  # target KL divergence in nats per response; `None` keeps the coefficient fixed
    gain: float = 0.1  # how fast the coefficient adapts

    def update(self, kl: float) -> None:
        """Raise the coefficient if `kl`, the mean over the last episodes, is above the target; lower it if below."""
        if self.target is not None:
            self.coefficient *= 1.0 + self.gain * min(0.2, max(-0.2, kl / self.target - 1.0))


@dataclass(slots=True)
class RewardScale:
    """Running mean and standard deviation of rewards, merged from batches (Chan, Golub and LeVeque 1979)."""

    # count, mean, squares: number of rewards, their mean, and the sum of squared deviations
    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, rewards: Tensor, total: Total) -> None:
        """Merge a batch; `total` sums over processes."""
        rewards = rewards.double()
        count, added = total(torch.stack([torch.ones_like(rewards).sum(), rewards.sum()])).tolist()
        both, distance = self.count + count, added / count - self.mean
        squares = float(total(((rewards - added / count) ** 2).sum()))
        self.squares += squares + distance**2 * self.count * count / both
        self.mean += distance * count / both
        self.count = both

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 1.0

    def __call__(self, rewards: Tensor) -> Tensor:
        """Standardize rewards; constant rewards become zero."""
        return (rewards - self.mean) / max(self.deviation, 1e-8)


@dataclass(slots=True)
class Steering:
    """The numbers that a checkpoint keeps."""

    kl: KLControl
    scale: RewardScale

    def save(self, folder: Path) -> None:
        write_json(folder / _STEERING, asdict(self))

    def load(self, folder: Path) -> None:
        """Load a saved state. Target, gain and a fixed coefficient come from the current settings."""
        state = json.loads((folder / _STEERING).read_text(encoding="utf-8"))
        if self.kl.target is not None:
            self.kl.coefficient = float(state["kl"]["coefficient"])
        self.scale = RewardScale(**state["scale"])


class LastGood:
    """A copy of the trained weights from the last time that the policy's KL divergence was within bounds."""

    def __init__(self, trained: Callable[[], dict[str, nn.Parameter]]) -> None:
        self._trained = trained
        self.weights: dict[str, Tensor] | None = None  # the copy, once there is one

    def keep(self) -> None:
        self.weights = {name: parameter.detach().clone() for name, parameter in self._trained().items()}

    def put_back(self) -> str:
        """Restore the copy; return a message for the log."""
        if self.weights is None:
            return "the policy is kept: there is no earlier one to restore"
        restore(self._trained(), self.weights)
        return "the policy is the last one whose KL divergence was within bounds"

    def save(self, folder: Path, write: bool) -> None:
        """Save the copy. Called by all processes; `write` is True in one of them."""
        weights = gather(self.weights or {})
        if weights and write:
            save_file(weights, folder / _LAST_GOOD, metadata={"format": "pt"})

    def load(self, folder: Path, device: torch.device) -> None:
        file = folder / _LAST_GOOD
        self.weights = load_file(file, device=str(device)) if file.is_file() else None


def out_of_bounds(name: str, value: float, most: float | None, setting: str) -> str | None:
    """Why training must stop, or ``None``: the value is above the maximum or NaN."""
    if not math.isfinite(value):
        return f"{name} is {value}"
    if most is not None and value > most:
        return f"{name} is {value:.4g}, above {setting} {most:g}"
    return None
