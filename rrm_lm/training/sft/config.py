"""Settings of supervised fine-tuning: TRL's SFTConfig with defaults for LoRA and the device, and our additions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig as TRLConfig

from rrm_lm.models.pretrained import default_device, default_dtype
from rrm_lm.options import check, check_minimum, option
from rrm_lm.training.arguments import NO_LIGER, FeedbackArguments, refuse_settings

SOURCES = ("demonstrations", "corrections", "chosen")
# TRL and Hugging Face settings that would fail or have no effect, and what to use instead.
_NOT_HERE = {
    "packing": "a row for each example: packed ones see each other under every attention but flash attention",
    "padding_free": "padded rows; --train_sampling_strategy group_by_length leaves little padding",
    "assistant_only_loss": "the last response alone is learned, whatever the prompt holds",
    **NO_LIGER,
}


@dataclass
class SFTConfig(FeedbackArguments, TRLConfig):
    """Supervised fine-tuning settings. Names are those of TRL and Hugging Face where they have one."""

    # Defaults that differ from TRL's.
    output_dir: str | None = option("outputs/sft", "Where the policy and results go.")
    per_device_train_batch_size: int = option(8, "Responses per step and process.")
    bf16: bool | None = option(None, "Mixed precision with bfloat16; unset: on GPUs that have it, never on CPUs.")
    completion_only_loss: bool | None = option(
        True, "Always true: the loss is on the response and its end-of-turn token."
    )
    router_aux_loss_coef: float = option(0.0, "Weight of the load-balancing loss of mixtures of experts.")

    # TRL uses these to load and tokenize. Here text/chat.py tokenizes, and ModelArguments has the model's settings.
    model_init_kwargs: dict[str, Any] | str | None = field(default=None, init=False)
    trust_remote_code: bool = field(default=False, init=False)
    chat_template_path: str | None = field(default=None, init=False)
    dataset_text_field: str = field(default="text", init=False)
    dataset_kwargs: dict[str, Any] | str | None = field(default=None, init=False)
    dataset_num_proc: int | None = field(default=None, init=False)
    eos_token: str | None = field(default=None, init=False)
    pad_token: str | None = field(default=None, init=False)
    truncation_mode: str = field(default="keep_start", init=False)
    shuffle_dataset: bool = field(default=False, init=False)
    packing_strategy: str = field(default="bfd", init=False)
    eval_packing: bool | None = field(default=None, init=False)

    # Settings that TRL does not have.
    sft_on: list[str] = option(
        ["demonstrations", "corrections"],
        "What to imitate, one or more of: demonstrations, corrections (the corrected text) and "
        "chosen (the chosen response of each comparison).",
    )
    prompts_together: int = option(
        1,
        "Most prompts with the same beginning, such as questions on one text, that are one row, so that the beginning "
        "is computed once. The batch size then counts rows.",
    )
    micro_batch_tokens: int = option(2048, "Most padded tokens at once when the held-out loss is measured at the end.")

    def __post_init__(self) -> None:
        self._check()
        on_cpu = self.use_cpu or default_device().type == "cpu"
        if self.bf16 is None:
            self.bf16 = not (on_cpu or self.fp16) and default_dtype() == torch.bfloat16
        if self.activation_checkpointing is None and self.gradient_checkpointing is None:
            self.activation_checkpointing = not (on_cpu or self.compile_layers)
        self.dataset_kwargs = {"skip_prepare_dataset": True}  # examples already are tokens and labels
        super().__post_init__()
        if self.label_smoothing_factor > 0 and self.loss_type == "chunked_nll":
            self.loss_type = "nll"  # label smoothing needs logits, which the chunked loss does not return

    def _check(self) -> None:
        refuse_settings(self, _NOT_HERE)
        only = self.completion_only_loss is not False
        check(self, ("completion_only_loss", only, "true: the prompt is not the policy's to write"))
        unknown = [source for source in self.sft_on if source not in SOURCES]
        check_minimum(self, prompts_together=1)
        alone = self.prompts_together == 1 or not self.pad_to_multiple_of
        check(self, ("pad_to_multiple_of", alone, "unset with prompts_together above 1"))
        check(self, ("sft_on", bool(self.sft_on) and not unknown, f"one or more of {', '.join(SOURCES)}"))
