"""An agent: policy, value function, reference and reward on one backbone, behind one root module with one `forward`.

Which of them computes is the ``role``. All of them are LoRA adapters, or no adapter, on the same frozen model, so that
what is sharded, wrapped and held in memory is one model. Where a user of TRL brings separate models for some roles,
those stand beside it.
"""

from __future__ import annotations

import re
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
from rrm_lm.models.fast.layers import speed_up_layers
from rrm_lm.models.fast.lora import speed_up
from rrm_lm.models.reward import RewardModel
from rrm_lm.models.saving.adapters import adapter_weights
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.models.sharding import Root, assign, with_full_params
from rrm_lm.text.batching import Batch, Row
from rrm_lm.text.chat import Line

VALUE, REFERENCE = "value", "reference"  # what these adapters are called on the backbone
VALUE_KINDS = ("head", "adapter", "model")
REFERENCES = ("start", "base")


class PolicyOutput(NamedTuple):
    """What the policy and the value function say of some lines. Tokens of all lines one behind the other, in order.

    A tuple, in which whatever wraps a model (DDP, FSDP2, DeepSpeed) finds the tensors.

    Attributes:
        log_probs: (response tokens,) of each token in the distribution it was drawn from.
        values: (response tokens,) of the state before each token.
        entropy: (response tokens,) of the distribution of each token, in nats; without gradient.
        end_values: (lines,) of the state behind the last token.
    """

    log_probs: Tensor
    values: Tensor
    entropy: Tensor
    end_values: Tensor


class AgentModel(Root):
    """The root module. :meth:`create` makes the usual one.

    Args:
        backbone: The model that the policy is on.
        policy: The policy's adapter; ``None`` where the model's own weights are trained.
        value: ``head``: a linear head on the policy's hidden states. ``adapter``: an adapter of its own with a head.
            ``model``: a sequence-classification model.
        value_model: That model, for ``model``.
        reference: The frozen adapter that is the reference policy; ``None`` for the backbone without adapters.
        reference_model: A separate model as the reference policy instead.
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
        if value not in VALUE_KINDS:
            raise ConfigError(f"The value function is {value!r}", expected="one of " + ", ".join(VALUE_KINDS))
        if (value == "model") != (value_model is not None):
            raise ConfigError("A value model is for the value function `model`, and for no other")
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
        """An agent on a backbone. If it has a policy adapter already, the policy starts from that.

        Args:
            backbone: The frozen model.
            lora: What a fresh policy adapter, or one for the value function, is like.
            policy: What the policy's adapter is called on the backbone.
            value, value_model: See above.
            reference: ``start``: the policy as it is now, kept as a frozen adapter. ``base``: the bare backbone. They
                are the same for a policy that starts fresh.

        Raises:
            ConfigError: An unknown kind of value function or of reference.
        """
        if reference not in REFERENCES:
            raise ConfigError(f"The reference is {reference!r}", expected="one of " + ", ".join(REFERENCES))
        frozen: str | None = None
        if not has_adapter(backbone, policy):
            backbone.add_adapter(policy, lora)
        else:
            if reference == "start":
                frozen = REFERENCE
                _copy_adapter(backbone, policy, frozen)
            set_trainable(backbone, policy, True)
        if value == "adapter":
            backbone.add_adapter(VALUE, lora)
        speed_up(backbone)
        speed_up_layers(backbone)
        return cls(backbone, policy=policy, value=value, value_model=value_model, reference=frozen)

    def add_reward(self, reward: RewardModel) -> None:
        """Let a reward model on the same backbone be this agent's reward. It is frozen.

        Raises:
            ModelError: It is on another backbone.
        """
        if reward.backbone is not self.backbone:
            raise ModelError(
                "The reward model is on a backbone of its own",
                expected="its adapter on the agent's backbone",
                remedy="load it with rrm_lm.models.agent_files.put_reward, or pass it to the trainer as a source",
            )
        set_trainable(self.backbone, reward.adapter, False)
        self._reward, self.reward_head = [reward], reward.head.requires_grad_(False)

    # -- what users of TRL know -----------------------------------------------------------------------------------

    @property
    def policy(self) -> Any:
        """The language model that is trained, with its adapters."""
        return self.backbone.model

    @property
    def value_model(self) -> Any:
        """The separate value model, if there is one; else what is trained for the value function alone."""
        return self.value_head if self.value_backbone is None else self.value_backbone.model

    @property
    def config(self) -> Any:
        return self.backbone.causal_lm.config

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass."""
        for backbone in self._trunks():
            backbone.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    activation_checkpointing_enable = gradient_checkpointing_enable  # as newer versions of transformers call it

    # -- computing ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def has_reward(self) -> bool:
        return bool(self._reward)

    @property
    def reward(self) -> RewardModel:
        """The reward model on the agent's own backbone.

        Raises:
            ModelError: There is none.
        """
        if not self._reward:
            raise ModelError("The agent has no reward of its own", remedy="add one with add_reward")
        return self._reward[0]

    @property
    def can_share(self) -> bool:
        """Whether lines may share the computation of what they begin with, in every role."""
        return all(backbone.can_share for backbone in self._trunks())

    def rows(self, lines: Sequence[Line]) -> list[Row]:
        """Lay lines into rows: one tree, where what they begin with stands once, if sharing is exact; else one each."""
        ids = [line.ids for line in lines]
        if self.can_share:
            return self.backbone.rows(ids)
        return [row for one in ids for row in self.backbone.rows([one])]

    def forward(
        self, role: str, batch: Batch, lines: Sequence[Line], sampling: Sampling | None = None
    ) -> PolicyOutput | Tensor:
        """What one role computes of some lines.

        Args:
            role: ``policy`` gives a :class:`PolicyOutput`, ``reference`` (response tokens,) log-probabilities under
                temperature alone (a reference that leaves tokens out would be infinitely far from a policy that does
                not), ``reward`` (lines,) rewards, each read at its line's ``reward_at``, and ``members`` (lines, heads)
                those of each member, of which there is one in a reward model that is no ensemble.
            batch: The lines laid into rows.
            lines: The lines, in the batch's order.
            sampling: How responses were drawn; for policy and reference.
        """
        if role in ("reward", "members"):
            output = self.reward(batch, lines, with_critiques=False)
            return output.rewards if role == "reward" else output.members
        if sampling is None or role not in ("policy", "reference"):
            raise ValueError(f"role {role!r} with sampling {sampling}")
        places, before, ends, tokens = _places(batch, lines)
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
        with torch.autocast(states.device.type, enabled=False):  # a head of few weights, whose digits matter
            values = self.value_head(states.to(next(self.value_head.parameters()).dtype)).squeeze(-1).float()
        return PolicyOutput(log_probs, values[before], entropy, values[ends])

    def roll_out(self, prompts: Sequence[Sequence[int]], sampling: Sampling, **options: Any) -> list[list[list[int]]]:
        """Responses of the policy; see :func:`rrm_lm.models.decoding.rollouts.roll_out`. Called by all processes."""
        return with_full_params(self, roll_out, self.backbone, self.policy_adapter, prompts, sampling, **options)

    def _trunks(self) -> list[Backbone]:
        backbones = (self.backbone, self.value_backbone, self.reference_backbone)
        return [backbone for backbone in backbones if backbone is not None]


def _value_head(backbone: Backbone) -> nn.Linear:
    """A head that begins at zero: the first advantages are what was earned, without the noise of a random guess."""
    head = nn.Linear(backbone.hidden_size, 1, device=backbone.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _flat(hidden: Tensor) -> Tensor:
    """(batch, time, hidden) -> (batch * time, hidden)."""
    return hidden.reshape(-1, hidden.shape[-1])


def _places(batch: Batch, lines: Sequence[Line]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the hidden states are that speak of the responses.

    Returns:
        Places in the flattened batch of the state before each response token and behind the last one of each line;
        which of these are before a token; which are behind the last; and the response tokens.
    """
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
    return found[0], found[1], found[2], found[3]


def disable_dropout(model: nn.Module) -> None:
    """Switch dropout off for good: a policy must be, when it learns, the distribution that it was sampled from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # used as a number, not as a layer
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


# -- adapters -------------------------------------------------------------------------------------------------------


def has_adapter(backbone: Backbone, name: str) -> bool:
    """Whether the backbone has an adapter of this name."""
    return isinstance(backbone.model, PeftModel) and name in backbone.model.peft_config


def adapter_parameters(module: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, by their names in the module."""
    own = re.compile(rf"\.lora_\w+\.{re.escape(adapter)}(\.|$)")
    return {name: parameter for name, parameter in module.named_parameters() if own.search(name)}


def set_trainable(backbone: Backbone, adapter: str, trainable: bool) -> None:
    """Let an adapter be trained, or freeze it."""
    for parameter in adapter_parameters(backbone, adapter).values():
        parameter.requires_grad_(trainable)


def _copy_adapter(backbone: Backbone, source: str, target: str) -> None:
    """A frozen copy of an adapter under another name."""
    config = LoraConfig(**backbone.model.peft_config[source].to_dict())
    backbone.add_adapter(target, config)
    there = adapter_weights(backbone, target)
    for name, tensor in adapter_weights(backbone, source).items():
        assign(there[name], tensor)
    set_trainable(backbone, target, False)
