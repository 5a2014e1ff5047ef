"""An agent: policy, value function, reference and reward on one backbone, in one root module with one `forward`.

The ``role`` argument selects one of them. Each is a LoRA adapter, or the bare backbone, on the same frozen model, so
only one model is held in memory, wrapped and sharded. TRL users may pass separate models for some roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import token_log_probs
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.saving.adapters import adapter_weights
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.models.sharding import Root, assign, with_full_params
from rrm_lm.text.batching import Batch, Row
from rrm_lm.text.chat import Line

VALUE, REFERENCE = "value", "reference"  # names of these adapters on the backbone
VALUE_KINDS = ("head", "adapter", "model")
REFERENCES = ("start", "base")


class PolicyOutput(NamedTuple):
    """Output of the policy and the value function for some lines. Response tokens of all lines are concatenated.

    A tuple, because wrappers (DDP, FSDP2, DeepSpeed) look for tensors inside tuples.
    """

    log_probs: Tensor  # (response tokens,) log-probability of each token in the distribution it was sampled from
    values: Tensor  # (response tokens,) value of the state before each token
    entropy: Tensor  # (response tokens,) entropy of each token's distribution in nats, without gradient
    end_values: Tensor  # (lines,) value of the state after the last token


class AgentModel(Root):
    """The root module. :meth:`create` builds the usual one.

    Args:
        policy: The policy's adapter on `backbone`; ``None`` if the model's own weights are trained.
        value: ``head``: a linear head on the policy's hidden states. ``adapter``: a separate adapter with a head.
            ``model``: a sequence-classification model, `value_model`.
        reference: The frozen adapter of the reference policy; ``None`` for the backbone without adapters.
        reference_model: A separate model as the reference policy.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        policy: str | None = POLICY,
        value: str = "head",
        value_model: Backbone | None = None,
        reference: str | None = None,
        reference_model: Backbone | None = None,
    ) -> None:
        super().__init__()
        if (value == "model") != (value_model is not None):
            raise ConfigError("value_model and the value function `model` require each other")
        self.backbone = backbone
        self.value_backbone = value_model
        self.reference_backbone = reference_model
        self.policy_adapter, self.reference_adapter, self.value_kind = policy, reference, value
        self.value_head: Any = _value_head(backbone) if value_model is None else value_model.causal_lm.score
        own = value_model.model if value_model is not None else None
        self._value_adapter = str(own.active_adapter) if isinstance(own, PeftModel) else None
        self.reward_head: nn.Module | None = None
        self._reward: list[RewardModel] = []  # in a list, so that the backbone is not registered a second time

    @classmethod
    def create(
        cls,
        backbone: Backbone,
        lora: LoraConfig,
        *,
        policy: str = POLICY,
        value: str = "head",
        value_model: Backbone | None = None,
        reference: str = "start",
    ) -> AgentModel:
        """Create an agent on a backbone. If the policy adapter already exists, the policy starts from it.

        `lora` configures new adapters. The `reference` is a frozen copy of the current policy (``start``) or the
        backbone without adapters (``base``), which is the same for a new policy.
        """
        frozen: str | None = None
        if not backbone.has_adapter(policy):
            backbone.add_adapter(policy, lora)
        else:
            if reference == "start":
                frozen = REFERENCE
                copy_adapter(backbone, policy, frozen)
            backbone.set_trainable(policy, True)
        if value == "adapter":
            backbone.add_adapter(VALUE, lora)
        return cls(backbone, policy=policy, value=value, value_model=value_model, reference=frozen)

    def add_reward(self, reward: RewardModel) -> None:
        """Use a reward model on the same backbone, frozen. Raises ModelError if it is on another backbone."""
        if reward.backbone is not self.backbone:
            raise ModelError(
                "The reward model has its own backbone",
                expected="its adapter on the agent's backbone",
                remedy="load it with rrm_lm.models.reward_files.put_reward, or pass it to the trainer as a source",
            )
        self.backbone.set_trainable(reward.adapter, False)
        self._reward, self.reward_head = [reward], reward.head.requires_grad_(False)

    # -- attributes of TRL's models ---------------------------------------------------------------------------------

    @property
    def policy(self) -> Any:
        """The trained language model with its adapters."""
        return self.backbone.model

    @property
    def value_model(self) -> Any:
        """The separate value model if there is one, else the value head."""
        return self.value_head if self.value_backbone is None else self.value_backbone.model

    @property
    def config(self) -> Any:
        return self.backbone.causal_lm.config

    # -- computing ------------------------------------------------------------------------------------------------

    @property
    def has_reward(self) -> bool:
        return bool(self._reward)

    @property
    def reward(self) -> RewardModel:
        """The reward model on the agent's own backbone. Raises ModelError if the agent has no reward model."""
        if not self._reward:
            raise ModelError("The agent has no reward", remedy="add one with add_reward")
        return self._reward[0]

    @property
    def can_share(self) -> bool:
        """Whether lines may share the computation of common prefixes in every role."""
        backbones = (self.backbone, self.value_backbone, self.reference_backbone)
        return all(backbone.can_share for backbone in backbones if backbone is not None)

    def rows(self, lines: Sequence[Line]) -> list[Row]:
        """Arrange lines in rows: one tree of shared prefixes if sharing is exact, else one row per line."""
        ids = [line.ids for line in lines]
        if self.can_share:
            return self.backbone.rows(ids)
        return [row for one in ids for row in self.backbone.rows([one])]

    def forward(
        self, role: str, batch: Batch, lines: Sequence[Line], sampling: Sampling | None = None
    ) -> PolicyOutput | Tensor:
        """One role's output for some lines.

        `batch` holds the `lines`, arranged in rows. ``policy`` returns a :class:`PolicyOutput`; ``reference`` (response
        tokens,) log-probabilities with temperature only (with truncation, the KL to a policy that draws other tokens
        would be infinite); ``reward`` (lines,) rewards, each read at its line's ``reward_at``; ``members`` (lines,
        heads) the rewards of each ensemble member. Policy and reference need `sampling`: how responses were sampled.
        """
        if role in ("reward", "members"):
            output = self.reward(batch, lines, with_critiques=False)
            return output.rewards if role == "reward" else output.members
        if sampling is None or role not in ("policy", "reference"):
            raise ValueError(f"role {role!r} with sampling {sampling}")
        places, before, ends, tokens = find_responses(batch, lines)
        if role == "policy":
            return self._policy(batch, places, before, ends, tokens, sampling)
        backbone = self.backbone if self.reference_backbone is None else self.reference_backbone
        hidden = _flat(backbone(batch, self.reference_adapter))[places[before]]
        untruncated = replace(sampling, top_p=1.0, top_k=0)
        return token_log_probs(backbone, hidden, tokens, untruncated, self.reference_adapter)[0]

    def _policy(
        self, batch: Batch, places: Tensor, before: Tensor, ends: Tensor, tokens: Tensor, sampling: Sampling
    ) -> PolicyOutput:
        hidden = _flat(self.backbone(batch, self.policy_adapter))[places]
        log_probs, entropy = token_log_probs(self.backbone, hidden[before], tokens, sampling, self.policy_adapter)
        if self.value_backbone is not None:
            states = _flat(self.value_backbone(batch, self._value_adapter))[places]
        elif self.value_kind == "adapter":
            states = _flat(self.backbone(batch, VALUE))[places]
        else:
            states = hidden
        with torch.autocast(states.device.type, enabled=False):  # values need float32
            values = self.value_head(states.to(next(self.value_head.parameters()).dtype)).squeeze(-1).float()
        return PolicyOutput(log_probs, values[before], entropy, values[ends])

    def roll_out(self, prompts: Sequence[Sequence[int]], sampling: Sampling, **options: Any) -> list[list[list[int]]]:
        """Sample from the policy; see :func:`rrm_lm.models.decoding.rollouts.roll_out`. Called by all processes."""
        return with_full_params(self, roll_out, self.backbone, self.policy_adapter, prompts, sampling, **options)


def _value_head(backbone: Backbone) -> nn.Linear:
    """A head initialized to zero, so that random values add no noise to the first advantages."""
    head = nn.Linear(backbone.hidden_size, 1, device=backbone.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _flat(hidden: Tensor) -> Tensor:
    """(batch, time, hidden) -> (batch * time, hidden)."""
    return hidden.reshape(-1, hidden.shape[-1])


def find_responses(batch: Batch, lines: Sequence[Line]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the hidden states of the responses. Returns indices in the flattened batch of the states before each
    response token and after each line's last token; which of these states precede a token; which follow the last token;
    the response tokens. They are kept with the batch, whose lines are always these.
    """
    if batch.responses is not None:
        return batch.responses
    width = batch.input_ids.shape[1]
    places: list[int] = []
    before: list[int] = []
    ends: list[int] = []
    tokens: list[int] = []
    for number, line in enumerate(lines):
        row, indices = batch.where[number]
        count = len(line.ids) - line.response_start
        before.extend(range(len(places), len(places) + count))
        ends.append(len(places) + count)
        places.extend(row * width + index for index in indices[line.response_start - 1 : len(line.ids)])
        tokens.extend(line.ids[line.response_start :])
    device = batch.input_ids.device
    found = [torch.tensor(numbers, dtype=torch.long, device=device) for numbers in (places, before, ends, tokens)]
    batch.responses = (found[0], found[1], found[2], found[3])
    return batch.responses


def disable_dropout(model: nn.Module) -> None:
    """Disable dropout permanently: a policy must be trained on the distribution it was sampled from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):  # a number, not a layer
                setattr(module, name, 0.0)


def copy_adapter(backbone: Backbone, source: str, target: str) -> None:
    """A frozen copy of an adapter under another name, which may exist already."""
    if not backbone.has_adapter(target):
        backbone.add_adapter(target, LoraConfig(**backbone.model.peft_config[source].to_dict()))
    there = adapter_weights(backbone, target)
    for name, tensor in adapter_weights(backbone, source).items():
        assign(there[name], tensor)
    backbone.set_trainable(target, False)
