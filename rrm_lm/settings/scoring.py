"""Settings of `rrm-lm evaluate` and `rrm-lm score`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rrm_lm.errors import ConfigError
from rrm_lm.options import check_minimum, option, require
from rrm_lm.settings.data import EvaluationSource
from rrm_lm.settings.models import EnsembleArguments, SavedModel
from rrm_lm.settings.permissions import CodeArguments


@dataclass
class CriticArguments:
    """A critic that helps the judge."""

    critic: str | None = option(
        None,
        "A helper whose critique of each response is shown to the judge: a reward model trained on critiques (best "
        "with critique_view all), or a solved helper of rrm-lm recurse (outputs/recurse/nodes/NAME).",
    )


@dataclass
class ResultsFolder:
    """Where results go."""

    output_dir: str | None = option(None, "Folder of the results. Unset: outputs/evaluate/ or compare/, and the names.")
    overwrite_output_dir: bool = option(True, "Replace earlier results in output_dir.")

    def _folder(self, parent: str, names: Sequence[str], joint: str) -> Path:
        """`output_dir`; if that is unset, a folder in `parent` that is named after the models."""
        parts = [re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model" for name in names]
        return Path(parent, joint.join(parts)) if self.output_dir is None else Path(self.output_dir)


@dataclass
class ScoringArguments(EvaluationSource, SavedModel, EnsembleArguments):
    """The model, and how it is run. Rewards do not depend on batch size, padding or the number of processes."""

    model: str | None = option(None, "Reward model: a folder, a Hub id or an alias.")
    dataset: list[str] = option([], "Feedback to score: one or more files, folders or Hub datasets.")
    max_length: int | None = option(2048, "Longest conversation in tokens, for models that do not record it.")
    micro_batch_tokens: int = option(4096, "Most padded tokens per forward pass; bounds the memory.")
    critique_samples: int = option(1, "For models that write critiques first: how many critiques to average over.")
    critique_temperature: float = option(0.7, "Sampling temperature of those critiques.")
    seed: int = option(0, "Seed of those critiques.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, max_length=1, micro_batch_tokens=1, critique_samples=1, critique_temperature=0)

    def require(self) -> None:
        require(self, model="pass --model outputs/demo/reward", dataset="pass --dataset my_pairs.jsonl")

    @property
    def model_name(self) -> str:
        """The model's name in results: the name of its folder, its Hub id or its alias."""
        path = Path(str(self.model)).expanduser()
        return path.resolve().name if path.is_dir() else str(self.model)


@dataclass
class EvaluateArguments(ResultsFolder, ScoringArguments, CriticArguments, CodeArguments):
    """The reward model, how it is run, and where results go."""

    baselines: bool = option(
        False,
        "Also judge by length, style, words and a linear probe on frozen states; the model's lead over each.",
    )
    baselines_train: list[str] = option(
        [], "Feedback to fit the baselines on. Unset: cross-validation by prompt on each evaluated set."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.baselines = self.baselines or bool(self.baselines_train)
        if self.baselines and self.critic is not None:
            raise ConfigError("baselines do not read a critic's notes", where="baselines and critic", expected="one")

    @property
    def folder(self) -> Path:
        return self._folder("outputs/evaluate", [str(self.model), *filter(None, [self.critic])], "_with_")


@dataclass
class ScoreArguments(ScoringArguments):
    """The reward model, how it is run, and where rewards go."""

    output_file: str | None = option(None, "File for the rewards. Unset: the terminal.")
