"""Settings of `rrm-lm compare`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.asking.llm_judge import SERVED
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.settings.judges import CriticArguments, ServerArguments
from rrm_lm.settings.permissions import CodeArguments


@dataclass
class CompareArguments(ReadLimits, ServerArguments, CriticArguments, CodeArguments):
    """The policies, what they answer, and what says which answers are better."""

    policies: list[str] = field(
        default_factory=list, metadata={"help": "Policies: adapter folders, merged ones, Hub ids or aliases."}
    )
    reference: str | None = field(
        default=None, metadata={"help": "What they are compared with; unset: the model the first was made from."}
    )
    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Held-out prompts: any feedback, or JSON lines with `prompt`; one file or set or more."},
    )
    trivial: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Texts that answer every prompt, as further policies: what a reward gives to answers that cannot "
            "be good. {first_sentence} in one stands for the first sentence of the reference's answer."
        },
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Use only the first so many prompts."})
    split: str = field(default="test", metadata={"help": "Split of a Hub set or of a folder of files named by split."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub set."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Column names, as theirs=ours, for shapes that are not recognised."}
    )
    skip_bad_rows: bool | None = field(
        default=None,
        metadata={"help": "Count faulty rows and go on; unset: only in Hub sets, and a local file's stop the command."},
    )
    gold: str | None = field(
        default=None,
        metadata={"help": "Gold reward: file.py:function, module:function, or a file of a simulated user's requests."},
    )
    proxy: str | None = field(
        default=None, metadata={"help": "Reward model that the policies were optimised for; it picks the best of n."}
    )
    reward_model: list[str] = field(
        default_factory=list, metadata={"help": "Independent reward models, trained on other feedback; one or more."}
    )
    judge: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Language models that compare answers in both orders; one or more. llm:MODEL is one behind a "
            "server at base_url, which all prompts and compared answers are sent to."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the results go; unset: outputs/compare/ and the policies' names."}
    )
    overwrite_output_dir: bool = field(default=True, metadata={"help": "Replace earlier results in output_dir."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ConfigError(f"max_prompts is {self.max_prompts}", where="max_prompts", expected="at least 1")

    def require(self) -> None:
        """Raise a ConfigError if there is no policy or no prompt, a name is given twice, or a judge has none."""
        if not self.policies:
            raise ConfigError(
                "There is no policy to compare", where="the command line", remedy="rrm-lm compare outputs/ppo ..."
            )
        if not self.prompts:
            raise ConfigError(
                "`prompts` is not given", where="the command line", remedy="pass --prompts held_out_prompts.jsonl"
            )
        answering, scoring = [*self.policies, *filter(None, [self.reference])], self.scorers
        named = (
            ("policies and reference", answering),
            ("proxy and reward_model", scoring),
            ("judge", self.judge),
            ("trivial", self.trivial),
        )
        for what, names in named:
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ConfigError(f"{twice[0]} is given twice", where=what, expected="each once")
        if self.critic is not None and not self.judge:
            raise ConfigError(
                "A critic helps whoever judges, and there is no judge", where="critic", remedy="name one with --judge"
            )
        if SERVED in self.judge:
            raise ConfigError(f"{SERVED} names no model", where="judge", remedy=f"pass --judge {SERVED}Qwen/Qwen3-8B")

    @property
    def scorers(self) -> list[str]:
        """Every reward model, the proxy first."""
        return [*filter(None, [self.proxy]), *self.reward_model]

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        names = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model" for name in self.policies]
        return Path("outputs/compare") / "_".join(names)[:120]


@dataclass
class DrawingArguments:
    """How answers are drawn and models are run."""

    samples: int = field(default=4, metadata={"help": "Answers of each policy to each prompt."})
    max_new_tokens: int = field(default=128, metadata={"help": "Most tokens of an answer."})
    temperature: float = field(
        default=1.0, metadata={"help": "1 for the policies as they are; KL needs it above 0, top_p 1 and top_k 0."}
    )
    top_p: float = field(default=1.0, metadata={"help": "Draw from the smallest set of tokens this likely."})
    top_k: int = field(default=0, metadata={"help": "Draw from this many most likely tokens; 0 for all."})
    seed: int = field(default=0, metadata={"help": "The same seed gives the same answers."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest prompt plus answer in tokens; unset: as long as the model can. Old turns go first."},
    )
    batch_tokens: int = field(default=16384, metadata={"help": "Most tokens held at once while answers are drawn."})
    micro_batch_tokens: int = field(default=4096, metadata={"help": "Most padded tokens at once while scoring."})
    base_model: str | None = field(default=None, metadata={"help": "Backbone of policies that are adapters."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the models' repositories."})
    dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16 ...; unset: bfloat16 on GPUs."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2 ..."})
    pad_token: str | None = field(
        default=None, metadata={"help": "Token to pad with, for tokenizers where none can be found."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "File with a Jinja chat template, for tokenizers without one."}
    )

    def __post_init__(self) -> None:
        for name in ("samples", "max_new_tokens", "batch_tokens", "micro_batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected="at least 1")
        for name, right, expected in (
            ("temperature", self.temperature >= 0, "0 (most likely words) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("max_length", self.max_length is None or self.max_length > self.max_new_tokens, "above max_new_tokens"),
        ):
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected=expected)
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"Temperature 0 gives one answer to a prompt, and {self.samples} were asked for",
                where="samples",
                remedy="pass --samples 1, or a temperature above 0",
            )
