"""Save, load and merge policies: PEFT ``CAUSAL_LM`` adapter folders.

`AutoPeftModelForCausalLM.from_pretrained(folder)` also loads them. :data:`SETTINGS_FILE` records the policy's settings
and the name of its backbone.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import AutoModelForCausalLM

from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.portable import add_old_names, save_tokenizer
from rrm_lm.models.pretrained import load_causal_lm, refuse_pickles, resolve
from rrm_lm.models.saving.adapters import (
    ADAPTER_CONFIG,
    fetch_adapter,
    is_classifier,
    load_backbone,
    model_file,
    read_json,
    read_lora,
    read_weights,
    save_adapter,
)
from rrm_lm.models.saving.quantization import dequantized, is_rounded_alike, quantization_of, quantized_as
from rrm_lm.models.tokenizers import align_pad, check_vocabulary, load_tokenizer
from rrm_lm.storage import staged_folder, write_json
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.templates import align_responses, date_of, without_date

POLICY = "policy"  # name of a policy's adapter on a backbone
SETTINGS_FILE = "policy.json"
_TAKES_REWARDS = (
    "name the policy here; a reward model is the --reward_model of rrm-lm policy and compare, the --model of rrm-lm "
    "score and evaluate, and the --model_name_or_path of rrm-lm reward"
)


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Policy settings that training and inference share."""

    base_model: str  # the backbone: an alias of this project, a Hub id or a folder
    max_length: int | None = None  # maximum prompt plus response in training, in tokens
    revision: str | None = None  # branch, tag or commit of the backbone on the Hub
    method: str = ""  # sft, ppo ...
    chat_date: str | None = None  # the date that the chat template wrote in training, if it writes one
    quantization: dict[str, Any] | None = None  # of the backbone in training (:func:`quantization_of`)


class Policy(NamedTuple):
    """A loaded policy."""

    backbone: Backbone  # the frozen model, with the policy's adapter if it has one
    chat: ChatFormat
    adapter: str | None  # name of the adapter; `None` for a base model or a merged policy
    settings: PolicySettings | None = None  # saved with adapters that are trained on this backbone


# -- saving ---------------------------------------------------------------------------------------------------------


def save_policy(
    backbone: Backbone,
    folder: Path,
    tokenizer: Any,
    settings: PolicySettings,
    adapter: str = POLICY,
    write: bool = True,
) -> None:
    """Write a policy's adapter (see :func:`save_adapter`), its tokenizer and :data:`SETTINGS_FILE`. The tokenizer has
    the policy's pad token.
    """
    base, revision = settings.base_model, settings.revision
    save_adapter(backbone, adapter, folder, task="CAUSAL_LM", base_model=base, revision=revision, write=write)
    if write:
        save_tokenizer(without_date(tokenizer), folder)
        trained_on = {"chat_date": date_of(tokenizer), "quantization": quantization_of(backbone.causal_lm)}
        write_json(folder / SETTINGS_FILE, asdict(replace(settings, **trained_on)))


# -- loading --------------------------------------------------------------------------------------------------------


def load_policy(
    name: str | Path,
    *,
    base_model: str | None = None,
    trainable: bool = False,
    sharing: bool | None = None,
    chat_template: str | None = None,
    pad_token: str | None = None,
    chat_date: str | None = None,
    fold_system: bool = False,
    **loading: Any,
) -> Policy:
    """Load a policy: an adapter folder, a merged folder or any causal language model.

    Args:
        name: Folder, Hub id or alias.
        base_model: Backbone of an adapter, instead of the recorded one.
        sharing: Passed to :class:`Backbone`.
        chat_template, pad_token, fold_system: See :func:`rrm_lm.models.tokenizers.prepare_tokenizer`.
        chat_date: The date that the chat template writes, instead of the recorded one.
        loading: Passed to :func:`rrm_lm.models.pretrained.load_causal_lm` (dtype, attn_implementation, revision,
            trust_remote_code ...). For an adapter in a folder, the revision is the backbone's.

    Returns:
        The policy, in evaluation mode. Its ``chat.max_length`` is the recorded one, or ``None``.

    Raises:
        ModelError: No such model, not a policy, pickled weights, or remote code that is not trusted.
        CheckpointError: The adapter's weights are missing or broken, or do not fit the backbone.
    """
    path, revision = resolve(str(name), loading.get("revision")), loading.get("revision")
    tokenizing = {
        "chat_template": chat_template, "pad_token": pad_token, "chat_date": chat_date, "fold_system": fold_system
    }  # fmt: skip
    folder = fetch_adapter(path, revision)
    if folder is not None:
        if not Path(path).is_dir():
            loading["revision"] = None  # that was the adapter's; it records the backbone's
        config, ours = policy_config(folder), (folder / SETTINGS_FILE).is_file()
        named = PolicySettings(str(config.base_model_name_or_path), revision=config.revision)
        settings, backbone, tokenizer = load_backbone(
            folder, read_policy_settings(str(folder)) or named, base_model, loading,
            own_pad=ours, sharing=sharing, **tokenizing,
        )  # fmt: skip
        align_responses(tokenizer)
        put_policy(backbone, folder, trainable=trainable)
        return Policy(backbone.eval(), ChatFormat(tokenizer, settings.max_length), POLICY, settings)
    if base_model is not None:
        what, remedy = "--base_model is for adapters, and this is not an adapter", "leave out --base_model"
        raise ModelError(what, where=str(name), remedy=remedy)
    if is_classifier(path, revision):  # transformers would silently load it without its head
        what = "This is a sequence-classification model, which scores responses but does not write them"
        raise ModelError(what, where=path, expected="a causal language model", remedy=_TAKES_REWARDS)
    settings = read_policy_settings(path, revision)
    code = {key: loading[key] for key in ("revision", "trust_remote_code") if key in loading}
    tokenizing["chat_date"] = chat_date or (settings.chat_date if settings else None)
    tokenizer: Any = load_tokenizer(str(name), own_pad=settings is not None, **tokenizing, **code)
    align_responses(tokenizer)
    model = load_causal_lm(str(name), **loading)
    check_vocabulary(tokenizer, model)
    backbone = Backbone(model, int(tokenizer.pad_token_id), sharing)
    longest = settings.max_length if settings else None
    own = PolicySettings(str(name), longest, revision)
    return Policy(backbone.eval(), ChatFormat(tokenizer, longest), None, own)


def put_policy(backbone: Backbone, folder: Path, adapter: str = POLICY, *, trainable: bool = False) -> None:
    """Add the adapter in a folder of :func:`save_policy` or PEFT, under the name `adapter`, to the backbone that it was
    trained on. Raises ModelError: not a LoRA adapter of a causal language model, or pickled weights; CheckpointError:
    the weights are missing or broken, or do not fit the backbone.
    """
    config, settings = policy_config(folder), read_policy_settings(str(folder))
    if settings is not None and not is_rounded_alike(settings.quantization, quantization_of(backbone.causal_lm)):
        logger.warning("%s was trained on this backbone with another quantization", folder)
    config.base_model_name_or_path = None  # PEFT fills in this backbone's, and would warn about another
    try:
        backbone.add_adapter(adapter, config)
    except ValueError as error:
        what = f"The adapter cannot be put on this model: {error}"
        raise ModelError(what, where=str(folder), remedy="use the backbone it was trained on") from error
    read_weights(backbone, adapter, folder)
    if not trainable:
        backbone.set_trainable(adapter, False)


def read_policy_settings(path: str, revision: str | None = None) -> PolicySettings | None:
    """The settings of a saved policy; ``None`` for another program's model. Raises ModelError if the file is broken."""
    file = model_file(path, SETTINGS_FILE, revision)
    if file is None:
        return None
    known = {field.name for field in fields(PolicySettings)}
    values = {name: value for name, value in read_json(file).items() if name in known}
    if not isinstance(values.get("base_model"), str):
        what = "The settings do not name the policy's base model"
        expected = '"base_model": a name or a folder'
        raise ModelError(what, where=str(file), expected=expected, remedy="copy the folder again, or train again")
    return PolicySettings(**values)


def policy_config(folder: Path) -> LoraConfig:
    """The configuration of a policy's adapter, ready for training. Raises ModelError if it is not a policy's, or
    has pickled weights.
    """
    refuse_pickles(folder)
    task = read_json(folder / ADAPTER_CONFIG).get("task_type")
    if task not in ("CAUSAL_LM", None):
        reward = task == "SEQ_CLS"
        raise ModelError(
            "This is a reward model, which scores responses but does not write them"
            if reward
            else f"The adapter is for the task {task} and does not write responses",
            where=str(folder),
            expected="the adapter of a language model (task CAUSAL_LM), as rrm-lm sft saves it",
            remedy=_TAKES_REWARDS if reward else "name another one",
        )
    config = read_lora(folder)
    config.task_type = TaskType.CAUSAL_LM
    return config


# -- merging --------------------------------------------------------------------------------------------------------


def merge_policy(
    folder: Path, output: Path, tokenizer: Any, *, dtype: torch.dtype = torch.float32, **loading: Any
) -> None:
    """Write a checkpoint for transformers, TRL and vLLM, with the adapter merged into the backbone.

    `output` is replaced if it exists. The merge is always computed in float32; `dtype` is that of the saved weights.
    `loading` is passed to `from_pretrained` of the backbone (revision, trust_remote_code). Raises ModelError: not a
    policy, pickled weights, or a backbone that is not available.
    """
    recorded: Any = policy_config(folder)
    settings = read_policy_settings(str(folder))
    revision = settings.revision if settings else recorded.revision
    base = resolve(settings.base_model if settings else str(recorded.base_model_name_or_path), revision)
    if Path(base).is_dir():
        refuse_pickles(base)
    options = {"revision": revision, **loading}
    if settings is not None and settings.quantization is not None:  # in host memory, where full precision has room
        options = {**quantized_as(settings.quantization), "device_map": {"": "cpu"}, **options}
    plain = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, dtype=torch.float32, **options)
    merged: Any = PeftModel.from_pretrained(dequantized(plain), str(folder)).merge_and_unload()
    align_pad(merged, tokenizer)
    with staged_folder(output, replace=True) as staged:
        merged.to(dtype).save_pretrained(str(staged))
        add_old_names(staged)
        save_tokenizer(without_date(tokenizer), staged)
        if settings is not None:
            write_json(staged / SETTINGS_FILE, asdict(replace(settings, quantization=None)))
