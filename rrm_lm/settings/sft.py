"""Settings of `rrm-lm sft`."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrm_lm.settings.shared import FolderArguments


@dataclass
class SFTRunArguments(FolderArguments):
    """What else `rrm-lm sft` does."""

    merge: bool = field(
        default=False, metadata={"help": "Also write a plain causal language model to OUTPUT_DIR/merged."}
    )
