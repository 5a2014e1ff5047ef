"""`rrm-lm recurse`: solve a task whose overseer is helped by agents trained on easier tasks, and these by others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.settings.permissions import CodeArguments

EXAMPLES = """\
examples:
  rrm-lm recurse --config configs/chip_quick.yaml
  rrm-lm recurse --config configs/chip.yaml --processes 2          (independent helpers side by side)
  rrm-lm recurse --config my_tree.yaml --domain my_domain.py:MyDomain
`tree` in the file maps names to the settings of each node: rrm_lm/recursion/tree.py lists them, and
rrm_lm/recursion/__init__.py says how to write a domain. Started again, solved nodes are kept; a stopped one goes on.
"""


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


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.settings.parser import parse
    from rrm_lm.settings.shared import ModelArguments

    return parse([RecurseArguments, ModelArguments], argv, command="rrm-lm recurse", examples=EXAMPLES)


def run(argv: list[str]) -> int:
    """Solve what is left of the tree."""
    settings = read(argv)
    from rrm_lm.runs.recurse import RecurseRun

    RecurseRun(*settings).run()
    return 0
