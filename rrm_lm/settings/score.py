"""Settings of `rrm-lm score`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rrm_lm.settings.scoring import ScoringArguments

if TYPE_CHECKING:
    pass


@dataclass
class ScoreArguments(ScoringArguments):
    """What `rrm-lm score` needs."""

    output_file: str | None = field(default=None, metadata={"help": "File for the rewards; unset: the terminal."})
