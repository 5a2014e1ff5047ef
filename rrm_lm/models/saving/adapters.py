"""LoRA adapter folders in PEFT's format: find them locally or on the Hub, load them from safetensors, save them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.feedback.criteria.records import CRITERIA_FILE
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.embedded import backbone_name
from rrm_lm.models.lora_targets import unsupported
from rrm_lm.models.pretrained import from_pretrained, load_causal_lm, model_file, resolve
from rrm_lm.models.saving.quantization import quantized_as
from rrm_lm.models.sharding import assign, gather, reshard
from rrm_lm.models.tokenizers import check_vocabulary, load_tokenizer

_REWARD_CLASS = re.compile(r"Reward|Score|Classification$")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WANTED = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "*.txt",
    CRITERIA_FILE,
]  # files to fetch from the Hub; no pickles


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError if the file is not valid JSON, or not an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The file is not valid JSON ({error})", where=str(file), remedy="copy the model's folder again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"The file holds a {type(value).__name__}", where=str(file), expected="a JSON object")
    return value


def is_classifier(path: str, revision: str | None = None, trust_remote_code: bool = False) -> bool:
    """Whether a folder or Hub id holds a whole sequence-classification model. Raises ModelError for a reward model
    of a class that transformers does not have: its head would be dropped or made up.
    """
    file = model_file(path, "config.json", revision)
    config = read_json(file) if file is not None else {}
    names = [str(name) for name in config.get("architectures") or []]
    known = set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    own = [name for name in names if _REWARD_CLASS.search(name) and name not in known]
    trusted = trust_remote_code and "AutoModelForSequenceClassification" in (config.get("auto_map") or {})
    if own and not trusted:
        raise ModelError(
            f"This is a reward model of the class {own[0]}, which is no sequence classifier of transformers",
            where=path,
            expected="a sequence classifier with one linear head (ArmoRM, QRM and INF-ORM have others)",
            remedy="call its maker's code in a function: --reward_function my_rewards.py:function of rrm-lm policy",
        )
    return bool(own) or any(name in known for name in names)


def refuse_outputs(config: Any, where: str) -> None:
    """Raise a ModelError for a classifier with several outputs: classes, labels, quantiles, attributes."""
    if int(config.num_labels) != 1:
        names = ", ".join(map(str, list(config.id2label.values())[:4]))
        raise ModelError(
            f"The classifier has {config.num_labels} outputs ({names} ...); its problem_type is {config.problem_type}",
            where=where,
            expected="one output; reward models require `num_labels=1`",
            remedy="name another model; a preference is the difference of two single outputs",
        )


def fetch_adapter(path: str, revision: str | None = None) -> Path | None:
    """The local folder of an adapter, fetched from the Hub if needed; ``None`` if `path` is not an adapter."""
    if model_file(path, ADAPTER_CONFIG, revision) is None:
        return None
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=_WANTED))


def read_lora(folder: Path) -> LoraConfig:
    """The configuration of a LoRA adapter, ready for training. Raises ModelError for another kind of adapter, or one
    that also replaces layers.
    """
    raw = read_json(folder / ADAPTER_CONFIG)
    if raw.get("peft_type") != "LORA":
        what = f"The adapter is of the type {raw.get('peft_type')}"
        remedy = "merge it into its model with PEFT, and name the merged model"
        raise ModelError(what, where=str(folder), expected="a LoRA adapter", remedy=remedy)
    extra = unsupported(raw)
    if extra:
        raise ModelError(
            f"The adapter changes more than LoRA layers ({', '.join(extra)})",
            where=str(folder),
            expected="LoRA weights only, so that the backbone without adapters is the original model",
            remedy="merge it with PEFT's merge_and_unload, and name the merged model",
        )
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    return config


def adapter_weights(backbone: Backbone, adapter: str) -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's names, sharing the model's memory."""
    # With save_embedding_layers, PEFT asks the Hub for the vocabulary. Embeddings are frozen here.
    return get_peft_model_state_dict(backbone.model, adapter_name=adapter, save_embedding_layers=False)


def save_adapter(
    backbone: Backbone,
    adapter: str,
    folder: Path,
    more: dict[str, Tensor] | None = None,
    *,
    task: str,
    base_model: str,
    revision: str | None,
    write: bool = True,
    **changes: Any,
) -> None:
    """Write an adapter in PEFT's format; other files in `folder` are kept.

    Called by all processes if the model is sharded; `write` is False in those that only contribute their shards. `more`
    holds additional tensors, such as a head; `task` is PEFT's task type; `base_model` and `revision` are recorded as
    the adapter's backbone; `changes` are other fields of the saved configuration.
    """
    reshard(backbone)
    state = gather({**adapter_weights(backbone, adapter), **(more or {})})
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(**backbone.model.peft_config[adapter].to_dict())
    base = backbone_name(backbone.causal_lm, base_model)
    changes |= {"task_type": task, "inference_mode": True, "base_model_name_or_path": base, "revision": revision}
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_pretrained(str(folder))


def check_reloads(save: Callable[[Path], None], auto: Any, trust_remote_code: bool, **changes: Any) -> None:
    """Save an untrained adapter, and put it on a model of the class that others load it with: before training.

    The model has no weights (it is on the meta device), so this is fast for any size. Skipped if the base model is not
    saved anywhere. `auto` is the class that the model card names, such as `AutoModelForCausalLM`; `changes` are made to
    the base model's configuration. Raises ModelError if transformers has no such class for this family, or the adapter
    does not fit it.
    """
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        save(Path(folder))
        lora: Any = LoraConfig.from_pretrained(folder)
        options = {"revision": lora.revision, "trust_remote_code": trust_remote_code}
        try:
            base = resolve(str(lora.base_model_name_or_path), lora.revision)
            config = AutoConfig.from_pretrained(base, **options, **changes)
        except (ModelError, OSError):
            return
        try:
            with torch.device("meta"):
                model = get_peft_model(auto.from_config(config, trust_remote_code=trust_remote_code), lora)
            mine = get_peft_model_state_dict(model, save_embedding_layers=False)
            wrong = misfit(load_tensors(Path(folder) / ADAPTER_WEIGHTS), mine)
            wrong = wrong and f"The adapter does not fit this model: it {wrong}"
        except ValueError as error:
            wrong = " ".join(str(error).split())[:400]
    if wrong:
        what = f"Other programs cannot load the adapter with {auto.__name__}: {wrong}"
        raise ModelError(what, where=base, remedy="leave out --merge, or use another base model")


Settings = TypeVar("Settings", bound=Any)  # RewardSettings or PolicySettings


def load_backbone(
    folder: Path,
    settings: Settings,
    base_model: str | None,
    loading: dict[str, Any],
    *,
    own_pad: bool,
    sharing: bool | None = None,
    **tokenizing: Any,
) -> tuple[Settings, Backbone, Any]:
    """Load the backbone and tokenizer that an adapter with these `settings` was trained with.

    Args:
        base_model: A backbone to use instead of the recorded one.
        loading: For :func:`load_causal_lm`. A missing revision is set to the recorded one.
        sharing: See :class:`Backbone`.
        own_pad, tokenizing: Options of :func:`load_tokenizer`. A missing `chat_date` is the recorded one.

    Returns the settings, updated with the backbone in use; the backbone; the tokenizer. Raises ModelError if the
    backbone is not available.
    """
    if base_model is not None:
        settings = replace(settings, base_model=base_model, revision=None, quantization=None)
    if loading.get("revision") is None:
        loading["revision"] = settings.revision
    try:
        base = resolve(settings.base_model, loading["revision"])
    except ModelError as error:
        raise ModelError(
            f"The backbone of the adapter is not available. {error.what}",
            where=f"{settings.base_model}, which {folder} was trained on",
            remedy="name it with --base_model",
        ) from error
    tokenizing["chat_date"] = tokenizing.get("chat_date") or settings.chat_date
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(
        str(folder) if own else settings.base_model,
        own_pad=own_pad,
        trust_remote_code=bool(loading.get("trust_remote_code")),
        revision=None if own else loading["revision"],
        **tokenizing,
    )
    headless = is_classifier(base, loading["revision"], bool(loading.get("trust_remote_code")))
    if loading.get("quantization_config") is None:
        chosen = {name: value for name, value in loading.items() if value is not None}  # such as another `device_map`
        loading |= quantized_as(settings.quantization) | chosen
    model = load_causal_lm(settings.base_model, new_head=headless, **loading)
    check_vocabulary(tokenizer, model)
    return settings, Backbone(model, int(tokenizer.pad_token_id), sharing), tokenizer  # type: ignore[arg-type]


def has_template(name: str, trust_remote_code: bool = False) -> bool:
    """Whether the tokenizer of a model or an adapter has a chat template. Raises ModelError for an unknown model."""
    folder = fetch_adapter(resolve(name))
    if folder is not None and not (folder / "tokenizer_config.json").is_file():
        name = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    tokenizer = from_pretrained(AutoTokenizer, resolve(name), trust_remote_code=trust_remote_code)
    return bool(tokenizer.chat_template)


def recorded_date(name: str, revision: str | None = None) -> str | None:
    """The date that the chat template of a model of this project wrote in training; None for other models."""
    files = (model_file(name, file, revision) for file in ("policy.json", "reward_model.json"))
    return next((read_json(file).get("chat_date") for file in files if file is not None), None)


def read_weights(backbone: Backbone, adapter: str, folder: Path) -> None:
    """Load a folder's weights into an adapter of the backbone. Raises CheckpointError if they are missing or broken, or
    do not fit this adapter on this model.
    """
    put_weights(backbone, adapter, load_tensors(folder / ADAPTER_WEIGHTS), folder)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, on the CPU. Raises CheckpointError if the file is missing or broken."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        what = f"The weights cannot be read ({error})"
        remedy = "copy the folder again, resume from another checkpoint, or train again"
        raise CheckpointError(what, where=str(file), expected="a complete safetensors file", remedy=remedy) from error


def put_weights(backbone: Backbone, adapter: str, state: dict[str, Tensor], folder: Path) -> None:
    """Copy tensors, under PEFT's names, into an adapter of the backbone. Raises CheckpointError if they do not fit."""
    reshard(backbone)
    mine = adapter_weights(backbone, adapter)
    # PEFT also saves the frozen embeddings if they have an adapter. Wrappers of two parameters of a layer are nested.
    state = {name: tensor for name, tensor in state.items() if ".base_layer." not in name or ".lora_" in name}
    if wrong := misfit(state, mine):
        what = f"The adapter does not fit this model: it {wrong}"
        raise CheckpointError(what, where=str(folder), remedy="use the backbone the adapter was trained on")
    for name, tensor in mine.items():
        assign(tensor, state[name])


def misfit(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> str:
    """The first difference of saved weights from a model's, as the predicate of a sentence; empty if none. PEFT would
    silently leave missing weights at their initial values.
    """
    foreign, missing = sorted(theirs.keys() - mine.keys()), sorted(mine.keys() - theirs.keys())
    if foreign:
        return f"has weights for layers that this model lacks, such as {foreign[0]}"
    if missing:
        return f"lacks {len(missing)} weights of this model, such as {missing[0]}"
    for key in sorted(theirs):
        if theirs[key].shape != mine[key].shape:
            return f"has {key} of shape {tuple(theirs[key].shape)}, not {tuple(mine[key].shape)}"
    return ""
