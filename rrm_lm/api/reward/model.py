"""The model that reward training starts from: a name, or a loaded model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rrm_lm.api.start import fitted, log_sizes, lora_settings
from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.feedback.criteria.records import CRITERIA_FILE
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.portable import unreadable
from rrm_lm.models.pretrained import load_causal_lm, load_sequence_classifier, resolve, set_seed
from rrm_lm.models.reward import SETTINGS_FILE, RewardModel, RewardSettings
from rrm_lm.models.reward_files import recorded
from rrm_lm.models.saving.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    fetch_adapter,
    is_classifier,
    load_backbone,
    load_tensors,
    put_weights,
    read_json,
    refuse_outputs,
)
from rrm_lm.models.saving.policies import PolicySettings, policy_config, read_policy_settings
from rrm_lm.models.together import loading_together
from rrm_lm.models.tokenizers import check_vocabulary, load_tokenizer, prepare_tokenizer
from rrm_lm.settings.models import ModelArguments
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.templates import align_responses
from rrm_lm.training.reward.config import RewardConfig

logger = logging.getLogger(__name__)

_FRAME = 16  # tokens reserved for the chat template around a critique
_SCORE = "score.weight"


class Start(NamedTuple):
    """The starting point of training."""

    lm: Any  # the causal language model that becomes the backbone
    tokenizer: Any  # with a chat template and a usable pad token
    name: str  # the folder, Hub id or alias that the saved adapter records as its base model
    loading: dict[str, Any] | None  # arguments that load the same backbone again; None if it is not saved anywhere
    head: Tensor | None = None  # (heads, hidden) initial weights of the score head
    adapter: tuple[LoraConfig, dict[str, Tensor]] | None = None  # configuration and initial weights of the LoRA adapter
    writes: bool = True  # whether the language-model head is known, which learning critiques requires
    revision: str | None = None  # branch, tag or commit of `name` on the Hub
    critique_first: bool = False  # the adapter reads the reward after a critique of its own


@loading_together()
def load_start(model: Any, args: ModelArguments, tokenizer: Any = None, quantization: Any = None) -> Start:
    """Load a named model or adapter, or split a loaded model into backbone, head and adapter.

    An adapter, of a policy or a reward model, is trained on: the new reward model has its backbone, LoRA settings and
    initial weights. A loaded model may be a causal language model, a sequence classifier, or a classifier with a LoRA
    adapter. It is frozen and not copied.

    Args:
        model: A name or a model.
        args: Loading options.
        tokenizer: Replaces the model's own tokenizer.
        quantization: For example a `BitsAndBytesConfig`.

    Raises:
        ModelError: No such model, or one that cannot be a reward model's backbone.
    """
    name = model if isinstance(model, str) else str(getattr(model, "name_or_path", "") or "")
    loading = args.loading()
    if quantization is not None:
        loading["quantization_config"] = quantization
    code = {"trust_remote_code": args.trust_remote_code, "revision": args.model_revision}
    folder = fetch_adapter(resolve(name, args.model_revision), args.model_revision) if isinstance(model, str) else None
    if folder is not None:
        return _from_adapter(name, folder, args, tokenizer, loading)
    if tokenizer is None:
        tokenizer = load_tokenizer(name, **code, **args.tokenizing())
    else:
        tokenizer = prepare_tokenizer(tokenizer, name, **args.tokenizing())
    align_responses(tokenizer)
    if isinstance(model, str):
        if not is_classifier(resolve(name, args.model_revision), args.model_revision, args.trust_remote_code):
            model = load_causal_lm(name, **loading)
            check_vocabulary(tokenizer, model)
            return Start(model, tokenizer, name, loading, revision=args.model_revision)
        known = {key: value for key, value in loading.items() if key != "quantization_config"}
        model = load_sequence_classifier(name, **known)
    else:
        loading = _loading_again(model, name, args.trust_remote_code)
    adapter = None
    if isinstance(model, PeftModel):
        adapter, model = _taken_off(model)
    lm, head, writes = _language_model(model)
    check_vocabulary(tokenizer, lm)
    return Start(lm, tokenizer, name, loading, head, adapter, writes, args.model_revision)


def _from_adapter(name: str, folder: Path, args: ModelArguments, tokenizer: Any, loading: dict[str, Any]) -> Start:
    """The adapter of a policy or a reward model, its head if it has one, and its backbone."""
    if read_json(folder / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS":
        config, settings = recorded(folder)
        ours = (folder / SETTINGS_FILE).is_file()
    else:
        config, settings = policy_config(folder), read_policy_settings(str(folder))
        ours = settings is not None
        settings = settings or PolicySettings(str(config.base_model_name_or_path), revision=config.revision)
    if not Path(resolve(name, args.model_revision)).is_dir():
        loading["revision"] = None  # this is the adapter's; it records the backbone's
    settings, backbone, own = load_backbone(folder, settings, None, loading, own_pad=ours, **args.tokenizing())
    if tokenizer is not None:
        own = prepare_tokenizer(tokenizer, name, **args.tokenizing())
    logger.info("%s is an adapter, which is trained on: its own LoRA settings hold", name)
    if (folder / CRITERIA_FILE).is_file():
        what = "%s has criteria, which are not taken over; --criteria %s adds them again"
        logger.warning(what, name, folder / CRITERIA_FILE)
    revision = loading["revision"]
    return Start(
        backbone.causal_lm,
        own,
        settings.base_model,
        loading,
        adapter=(config, load_tensors(folder / ADAPTER_WEIGHTS)),
        writes=not is_classifier(resolve(settings.base_model, revision), revision, args.trust_remote_code),
        revision=revision,
        critique_first=getattr(settings, "critique_first", False),
    )


def _loading_again(model: Any, name: str, trust_remote_code: bool) -> dict[str, Any] | None:
    try:
        resolve(name)
    except ModelError:
        return None
    found = {
        "dtype": model.dtype,
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "trust_remote_code": trust_remote_code,
    }
    quantization = getattr(model.config, "quantization_config", None)
    return found if quantization is None else {**found, "quantization_config": quantization}


def _taken_off(model: PeftModel) -> tuple[tuple[LoraConfig, dict[str, Tensor]], Any]:
    """A model's LoRA adapter as (configuration, weights), and the model without it."""
    name = str(model.active_adapter)
    config: Any = model.peft_config[name]
    if not isinstance(config, LoraConfig):
        raise ModelError(f"The adapter is of the type {config.peft_type}", expected="a LoRA adapter")
    state = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
    config = LoraConfig(**config.to_dict())
    return (config, state), model.unload()


def _language_model(model: Any) -> tuple[Any, Tensor | None, bool]:
    """The language model, the weights of its score head, and whether its language-model head is known."""
    score = getattr(model, "score", None)
    if score is None and not type(model).__name__.endswith("Classification"):
        return model, None, True
    refuse_outputs(model.config, str(model.name_or_path))
    if not isinstance(score, nn.Linear) or score.bias is not None:
        raise ModelError(
            f"The head of a {type(model).__name__} is not one linear layer without bias",
            where=str(model.name_or_path),
            expected="a decoder with a head named score",
            remedy="name the language model that the classifier was trained from",
        )
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(model.config)
    setattr(lm, lm.base_model_prefix, getattr(model, model.base_model_prefix))
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    if tied:
        lm.tie_weights()
    else:
        nn.init.zeros_(lm.get_output_embeddings().to_empty(device=model.device).to(model.dtype).weight)
    return lm.eval(), score.weight.detach().float().clone(), tied


def make_model(
    start: Start, lora: LoraConfig, args: ModelArguments, config: RewardConfig
) -> tuple[RewardModel, ChatFormat]:
    """A reward model with a fresh adapter or that of the starting point, and its chat format. Raises ConfigError: LoRA
    settings that do not fit the model, critiques longer than its context, or a start with another number of heads or
    that writes critiques first; ModelError: critiques are to be learned by a model whose language-model head is not
    known.
    """
    if start.critique_first and not config.critique_first:
        what = "The reward model to start from writes a critique before it scores"
        raise ConfigError(what, where="critique_first", expected="--critique_first true, as it was trained")
    backbone = Backbone(start.lm, int(start.tokenizer.pad_token_id), None if config.share_prefixes else False)
    if config.learns_critiques and start.writes:
        check_logits(backbone)
    length = _fitted_length(config, backbone)
    settings = RewardSettings(
        start.name,
        config.critique_first,
        length,
        config.max_critique_length,
        start.revision,
        config.ensemble_heads,
        config.ensemble,
        config.ensemble_k,
    )
    set_seed(config.seed)  # initial weights must not depend on what was loaded before
    if start.adapter is not None:
        lora = start.adapter[0]
    more = [name for name in lora.modules_to_save or () if name != "score"] or None  # the head is trained anyway
    lora = LoraConfig(**{**lora.to_dict(), "modules_to_save": more, "inference_mode": False})
    lora.task_type = TaskType.CAUSAL_LM
    with lora_settings(backbone, lora, is_new=start.adapter is None):
        model = RewardModel.create(backbone, lora, settings)
    _put_start(model, start)
    log_sizes(start.name, model)
    logger.info("prefix sharing %s", "on" if backbone.can_share else "off")
    return model, ChatFormat(start.tokenizer, length, config.max_critique_length)


def _put_start(model: RewardModel, start: Start) -> None:
    head = start.head
    if start.adapter is not None:
        state = dict(start.adapter[1])
        own = [key for key in state if key.endswith(_SCORE)]
        head = state[own[0]].float() if own else head
        state = {key: value for key, value in state.items() if ".score." not in key}
        put_weights(model.backbone, model.adapter, state, Path(start.name or "the given model"))
    if head is not None:
        if head.shape != model.head.weight.shape:
            raise ConfigError(
                f"The start has a head with {len(head)} outputs, and the new model {len(model.head.weight)}",
                where="ensemble_heads",
                expected=f"--ensemble_heads {len(head)}, because a trained head is trained on",
                remedy="or start from the language model",
            )
        with torch.no_grad():
            model.head.weight.copy_(head)


def _fitted_length(config: RewardConfig, backbone: Backbone) -> int | None:
    """`max_length`, reduced if the model has too few positions for it plus a critique."""
    found = fitted(config.max_length, backbone, config.max_critique_length + _FRAME if config.learns_critiques else 0)
    if found is not None and found < 1:
        raise ConfigError(
            f"max_critique_length is {config.max_critique_length}, and the model has "
            f"{context_length(backbone.config)} positions",
            where="max_critique_length",
            expected="room for a prompt and a response in addition to the critique",
        )
    return found


def learns_critiques(config: RewardConfig, writes: bool) -> bool:
    """Whether critiques are learned, which needs a model that `writes`. Raises ConfigError if it must, and cannot."""
    if config.learns_critiques and not writes:
        if config.critique_first:
            raise ConfigError("A sequence classifier cannot write critiques", where="critique_first")
        logger.warning("critiques are not learned: the classifier has no language-model head")
    return config.learns_critiques and writes


def narrows_critiques(config: RewardConfig, backbone: Backbone) -> bool:
    """Whether critiques see the response only through the reward's token. A model that writes them sees everything."""
    if not config.learns_critiques or config.critique_view == "all" or config.critique_first:
        return False
    if not backbone.can_mask:
        logger.warning("critique_view is all: this model takes no mask that would let critiques see less")
    return backbone.can_mask


def is_readable(chat: ChatFormat, name: str, merge: bool) -> bool:
    """Whether other programs that use the saved template read the reward at the token where it is trained. Raises
    ModelError if they do not, and `merge` asks for a checkpoint for other programs.
    """
    reason = unreadable(chat)
    if reason and merge:
        raise ModelError(
            "With this tokenizer and chat template, other programs would read the reward at another token than the "
            f"one it is trained at: {reason}",
            where=name,
            remedy="leave out --merge (rrm-lm score and rrm-lm evaluate read the adapter), or pass a template that "
            "ends at the end of the turn with --chat_template_path",
        )
    if reason:
        logger.warning("only rrm_lm will read these rewards right: for other programs, %s", reason)
    return not reason
