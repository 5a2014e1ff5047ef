"""Load a backbone and its tokenizer: a Hub id, a folder, or the alias of the embedded default model.

Also the only place that chooses device, dtype and seed. Remote code is off by default, pickled weights are refused, and
the pad token never ends a turn.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, parse_flag_from_env
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import set_seed as set_seed  # Python, NumPy and torch on every device

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.embedded import EMBEDDED, fetch
from rrm_lm.text.templates import prepare_template

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

DEFAULT_MODEL = "smollm2-135m"

# Special tokens reserved for padding or unused, in order of preference. Candidates that are the eos
# token or occur in the chat template are skipped.
_PAD_CANDIDATES = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|vision_pad|>",
    "<unk>",
    "[UNK]",
    "<|unk|>",
)
_HEADS = r"(^|\.)(score|lm_head|embed_out)\."  # what a language model has more or less than a classifier
_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json")
_WEIGHTS = {"model.safetensors": "pytorch_model.bin", "adapter_model.safetensors": "adapter_model.bin"}


def is_criteria(path: Path) -> bool:
    """Whether a path is a file of criteria, which is a reward without a model."""
    return path.suffix in (".yaml", ".yml") and path.is_file()


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
    if folder.is_dir() or is_criteria(folder):
        return str(folder)
    _check_hub(name_or_path, revision)
    return name_or_path


def load_tokenizer(
    name: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    chat_template: str | None = None,
    pad_token: str | None = None,
    own_pad: bool = False,
    chat_date: str | None = None,
    fold_system: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template and a pad token that does not end a turn.

    Args:
        name: Alias, folder or Hub id.
        trust_remote_code: Run Python code from the model's repository.
        revision: Branch, tag or commit on the Hub.
        chat_template: A Jinja template to use instead of the tokenizer's own.
        pad_token: An existing token to pad with.
        own_pad: Keep the tokenizer's pad token, even eos, because the model was trained with it.
        chat_date, fold_system: See :func:`rrm_lm.text.templates.prepare_template`.

    Raises:
        ConfigError: `chat_date` is not a date.
        ModelError: No such tokenizer, no chat template, or no usable pad token.
    """
    tokenizer: Any = _from_pretrained(
        AutoTokenizer, resolve(name, revision), revision=revision, trust_remote_code=trust_remote_code
    )
    return prepare_tokenizer(
        tokenizer,
        name,
        chat_template=chat_template,
        pad_token=pad_token,
        own_pad=own_pad,
        chat_date=chat_date,
        fold_system=fold_system,
    )


def prepare_tokenizer(
    tokenizer: Any,
    name: str,
    *,
    chat_template: str | None = None,
    pad_token: str | None = None,
    own_pad: bool = False,
    chat_date: str | None = None,
    fold_system: bool = False,
) -> PreTrainedTokenizerBase:
    """Set a loaded tokenizer's chat template and pad token; see :func:`load_tokenizer`."""
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise ModelError(
            "The tokenizer has no chat template",
            where=name,
            remedy="use an instruction-tuned model (often named ...-Instruct or ...-it), or pass a Jinja file with "
            "--chat_template_path",
        )
    prepare_template(tokenizer, chat_date, fold_system)
    if pad_token is None and own_pad and tokenizer.pad_token in tokenizer.get_vocab():
        return tokenizer
    tokenizer.pad_token = _find_pad(tokenizer) if pad_token is None else pad_token
    _check_pad(tokenizer, name)
    return tokenizer


def own_pad_id(config: Any, tokenizer: Any) -> int:
    """The pad token of a classifier's configuration, else of its tokenizer: it reads the last token that is not pad."""
    pad = config.get_text_config().pad_token_id
    return int(tokenizer.pad_token_id) if pad is None or pad < 0 else int(pad)


def load_causal_lm(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization_config: QuantizationConfigMixin | None = None,
    device_map: Any = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """Load a causal language model from safetensors, in evaluation mode.

    Args:
        name: Alias, folder or Hub id.
        dtype: `float32`, `bfloat16`, `float16`, `auto` (as saved), or None for `default_dtype()`.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None for transformers' default.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run Python code from the model's repository.
        quantization_config: For QLoRA, for example a `BitsAndBytesConfig`.
        device_map: Passed on; None loads on the CPU.
        new_head: Give a sequence classifier a language-model head, which is random unless tied.

    Raises:
        ModelError: No such model, pickled weights only, untrusted remote code, or unknown architecture.
    """
    return _load_model(
        AutoModelForCausalLM,
        name,
        revision,
        new_head,
        dtype=to_dtype(dtype),
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        quantization_config=quantization_config,
        device_map=device_map,
    )


def load_sequence_classifier(
    name: str, *, dtype: str | torch.dtype | None = None, revision: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load a sequence-classification model under the same rules as :func:`load_causal_lm`.

    Args:
        name, dtype, revision: See :func:`load_causal_lm`.
        options: Passed to `from_pretrained`. `num_labels` gives a language model a new head of that size.
    """
    new_head = options.get("num_labels") is not None
    return _load_model(AutoModelForSequenceClassification, name, revision, new_head, dtype=to_dtype(dtype), **options)


def _load_model(
    auto_class: Any, name: str, revision: str | None, new_head: bool = False, **options: Any
) -> PreTrainedModel:
    path = resolve(name, revision)
    if Path(path).is_dir():
        refuse_pickles(path)
    if model_file(path, "adapter_config.json", revision) is not None:
        remedy = "merge it first (PEFT's merge_and_unload; rrm-lm reward, sft and policy have --merge)"
        raise ModelError("This is an adapter, and only a whole model can be loaded here", where=name, remedy=remedy)
    options = {key: value for key, value in {**options, "revision": revision}.items() if value is not None}
    model, info = _from_pretrained(auto_class, path, use_safetensors=True, output_loading_info=True, **options)
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
    return model.eval()


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


def align_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's pad token in the model's config and generation config.

    Sequence-classification models read their score at the last token that is not pad.
    """
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Raise a ModelError if text can have a token that the model has no embedding for.

    Published text models may lack special tokens (of images ...) of their tokenizers, which no text has.
    """
    rows, special = model.get_input_embeddings().weight.shape[0], _special_ids(tokenizer)
    written = {*_turn_enders(tokenizer), tokenizer.pad_token_id}
    beyond = {
        token_id: token
        for token, token_id in tokenizer.get_vocab().items()
        if token_id >= rows and (token not in special or token_id in written)
    }
    if beyond:
        last = max(beyond)
        raise ModelError(
            f"The tokenizer has {len(beyond)} tokens that the model has no embeddings for, up to {beyond[last]!r}, "
            f"number {last}",
            where=str(tokenizer.name_or_path),
            expected=f"numbers below {rows}, the rows of the embeddings",
            remedy="call model.resize_token_embeddings(len(tokenizer)), and save the model and the tokenizer",
        )


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


def default_dtype(device: torch.device | None = None) -> torch.dtype:
    """bfloat16 on GPUs that support it, else float32 (bfloat16 is slower than float32 on most CPUs)."""
    kind = (default_device() if device is None else device).type
    return torch.bfloat16 if kind == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


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


def _from_pretrained(auto_class: Any, path: str, **options: Any) -> Any:
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
        raise ModelError(
            "The model is gated on the Hub", where=name, remedy="accept its licence there and run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The model has no revision {revision!r} on the Hub", where=name) from error
    except RepositoryNotFoundError as error:
        raise ModelError("There is no such folder, and no such model on the Hub", where=name, remedy=remedy) from error
    except ModelError:
        raise
    except Exception as error:  # connections fail in many ways
        what = f"The model is not in the Hub's cache, and the Hub cannot be reached ({type(error).__name__})"
        raise ModelError(what, where=name, remedy=f"check the network; or {remedy}") from error


def _turn_enders(tokenizer: Any) -> set[int]:
    """Ids that may end or begin a turn: eos, bos, and every special token in the chat template."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else " ".join(map(str, template.values()))
    enders = {token_id for token, token_id in _special_ids(tokenizer).items() if token in text}
    return enders | {token_id for token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id) if token_id is not None}


def _special_ids(tokenizer: Any) -> dict[str, int]:
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**added, **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))}


def _find_pad(tokenizer: Any) -> str | None:
    special, enders = _special_ids(tokenizer), _turn_enders(tokenizer)
    candidates = [tokenizer.pad_token] if tokenizer.pad_token is not None else []
    # Last resort: reserved tokens.
    candidates += [*_PAD_CANDIDATES, *sorted(token for token in special if "reserved" in token or "unused" in token)]
    return next((token for token in candidates if token in special and special[token] not in enders), None)


def _check_pad(tokenizer: Any, name: str) -> None:
    pad = tokenizer.pad_token
    known = pad is not None and pad in tokenizer.get_vocab()
    if known and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    if pad is None:
        what = "No token of this tokenizer can be used for padding without also ending a turn"
    elif known:
        what = f"The pad token {pad!r} is the eos token, which ends every turn"
    else:
        what = f"The pad token {pad!r} is not in the vocabulary"
    raise ModelError(
        what,
        where=name,
        expected="a pad token that is in the vocabulary and is not eos",
        remedy="pass --pad_token with a token that never occurs in text, or add one to tokenizer and embeddings "
        "(add_special_tokens, resize_token_embeddings) and save both",
    )
