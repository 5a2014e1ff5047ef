"""The reward model: a LoRA adapter and a scalar head on the frozen backbone. The only place that reads a reward.

An ensemble has several heads on the one adapter (see :mod:`rrm_lm.models.ensemble`), combined into one reward.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSequenceClassification

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.embedded import backbone_name
from rrm_lm.models.ensemble import Ensemble
from rrm_lm.models.fast.layers import speed_up_layers
from rrm_lm.models.fast.lora import speed_up
from rrm_lm.models.portable import add_old_names, save_reward_tokenizer
from rrm_lm.models.pretrained import load_causal_lm, load_tokenizer, refuse_pickles, resolve
from rrm_lm.models.saving.adapters import ADAPTER_WEIGHTS, load_weights, put_weights, whole_weights
from rrm_lm.models.sharding import Root, assign, full_tensor, reshard
from rrm_lm.storage import staged_folder, write_json
from rrm_lm.text.batching import Batch
from rrm_lm.text.chat import ChatFormat, Line

ADAPTER = "reward"
SETTINGS_FILE = "reward_model.json"
logger = logging.getLogger(__name__)

_HEAD_KEY = "base_model.model.score.weight"
_LOGIT_CHUNK = 1024  # critique tokens whose logits are held at once


class RewardOutput(NamedTuple):
    """What one batch gives. A tuple, in which whatever wraps a model (DDP, FSDP2, DeepSpeed) finds the tensors.

    Attributes:
        rewards: (lines,) one reward for each line, its members combined.
        critique_nll: (critique tokens,) negative log-likelihood of each token of each line's critique, in order.
        members: (lines, heads) the reward of each member.
    """

    rewards: Tensor
    critique_nll: Tensor
    members: Tensor

    @classmethod
    def of_one(cls, rewards: Tensor, critique_nll: Tensor) -> RewardOutput:
        """Of a model with one head."""
        return cls(rewards, critique_nll, rewards.unsqueeze(-1))


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """What must be the same when the model is used as when it was trained.

    Attributes:
        base_model: Name of the backbone: an alias of this project, a Hub id or a folder.
        critique_first: The model writes a critique, and the reward is read after it.
        max_length: Longest prompt plus response in tokens.
        max_critique_length: Longest critique in tokens.
        revision: Branch, tag or commit of the backbone on the Hub.
        ensemble_heads: How many members score; 1 is no ensemble.
        ensemble: How they are combined (:data:`rrm_lm.models.ensemble.COMBINATIONS`).
        ensemble_k: With mean_minus_std: how many standard deviations are taken off.
    """

    base_model: str
    critique_first: bool = False
    max_length: int | None = None
    max_critique_length: int = 128
    revision: str | None = None
    ensemble_heads: int = 1
    ensemble: str = "mean"
    ensemble_k: float = 1.0

    def __post_init__(self) -> None:
        Ensemble(self.ensemble_heads, self.ensemble, self.ensemble_k)  # refuses what is none

    @property
    def combination(self) -> Ensemble:
        """How members become one reward."""
        return Ensemble(self.ensemble_heads, self.ensemble, self.ensemble_k)

    def combined(self, ensemble: str | None, ensemble_k: float | None) -> RewardSettings:
        """The same with another way to combine members; ``None`` keeps what is there.

        Raises:
            ConfigError: There is no such way.
        """
        changes = {"ensemble": ensemble, "ensemble_k": ensemble_k}
        changed = {name: value for name, value in changes.items() if value is not None}
        if changed and self.ensemble_heads == 1:
            logger.warning("%s has no effect: the reward model has one member", " and ".join(changed))
        return replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """What is saved; nothing of ensembles where there is none."""
        alone = self.ensemble_heads == 1
        return {name: value for name, value in asdict(self).items() if not (alone and name.startswith("ensemble"))}


class RewardModel(Root):
    """Scores responses, and knows how to write critiques of them with the same adapter.

    Args:
        backbone: The frozen model with the reward adapter on it.
        settings: How it is used.
        adapter: What the adapter is called there; several reward models on one backbone differ in it.
    """

    def __init__(self, backbone: Backbone, settings: RewardSettings, adapter: str = ADAPTER) -> None:
        super().__init__()
        self.backbone, self.settings, self.adapter = backbone, settings, adapter
        # The scale keeps first rewards near N(0, 1) for hidden states of unit variance (Stiennon et al. 2020).
        heads = settings.combination.heads
        self.head = nn.Linear(backbone.hidden_size, heads, bias=False, device=backbone.device, dtype=torch.float32)
        nn.init.normal_(self.head.weight, std=(backbone.hidden_size + 1) ** -0.5)

    @classmethod
    def create(
        cls, backbone: Backbone, lora: LoraConfig, settings: RewardSettings, adapter: str = ADAPTER
    ) -> RewardModel:
        """Put a fresh reward adapter and head on a backbone."""
        backbone.add_adapter(adapter, lora)
        speed_up(backbone)
        speed_up_layers(backbone)
        return cls(backbone, settings, adapter)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What `transformers.Trainer` calls for ``--activation_checkpointing``."""
        self.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What `transformers.Trainer` called it before 5.23."""
        self.backbone.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def forward(self, batch: Batch, lines: Sequence[Line], with_critiques: bool = True) -> RewardOutput:
        """Rewards of the lines, and how surprising their critiques are.

        Args:
            batch: The lines laid into rows.
            lines: The lines, in the batch's order.
            with_critiques: Also compute the critiques' likelihood; without it the language-model head is not used.
        """
        hidden = self.backbone(batch, self.adapter)
        ends = _gather(hidden, [batch.at(number, line.reward_at) for number, line in enumerate(lines)])
        with torch.autocast(ends.device.type, enabled=False):  # a head of few weights, whose digits matter
            members = self.head(ends.float())
        rewards = self.settings.combination(members)
        places, targets = [], []
        for number, line in enumerate(lines) if with_critiques else ():
            for position in line.critique:
                places.append(batch.at(number, position - 1))
                targets.append(line.ids[position])
        if not places:
            return RewardOutput(rewards, rewards.new_zeros(0), members)
        nll = self._critique_nll(_gather(hidden, places), torch.tensor(targets, device=hidden.device))
        return RewardOutput(rewards, nll, members)

    def _critique_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        def nll(states: Tensor, tokens: Tensor) -> Tensor:
            logits = self.backbone.logits(states, self.adapter)
            return nn.functional.cross_entropy(logits, tokens, reduction="none")

        if len(targets) <= _LOGIT_CHUNK:
            return nll(hidden, targets)
        pieces = zip(hidden.split(_LOGIT_CHUNK), targets.split(_LOGIT_CHUNK), strict=True)
        return torch.cat([checkpoint(nll, states, tokens, use_reentrant=False) for states, tokens in pieces])

    # -- saving and loading ---------------------------------------------------------------------------------------

    def adapter_state(self) -> dict[str, Tensor]:
        """Adapter and head under the names that PEFT gives them in a sequence-classification model.

        Called by all processes, if the model is sharded.
        """
        reshard(self)
        return {
            **whole_weights(self.backbone, self.adapter),
            _HEAD_KEY: full_tensor(self.head.weight).cpu().contiguous(),
        }

    def save(self, folder: Path, tokenizer: Any, write: bool = True) -> None:
        """Write a PEFT ``SEQ_CLS`` adapter folder with its head, the tokenizer and :data:`SETTINGS_FILE`.

        `AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=...)` reads it, with
        the tokenizer's pad token; of an ensemble, with as many labels as there are members, whose rewards are its
        logits. :func:`load_classifier` does the same, and finds the embedded model, too.

        Args:
            folder: Where it goes; what else is there stays.
            tokenizer: Saved with it.
            write: Off in processes that only give their shards: if the model is sharded, all of them call this.
        """
        state = self.adapter_state()
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = LoraConfig(**self.backbone.model.peft_config[self.adapter].to_dict())
        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = ["score"]
        config.inference_mode = True
        config.base_model_name_or_path = backbone_name(self.backbone.causal_lm, self.settings.base_model)
        config.revision = self.settings.revision
        config.save_pretrained(str(folder))
        save_reward_tokenizer(tokenizer, folder)
        write_json(folder / SETTINGS_FILE, self.settings.to_dict())

    def load_adapter_state(self, folder: Path) -> None:
        """Put a saved adapter and head into this model.

        Raises:
            CheckpointError: The folder's adapter does not fit this model.
        """
        state = load_weights(folder)
        head = state.pop(_HEAD_KEY, None)
        if head is None or head.shape != self.head.weight.shape:
            raise CheckpointError(
                "The adapter has no scalar head for this model",
                where=str(folder),
                expected=f"a tensor {_HEAD_KEY} of shape {tuple(self.head.weight.shape)}",
                remedy="train with TaskType.SEQ_CLS (rrm-lm reward does), and use the backbone (and, for an ensemble, "
                "the ensemble_heads) it was trained with",
            )
        reshard(self)
        put_weights(self.backbone, self.adapter, state, folder)
        assign(self.head.weight, head)


def load_reward_model(
    folder: str | Path,
    *,
    base_model: str | None = None,
    trainable: bool = False,
    ensemble: str | None = None,
    ensemble_k: float | None = None,
    **loading: Any,
) -> tuple[RewardModel, ChatFormat]:
    """Load a reward model that :meth:`RewardModel.save` wrote, or any PEFT ``SEQ_CLS`` LoRA adapter with a scalar head.

    Args:
        folder: Adapter folder.
        base_model: Backbone to use instead of the recorded one.
        trainable: Leave the adapter trainable.
        ensemble, ensemble_k: How the members of an ensemble are combined, instead of the recorded way.
        loading: Passed to :func:`rrm_lm.models.pretrained.load_causal_lm` (dtype, attn_implementation ...). A revision
            is the backbone's; by default the recorded one.

    Returns:
        The model in evaluation mode (unless trainable), and the chat format it was trained with.

    Raises:
        ConfigError: There is no such way to combine members.
        ModelError: The adapter's weights are a pickle, or the backbone cannot be loaded.
        CheckpointError: The adapter's weights are missing or broken, or do not fit the backbone.
    """
    folder = Path(folder)
    refuse_pickles(folder)
    config: Any = LoraConfig.from_pretrained(str(folder))
    settings = read_settings(folder) or RewardSettings(str(config.base_model_name_or_path), revision=config.revision)
    settings = settings.combined(ensemble, ensemble_k)
    if base_model is not None:
        settings = replace(settings, base_model=base_model, revision=None)
    if loading.get("revision") is None:
        loading["revision"] = settings.revision
    try:
        resolve(settings.base_model, loading["revision"])
    except ModelError as error:
        raise ModelError(
            f"The backbone of the adapter cannot be had. {error.what}",
            where=f"{settings.base_model}, which {folder} was trained on",
            remedy="say where it is with --base_model",
        ) from error
    source = str(folder) if (folder / "tokenizer_config.json").is_file() else settings.base_model
    tokenizer: Any = load_tokenizer(source, own_pad=(folder / SETTINGS_FILE).is_file())
    backbone = Backbone(load_causal_lm(settings.base_model, **loading), int(tokenizer.pad_token_id))
    config.task_type, config.modules_to_save, config.inference_mode = TaskType.CAUSAL_LM, None, False
    model = RewardModel.create(backbone, config, settings)
    model.load_adapter_state(folder)
    if not trainable:
        model.requires_grad_(False).eval()
    # What others trained was trained at the very end of what the template gives.
    ours = (folder / SETTINGS_FILE).is_file()
    return model, ChatFormat(tokenizer, settings.max_length, settings.max_critique_length, trim=ours)


def read_settings(folder: Path) -> RewardSettings | None:
    """The settings beside a saved adapter; ``None`` for an adapter made elsewhere."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    return RewardSettings(**json.loads(path.read_text()))


def is_reward_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT sequence-classification adapter."""
    path = folder / "adapter_config.json"
    return path.is_file() and json.loads(path.read_text()).get("task_type") == "SEQ_CLS"


def load_classifier(folder: Path, pad_token_id: int, **loading: Any) -> PeftModel:
    """A saved reward model in plain transformers and PEFT, as other programs load it.

    Args:
        folder: The adapter, as :meth:`RewardModel.save` wrote it.
        pad_token_id: The tokenizer's pad token. Such models find the last token of a sequence by it.
        loading: Passed to `from_pretrained` of the backbone (dtype, revision, trust_remote_code ...).

    Raises:
        ModelError: The family has no sequence-classification model in transformers.
    """
    settings = read_settings(folder)
    recorded: Any = LoraConfig.from_pretrained(str(folder))
    base = resolve(settings.base_model if settings else recorded.base_model_name_or_path)
    options = {"revision": settings.revision if settings else recorded.revision, "dtype": torch.float32, **loading}
    try:
        with _quiet():  # a report that `score` is new and `lm_head` unused, which is how it must be
            plain = AutoModelForSequenceClassification.from_pretrained(
                base,
                num_labels=settings.ensemble_heads if settings else 1,
                pad_token_id=pad_token_id,
                use_safetensors=True,
                **{name: value for name, value in options.items() if value is not None},
            )
    except ValueError as error:
        raise ModelError(
            f"This family has no sequence-classification model: {error}",
            where=str(base),
            remedy="leave out --merge; rrm-lm score and rrm-lm evaluate read the adapter as it is",
        ) from error
    loaded: Any = PeftModel.from_pretrained(plain, str(folder))
    return loaded.eval()


def merge_reward_model(folder: Path, output: Path, tokenizer: Any, **loading: Any) -> None:
    """Write a plain sequence-classification checkpoint: the adapter merged into the backbone, the head as ``score``.

    RewardBench, TRL, vLLM and the pipelines of transformers read it (see :mod:`rrm_lm.models.portable`).
    :data:`SETTINGS_FILE` comes along and says how the adapter was trained.

    Of an ensemble the head is the mean of the members' heads, whatever they are combined by otherwise: such checkpoints
    give one number, by one linear head.

    Args:
        folder: The adapter, as :meth:`RewardModel.save` wrote it.
        output: Where the checkpoint goes; one that is there is replaced.
        tokenizer: Saved with it.
        loading: Passed to `from_pretrained` of the backbone (revision, trust_remote_code).

    Raises:
        ModelError: The family has no sequence-classification model in transformers.
    """
    settings = read_settings(folder)
    merged: Any = load_classifier(folder, tokenizer.pad_token_id, **loading).merge_and_unload()
    _average_heads(merged.score)
    merged.config.num_labels = merged.num_labels = 1
    merged.config.problem_type = "regression"  # the logit is the reward: pipelines and vLLM apply no sigmoid then
    with staged_folder(output, replace=True) as staged:
        merged.save_pretrained(str(staged))
        add_old_names(staged)
        save_reward_tokenizer(tokenizer, staged)
        if settings is not None:
            write_json(staged / SETTINGS_FILE, replace(settings, ensemble_heads=1).to_dict())


def _average_heads(score: nn.Linear) -> None:
    """Make a head of several outputs one of their mean."""
    if score.out_features > 1:
        score.weight = nn.Parameter(score.weight.detach().mean(0, keepdim=True), requires_grad=False)
        score.out_features = 1


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' warnings off."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _gather(hidden: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """(batch, time, hidden) at (row, index) places -> (places, hidden)."""
    rows, indices = zip(*places, strict=True)
    return hidden[torch.tensor(rows, device=hidden.device), torch.tensor(indices, device=hidden.device)]
