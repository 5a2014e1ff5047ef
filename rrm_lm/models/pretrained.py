"""Load models: a Hub id, a folder, or the alias of the embedded default model.

Also the only place that chooses device, dtype and seed. Remote code is off by default, and pickled weights are refused.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers import set_seed as set_seed  # Python, NumPy and torch on every device

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.embedded import EMBEDDED, fetch
from rrm_lm.models.together import load_once

DEFAULT_MODEL = "smollm2-135m"

_HEADS = r"(^|\.)(score|lm_head|embed_out)\."  # what a language model has more or less than a classifier
_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json")
_WEIGHTS = {"model.safetensors": "pytorch_model.bin", "adapter_model.safetensors": "adapter_model.bin"}


def resolve(name_or_path: str, revision: str | None = None) -> str:
    """Resolve a name for `from_pretrained`: an alias to its cached folder, fetched if needed; other names are checked.
    Raises ModelError for a path that does not exist, a Hub model that is neither cached nor reachable, or an alias with
    a revision (the embedded model has one version).
    """
    if name_or_path in EMBEDDED and not Path(name_or_path).is_dir():
        if revision is not None:
            raise ModelError(
                f"{name_or_path} is the embedded model and has no revision {revision!r}", remedy="leave revision out"
            )
        return str(fetch(name_or_path))
    folder = Path(name_or_path).expanduser()
    if folder.is_dir() or (folder.suffix in (".yaml", ".yml") and folder.is_file()):  # criteria: a reward without model
        return str(folder)
    _check_hub(name_or_path, revision)
    return name_or_path


def load_causal_lm(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    new_head: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a causal language model from safetensors, in evaluation mode.

    Args:
        name: Alias, folder or Hub id.
        dtype: `float32`, `bfloat16`, `float16`, `auto` (as saved), or None for `default_dtype()`.
        revision: Branch, tag or commit on the Hub.
        new_head: Give a sequence classifier a language-model head, which is random unless tied.
        options: Passed to `from_pretrained`, None being its default: `attn_implementation` (`sdpa`, `eager` ...),
            `trust_remote_code` (run Python code from the model's repository; by default False), `device_map` (by
            default the CPU), `quantization_config` (for QLoRA, for example a `BitsAndBytesConfig`).

    Raises:
        ModelError: No such model, pickled weights only, untrusted remote code, or unknown architecture.
    """
    return _load_model(AutoModelForCausalLM, name, revision, new_head, dtype=to_dtype(dtype), **options)


def load_sequence_classifier(
    name: str, *, dtype: str | torch.dtype | None = None, revision: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load a sequence-classification model under the rules of :func:`load_causal_lm`. With `num_labels`, a language
    model gets a new head of that size.
    """
    new_head = options.get("num_labels") is not None
    return _load_model(AutoModelForSequenceClassification, name, revision, new_head, dtype=to_dtype(dtype), **options)


def _load_model(auto_class: Any, name: str, revision: str | None, new_head: bool, **options: Any) -> PreTrainedModel:
    path = resolve(name, revision)
    if Path(path).is_dir():
        refuse_pickles(path)
    if model_file(path, "adapter_config.json", revision) is not None:
        remedy = "merge it first (PEFT's merge_and_unload; rrm-lm reward, sft and policy have --merge)"
        raise ModelError("This is an adapter, and only a whole model can be loaded here", where=name, remedy=remedy)
    options = {"trust_remote_code": False, "revision": revision, **options}
    options = {key: value for key, value in options.items() if value is not None}
    load = partial(from_pretrained, auto_class, path, use_safetensors=True, output_loading_info=True, **options)
    model, info = load() if _loads_alone(options) else load_once(load, process_state())
    for keys, found in (("missing_keys", "lacks {} weights of"), ("unexpected_keys", "has {} weights that are not in")):
        wrong = sorted(key for key in info[keys] if not (new_head and re.search(_HEADS, key)))
        if wrong:
            raise ModelError(
                f"The checkpoint {found.format(len(wrong))} a {type(model).__name__}: {', '.join(wrong[:3])} ...",
                where=name,
                expected="exactly the weights of that class",
                remedy="use the class that saved the checkpoint (its config.json names it), or load it there without "
                "these weights and save it again with save_pretrained",
            )
    return compute_as_stored(model).eval()


def _loads_alone(options: dict[str, Any]) -> bool:
    """Whether a process needs its own model: it has a device map or other weights, or imports code from the Hub."""
    imports = options.get("trust_remote_code") or "/" in str(options.get("attn_implementation"))
    return bool(imports) or bool(options.keys() & {"quantization_config", "device_map"})


def compute_as_stored(model: Any) -> Any:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16, and return the model.

    It repacks at a layer's first evaluation. This rounds the scales, so that rewards change, and the packed product has
    no backward pass, so that later steps of training get wrong gradients (bitsandbytes 0.50).
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model


def model_file(path: str, name: str, revision: str | None = None) -> Path | None:
    """The local path of a model's file, in a folder or from the Hub; ``None`` if it does not exist."""
    if Path(path).exists():
        return Path(path, name) if Path(path, name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):  # the second: not cached, and no network
        return None


def refuse_pickles(folder: str | Path) -> None:
    """Raise a ModelError if a folder has only pickled weights: loading a pickle can run any code in it."""
    folder = Path(folder)
    for safe, pickled in _WEIGHTS.items():
        has_safe = (folder / safe).exists() or (folder / f"{safe}.index.json").exists()
        found = sorted(path.name for path in folder.glob(f"{Path(pickled).stem}*.bin"))
        if found and not has_safe:
            what = f"The weights are a pickle file ({found[0]}), which can run code when it is loaded"
            remedy = "if you trust the file, convert it to safetensors (load, then save_pretrained)"
            raise ModelError(what, where=str(folder), expected=safe, remedy=remedy)


def default_device() -> torch.device:
    """The current accelerator (CUDA, XPU, MPS ...) if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def process_state() -> PartialState:
    """This process's rank, world size and device. Joins the process group of `accelerate launch` or `torchrun`.

    Without `cpu=True`, accelerate ignores the group on a machine without accelerators.
    """
    state = PartialState(cpu=default_device().type == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Accelerate turns FSDP into DDP silently unless the type is MULTI_GPU. Device and gloo backend do not change.
        state.distributed_type = DistributedType.MULTI_GPU
    return state


def default_dtype() -> torch.dtype:
    """bfloat16 on GPUs that support it, else float32 (bfloat16 is slower than float32 on most CPUs)."""
    return torch.bfloat16 if default_device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Tolerance between two computations of the same result, relative to the largest value.

    On CUDA, float32 products may round like TensorFloat-32, to 10 bits (``--tf32 true``).
    """
    if dtype not in (torch.float32, torch.float64):
        return 0.05
    matmul: Any = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # since torch 2.9
    coarse = matmul.allow_tf32 if precision is None else precision == "tf32"
    return 0.01 if coarse and dtype == torch.float32 and device.type == "cuda" else 1e-4


def to_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    """Parse a dtype: a name such as `bfloat16`, `auto`, or None for the device's default. Raises ConfigError if the
    name is not a floating-point dtype.
    """
    if dtype is None:
        return default_dtype()
    if dtype == "auto":
        return "auto"
    found: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            f"{dtype!r} is not a dtype for weights", where="dtype", expected="auto, float32, bfloat16 or float16"
        )
    return found


def from_pretrained(auto_class: Any, path: str, **options: Any) -> Any:
    """`auto_class.from_pretrained`. Raises ModelError if files are missing or broken, or need remote code."""
    try:
        return auto_class.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and "mismatch" not in reason:  # out of memory, for example
            raise
        if "trust_remote_code" in reason:
            raise ModelError(
                "The model needs Python code from its own repository, which is disabled",
                where=path,
                remedy="read that code, and set trust_remote_code to true if you trust it",
            ) from error
        raise ModelError(
            f"The model or tokenizer could not be loaded ({reason[:400]})",
            where=path,
            remedy="check that it is a complete model of a family that transformers knows, or copy it again",
        ) from error


def _check_hub(name: str, revision: str | None) -> None:
    """Raise a short error right away if a Hub model is unavailable; transformers would retry for a minute first."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    remedy = f"check the spelling, give a folder, or use the embedded model {DEFAULT_MODEL!r}"
    try:
        if any(isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in _CONFIGS):
            return
        if constants.is_offline_mode():
            what = "The model is not in the Hub's cache, and offline mode is on (HF_HUB_OFFLINE)"
            raise ModelError(what, where=name, remedy=f"unset HF_HUB_OFFLINE and run once with a network; or {remedy}")
        HfApi().model_info(name, revision=revision, timeout=20)
    except HFValidationError as error:
        raise ModelError("There is no such folder, and it is not a Hub id", where=name, remedy=remedy) from error
    except GatedRepoError as error:
        remedy = "accept its licence there and run `hf auth login`"
        raise ModelError("The model is gated on the Hub", where=name, remedy=remedy) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The model has no revision {revision!r} on the Hub", where=name) from error
    except RepositoryNotFoundError as error:
        raise ModelError("There is no such folder, and no such model on the Hub", where=name, remedy=remedy) from error
    except ModelError:
        raise
    except Exception as error:  # connections fail in many ways
        what = f"The model is not in the Hub's cache, and the Hub cannot be reached ({type(error).__name__})"
        raise ModelError(what, where=name, remedy=f"check the network; or {remedy}") from error
