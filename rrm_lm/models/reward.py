"""The reward model: a LoRA adapter and a scalar head on the frozen backbone. `RewardModel.forward` reads the reward.

An ensemble has several heads on one adapter, combined into one reward (see :mod:`rrm_lm.models.ensemble`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rrm_lm.errors import CheckpointError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.ensemble import Ensemble
from rrm_lm.models.portable import save_reward_tokenizer, save_tokenizer
from rrm_lm.models.saving.adapters import ADAPTER_WEIGHTS, load_tensors, put_weights, save_adapter
from rrm_lm.models.saving.quantization import quantization_of
from rrm_lm.models.sharding import Root, assign, reshard
from rrm_lm.storage import write_json
from rrm_lm.text.batching import Batch, from_host
from rrm_lm.text.chat import Line
from rrm_lm.text.templates import date_of

ADAPTER = "reward"
SETTINGS_FILE = "reward_model.json"
logger = logging.getLogger(__name__)

_HEAD_KEY = "base_model.model.score.weight"
_LOGIT_CHUNK = 1024  # tokens whose logits are held at once


class RewardOutput(NamedTuple):
    """Output for one batch: a tuple, because wrappers (DDP, FSDP2, DeepSpeed) look for tensors inside tuples."""

    rewards: Tensor  # (lines,) the members' combined reward
    critique_nll: Tensor  # (critique tokens,) negative log-likelihood of each critique token, over all lines in order
    members: Tensor  # (lines, heads) the reward of each ensemble member
    response_nll: Tensor  # (response tokens,) the same for the responses of the lines that are learned to be written


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """Reward-model settings that training and inference must share."""

    base_model: str  # the backbone: an alias of this project, a Hub id or a folder
    critique_first: bool = False  # the model writes a critique, and the reward is read after it
    max_length: int | None = None  # maximum prompt plus response, in tokens
    max_critique_length: int = 128  # maximum critique, in tokens
    revision: str | None = None  # branch, tag or commit of the backbone on the Hub
    ensemble_heads: int = 1  # number of ensemble members; 1 is no ensemble
    ensemble: str = "mean"  # how they are combined (:data:`rrm_lm.models.ensemble.COMBINATIONS`)
    ensemble_k: float = 1.0  # standard deviations to subtract, with mean_minus_std
    chat_date: str | None = None  # the date that the chat template wrote in training, if it writes one
    quantization: dict[str, Any] | None = None  # of the backbone in training (:func:`quantization_of`)

    def __post_init__(self) -> None:
        _ = self.combination  # raises on invalid settings

    @property
    def combination(self) -> Ensemble:
        return Ensemble(self.ensemble_heads, self.ensemble, self.ensemble_k)

    def combined(self, ensemble: str | None, ensemble_k: float | None) -> RewardSettings:
        """A copy that combines members differently; ``None`` keeps the recorded value. Raises ConfigError for an
        unknown combination.
        """
        changes = {"ensemble": ensemble, "ensemble_k": ensemble_k}
        changed = {name: value for name, value in changes.items() if value is not None}
        if changed and self.ensemble_heads == 1:
            logger.warning("%s has no effect: the reward model has one member", " and ".join(changed))
        return replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """The fields to save: those of ensembles only for ensembles, a date or quantization only if there is one."""
        left = [name for name in ("chat_date", "quantization") if getattr(self, name) is None]
        left += ["ensemble"] * (self.ensemble_heads == 1)
        return {name: value for name, value in asdict(self).items() if not name.startswith(tuple(left))}


class RewardModel(Root):
    """Scores responses and writes critiques with one adapter on a frozen backbone; :meth:`create` adds the adapter.
    Reward models on the same backbone need different adapter names.
    """

    def __init__(self, backbone: Backbone, settings: RewardSettings, adapter: str = ADAPTER) -> None:
        super().__init__()
        self.backbone, self.settings, self.adapter = backbone, settings, adapter
        # This scale puts initial rewards near N(0, 1) for hidden states of unit variance (Stiennon et al. 2020).
        heads = settings.combination.heads
        self.head = nn.Linear(backbone.hidden_size, heads, bias=False, device=backbone.device, dtype=torch.float32)
        nn.init.normal_(self.head.weight, std=(backbone.hidden_size + 1) ** -0.5)

    @classmethod
    def create(
        cls, backbone: Backbone, lora: LoraConfig, settings: RewardSettings, adapter: str = ADAPTER
    ) -> RewardModel:
        """Put a new reward adapter and head on a backbone."""
        backbone.add_adapter(adapter, lora)
        return cls(backbone, settings, adapter)

    def forward(
        self, batch: Batch, lines: Sequence[Line], with_critiques: bool = True, written: Sequence[int] = ()
    ) -> RewardOutput:
        """Return rewards of the lines, and negative log-likelihoods of their critiques and of the responses of lines
        `written`. `batch` holds the `lines`, arranged in rows. With neither, the language-model head is skipped.
        """
        hidden = self.backbone(batch, self.adapter)
        ends = _gather(hidden, [batch.at(number, line.reward_at) for number, line in enumerate(lines)])
        with torch.autocast(ends.device.type, enabled=False):  # rewards need float32
            members = self.head(ends.float())
        rewards = self.settings.combination(members)
        critiques = [(n, at) for n, line in enumerate(lines) for at in line.critique] if with_critiques else []
        responses = [(n, at) for n in written for at in range(max(1, lines[n].response_start), lines[n].reward_at + 1)]
        if not critiques and not responses:
            return RewardOutput(rewards, rewards.new_zeros(0), members, rewards.new_zeros(0))
        places = critiques + responses
        before = _gather(hidden, [batch.at(number, position - 1) for number, position in places])
        targets = from_host([lines[number].ids[position] for number, position in places], hidden.device)
        nll = self._token_nll(before, targets)
        # Cloned, because a sharded model must not return views.
        return RewardOutput(rewards, nll[: len(critiques)].clone(), members, nll[len(critiques) :].clone())

    def _token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        def nll(states: Tensor, tokens: Tensor) -> Tensor:
            logits = self.backbone.logits(states, self.adapter)
            return nn.functional.cross_entropy(logits, tokens, reduction="none")

        if len(targets) <= _LOGIT_CHUNK:
            return nll(hidden, targets)
        pieces = zip(hidden.split(_LOGIT_CHUNK), targets.split(_LOGIT_CHUNK), strict=True)
        return torch.cat([checkpoint(nll, states, tokens, use_reentrant=False) for states, tokens in pieces])

    # -- saving and loading ---------------------------------------------------------------------------------------

    def save(self, folder: Path, tokenizer: Any, write: bool = True, trim: bool = True) -> None:
        """Write a PEFT ``SEQ_CLS`` adapter folder with its head, the tokenizer and :data:`SETTINGS_FILE`.

        `AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=...)` loads it, given
        the tokenizer's pad token. For an ensemble, `num_labels` is the number of members and the logits are their
        rewards. :func:`rrm_lm.models.reward_files.load_classifier` does the same and also finds the embedded model.

        For `write` see :func:`rrm_lm.models.saving.adapters.save_adapter`. Without `trim`, for the adapter of another
        program (see :class:`rrm_lm.text.chat.ChatFormat`), there are no settings, and the tokenizer is saved as it is.
        """
        reshard(self)
        base, head = self.settings, {_HEAD_KEY: self.head.weight}
        options = {"task": "SEQ_CLS", "base_model": base.base_model, "revision": base.revision}
        save_adapter(self.backbone, self.adapter, folder, head, **options, write=write, modules_to_save=["score"])
        if write and not trim:
            save_tokenizer(tokenizer, folder)
        elif write:
            save_reward_tokenizer(tokenizer, folder)
            trained_on = {"chat_date": date_of(tokenizer), "quantization": quantization_of(self.backbone.causal_lm)}
            write_json(folder / SETTINGS_FILE, replace(self.settings, **trained_on).to_dict())

    def load_adapter_state(self, folder: Path) -> None:
        """Load a saved adapter and head into this model. Raises CheckpointError if they do not fit."""
        state = load_tensors(folder / ADAPTER_WEIGHTS)
        head = state.pop(_HEAD_KEY, None)
        if head is None or head.shape != self.head.weight.shape:
            found = "no `score` head" if head is None else f"a head of shape {tuple(head.shape)}"
            raise CheckpointError(
                f"The adapter has no scalar head for this model, but {found}",
                where=str(folder),
                expected=f"a tensor {_HEAD_KEY} of shape {tuple(self.head.weight.shape)}",
                remedy="train with TaskType.SEQ_CLS (rrm-lm reward does), and use the backbone (and, for an ensemble, "
                "the ensemble_heads) it was trained with",
            )
        reshard(self)
        put_weights(self.backbone, self.adapter, state, folder)
        assign(self.head.weight, head)


def _gather(hidden: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """(batch, time, hidden) at (row, index) places -> (places, hidden)."""
    rows, indices = zip(*places, strict=True)
    return hidden[from_host(rows, hidden.device), from_host(indices, hidden.device)]
