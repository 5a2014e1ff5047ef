"""Settings of the models that commands load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl.trainer.model_config import ModelConfig

from rrm_lm.errors import ConfigError
from rrm_lm.options import check, option


@dataclass
class TokenizerLoading:
    """How tokenizers are loaded."""

    trust_remote_code: bool = option(False, "Run code from the model's repository.")
    pad_token: str | None = option(None, "Padding token, for tokenizers without a usable one.")
    chat_template_path: str | None = option(
        None, "Jinja chat template, for tokenizers without one: a file, or a tokenizer's folder or Hub id."
    )
    chat_date: str | None = option(
        None, "Date for chat templates that write one, such as 2026-11-29. Unset: the model's recorded one, or today."
    )
    fold_system: bool = option(
        False, "Put system messages into the first user turn, for chat templates that refuse or ignore them."
    )

    def tokenizing(self) -> dict[str, Any]:
        """Arguments for functions that load tokenizers. Raises a ConfigError as `chat_template` does."""
        return {
            "pad_token": self.pad_token,
            "chat_template": self.chat_template,
            "chat_date": self.chat_date,
            "fold_system": self.fold_system,
        }

    @property
    def chat_template(self) -> str | None:
        """The text of `chat_template_path`. Raises ConfigError: there is no such file, or it is not text."""
        if self.chat_template_path is None:
            return None
        path = Path(self.chat_template_path)
        try:
            if path.is_file() or path.suffix:
                return path.read_text(encoding="utf-8")
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.chat_template_path).chat_template
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The chat template cannot be read ({error})",
                where=f"chat_template_path: {self.chat_template_path}",
                expected="a file with a Jinja template, or a tokenizer that has one",
            ) from error


@dataclass
class ModelLoading(TokenizerLoading):
    """How models and their tokenizers are loaded."""

    dtype: str | None = option(None, "Data type of the weights: float32, bfloat16 ... Unset: bfloat16 on GPUs.")
    attn_implementation: str | None = option(None, "sdpa, eager, flash_attention_2 ...")

    def loading(self) -> dict[str, Any]:
        """Arguments for functions that load models."""
        return {name: getattr(self, name) for name in ("dtype", "attn_implementation", "trust_remote_code")}


@dataclass
class SavedModel(ModelLoading):
    """Which version of a saved model is loaded."""

    base_model: str | None = option(None, "Backbone of an adapter, if not the recorded one.")
    model_revision: str | None = option(None, "Branch, tag or commit on the Hub.")


@dataclass
class EnsembleArguments:
    """How the members of a reward ensemble are combined."""

    ensemble: str | None = option(
        None, "Reward ensembles: mean, min or mean_minus_std of the members. Unset: as trained."
    )
    ensemble_k: float | None = option(
        None, "With mean_minus_std: how many standard deviations to subtract. Unset: as trained."
    )


@dataclass
class ModelArguments(ModelLoading, ModelConfig):
    """The backbone and its LoRA adapter."""

    # TRL's ModelConfig with our defaults.
    model_name_or_path: str | None = option("smollm2-135m", "Hub id, folder or smollm2-135m; an adapter is trained on.")
    model_revision: str | None = option(None, "Branch, tag or commit on the Hub.")  # type: ignore[assignment]
    use_peft: bool = option(True, "Always true: the backbone is frozen.")
    lora_r: int = option(16, "Rank of the LoRA adapter.")
    lora_alpha: int = option(32, "Scale of the LoRA adapter.")
    lora_dropout: float = option(0.0, "Dropout before the LoRA adapter.")
    lora_target_modules: list[str] | None = option(
        None, "Layers that get LoRA weights. Unset: all linear layers but routers of experts."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_peft:
            expected = "true: the backbone stays frozen and LoRA is trained"
            raise ConfigError("use_peft is false", where="use_peft", expected=expected)
        nothing = "nothing: only LoRA and the scalar head are trained"
        check(self, ("lora_modules_to_save", not self.lora_modules_to_save, nothing))
        # LLM.int8 also rounds activations, together over a batch: a response's reward depends on the other rows.
        check(self, ("load_in_8bit", not self.load_in_8bit, "false for training; use load_in_4bit"))

    def lora(self) -> Any:
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
        return {**super().loading(), "revision": self.model_revision, **quantized(self)}


def quantized(settings: ModelConfig) -> dict[str, Any]:
    """The arguments that load a model in 4 or 8 bit on this process's device; empty if neither is set.

    TRL's configuration computes in `dtype`; if that is unset, in the device's default.
    """
    if not (settings.load_in_4bit or settings.load_in_8bit):
        return {}
    from trl.trainer.utils import get_quantization_config

    from rrm_lm.models.pretrained import default_dtype
    from rrm_lm.models.saving.quantization import on_this_device, require_bitsandbytes, storage

    require_bitsandbytes("load_in_4bit" if settings.load_in_4bit else "load_in_8bit")
    dtype = str(default_dtype()).removeprefix("torch.") if settings.dtype in (None, "auto") else settings.dtype
    settings = replace(settings, dtype=dtype, bnb_4bit_quant_storage=settings.bnb_4bit_quant_storage or storage(dtype))
    return {"quantization_config": get_quantization_config(settings), "device_map": on_this_device()}
