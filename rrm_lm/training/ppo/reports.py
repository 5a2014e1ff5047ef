"""Reports of a run: metrics under TRL's names, and time by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rrm_lm.models.ensemble import disagreement
from rrm_lm.training.ppo.estimates import Estimates, kl_k3
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.processes import Processes


@dataclass(slots=True)
class EpisodeScores:
    by_source: dict[str, list[float]]  # (episodes) rewards by name of the source
    raw: Tensor  # (episodes,) their weighted sum, minus the penalty for unfinished responses
    used: Tensor  # (episodes,) the training rewards: raw, normalized and clipped as configured
    reference: Tensor  # (episodes, width) log-probabilities of the tokens under the reference


class Stopwatch:
    """Seconds by phase. A device other than the CPU is synchronized, because its calls return early."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = None if device.type == "cpu" else torch.get_device_module(device).synchronize

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
            if self._wait is not None:
                self._wait()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def episode_metrics(
    rollouts: Rollouts, scores: EpisodeScores, estimates: Estimates, eos_id: int, kl_coef: float, processes: Processes
) -> dict[str, float]:
    penalties, raw = estimates.penalties.sum(1), scores.raw
    ended = torch.tensor([float(done) for done in rollouts.finished], device=raw.device)
    eos_tokens = torch.tensor([float(ids.count(eos_id)) for ids in rollouts.responses], device=raw.device)
    found = {
        "objective/kl": processes.mean(estimates.kl.sum(1)),
        "objective/entropy": processes.mean(-estimates.log_probs.sum(1)),
        "objective/non_score_reward": processes.mean(penalties),
        "objective/rlhf_reward": processes.mean(penalties + raw),
        "objective/scores": processes.mean(raw),
        "objective/kl_coef": kl_coef,
        "val/num_eos_tokens": float(processes.total(eos_tokens.sum())),
        "val/finished": processes.mean(ended),
        "val/response_length": processes.mean(rollouts.lengths.float()),
    }
    for name, rewards in scores.by_source.items():
        values = torch.tensor(rewards, device=raw.device)
        found[f"reward/{name}"] = processes.mean(values[~values.isnan()])  # NaN: a function returned None
        apart = disagreement(rewards)
        # A process whose responses are all blank has none, and must still take part.
        known = torch.tensor([] if apart is None else [apart], device=raw.device)
        if processes.max(len(known)):
            found[f"disagreement/{name}"] = processes.mean(known)
    return found


def mismatch_metrics(log_probs: Tensor, served: Tensor, is_response: Tensor, processes: Processes) -> dict[str, float]:
    """How far the trainer's probabilities p of the sampled tokens are from the server's, q.

    The mean of ``p/q`` is 1 for any two distributions, up to noise, so it only shows gross errors. The estimated KL
    divergence of q from p, in nats per token, is the measure (k3: never negative). Arguments are (episodes, width).
    """
    mine, theirs = log_probs[is_response].float(), served[is_response].float()
    ratio = torch.exp(mine - theirs)
    return {
        "rollout/ratio_mean": processes.mean(ratio),
        "rollout/ratio_max": float(processes.gather(ratio.max().reshape(1)).max()),
        "rollout/kl": processes.mean(kl_k3(theirs, mine)),
    }


class Progress:
    """Measures the speed of a run from the episode at which it starts or resumes."""

    def __init__(self, first_episode: int) -> None:
        self._first_episode, self._started = first_episode, time.perf_counter()
        self.losses: list[float] = []

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / max(1, len(self.losses))

    def speed(self, watch: Stopwatch, tokens: float, episodes: int) -> dict[str, float]:
        """Metrics of one update: `watch` has seconds by phase, including `roll_out`; `tokens` were sampled in it by all
        processes; `episodes` are those of the whole run after it.
        """
        found = {
            "eps": round((episodes - self._first_episode) / self.seconds, 4),
            "tokens_per_second": round(tokens / max(watch.seconds["roll_out"], 1e-9), 1),
        }
        return found | {f"time/{name}": round(seconds, 3) for name, seconds in watch.seconds.items()}
