"""Settings of `rrm-lm evaluate` and `rrm-lm score`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl.trainer.model_config import ModelConfig

from rrm_lm.errors import ConfigError
from rrm_lm.options import check_minimum, option, refuse_repeats, require
from rrm_lm.settings.data import EvaluationSource
from rrm_lm.settings.models import EnsembleArguments, SavedModel, quantized
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

    dataset: list[str] = option([], "Feedback to score: one or more files, folders or Hub datasets.")
    load_in_4bit: bool = option(
        False, "Load whole models in 4 bit, and the backbones of adapters (needs bitsandbytes)."
    )
    load_in_8bit: bool = option(False, "The same in 8 bit.")
    device_map: str | None = option(None, "auto spreads a model over all GPUs. Unset: one device per process.")
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

    def loading(self) -> dict[str, Any]:
        """Arguments for functions that load models."""
        config = ModelConfig(load_in_4bit=self.load_in_4bit, load_in_8bit=self.load_in_8bit, dtype=self.dtype)
        placed = {} if self.device_map is None else {"device_map": self.device_map}
        return {**super().loading(), **quantized(config), **placed}


@dataclass
class EvaluateArguments(ResultsFolder, ScoringArguments, CriticArguments, CodeArguments):
    """The reward model, how it is run, and where results go."""

    model: list[str] = option(
        [], "Reward models: folders, Hub ids or aliases. Several are compared, pair by pair, on the same comparisons."
    )
    cache_scores: bool = option(True, "Keep rewards in the cache folder; a model is loaded only for new responses.")
    gold: str | None = option(
        None, "Accuracy by the part of a gold reward that decides: a simulated user's requests, or file.py:function."
    )
    baselines: bool = option(
        False, "Also judge by length, style, words and a linear probe on frozen states; the model's lead over each."
    )
    baselines_train: list[str] = option(
        [], "Feedback to fit the baselines on. Unset: cross-validation by prompt on each evaluated set."
    )

    follow_through: bool = option(
        False, "Also edit away the faults that critiques name: how often does the edited response get a higher reward?"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_repeats("model", self.model)
        self.baselines = self.baselines or bool(self.baselines_train)
        for name in ("baselines", "follow_through"):
            if getattr(self, name) and self.critic is not None:
                what = f"{name} is measured without a critic's notes"
                raise ConfigError(what, where=f"{name} and critic", expected="one of them")

    @property
    def folder(self) -> Path:
        models = self._folder("", self.model, "_").name if self.output_dir is None else ""
        return self._folder("outputs/evaluate", [models, *filter(None, [self.critic])], "_with_")


@dataclass
class ScoreArguments(ScoringArguments):
    """The reward model, how it is run, and where rewards go."""

    model: str | None = option(None, "Reward model: a folder, a Hub id or an alias.")
    output_file: str | None = option(None, "File for the rewards. Unset: the terminal.")
