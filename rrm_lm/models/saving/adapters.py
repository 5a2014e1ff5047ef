"""LoRA adapter folders as PEFT writes them: found here or on the Hub, read from safetensors, put where they fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.sharding import assign, gather, reshard

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


def is_classifier(path: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds a whole sequence-classification model."""
    file = model_file(path, "config.json", revision)
    names = (read_json(file).get("architectures") or []) if file is not None else []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


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


def whole_weights(backbone: Backbone, adapter: str) -> dict[str, Tensor]:
    """An adapter's tensors, as they are written down. Called by all processes, if the model is sharded."""
    return gather(adapter_weights(backbone, adapter))


def write_weights(backbone: Backbone, adapter: str, folder: Path, write: bool = True) -> None:
    """Write an adapter's weights into a folder, as PEFT reads them.

    Args:
        backbone: The model. If it is sharded, all processes call this.
        adapter: Which of its adapters.
        folder: The folder, which is there.
        write: Off in processes that only give their shards.
    """
    state = whole_weights(backbone, adapter)
    if write:
        save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def read_weights(backbone: Backbone, adapter: str, folder: Path) -> None:
    """Put the weights that a folder holds into an adapter of the backbone.

    Raises:
        CheckpointError: They are missing, broken, or not those of this adapter on this model.
    """
    put_weights(backbone, adapter, load_weights(folder), folder)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in an adapter's folder, on the CPU.

    Raises:
        CheckpointError: They are missing or broken.
    """
    file = folder / ADAPTER_WEIGHTS
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter's weights cannot be read ({error})",
            where=str(file),
            expected="a whole safetensors file",
            remedy="copy the folder again, or train again",
        ) from error


def put_weights(backbone: Backbone, adapter: str, state: dict[str, Tensor], folder: Path) -> None:
    """Put tensors into an adapter of the backbone.

    Args:
        backbone: The model.
        adapter: Which of its adapters.
        state: The tensors by PEFT's names.
        folder: Where they are from, for messages.

    Raises:
        CheckpointError: They are not those of this adapter on this model.
    """
    reshard(backbone)
    mine = adapter_weights(backbone, adapter)
    # PEFT writes the frozen embeddings down, too, where they have an adapter.
    state = {name: tensor for name, tensor in state.items() if ".base_layer." not in name}
    misfit = _misfit(state, mine)
    if misfit:
        raise CheckpointError(misfit, where=str(folder), remedy="use the backbone the adapter was trained on")
    for name, tensor in mine.items():
        assign(tensor, state[name])


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
