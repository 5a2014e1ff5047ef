"""Settings of the data that commands read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.options import check, check_minimum, option, require


@dataclass
class DatasetSource(ReadLimits):
    """How files and Hub datasets are read."""

    columns: list[str] = option([], "Column names as theirs=ours, for layouts that are not recognized.")
    dataset_config: str | None = option(None, "Configuration of a Hub dataset.")
    skip_bad_rows: bool | None = option(
        None, "Skip and count bad rows. Unset: only in Hub datasets; a bad row in a local file is an error."
    )

    def reading(self, split: str) -> dict[str, Any]:
        """Arguments for `load_feedback` and `load_prompts`. Raises ConfigError: a pair of `columns` is not of the form
        `theirs=ours`.
        """
        wrong = [pair for pair in self.columns if pair.count("=") != 1 or pair.startswith("=") or pair.endswith("=")]
        if wrong:
            raise ConfigError(
                f"`{wrong[0]}` names no column",
                where="columns",
                expected="theirs=ours, for example question=prompt",
                remedy="quote names that have spaces",
            )
        return {
            "split": split,
            "config": self.dataset_config,
            "columns": dict(pair.split("=") for pair in self.columns) or None,
            "skip_bad_rows": self.skip_bad_rows,
            "limits": self,
        }


@dataclass
class EvaluationSource(DatasetSource):
    """Data that models are evaluated on."""

    split: str = option("test", "Split of a Hub dataset, or of a folder with a file per split.")


@dataclass
class HeldOut:
    """How prompts are held out."""

    eval_fraction: float = option(0.1, "Share of prompts to hold out if there is no evaluation set; 0 for none.")
    split_seed: int = option(0, "Seed that decides which prompts are held out or drawn.")

    def __post_init__(self) -> None:
        following: Any = super()
        following.__post_init__()
        check(self, ("eval_fraction", 0 <= self.eval_fraction < 1, "at least 0 (nothing is held out) and below 1"))


@dataclass
class FeedbackSplit(HeldOut):
    """How feedback is split, and what may overlap."""

    max_comparisons: int | None = option(None, "Train on only this many comparisons, of prompts drawn with split_seed.")
    leak_threshold: float = option(0.8, "Jaccard similarity at which two texts count as near-duplicates.")
    fail_on_leak: bool = option(False, "Refuse to train if held-out feedback overlaps the training set.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, ("leak_threshold", 0 < self.leak_threshold <= 1, "above 0 and at most 1"))
        check_minimum(self, max_comparisons=1)


@dataclass
class TrainingSource(HeldOut, DatasetSource):
    """Data to train on, and data that is held out."""

    dataset_train_split: str = option("train", "Split to train on.")
    dataset_test_split: str = option("test", "Split of the evaluation set.")


@dataclass
class DataArguments(FeedbackSplit, TrainingSource):
    """Feedback to train on, and feedback that is held out."""

    dataset_name: list[str] = option([], "Feedback to train on: one or more files, folders or Hub datasets.")
    eval_dataset_name: list[str] = option(
        [], "Held-out feedback. Unset: hold out eval_fraction of the prompts of dataset_name."
    )

    def require(self) -> None:
        require(self, dataset_name="pass --dataset_name my_feedback.jsonl, or --config configs/reward.yaml or sft.yaml")


@dataclass
class PromptSplit(HeldOut):
    """How prompts are held out and limited."""

    max_prompts: int | None = option(None, "Train on only this many prompts, drawn with split_seed.")
    max_length: int | None = option(
        None,
        "Longest prompt plus response in tokens; longer prompts lose their oldest turns, then their beginning. Unset: "
        "the model's limit, and a longer prompt is an error.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, max_prompts=1, max_length=2)


@dataclass
class PromptArguments(PromptSplit, TrainingSource):
    """Prompts to train on, and prompts that are held out."""

    prompts: list[str] = option(
        [], "Prompts to train on: feedback of any kind, or JSON lines with `prompt`; files, folders, Hub datasets."
    )
    eval_prompts: list[str] = option(
        [], "Held-out prompts to monitor over-optimization on. Unset: hold out eval_fraction of prompts."
    )

    def require(self) -> None:
        require(self, prompts="pass --prompts my_prompts.jsonl, or --config configs/policy.yaml")
