"""A policy on disk: the PEFT ``CAUSAL_LM`` adapter folder that it is saved as, loaded from and merged.

`AutoPeftModelForCausalLM.from_pretrained(folder)` reads the same folder. :data:`SETTINGS_FILE` beside the adapter says
how it is used, and under which name its backbone is found on other machines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import AutoModelForCausalLM

from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.embedded import backbone_name
from rrm_lm.models.fast.layers import speed_up_layers
from rrm_lm.models.fast.lora import speed_up
from rrm_lm.models.portable import add_old_names, save_tokenizer
from rrm_lm.models.pretrained import align_pad, load_causal_lm, load_tokenizer, refuse_pickles, resolve
from rrm_lm.models.saving.adapters import (
    ADAPTER_CONFIG,
    fetch_adapter,
    is_classifier,
    model_file,
    read_json,
    read_lora,
    read_weights,
    write_weights,
)
from rrm_lm.storage import staged_folder, write_json
from rrm_lm.text.chat import ChatFormat

POLICY = "policy"  # what a policy's adapter is called on a backbone
SETTINGS_FILE = "policy.json"


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What must be known to use a policy as it was trained.

    Attributes:
        base_model: Name of the backbone: an alias of this project, a Hub id or a folder.
        max_length: Longest prompt plus response in tokens that it was trained on.
        revision: Branch, tag or commit of the backbone on the Hub.
        method: How it was trained: sft, ppo ...
    """

    base_model: str
    max_length: int | None = None
    revision: str | None = None
    method: str = ""


class Policy(NamedTuple):
    """A policy that was loaded.

    Attributes:
        backbone: The frozen model, with the policy's adapter on it if it has one.
        chat: How conversations are written for it.
        adapter: Name of the adapter; ``None`` for a whole model (a base model, or a merged policy).
        settings: What an adapter that is trained on this backbone is saved with.
    """

    backbone: Backbone
    chat: ChatFormat
    adapter: str | None
    settings: PolicySettings | None = None


# -- saving ---------------------------------------------------------------------------------------------------------


def save_policy(
    backbone: Backbone,
    folder: Path,
    tokenizer: Any,
    settings: PolicySettings,
    adapter: str = POLICY,
    write: bool = True,
) -> None:
    """Write a policy's adapter, its tokenizer and :data:`SETTINGS_FILE`.

    Args:
        backbone: The backbone that the adapter is on.
        folder: Where they go; what else is there stays.
        tokenizer: Its pad token is the one that the policy is used with.
        settings: See :class:`PolicySettings`.
        adapter: Which of the backbone's adapters it is.
        write: Off in processes that only give their shards: if the model is sharded, all of them call this.
    """
    if write:
        folder.mkdir(parents=True, exist_ok=True)
    write_weights(backbone, adapter, folder, write)
    if not write:
        return
    config = LoraConfig(**backbone.model.peft_config[adapter].to_dict())
    config.task_type = TaskType.CAUSAL_LM
    config.inference_mode = True
    config.base_model_name_or_path = backbone_name(backbone.causal_lm, settings.base_model)
    config.revision = settings.revision
    config.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)
    write_json(folder / SETTINGS_FILE, asdict(settings))


# -- loading --------------------------------------------------------------------------------------------------------


def load_policy(
    name: str | Path,
    *,
    base_model: str | None = None,
    trainable: bool = False,
    sharing: bool | None = None,
    chat_template: str | None = None,
    pad_token: str | None = None,
    **loading: Any,
) -> Policy:
    """Load a policy: an adapter folder, a merged folder or any causal language model.

    Args:
        name: Folder, Hub id or alias.
        base_model: Backbone of an adapter, instead of the recorded one.
        trainable: Leave the adapter trainable.
        sharing: Passed to :class:`Backbone`.
        chat_template, pad_token: For tokenizers that have none.
        loading: Passed to :func:`rrm_lm.models.pretrained.load_causal_lm` (dtype, attn_implementation, revision,
            trust_remote_code ...). Of an adapter in a folder, the revision is the backbone's.

    Returns:
        The policy, in evaluation mode. Its ``chat.max_length`` is the recorded one, or ``None``.

    Raises:
        ModelError: No such model, pickled weights, remote code that is not trusted, or no policy at all.
        CheckpointError: The adapter's weights are missing or broken, or do not fit the backbone.
    """
    path, revision = resolve(str(name), loading.get("revision")), loading.get("revision")
    tokenizing = {"chat_template": chat_template, "pad_token": pad_token}
    folder = fetch_adapter(path, revision)
    if folder is not None:
        if not Path(path).is_dir():
            loading["revision"] = None  # it was the adapter's; the backbone's is recorded in it
        return _load_adapter(folder, base_model, trainable, sharing, tokenizing, loading)
    if base_model is not None:
        raise ModelError(
            "Only an adapter has a base model, and this is none", where=str(name), remedy="leave out --base_model"
        )
    _refuse_classifier(path, revision)
    settings = read_policy_settings(path, revision)
    code = {key: loading[key] for key in ("revision", "trust_remote_code") if key in loading}
    tokenizer: Any = load_tokenizer(str(name), own_pad=settings is not None, **tokenizing, **code)
    backbone = Backbone(load_causal_lm(str(name), **loading), int(tokenizer.pad_token_id), sharing)
    speed_up_layers(backbone)
    longest = settings.max_length if settings else None
    own = PolicySettings(str(name), longest, revision)
    return Policy(backbone.eval(), ChatFormat(tokenizer, longest), None, own)


def _load_adapter(
    folder: Path,
    base_model: str | None,
    trainable: bool,
    sharing: bool | None,
    tokenizing: dict[str, Any],
    loading: dict[str, Any],
) -> Policy:
    config = _policy_config(folder)
    settings = read_policy_settings(str(folder)) or PolicySettings(
        str(config.base_model_name_or_path), revision=config.revision
    )
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
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer: Any = load_tokenizer(
        str(folder) if own else settings.base_model,
        own_pad=(folder / SETTINGS_FILE).is_file(),
        trust_remote_code=bool(loading.get("trust_remote_code")),
        revision=None if own else loading["revision"],
        **tokenizing,
    )
    backbone = Backbone(load_causal_lm(settings.base_model, **loading), int(tokenizer.pad_token_id), sharing)
    put_policy(backbone, folder, trainable=trainable)
    return Policy(backbone.eval(), ChatFormat(tokenizer, settings.max_length), POLICY, settings)


def put_policy(backbone: Backbone, folder: Path, adapter: str = POLICY, *, trainable: bool = False) -> None:
    """Put a saved policy's adapter on a backbone that is there already.

    Args:
        backbone: The backbone it was trained on. Adapters that it has stay as they are.
        folder: The adapter, as :func:`save_policy` or PEFT wrote it.
        adapter: What to call it there.
        trainable: Leave it trainable.

    Raises:
        ModelError: No LoRA adapter of a language model, or pickled weights.
        CheckpointError: The weights are missing or broken, or do not fit the backbone.
    """
    config = _policy_config(folder)
    config.base_model_name_or_path = None  # PEFT fills in this backbone's, and would warn of every other
    before = set(backbone.parameters())
    try:
        backbone.add_adapter(adapter, config)
    except ValueError as error:
        raise ModelError(
            f"The adapter cannot be put on this model: {error}",
            where=str(folder),
            remedy="use the backbone it was trained on",
        ) from error
    read_weights(backbone, adapter, folder)
    if not trainable:
        for parameter in backbone.parameters():
            if parameter not in before:
                parameter.requires_grad_(False)
    speed_up(backbone)
    speed_up_layers(backbone)


def read_policy_settings(path: str, revision: str | None = None) -> PolicySettings | None:
    """The settings beside a saved policy; ``None`` for a model made elsewhere.

    Raises:
        ModelError: The file is broken.
    """
    file = model_file(path, SETTINGS_FILE, revision)
    if file is None:
        return None
    known = {field.name for field in fields(PolicySettings)}
    values = {name: value for name, value in read_json(file).items() if name in known}
    if not isinstance(values.get("base_model"), str):
        raise ModelError(
            "The settings do not say which model the policy was made from",
            where=str(file),
            expected='"base_model": a name or a folder',
            remedy="copy the folder again, or train again",
        )
    return PolicySettings(**values)


def _policy_config(folder: Path) -> LoraConfig:
    """The configuration of a policy's adapter, as one to be trained on.

    Raises:
        ModelError: It is the adapter of something else, or its weights are a pickle.
    """
    refuse_pickles(folder)
    task = read_json(folder / ADAPTER_CONFIG).get("task_type")
    if task not in ("CAUSAL_LM", None):
        reward = task == "SEQ_CLS"
        raise ModelError(
            "This is a reward model, which scores responses and writes none"
            if reward
            else f"The adapter is for the task {task}, and writes no responses",
            where=str(folder),
            expected="the adapter of a language model (task CAUSAL_LM), as rrm-lm sft saves it",
            remedy="rrm-lm score and rrm-lm evaluate read it" if reward else "name another one",
        )
    config = read_lora(folder)
    config.task_type = TaskType.CAUSAL_LM
    return config


def _refuse_classifier(path: str, revision: str | None) -> None:
    """transformers would load such a checkpoint as a language model, and leave its head out without a word."""
    if is_classifier(path, revision):
        raise ModelError(
            "This is a sequence-classification model, which scores responses and writes none",
            where=path,
            expected="a causal language model",
            remedy="name the model that answers; rrm-lm score and rrm-lm evaluate read this one",
        )


# -- merging --------------------------------------------------------------------------------------------------------


def merge_policy(
    folder: Path, output: Path, tokenizer: Any, *, dtype: torch.dtype = torch.float32, **loading: Any
) -> None:
    """Write a plain checkpoint: the adapter merged into the backbone. transformers, TRL and vLLM read it.

    Args:
        folder: The adapter, as :func:`save_policy` wrote it.
        output: Where the checkpoint goes; one that is there is replaced.
        tokenizer: Saved with it.
        dtype: Of the weights that are written. The sum is computed in float32 in any case.
        loading: Passed to `from_pretrained` of the backbone (revision, trust_remote_code).

    Raises:
        ModelError: No policy, pickled weights, or a backbone that cannot be had.
    """
    recorded: Any = _policy_config(folder)
    settings = read_policy_settings(str(folder))
    revision = settings.revision if settings else recorded.revision
    base = resolve(settings.base_model if settings else str(recorded.base_model_name_or_path), revision)
    if Path(base).is_dir():
        refuse_pickles(base)
    options = {"revision": revision, **loading}
    plain = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True, dtype=torch.float32, **options)
    merged: Any = PeftModel.from_pretrained(plain, str(folder)).merge_and_unload()
    align_pad(merged, tokenizer)
    with staged_folder(output, replace=True) as staged:
        merged.to(dtype).save_pretrained(str(staged))
        add_old_names(staged)
        save_tokenizer(tokenizer, staged)
        if settings is not None:
            write_json(staged / SETTINGS_FILE, asdict(settings))
