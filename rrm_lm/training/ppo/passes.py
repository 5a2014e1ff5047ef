"""Passes of episodes through the root module, group by group, and their results as (episodes, width)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rrm_lm.models.agent import PolicyOutput
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.ensemble import Ensemble
from rrm_lm.text.chat import Line
from rrm_lm.training.ppo.rollouts import Group, Grouping, spread


@dataclass(slots=True)
class PolicyPass:
    """What the policy and the value function said of all episodes, without gradient.

    Attributes:
        log_probs, values, entropy: (episodes, width), zero behind the end.
        end_values: (episodes,) of the state behind the last token.
        kept: By the number of the group, outputs that still have their graph.
    """

    log_probs: Tensor
    values: Tensor
    entropy: Tensor
    end_values: Tensor
    kept: dict[int, PolicyOutput] = field(default_factory=dict)

    @classmethod
    def empty(cls, is_response: Tensor) -> PolicyPass:
        """Zeros, to be filled in."""
        zeros = [torch.zeros(is_response.shape, device=is_response.device) for _ in range(3)]
        return cls(zeros[0], zeros[1], zeros[2], torch.zeros(len(is_response), device=is_response.device))

    def note(self, group: Group, output: PolicyOutput, is_response: Tensor) -> None:
        """Take in what a group gave."""
        if group.episodes:
            mask = is_response[group.episodes]
            self.log_probs[group.episodes] = spread(output.log_probs.detach(), mask)
            self.values[group.episodes] = spread(output.values.detach(), mask)
            self.entropy[group.episodes] = spread(output.entropy.detach(), mask)
            self.end_values[group.episodes] = output.end_values.detach()


class Passes:
    """Runs groups of episodes through the root module. Only its `forward` is called, as sharded models need it.

    Args:
        model: The root module, wrapped or not.
        sampling: How responses are drawn.
    """

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling

    def policy(self, group: Group) -> PolicyOutput:
        """One group's pass, with gradients unless they are off."""
        return self.model("policy", group.batch, group.lines, self.sampling)

    def first(self, groups: Sequence[Group], is_response: Tensor, keep_tokens: int) -> PolicyPass:
        """The policy as it sampled, and its values.

        The graphs of the first groups are kept, as long as all of them together have at most `keep_tokens` padded
        tokens, so that the first step learns from this same pass.

        Args:
            groups: All episodes.
            is_response: (episodes, width).
            keep_tokens: 0 keeps none.
        """
        result = PolicyPass.empty(is_response)
        room = keep_tokens
        for number, group in enumerate(groups):
            keep = group.tokens <= room
            room = room - group.tokens if keep else 0
            with nullcontext() if keep else torch.no_grad():
                output = self.policy(group)
            result.note(group, output, is_response)
            if keep:
                result.kept[number] = output
        return result

    @torch.no_grad()
    def reference(self, groups: Sequence[Group], is_response: Tensor) -> Tensor:
        """(episodes, width) log-probabilities under the reference, zero behind the end."""
        result = torch.zeros(is_response.shape, device=is_response.device)
        for group in groups:
            flat = self.model("reference", group.batch, group.lines, self.sampling)
            if group.episodes:
                result[group.episodes] = spread(flat.float(), is_response[group.episodes])
        return result

    @torch.no_grad()
    def rewards(self, groups: Sequence[Group], count: int) -> list[list[float]]:
        """For each of `count` episodes, the agent's own reward by each of its members (one, if it is no ensemble)."""
        result: list[list[float]] = [[] for _ in range(count)]
        for group in groups:
            found = self.model("members", group.batch, group.lines).float().tolist()
            for episode, rewards in zip(group.episodes, found, strict=False):  # no episodes in a pass for company
                result[episode] = rewards
        return result


class OwnReward:
    """The reward that is on the agent's own backbone.

    Args:
        passes: The agent.
        grouping: Groups lines for it.
        ensemble: How its members are combined.
    """

    name = "reward"

    def __init__(
        self, passes: Passes, grouping: Callable[[Sequence[Line]], Grouping], ensemble: Ensemble | None = None
    ) -> None:
        self._passes, self._grouping, self._ensemble = passes, grouping, ensemble or Ensemble()

    def score_lines(self, lines: Sequence[Line]) -> list[float]:
        return self._ensemble.rewards(self._passes.rewards(self._grouping(lines)(), len(lines)))
