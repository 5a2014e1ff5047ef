"""The update: the episodes of each step, the weight of each token, the losses, and their statistics.

Weights are per token and equal those of TRL's nested mini-batches, micro-batches and accumulation, so the grouping of
the computation does not change the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrm_lm.errors import ConfigError
from rrm_lm.models.agent import PolicyOutput
from rrm_lm.models.sharding import full_tensor
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.estimates import Estimates, policy_losses, value_losses, with_ends
from rrm_lm.training.ppo.passes import AgentPasses, PolicyPass
from rrm_lm.training.ppo.rollouts import Group, Grouping, spread
from rrm_lm.training.processes import Processes, Total, accumulate, check_finite

# Logged statistics of an update, under TRL's names; for the last one also the variance.
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
    episodes: list[int]  # indices of its episodes
    # the same episodes, split into the parts whose means are logged: TRL's micro-batches, or one part
    micro_batches: list[list[int]]
    policy_weights: Tensor  # (episodes of the update,) weight of each token of an episode in the policy loss
    value_weights: Tensor  # (episodes of the update,) its weight in the value loss


def make_minibatches(args: PPOConfig, seed: int, process: int = 0, processes: int = 1) -> list[list[int]]:
    """This process's episodes in each random mini-batch of one epoch. All processes, with the same `seed`, form one
    partition; with TRL's conventions, each has its own.
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
    args: PPOConfig, minibatches: Sequence[list[int]], tokens: Tensor, valued: Tensor, total: Total, processes: int
) -> list[Step]:
    """Plan the optimizer steps of one epoch.

    `tokens` and `valued` are (episodes,) numbers of positions of each response at which the policy and the values are
    trained. Raises ConfigError if, with these sizes, one of TRL's steps would span two epochs.
    """
    if args.trl_compatible:
        return _trl_steps(args, minibatches, tokens, valued)
    steps = []
    for members in minibatches:
        counts = total(torch.stack([tokens[members].sum(), valued[members].sum()]).float())
        weights = torch.zeros(2, len(tokens), device=tokens.device)
        weights[:, members] = (processes / counts.clamp_min(1.0))[:, None]
        steps.append(Step(members, [members], weights[0], weights[1]))
    return steps


def _trl_steps(args: PPOConfig, minibatches: Sequence[list[int]], tokens: Tensor, valued: Tensor) -> list[Step]:
    """TRL's steps: one per fixed number of micro-batches, even across mini-batches; each averages its own tokens."""
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
        micro_batches = parts[start : start + accumulated]
        weights = torch.zeros(2, len(tokens), device=tokens.device)
        for part in micro_batches:
            for weight, counts in zip(weights, (tokens, valued), strict=True):
                weight[part] = 1.0 / (accumulated * counts[part].sum())
        episodes = [number for part in micro_batches for number in part]
        steps.append(Step(episodes, micro_batches, weights[0], weights[1]))
    return steps


def _token_losses(
    args: PPOConfig, est: Estimates, members: Tensor, log_probs: Tensor, values: Tensor, end_values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(members, width) policy losses and where they are clipped; value losses and where they are clipped."""
    if args.trl_compatible:
        values = with_ends(values, end_values, est.is_response[members].sum(1))
    policy, policy_clipped = policy_losses(log_probs, est.log_probs[members], est.advantages[members], args.cliprange)
    if est.importance is not None:
        policy = policy * est.importance[members]
    value, value_clipped = value_losses(values, est.values[members], est.returns[members], args.cliprange_value)
    return policy, policy_clipped, value, value_clipped


@dataclass
class UpdateStatistics:
    """Sums over the tokens of each micro-batch, for the logged means."""

    args: PPOConfig
    estimates: Estimates
    sums: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)

    def add(self, members: Tensor, now: PolicyPass) -> None:
        """Add one micro-batch; `members` are the indices of its episodes, and `now` the pass it was trained on."""
        est = self.estimates
        mask, valued = est.is_response[members], est.is_valued[members]
        change = (now.log_probs - est.log_probs)[members]
        policy, policy_clipped, value, value_clipped = _token_losses(
            self.args, est, members, now.log_probs[members], now.values[members], now.end_values[members]
        )
        tokens, places = mask.sum().float(), valued.sum().float()
        everywhere = torch.ones_like(mask) if self.args.trl_compatible else mask
        area = everywhere.sum().float()
        sums = [
            0.5 * (change**2).sum(),
            (policy_clipped & mask).sum(),
            (policy * mask).sum(),
            (value * valued).sum(),
            (value_clipped & valued).sum(),
            now.entropy[members].sum(),
            (change.exp() * everywhere).sum(),
        ]
        self.sums.append(torch.stack(sums))
        self.counts.append(torch.stack([area, tokens, tokens, places, places, tokens, area]))

    def means(self, processes: Processes) -> dict[str, float]:
        """Means over micro-batches and processes, by TRL's names."""
        sums, counts = torch.stack(self.sums), torch.stack(self.counts)
        if self.args.trl_compatible:
            table = processes.gather(sums / counts)
            places = self.args.num_mini_batches * self.args.gradient_accumulation_steps * self.args.num_ppo_epochs
            unfilled = max(0, places * processes.count - len(table))  # entries of TRL's table that stay zero
            table = torch.cat([table, table.new_zeros(unfilled, table.shape[1])])
        else:
            table = processes.total(sums) / processes.total(counts).clamp_min(1.0)
        found = dict(zip(STATS, table.mean(0).tolist(), strict=True))
        found["val/ratio_var"] = float(table[:, -1].var()) if len(table) > 1 else 0.0
        return found


@dataclass
class PolicyUpdate:
    """Trains on the episodes of one update.

    Between the steps of an epoch, the host neither waits for the device nor copies to it: groups and indices are made
    before the epoch, and losses are read after the update. (transformers reads the padding mask of rows that are single
    lines.) The caller restores the policy if the losses are not finite.
    `checks_steps` reads the loss before every step, for a policy that cannot be restored.
    """

    args: PPOConfig
    passes: AgentPasses
    accelerator: Any
    optimizer: Any
    processes: Processes
    checks_steps: bool = False
    _norms: list[Tensor] = field(default_factory=list)

    @property
    def gradient_norms(self) -> list[float]:
        """The gradients' norms before clipping, one per step of the latest update."""
        return torch.stack(self._norms).tolist() if self._norms else []

    def run(self, estimates: Estimates, grouping: Grouping, first: PolicyPass, number: int = 0) -> UpdateStatistics:
        """Train for `num_ppo_epochs` epochs on the episodes.

        `first`: the pass that the estimates come from; its kept graphs are used and freed; `number`: index of the
        update; the mini-batches depend on it. Raises TrainingError if a loss is not finite.
        """
        self._norms = []
        losses: list[Tensor] = []
        statistics = UpdateStatistics(self.args, estimates)
        for epoch in range(self.args.num_ppo_epochs):
            planned = self._plan(estimates, grouping, number, epoch)
            for step, groups, micro_batches in planned:
                kept = first.kept if epoch == 0 and len(planned) == 1 else {}
                now, loss = self._accumulate(step, groups, kept, estimates)
                losses.append(loss)
                self._step()
                for members in micro_batches:
                    statistics.add(members, now)
            first.kept.clear()
        self._check(torch.stack(losses).sum())
        return statistics

    def _plan(
        self, estimates: Estimates, grouping: Grouping, number: int, epoch: int
    ) -> list[tuple[Step, list[Group], list[Tensor]]]:
        """The steps of an epoch, each with its groups, and with its micro-batches as indices on the device."""
        process, count = self.accelerator.process_index, self.processes.count
        tokens, valued = estimates.is_response.sum(1), estimates.is_valued.sum(1)
        seed = (self.args.seed * 1_000_003 + number) * 1_000 + epoch
        minibatches = make_minibatches(self.args, seed, process, count)
        steps = plan_steps(self.args, minibatches, tokens, valued, self.processes.total, count)

        def index(part: list[int]) -> Tensor:  # empty if another process has all episodes of a mini-batch
            return torch.tensor(part, dtype=torch.long, device=tokens.device)

        return [(step, grouping(step.episodes), [index(part) for part in step.micro_batches]) for step in steps]

    def _accumulate(
        self, step: Step, groups: Sequence[Group], kept: dict[int, PolicyOutput], estimates: Estimates
    ) -> tuple[PolicyPass, Tensor]:
        """Forward and backward pass of one step, whose loss is the sum of the losses of all groups."""
        now = PolicyPass.zeros(estimates.is_response)
        loss_sum = torch.zeros((), device=estimates.values.device)
        for number, group in enumerate(groups):
            last = number == len(groups) - 1

            def loss(number: int = number, group: Group = group, last: bool = last) -> Tensor:
                output = kept.pop(number) if number in kept else self.passes.policy(group)
                now.fill(group, output, estimates.is_response)
                found = self._loss(step, group, output, estimates)
                loss_sum.add_(found.detach())
                if last and self.checks_steps:  # before the backward pass, which takes the step under DeepSpeed
                    self._check(loss_sum)
                return found

            accumulate(self.accelerator, self.passes.model, loss, last)
        return now, loss_sum

    def _check(self, loss: Tensor) -> None:
        outcome = "training stopped, and the policy is that of before the update"
        check_finite(self.processes.total(loss), "the PPO update", "the rewards", outcome)

    def _loss(self, step: Step, group: Group, output: PolicyOutput, est: Estimates) -> Tensor:
        if not group.episodes:
            return (output.log_probs.sum() + output.values.sum() + output.end_values.sum()) * 0.0
        members = group.index
        mask, valued = est.is_response[members], est.is_valued[members]
        log_probs, values = spread(output.log_probs, mask), spread(output.values, mask)
        policy, _, value, _ = _token_losses(self.args, est, members, log_probs, values, output.end_values)
        policy_loss = ((policy * mask).sum(1) * step.policy_weights[members]).sum()
        value_loss = ((value * valued).sum(1) * step.value_weights[members]).sum()
        return policy_loss + self.args.vf_coef * value_loss

    def _step(self) -> None:
        if not self.args.trl_compatible and self.args.max_grad_norm:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)
            norm = norm if isinstance(norm, Tensor) else torch.tensor(float(norm or 0.0))  # DeepSpeed clips on its own
            self._norms.append(full_tensor(norm).float().to(self.accelerator.device))
        self.optimizer.step()
        self.optimizer.zero_grad()
