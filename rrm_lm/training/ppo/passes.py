"""Run episodes through an agent, group by group. Results have shape (episodes, width)."""

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
    """Output of the policy and the value function for all episodes, without gradient."""

    # log_probs, values, entropy: (episodes, width), zero after the end of a response
    log_probs: Tensor
    values: Tensor
    entropy: Tensor
    end_values: Tensor  # (episodes,) of the state after the last token
    kept: dict[int, PolicyOutput] = field(default_factory=dict)  # by group index, outputs that still have their graph

    @classmethod
    def zeros(cls, is_response: Tensor) -> PolicyPass:
        zeros = [torch.zeros(is_response.shape, device=is_response.device) for _ in range(3)]
        return cls(zeros[0], zeros[1], zeros[2], torch.zeros(len(is_response), device=is_response.device))

    def fill(self, group: Group, output: PolicyOutput, is_response: Tensor) -> None:
        if group.episodes:
            mask = is_response[group.index]
            self.log_probs[group.index] = spread(output.log_probs.detach(), mask)
            self.values[group.index] = spread(output.values.detach(), mask)
            self.entropy[group.index] = spread(output.entropy.detach(), mask)
            self.end_values[group.index] = output.end_values.detach()


class AgentPasses:
    """Runs groups of episodes through the root module. It only calls `forward`, as sharded models require."""

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling

    def policy(self, group: Group) -> PolicyOutput:
        return self.model("policy", group.batch, group.lines, self.sampling)

    def first(self, groups: Sequence[Group], is_response: Tensor, keep_tokens: int) -> PolicyPass:
        """Run the policy that sampled the responses, and its value function. The graph of `keep_tokens` padded tokens
        is kept, in whole groups from the first, so that the first step can train on this pass; 0 keeps none.
        """
        result = PolicyPass.zeros(is_response)
        for number, group in enumerate(groups):
            keep = group.tokens <= keep_tokens
            keep_tokens = keep_tokens - group.tokens if keep else 0
            with nullcontext() if keep else torch.no_grad():
                output = self.policy(group)
            result.fill(group, output, is_response)
            if keep:
                result.kept[number] = output
        return result

    @torch.no_grad()
    def reference(self, groups: Sequence[Group], is_response: Tensor) -> Tensor:
        """(episodes, width) log-probabilities under the reference, zero after the end of a response."""
        result = torch.zeros(is_response.shape, device=is_response.device)
        for group in groups:
            flat = self.model("reference", group.batch, group.lines, self.sampling)
            if group.episodes:
                result[group.index] = spread(flat.float(), is_response[group.index])
        return result


@dataclass
class OwnReward:
    """The reward adapter on the agent's backbone, as a reward source."""

    name = "reward"

    passes: AgentPasses
    grouping: Callable[[Sequence[Line]], Grouping]
    ensemble: Ensemble = field(default_factory=Ensemble)

    @torch.no_grad()
    def score_lines(self, lines: Sequence[Line]) -> list[float]:
        members: list[list[float]] = [[] for _ in lines]  # of each line, the rewards by each member of the ensemble
        for group in self.grouping(lines)():
            found = self.passes.model("members", group.batch, group.lines).float().tolist()
            for episode, rewards in zip(group.episodes, found, strict=False):  # a dummy group has no episodes
                members[episode] = rewards
        return self.ensemble.rewards(members)
