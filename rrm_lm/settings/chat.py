"""Settings of `rrm-lm chat`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError


@dataclass
class ChatArguments:
    """The model, and how its answers are drawn."""

    model: str | None = field(default=None, metadata={"help": "A policy's folder, a merged one, a Hub id or an alias."})
    system: str | None = field(default=None, metadata={"help": "What the model is told before the conversation."})
    temperature: float = field(default=0.7, metadata={"help": "0 for the most likely words; 1 as the model has it."})
    top_p: float = field(default=1.0, metadata={"help": "Draw from the smallest set of tokens this likely."})
    top_k: int = field(default=0, metadata={"help": "Draw from this many most likely tokens; 0 for all."})
    max_new_tokens: int = field(default=512, metadata={"help": "Most tokens of an answer."})
    seed: int | None = field(default=None, metadata={"help": "For the same answers again; unset: others each time."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest conversation in tokens; unset: as long as the model can. The oldest turns go."},
    )
    base_model: str | None = field(default=None, metadata={"help": "Backbone of an adapter, if not the recorded one."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model's repository."})
    dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 ...; unset: bfloat16 on GPUs."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2 ..."})
    pad_token: str | None = field(
        default=None, metadata={"help": "Token to pad with, for tokenizers where none can be found."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "File with a Jinja chat template, for tokenizers without one."}
    )

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}", where="max_length", expected="at least 2")
