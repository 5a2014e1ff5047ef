"""Settings that several commands share, as dataclasses for `rrm_lm.settings.parser`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trl.trainer.model_config import ModelConfig

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.limits import ReadLimits


@dataclass
class DataArguments(ReadLimits):
    """Which feedback is learned from, and which is held out."""

    dataset_name: list[str] = field(
        default_factory=list, metadata={"help": "Feedback to learn from: files, folders or Hub sets, one or more."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of dataset_name to learn from."})
    eval_dataset_name: list[str] = field(
        default_factory=list,
        metadata={"help": "Held-out feedback; unset holds out eval_fraction of the prompts of dataset_name."},
    )
    dataset_test_split: str = field(default="test", metadata={"help": "Split of eval_dataset_name."})
    skip_bad_rows: bool | None = field(
        default=None,
        metadata={"help": "Count faulty rows and go on; unset: only in Hub sets, and a local file's stop the run."},
    )
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Column names, as theirs=ours, for shapes that are not recognised."}
    )
    eval_fraction: float = field(default=0.1, metadata={"help": "Share of prompts held out without an evaluation set."})
    split_seed: int = field(default=0, metadata={"help": "Which prompts are held out."})
    max_comparisons: int | None = field(
        default=None, metadata={"help": "Use only the first so many comparisons to learn from."}
    )
    leak_threshold: float = field(
        default=0.8, metadata={"help": "Jaccard similarity from which two texts are near-duplicates."}
    )
    fail_on_leak: bool = field(
        default=False, metadata={"help": "Refuse to train when held-out feedback overlaps the training set."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, right, expected in (
            ("eval_fraction", 0 <= self.eval_fraction < 1, "at least 0 (nothing is held out) and below 1"),
            ("leak_threshold", 0 < self.leak_threshold <= 1, "above 0 and at most 1"),
            ("max_comparisons", self.max_comparisons is None or self.max_comparisons >= 1, "at least 1"),
        ):
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected=expected)


@dataclass
class ModelArguments(ModelConfig):
    """The backbone and its LoRA adapter: TRL's ModelConfig with our defaults."""

    model_name_or_path: str | None = field(
        default="smollm2-135m", metadata={"help": "Backbone: a Hub id, a folder, or smollm2-135m (embedded)."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})  # type: ignore[assignment]
    dtype: str | None = field(
        default=None, metadata={"help": "Weights of the backbone: float32, bfloat16 ...; unset: bfloat16 on GPUs."}
    )
    use_peft: bool = field(default=True, metadata={"help": "Always true: the backbone is frozen."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the LoRA adapter."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the LoRA adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers that get LoRA weights; unset: all linear layers."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    pad_token: str | None = field(
        default=None, metadata={"help": "Token to pad with, for tokenizers where none can be found."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "File with a Jinja chat template, for tokenizers without one."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_peft:
            raise ConfigError(
                "use_peft is false", where="use_peft", expected="true: the backbone stays frozen and LoRA is trained"
            )
        if self.lora_modules_to_save:
            raise ConfigError(
                "lora_modules_to_save is set", expected="nothing: only LoRA and the scalar head are trained"
            )

    def lora(self) -> Any:
        """The LoRA configuration."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_target_modules or "all-linear",
            target_parameters=self.lora_target_parameters,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            bias="none",
        )

    def loading(self) -> dict[str, Any]:
        """Arguments for `rrm_lm.models.pretrained.load_causal_lm`."""
        from rrm_lm.models.pretrained import process_state

        quantization = self._quantization()
        return {
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "revision": self.model_revision,
            "trust_remote_code": self.trust_remote_code,
            "quantization_config": quantization,
            "device_map": None if quantization is None else {"": process_state().local_process_index},
        }

    def _quantization(self) -> Any:
        """TRL's, which computes in `dtype`; where that is left open, in what this device computes in."""
        if not (self.load_in_4bit or self.load_in_8bit):
            return None
        from importlib.util import find_spec

        from trl.trainer.utils import get_quantization_config

        from rrm_lm.models.pretrained import default_dtype

        if find_spec("bitsandbytes") is None:
            raise ConfigError(
                "Loading in 4 or 8 bit needs the package bitsandbytes, which is not installed",
                where="load_in_4bit" if self.load_in_4bit else "load_in_8bit",
                remedy="pip install 'rrm_lm[quantization]'",
            )
        dtype = str(default_dtype()).removeprefix("torch.") if self.dtype in (None, "auto") else self.dtype
        return get_quantization_config(replace(self, dtype=dtype))


@dataclass
class FolderArguments:
    """The output folder, and an earlier run in it."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what an earlier run left in output_dir."}
    )
    allow_config_change: bool = field(
        default=False,
        metadata={"help": "Resume although settings, data or models are not those of that run; it is told which."},
    )


def read_template(path: str | None) -> str | None:
    """The chat template in a file.

    Raises:
        ConfigError: There is no such file, or it is not text.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The chat template cannot be read ({error})",
            where=f"chat_template_path: {path}",
            expected="a file with a Jinja template",
        ) from error


def column_map(pairs: Sequence[str]) -> dict[str, str] | None:
    """`theirs=ours` pairs as a mapping.

    Raises:
        ConfigError: A pair without `=`.
    """
    wrong = [pair for pair in pairs if pair.count("=") != 1 or pair.startswith("=") or pair.endswith("=")]
    if wrong:
        raise ConfigError(
            f"`{wrong[0]}` names no column",
            where="columns",
            expected="theirs=ours, for example question=prompt",
            remedy="quote names that have spaces",
        )
    return dict(pair.split("=") for pair in pairs) or None


@dataclass
class RunArguments(FolderArguments):
    """What else `rrm-lm reward` does."""

    merge: bool = field(
        default=False, metadata={"help": "Also write a plain sequence-classification checkpoint to OUTPUT_DIR/merged."}
    )


@dataclass
class SFTRunArguments(FolderArguments):
    """What else `rrm-lm sft` does."""

    merge: bool = field(
        default=False, metadata={"help": "Also write a plain causal language model to OUTPUT_DIR/merged."}
    )
