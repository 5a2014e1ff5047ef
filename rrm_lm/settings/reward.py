"""Settings of `rrm-lm reward`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.settings.shared import FolderArguments


@dataclass
class RunArguments(FolderArguments):
    """What else `rrm-lm reward` does."""

    merge: bool = field(
        default=False, metadata={"help": "Also write a plain sequence-classification checkpoint to OUTPUT_DIR/merged."}
    )
