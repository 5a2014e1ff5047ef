"""What a run says of itself: metrics under TRL's names, where the time goes, and samples to read."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.ensemble import disagreement
from rrm_lm.training.ppo.estimates import Estimates
from rrm_lm.training.ppo.processes import Processes
from rrm_lm.training.ppo.prompts import PromptItem
from rrm_lm.training.ppo.rollouts import Rollouts

if TYPE_CHECKING:
    from trl.experimental.ppo import PPOTrainer as _Base
else:
    _Base = object

_SHOWN = 5  # samples in a table


@dataclass(slots=True)
class Scores:
    """What the responses earned.

    Attributes:
        by_source: (episodes) rewards of each source by its name; of an ensemble they know its disagreement.
        raw: (episodes,) their weighted sum, less the penalty for responses that did not end.
        used: (episodes,) the same as it is learned from: normalised and clipped, if so set.
        reference: (episodes, width) log-probabilities of the tokens under the reference.
    """

    by_source: dict[str, list[float]]
    raw: Tensor
    used: Tensor
    reference: Tensor


class Stopwatch:
    """Seconds by what they were spent on.

    Args:
        device: Computes. Other devices than the CPU go on when a call of theirs has returned, and are waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = _nothing if device.type == "cpu" else torch.get_device_module(device).synchronize

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
            self._wait()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _nothing() -> None:
    pass


class PolicyReports(_Base):
    """The part of the trainer that speaks; a mixin."""

    processes: Processes
    eval_prompts: list[PromptItem]
    _started: float
    _first_episode: int

    def metrics(self, rollouts: Rollouts, scores: Scores, estimates: Estimates) -> dict[str, float]:
        """What is known of the episodes before anything is learned from them."""
        this: Any = self
        penalties, raw = estimates.penalties.sum(1), scores.raw
        eos = this.processing_class.eos_token_id
        ended = torch.tensor([float(done) for done in rollouts.finished], device=raw.device)
        eos_tokens = torch.tensor([float(ids.count(eos)) for ids in rollouts.responses], device=raw.device)
        found = {
            "objective/kl": self.processes.mean(estimates.kl.sum(1)),
            "objective/entropy": self.processes.mean(-estimates.log_probs.sum(1)),
            "objective/non_score_reward": self.processes.mean(penalties),
            "objective/rlhf_reward": self.processes.mean(penalties + raw),
            "objective/scores": self.processes.mean(raw),
            "objective/kl_coef": this.steering.kl.coefficient,
            "val/num_eos_tokens": float(self.processes.total(eos_tokens.sum())),
            "val/finished": self.processes.mean(ended),
            "val/response_length": self.processes.mean(rollouts.lengths.float()),
        }
        for name, rewards in scores.by_source.items():
            found[f"reward/{name}"] = self.processes.mean(torch.tensor(rewards, device=raw.device))
            apart = disagreement(rewards)
            if apart is not None:
                found[f"disagreement/{name}"] = self.processes.mean(torch.tensor([apart], device=raw.device))
        return found

    def progress_metrics(self, watch: Stopwatch, rollouts: Rollouts) -> dict[str, float]:
        """How far and how fast."""
        this: Any = self
        elapsed = time.perf_counter() - self._started
        episodes = self.state.episode + this.args.batch_size - self._first_episode  # type: ignore[attr-defined]
        tokens = float(self.processes.total(rollouts.lengths.sum()))
        found = {
            "eps": round(episodes / elapsed, 4),
            "lr": float(this.lr_scheduler.get_last_lr()[0]),
            "tokens_per_second": round(tokens / max(watch.seconds["roll_out"], 1e-9), 1),
        }
        found |= {f"time/{name}": round(seconds, 3) for name, seconds in watch.seconds.items()}
        norms = this.updater.gradient_norms
        if norms:
            found["policy/grad_norm"] = sum(norms) / len(norms)
        return found

    def generate_completions(self, sampling: bool = False) -> None:
        """Show what the policy responds to prompts of the evaluation set now, most likely tokens only.

        Args:
            sampling: Only to a few of them, as during training.
        """
        from pandas import DataFrame
        from trl.experimental.ppo.ppo_trainer import print_rich_table

        this: Any = self
        items = self.eval_prompts[: this.args.per_device_eval_batch_size] if sampling else self.eval_prompts
        if not items:
            return
        greedy = Sampling(this.args.response_length, temperature=0.0)
        options = {"end_ids": this.end_ids, "batch_tokens": this.args.rollout_batch_tokens}
        responses = this.agent.roll_out([item.ids for item in items], greedy, **options)
        rollouts: Rollouts = this._rollouts(items, [samples[0] for samples in responses])
        scores = self._scores(rollouts)
        if not this.accelerator.is_main_process:
            return
        table = DataFrame(
            {
                "query": [item.prompt[-1].content for item in items],
                "model response": rollouts.texts,
                "score": [round(score, 3) for score in scores],
            }
        )
        print_rich_table(table.iloc[:_SHOWN])
        _send(table, this.args.report_to)

    def _scores(self, rollouts: Rollouts) -> Sequence[float]:
        this: Any = self
        prompts = [item.prompt for item in rollouts.items]
        return this.rewards.total(this.rewards(prompts, rollouts.texts, rollouts.lines))


def _send(table: Any, report_to: Sequence[str]) -> None:
    """To the trackers that take tables, as TRL does."""
    if "wandb" in report_to:
        wandb: Any = importlib.import_module("wandb")
        if wandb.run is not None:
            wandb.log({"completions": wandb.Table(dataframe=table)})
    if "comet_ml" in report_to:
        from trl.trainer.utils import log_table_to_comet_experiment

        log_table_to_comet_experiment(name="completions.csv", table=table)
