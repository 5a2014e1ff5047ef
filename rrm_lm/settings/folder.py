"""Settings of `rrm-lm folder`."""

from __future__ import annotations

from dataclasses import dataclass, field


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
