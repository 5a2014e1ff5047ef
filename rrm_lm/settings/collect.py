"""Settings of `rrm-lm collect`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.settings.judges import CriticArguments, ServerArguments
from rrm_lm.settings.permissions import CodeArguments


@dataclass
class CollectArguments(ReadLimits, ServerArguments, CriticArguments, CodeArguments):
    """Whose answers, to which prompts, and who judges them."""

    policy: str | None = field(
        default=None, metadata={"help": "Who answers: a policy folder, a Hub id or an alias; also the first word."}
    )
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts to answer: any feedback, or JSON lines with `prompt`."}
    )
    max_prompts: int | None = field(default=None, metadata={"help": "Use only so many prompts, drawn with the seed."})
    overseer: str | None = field(
        default=None,
        metadata={
            "help": "Who judges: llm:MODEL at base_url, a file of a simulated user's requests, or file.py:function, a "
            "function that returns an overseer (rrm_lm/feedback/asking/overseers.py says what one is)."
        },
    )
    samples: int = field(default=4, metadata={"help": "Answers to each prompt."})
    comparisons_per_prompt: int = field(default=1, metadata={"help": "Most pairs of answers to ask about, per prompt."})
    critiques: bool = field(default=True, metadata={"help": "Also ask for a critique of each compared answer."})
    round: int = field(default=1, metadata={"help": "Number of the round, as records and reports call it."})
    max_new_tokens: int = field(default=128, metadata={"help": "Most tokens of an answer."})
    temperature: float = field(default=1.0, metadata={"help": "Of the answers; above 0, or all would be the same."})
    seed: int = field(default=0, metadata={"help": "The same seed gives the same answers and the same pairs."})
    batch_tokens: int = field(default=16384, metadata={"help": "Most tokens held at once while answers are drawn."})
    output_dir: str = field(default="outputs/feedback", metadata={"help": "Where feedback.jsonl and counts.json go."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Ask everything again; unset: a collection that was stopped goes on, nobody is asked twice."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("samples", 2), ("comparisons_per_prompt", 1), ("round", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected=f"at least {least}")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ConfigError(f"max_prompts is {self.max_prompts}", where="max_prompts", expected="at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}", where="temperature", expected="above 0")

    def require(self) -> None:
        """Raise a ConfigError if there is no policy, no prompt or nobody to ask."""
        for name, example in (
            ("policy", "rrm-lm collect outputs/policy ..."),
            ("prompts", "--prompts my_prompts.jsonl"),
            ("overseer", "--overseer llm:MODEL"),
        ):
            if not getattr(self, name):
                raise ConfigError(f"`{name}` is not given", where="the command line", remedy=f"pass {example}")
