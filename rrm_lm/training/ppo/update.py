"""The update: which episodes make a step, what each token weighs in it, the losses, and what is logged of them.

Weights are per token and sum to what TRL's nesting of minibatches, micro-batches and accumulation gives, so that how
episodes are grouped for the computation changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.models.agent import PolicyOutput
from rrm_lm.models.sharding import full_tensor
from rrm_lm.training.gradients import accumulate
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.estimates import Estimates, with_ends
from rrm_lm.training.ppo.losses import Total, policy_losses, value_losses
from rrm_lm.training.ppo.passes import Passes, PolicyPass
from rrm_lm.training.ppo.processes import Processes
from rrm_lm.training.ppo.rollouts import Group, Grouping, spread

# What is logged of an update, under TRL's names; the last one also by its variance.
STATS: tuple[str, ...] = (
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "policy/entropy_avg",
    "val/ratio",
)


@dataclass(slots=True)
class Step:
    """One optimizer step.

    Attributes:
        episodes: Who takes part, by number.
        cells: The same episodes in the parts that statistics are taken of.
        policy_weights: (episodes of the update,) what each token of an episode weighs in the policy loss.
        value_weights: (episodes of the update,) and in the value loss.
    """

    episodes: list[int]
    cells: list[list[int]]
    policy_weights: Tensor
    value_weights: Tensor


def make_minibatches(args: PPOConfig, seed: int, process: int = 0, processes: int = 1) -> list[list[int]]:
    """This process's episodes of each minibatch of one pass, at random; of all processes' together, one partition.

    Args:
        args: Sizes, and whose conventions: in TRL's way each process has a partition of its own.
        seed: The same on all processes.
        process, processes: Which one this is of how many.
    """
    count, size = args.local_batch_size, args.local_mini_batch_size
    assert count is not None and size is not None
    if args.trl_compatible:
        order = np.random.permutation(count).tolist()
        return [order[start : start + size] for start in range(0, count, size)]
    order = torch.randperm(count * processes, generator=torch.Generator().manual_seed(seed)).tolist()
    parts = [order[start : start + size * processes] for start in range(0, len(order), size * processes)]
    return [[number % count for number in part if number // count == process] for part in parts]


def plan_steps(
    args: PPOConfig,
    minibatches: Sequence[list[int]],
    tokens: Tensor,
    valued: Tensor,
    total: Total,
    processes: int,
) -> list[Step]:
    """The optimizer steps of one pass over the episodes.

    Args:
        args: Sizes, and whose conventions.
        minibatches: This process's episodes of each.
        tokens: (episodes,) tokens of each response.
        valued: (episodes,) places of each response at which values are trained.
        total: Sums over processes.
        processes: How many there are; their gradients are averaged.

    Raises:
        ConfigError: Sizes for which TRL's steps would reach from one pass into the next.
    """
    if args.trl_compatible:
        return _trl_steps(args, minibatches, tokens, valued)
    steps = []
    for members in minibatches:
        counts = total(torch.stack([tokens[members].sum(), valued[members].sum()]).float())
        share = processes / counts.clamp_min(1.0)
        weights = [torch.zeros(len(tokens), device=tokens.device) for _ in range(2)]
        for weight, one in zip(weights, share, strict=True):
            weight[members] = one
        steps.append(Step(members, [members], weights[0], weights[1]))
    return steps


def _trl_steps(args: PPOConfig, minibatches: Sequence[list[int]], tokens: Tensor, valued: Tensor) -> list[Step]:
    """A step after every so many micro-batches, whatever minibatch they are of; each averages over its own tokens."""
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    parts = [members[start : start + size] for members in minibatches for start in range(0, len(members), size)]
    if len(parts) % accumulated:
        raise ConfigError(
            f"{len(parts)} micro-batches a pass and {accumulated} a step: steps would reach into the next pass",
            where="num_mini_batches",
            expected="with trl_compatible, a divisor of gradient_accumulation_steps, or that at 1",
        )
    steps = []
    for start in range(0, len(parts), accumulated):
        cells = parts[start : start + accumulated]
        weights = [torch.zeros(len(tokens), device=tokens.device) for _ in range(2)]
        for cell in cells:
            for weight, counts in zip(weights, (tokens, valued), strict=True):
                weight[cell] = 1.0 / (accumulated * counts[cell].sum())
        steps.append(Step([number for cell in cells for number in cell], cells, weights[0], weights[1]))
    return steps


class Statistics:
    """Sums over the episodes of each cell, for the means that are logged."""

    def __init__(self, args: PPOConfig, estimates: Estimates) -> None:
        self.args, self.estimates = args, estimates
        self.sums: list[Tensor] = []
        self.counts: list[Tensor] = []

    def add(self, cell: Sequence[int], now: PolicyPass) -> None:
        """Take in one cell, after the pass that it was learned from."""
        est, members = self.estimates, list(cell)
        mask, valued = est.is_response[members], est.is_valued[members]
        change = (now.log_probs - est.log_probs)[members]
        surrogate, clipped = policy_losses(
            now.log_probs[members], est.log_probs[members], est.advantages[members], self.args.cliprange
        )
        values = now.values[members]
        if self.args.trl_compatible:
            values = with_ends(values, now.end_values[members], mask.sum(1))
        squared, value_clipped = value_losses(
            values, est.values[members], est.returns[members], self.args.cliprange_value
        )
        tokens, places = mask.sum().float(), valued.sum().float()
        everywhere = torch.ones_like(mask) if self.args.trl_compatible else mask
        whole = everywhere.sum().float()
        self.sums.append(
            torch.stack(
                [
                    0.5 * (change**2).sum(),
                    (clipped & mask).sum(),
                    (surrogate * mask).sum(),
                    (squared * valued).sum(),
                    (value_clipped & valued).sum(),
                    now.entropy[members].sum(),
                    (change.exp() * everywhere).sum(),
                ]
            )
        )
        self.counts.append(torch.stack([whole, tokens, tokens, places, places, tokens, whole]))

    def means(self, processes: Processes) -> dict[str, float]:
        """Means over cells and processes, by TRL's names."""
        sums, counts = torch.stack(self.sums), torch.stack(self.counts)
        if self.args.trl_compatible:
            cells = processes.gather(sums / counts)
            table = self.args.num_mini_batches * self.args.gradient_accumulation_steps * self.args.num_ppo_epochs
            never = max(0, table * processes.count - len(cells))  # places of TRL's table that stay zero
            cells = torch.cat([cells, cells.new_zeros(never, cells.shape[1])])
        else:
            cells = processes.total(sums) / processes.total(counts).clamp_min(1.0)
        found = dict(zip(STATS, cells.mean(0).tolist(), strict=True))
        found["val/ratio_var"] = float(cells[:, -1].var()) if len(cells) > 1 else 0.0
        return found


class PolicyUpdate:
    """Learns from the episodes of one update.

    Args:
        args: Settings.
        passes: The model.
        accelerator: Takes gradients and steps.
        optimizer: Of everything that is trained.
        total: Sums over processes.
    """

    def __init__(self, args: PPOConfig, passes: Passes, accelerator: Any, optimizer: Any, total: Total) -> None:
        self.args, self.passes, self.accelerator, self.optimizer = args, passes, accelerator, optimizer
        self.total = total
        self.gradient_norms: list[float] = []

    def run(self, estimates: Estimates, grouping: Grouping, first: PolicyPass, number: int = 0) -> Statistics:
        """`num_ppo_epochs` passes over the episodes.

        Args:
            estimates: What is learned.
            grouping: The episodes.
            first: The pass that the estimates were made of; graphs it kept are used and freed.
            number: Of the update; how episodes are put into minibatches depends on it.

        Raises:
            TrainingError: A loss or a gradient is not a number. Nothing was changed by it.
        """
        self.gradient_norms = []
        statistics = Statistics(self.args, estimates)
        tokens, valued = estimates.is_response.sum(1), estimates.is_valued.sum(1)
        for epoch in range(self.args.num_ppo_epochs):
            seed = (self.args.seed * 1_000_003 + number) * 1_000 + epoch
            where = self.accelerator.process_index, self.accelerator.num_processes
            minibatches = make_minibatches(self.args, seed, *where)
            steps = plan_steps(self.args, minibatches, tokens, valued, self.total, where[1])
            for step in steps:
                groups = grouping(step.episodes)
                kept = first.kept if epoch == 0 and len(steps) == 1 else {}
                now = self._accumulate(step, groups, kept, estimates)
                self._step()
                for cell in step.cells:
                    statistics.add(cell, now)
            first.kept.clear()
        return statistics

    def _accumulate(
        self, step: Step, groups: Sequence[Group], kept: dict[int, PolicyOutput], estimates: Estimates
    ) -> PolicyPass:
        """Forward and backward of one step; the sum of all groups' losses is the step's loss."""
        now = PolicyPass.empty(estimates.is_response)
        loss_sum = torch.zeros((), device=estimates.values.device)
        for number, group in enumerate(groups):
            last = number == len(groups) - 1

            def loss(number: int = number, group: Group = group, last: bool = last) -> Tensor:
                output = kept.pop(number) if number in kept else self.passes.policy(group)
                now.note(group, output, estimates.is_response)
                found = self._loss(step, group, output, estimates)
                loss_sum.add_(found.detach())
                if last:
                    self._refuse_nan(loss_sum)
                return found

            accumulate(self.accelerator, self.passes.model, loss, last)
        return now

    def _refuse_nan(self, loss_sum: Tensor) -> None:
        """Before the last backward pass of a step, which takes the step under DeepSpeed."""
        if not bool(torch.isfinite(self.total(loss_sum))):
            self.optimizer.zero_grad()
            raise TrainingError(
                f"The loss is {float(loss_sum)}; training stopped before the step",
                where="the PPO update",
                expected="a finite loss",
                remedy="lower learning_rate, look at the rewards, and go on from the last checkpoint",
            )

    def _loss(self, step: Step, group: Group, output: PolicyOutput, est: Estimates) -> Tensor:
        """This group's part of the step's loss."""
        if not group.episodes:
            return (output.log_probs.sum() + output.values.sum() + output.end_values.sum()) * 0.0
        members = group.episodes
        mask, valued = est.is_response[members], est.is_valued[members]
        log_probs, values = spread(output.log_probs, mask), spread(output.values, mask)
        if self.args.trl_compatible:
            values = with_ends(values, output.end_values, mask.sum(1))
        surrogate, _ = policy_losses(log_probs, est.log_probs[members], est.advantages[members], self.args.cliprange)
        squared, _ = value_losses(values, est.values[members], est.returns[members], self.args.cliprange_value)
        policy = ((surrogate * mask).sum(1) * step.policy_weights[members]).sum()
        value = ((squared * valued).sum(1) * step.value_weights[members]).sum()
        return policy + self.args.vf_coef * value

    def _step(self) -> None:
        if not self.args.trl_compatible and self.args.max_grad_norm:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)
            self.gradient_norms.append(
                float(full_tensor(norm) if isinstance(norm, Tensor) else norm)
            )  # DeepSpeed: a number
        self.optimizer.step()
        self.optimizer.zero_grad()
