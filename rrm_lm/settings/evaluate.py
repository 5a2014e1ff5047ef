"""Settings of `rrm-lm evaluate`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rrm_lm.settings.critic import CriticArguments
from rrm_lm.settings.permissions import CodeArguments
from rrm_lm.settings.scoring import ScoringArguments

if TYPE_CHECKING:
    pass


@dataclass
class EvaluateArguments(ScoringArguments, CodeArguments, CriticArguments):
    """What `rrm-lm evaluate` needs."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where the results go; unset: outputs/evaluate/ and the model's name."}
    )
    overwrite_output_dir: bool = field(default=True, metadata={"help": "Replace earlier results in output_dir."})

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.output_dir is not None:
            return Path(self.output_dir)
        names = [str(self.model), *filter(None, [self.critic])]
        parts = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model" for name in names]
        return Path("outputs/evaluate") / "_with_".join(parts)
