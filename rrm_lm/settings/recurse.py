"""Settings of `rrm-lm recurse`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.errors import ConfigError
from rrm_lm.settings.permissions import CodeArguments


@dataclass
class RecurseArguments(CodeArguments):
    """The tree of tasks, and where everything goes."""

    domain: str = field(
        default="chip",
        metadata={"help": "What the tasks are about: chip, messages, or one's own as file.py:ClassName."},
    )
    tree: dict | None = field(
        default=None, metadata={"help": "The nodes (section of the file): by name, task, helpers, training settings."}
    )
    root: str = field(
        default="", metadata={"help": "The node to solve in the end; unset: the one that helps no other."}
    )
    output_dir: str = field(
        default="outputs/recurse", metadata={"help": "Where everything goes: a folder a node, and report.html."}
    )
    processes: int = field(
        default=1,
        metadata={"help": "Solve so many independent helpers at once, each in a process with its own backbone."},
    )
    node: str = field(default="", metadata={"help": "Solve only this node and what is below it, and write no report."})
    max_length: int = field(default=320, metadata={"help": "Longest prompt plus response in tokens."})
    micro_batch_tokens: int = field(
        default=2048, metadata={"help": "Most padded tokens that go through the model at once; bounds the memory."}
    )
    seed: int = field(default=0, metadata={"help": "Of first weights, prompts, drafts and the overseer's noise."})
    show_progress: bool = field(default=True, metadata={"help": "Show a bar for each training."})

    def __post_init__(self) -> None:
        for name, least in (("processes", 1), ("max_length", 1), ("micro_batch_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=name, expected=f"at least {least}")
