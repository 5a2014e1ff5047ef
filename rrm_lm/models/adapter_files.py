"""LoRA adapter folders as PEFT writes them: found here or on the Hub, read from safetensors, put where they fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models.backbone import Backbone

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of an adapter on the Hub; no pickles
# Parts of PEFT's LoRA that change more than the layers' own low-rank terms: they would still act on the bare backbone.
_NOT_HERE = ("modules_to_save", "trainable_token_indices", "layer_replication")


def model_file(path: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model in a folder or on the Hub; ``None`` where it has none of that name."""
    if Path(path).is_dir():
        return Path(path, name) if Path(path, name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):  # the second: not in the cache, and no network
        return None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: It is not valid JSON, or something else than an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The file is not valid JSON ({error})", where=str(file), remedy="copy the model's folder again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"The file holds a {type(value).__name__}", where=str(file), expected="a JSON object")
    return value


def fetch_adapter(path: str, revision: str | None = None) -> Path | None:
    """The local folder of an adapter, fetched if it is on the Hub; ``None`` where `path` is a whole model."""
    if model_file(path, ADAPTER_CONFIG, revision) is None:
        return None
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, allow_patterns=_WANTED))


def read_lora(folder: Path) -> LoraConfig:
    """The configuration of a LoRA adapter, as one to be trained on.

    Raises:
        ModelError: Another kind of adapter, or one that also replaces whole layers.
    """
    raw = read_json(folder / ADAPTER_CONFIG)
    if raw.get("peft_type") != "LORA":
        raise ModelError(
            f"The adapter is of the type {raw.get('peft_type')}",
            where=str(folder),
            expected="a LoRA adapter",
            remedy="merge it into its model where it was made, and name the merged model",
        )
    extra = [name for name in _NOT_HERE if raw.get(name)]
    extra += [f"bias {raw['bias']}"] if raw.get("bias", "none") != "none" else []
    if extra:
        raise ModelError(
            f"The adapter changes more than LoRA layers do ({', '.join(extra)})",
            where=str(folder),
            expected="LoRA weights alone, so that the bare backbone is still the model it was made from",
            remedy="merge it with PEFT's merge_and_unload, and name the merged model",
        )
    config: Any = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    return config


def adapter_weights(backbone: Backbone, adapter: str) -> dict[str, Tensor]:
    """An adapter's tensors under the names that PEFT saves them by. They share the model's memory."""
    # What PEFT does with embeddings otherwise asks the Hub for the model's vocabulary; they are frozen here.
    return get_peft_model_state_dict(backbone.model, adapter_name=adapter, save_embedding_layers=False)


def write_weights(backbone: Backbone, adapter: str, folder: Path) -> None:
    """Write an adapter's weights into a folder, as PEFT reads them."""
    state = {key: value.detach().cpu().contiguous() for key, value in adapter_weights(backbone, adapter).items()}
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def read_weights(backbone: Backbone, adapter: str, folder: Path) -> None:
    """Put the weights that a folder holds into an adapter of the backbone.

    Raises:
        CheckpointError: They are missing, broken, or not those of this adapter on this model.
    """
    file = folder / ADAPTER_WEIGHTS
    try:
        state = load_file(file, device=str(backbone.device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter's weights cannot be read ({error})",
            where=str(file),
            expected="a whole safetensors file",
            remedy="copy the folder again, or train again",
        ) from error
    misfit = _misfit(state, adapter_weights(backbone, adapter))
    if misfit:
        raise CheckpointError(misfit, where=str(folder), remedy="use the backbone the adapter was trained on")
    set_peft_model_state_dict(backbone.model, state, adapter_name=adapter)


def _misfit(theirs: dict[str, Tensor], mine: dict[str, Tensor]) -> str:
    """What does not fit, or nothing. PEFT says nothing about missing weights, and those would stay as they began."""
    foreign, missing = sorted(theirs.keys() - mine.keys()), sorted(mine.keys() - theirs.keys())
    if foreign:
        return f"The adapter has weights that this model has no place for, such as {foreign[0]}"
    if missing:
        return f"The adapter has no weights for {len(missing)} places in this model, such as {missing[0]}"
    for key in sorted(theirs):
        if theirs[key].shape != mine[key].shape:
            shapes = f"{tuple(theirs[key].shape)}, not {tuple(mine[key].shape)}"
            return f"The adapter does not fit this model: {key} is {shapes}"
    return ""
