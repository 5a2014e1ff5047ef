"""Load reward models, with their backbone or onto a loaded one, and merge them.

:meth:`rrm_lm.models.reward.RewardModel.save` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from torch import nn
from transformers import AutoModelForSequenceClassification

from rrm_lm.errors import ModelError
from rrm_lm.feedback.criteria.records import CRITERIA_FILE
from rrm_lm.feedback.records import Message
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.lora_targets import unsupported
from rrm_lm.models.portable import Conversation, add_old_names, is_template_of, messages_of, save_reward_tokenizer
from rrm_lm.models.pretrained import compute_as_stored, refuse_pickles, resolve
from rrm_lm.models.reward import ADAPTER, SETTINGS_FILE, RewardModel, RewardSettings
from rrm_lm.models.saving.adapters import load_backbone
from rrm_lm.models.saving.quantization import dequantized, is_rounded_alike, quantization_of, quantized_as
from rrm_lm.models.tokenizers import own_pad_id
from rrm_lm.storage import staged_folder, write_json
from rrm_lm.text.chat import ChatFormat

EXAMPLES_FILE = "example_rewards.json"


def load_reward_model(
    folder: str | Path,
    *,
    base_model: str | None = None,
    ensemble: str | None = None,
    ensemble_k: float | None = None,
    chat_date: str | None = None,
    fold_system: bool = False,
    tokenizing: dict[str, Any] | None = None,
    **loading: Any,
) -> tuple[RewardModel, ChatFormat]:
    """Load a reward model that :meth:`RewardModel.save` wrote, or any PEFT ``SEQ_CLS`` LoRA adapter with a scalar head.

    Args:
        base_model: Backbone to use instead of the recorded one.
        ensemble, ensemble_k: How ensemble members are combined, instead of the recorded way.
        chat_date, fold_system: Passed to :func:`rrm_lm.models.tokenizers.load_tokenizer`; by default the recorded date.
        tokenizing: `chat_template` and `pad_token`, for adapters of other programs.
        loading: Passed to :func:`rrm_lm.models.pretrained.load_causal_lm` (dtype, attn_implementation ...). `revision`
            is the backbone's; by default the recorded one.

    Returns:
        The model, frozen and in evaluation mode, and the chat format it was trained with.

    Raises:
        ConfigError: Unknown combination of members.
        ModelError: The adapter's weights are a pickle, or the backbone cannot be loaded.
        CheckpointError: The adapter's weights are missing or broken, or do not fit the backbone.
    """
    folder = Path(folder)
    config, settings = recorded(folder, ensemble, ensemble_k)
    ours = (folder / SETTINGS_FILE).is_file()
    texts: dict[str, Any] = {"chat_date": chat_date, "fold_system": fold_system}
    texts |= {} if ours or tokenizing is None else tokenizing
    settings, backbone, tokenizer = load_backbone(folder, settings, base_model, loading, own_pad=True, **texts)
    model = RewardModel.create(backbone, config, settings)
    model.load_adapter_state(folder)
    model.requires_grad_(False).eval()
    # Other programs read the reward at the end of the rendered template, or before it if that is the pad token.
    pad = None if ours else own_pad_id(backbone.config, tokenizer)
    return model, ChatFormat(tokenizer, settings.max_length, settings.max_critique_length, trim=ours, pad_id=pad)


def put_reward(
    backbone: Backbone,
    folder: str | Path,
    *,
    chat: ChatFormat | None = None,
    base_model: str | None = None,
    ensemble: str | None = None,
    ensemble_k: float | None = None,
    adapter: str = ADAPTER,
    adds_criteria: bool = False,
) -> RewardModel:
    """Add a saved reward model's adapter and head, frozen, to a loaded backbone.

    Args:
        backbone: The backbone it was trained on. Its adapters are not changed.
        folder, ensemble, ensemble_k: See :func:`load_reward_model`.
        chat: The chat format of sampling; the reward model must have been trained with the same one.
        base_model: The backbone's name in the reward model's folder, if it has another name here.
        adapter: Name of the new adapter.
        adds_criteria: Whether the caller adds the rewards of the model's criteria.

    Raises:
        ConfigError: Unknown combination of members.
        ModelError: The model was trained on another backbone or with another chat template, writes critiques first, or
            has criteria that the caller does not add.
        CheckpointError: Its weights are missing or broken, or do not fit the backbone.
    """
    folder = Path(folder)
    config, settings = recorded(folder, ensemble, ensemble_k)
    template, wrong = folder / "chat_template.jinja", ""
    if base_model is None and not _is_same(settings.base_model, backbone):
        wrong = f"was trained on another backbone, {settings.base_model} and not {backbone.causal_lm.name_or_path}"
    elif base_model is None and not is_rounded_alike(settings.quantization, quantization_of(backbone.causal_lm)):
        wrong = "was trained on this backbone with another quantization"
    elif extra := unsupported(config.to_dict()):
        wrong = f"changes more than LoRA layers ({', '.join(extra)})"
    elif settings.critique_first:
        wrong = "writes a critique before it scores, which is not possible on a shared backbone"
    elif not adds_criteria and (folder / CRITERIA_FILE).is_file():
        wrong = "has criteria, which are measured on text and not on the policy's tokens"
    elif chat is not None and template.is_file() and not is_template_of(template.read_text("utf-8"), chat.tokenizer):
        wrong = "was trained with another chat template than responses are sampled in"
    if not wrong:
        try:
            model = RewardModel.create(backbone, config, settings, adapter)
        except ValueError as error:
            wrong = f"cannot be put on this backbone: {error}"
        else:
            model.load_adapter_state(folder)
            backbone.set_trainable(adapter, False)
            model.head.requires_grad_(False)
            return model
    remedy = "pass it as a separate reward, which is loaded with its own backbone"
    raise ModelError(f"The reward model {wrong}", where=str(folder), remedy=remedy)


def recorded(
    folder: Path, ensemble: str | None = None, ensemble_k: float | None = None
) -> tuple[LoraConfig, RewardSettings]:
    """The adapter's configuration as that of a causal language model, and its settings."""
    refuse_pickles(folder)
    config: Any = LoraConfig.from_pretrained(str(folder))
    settings = read_settings(folder) or RewardSettings(str(config.base_model_name_or_path), revision=config.revision)
    config.task_type, config.modules_to_save, config.inference_mode = TaskType.CAUSAL_LM, None, False
    return config, settings.combined(ensemble, ensemble_k)


def _is_same(name: str, backbone: Backbone) -> bool:
    """Whether a name refers to this backbone. A model built in memory has no name, so only shapes are compared."""
    mine = str(backbone.causal_lm.name_or_path or "")
    if not mine or name == mine:
        return True
    try:
        theirs = resolve(name)
    except ModelError:
        return False
    return theirs == mine or (Path(theirs).is_dir() and Path(theirs).resolve() == Path(mine).resolve())


def read_settings(folder: Path) -> RewardSettings | None:
    """The settings of a saved reward model; ``None`` for an adapter that another program wrote."""
    path = folder / SETTINGS_FILE
    return RewardSettings(**json.loads(path.read_text())) if path.is_file() else None


def write_examples(folder: Path, rewards: Sequence[tuple[Conversation, Sequence[int], float]]) -> None:
    """Record conversations, their token ids and their rewards, which every later use of the model must repeat."""
    rows = [{"messages": messages_of(*talk), "ids": list(ids), "reward": reward} for talk, ids, reward in rewards]
    write_json(folder / EXAMPLES_FILE, {"examples": rows})


def read_examples(folder: Path) -> list[tuple[Conversation, list[int], float]]:
    """What :func:`write_examples` recorded; nothing for models that were saved without it."""
    path = folder / EXAMPLES_FILE
    rows = json.loads(path.read_text(encoding="utf-8"))["examples"] if path.is_file() else []
    talks = [[Message.from_dict(turn) for turn in row["messages"]] for row in rows]
    return [
        ((tuple(turns[:-1]), turns[-1].content), row["ids"], row["reward"])
        for turns, row in zip(talks, rows, strict=True)
    ]


def load_classifier(folder: Path, pad_token_id: int, **loading: Any) -> PeftModel:
    """Load a saved reward model as other programs do, with transformers and PEFT only.

    `pad_token_id` is the tokenizer's pad token, which marks the end of a sequence for these models. `loading` is passed
    to `from_pretrained` of the backbone (dtype, revision, trust_remote_code ...). Raises ModelError if the family has
    no sequence-classification model in transformers.
    """
    loaded: Any = PeftModel.from_pretrained(_classifier_without_adapter(folder, pad_token_id, **loading), str(folder))
    return loaded.eval()


def _classifier_without_adapter(folder: Path, pad_token_id: int, **loading: Any) -> Any:
    _, settings = recorded(folder)
    base = resolve(settings.base_model)
    options = {"revision": settings.revision, "dtype": torch.float32, **quantized_as(settings.quantization), **loading}
    try:
        with _quiet():  # warnings that `score` is new and `lm_head` unused, as intended
            plain = AutoModelForSequenceClassification.from_pretrained(
                base,
                num_labels=settings.ensemble_heads,
                pad_token_id=pad_token_id,
                use_safetensors=True,
                **{name: value for name, value in options.items() if value is not None},
            )
    except ValueError as error:
        raise ModelError(
            f"This family has no sequence-classification model: {str(error).splitlines()[0]}",  # a list of all follows
            where=str(base),
            remedy="leave out --merge; rrm-lm score and rrm-lm evaluate read the adapter",
        ) from error
    return compute_as_stored(plain)


def merge_reward_model(folder: Path, output: Path, tokenizer: Any, **loading: Any) -> None:
    """Write a plain sequence-classification checkpoint, with the adapter merged in and the head as ``score``.

    RewardBench, TRL, vLLM and the pipelines of transformers read it (see :mod:`rrm_lm.models.portable`).
    :data:`SETTINGS_FILE` records how the adapter was trained. For an ensemble, the head is the mean of the members'
    heads regardless of `ensemble`, because this format has only one linear head. `output` is replaced if it exists. For
    `loading` and errors see :func:`load_classifier`.
    """
    if (folder / CRITERIA_FILE).is_file():
        what = "A merged checkpoint cannot hold the criteria of the reward model"
        raise ModelError(what, where=str(folder / CRITERIA_FILE), remedy="train without --criteria to merge")
    settings = read_settings(folder)
    if settings is not None and settings.quantization is not None:
        loading = {"device_map": {"": "cpu"}, **loading}  # where full precision has room
    plain = dequantized(_classifier_without_adapter(folder, tokenizer.pad_token_id, **loading))
    merged: Any = PeftModel.from_pretrained(plain, str(folder)).eval().merge_and_unload()
    if merged.score.out_features > 1:
        merged.score.weight = nn.Parameter(merged.score.weight.detach().mean(0, keepdim=True), requires_grad=False)
        merged.score.out_features = 1
    merged.config.num_labels = merged.num_labels = 1
    merged.config.problem_type = "regression"  # the logit is the reward: pipelines and vLLM apply no sigmoid then
    with staged_folder(output, replace=True) as staged:
        merged.save_pretrained(str(staged))
        add_old_names(staged)
        save_reward_tokenizer(tokenizer, staged)
        if settings is not None:
            write_json(staged / SETTINGS_FILE, replace(settings, ensemble_heads=1, quantization=None).to_dict())


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
