"""Settings of `rrm-lm run`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError
from rrm_lm.settings.permissions import CodeArguments


@dataclass
class RunArguments(CodeArguments):
    """The stages, and where everything goes. A section's settings are those of its command: see its `--help`."""

    output_dir: str = field(
        default="outputs/run", metadata={"help": "Where everything goes: a folder a stage, and report.html."}
    )
    rounds: int = field(
        default=1,
        metadata={"help": "Each further round collects feedback on the policy's answers and trains both again."},
    )
    reward: dict | None = field(default=None, metadata={"help": "Settings of `rrm-lm reward` (section of the file)."})
    sft: dict | None = field(
        default=None, metadata={"help": "Settings of `rrm-lm sft` (section); without it there is no such stage."}
    )
    policy: dict | None = field(default=None, metadata={"help": "Settings of `rrm-lm policy` (section)."})
    collect: dict | None = field(
        default=None, metadata={"help": "Settings of `rrm-lm collect` (section); needed for more than one round."}
    )
    compare: dict | None = field(
        default=None, metadata={"help": "Settings of `rrm-lm compare` (section); without it there is no such stage."}
    )

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}", where="rounds", expected="at least 1")
        if self.rounds > 1 and self.collect is None:
            raise ConfigError(
                f"{self.rounds} rounds need new feedback, and nothing says who gives it",
                where="rounds",
                remedy="add a section `collect` with an overseer; see rrm-lm collect --help",
            )
