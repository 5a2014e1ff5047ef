"""Settings of `rrm-lm inspect` and `rrm-lm criteria`."""

from __future__ import annotations

from dataclasses import dataclass

from rrm_lm.options import check_minimum, option, require
from rrm_lm.settings.data import DatasetSource, TrainingSource
from rrm_lm.settings.models import TokenizerLoading


@dataclass
class InspectArguments(TrainingSource, TokenizerLoading):
    """The data, and the model that will be trained on it."""

    dataset: list[str] = option([], "Feedback or prompts: one or more files, folders or Hub datasets.")
    eval_dataset: list[str] = option([], "Held-out data. Unset: hold out eval_fraction of the prompts.")
    model: str | None = option(None, "Show rows as this model will see them: a folder, a Hub id or an alias.")
    model_revision: str | None = option(None, "Branch, tag or commit on the Hub.")
    max_length: int | None = option(1024, "Longest prompt plus response in tokens, as in rrm-lm reward and sft.")
    rows: int = option(3, "How many rows to show.")
    json: bool = option(False, "Print JSON.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, dataset="name a file: rrm-lm inspect my_feedback.jsonl")
        check_minimum(self, max_length=1, rows=0)


@dataclass
class CriteriaArguments(DatasetSource):
    """The feedback whose critiques are read."""

    dataset: list[str] = option([], "Feedback with critiques: one or more files, folders or Hub datasets.")
    split: str = option("train", "Split of a Hub dataset, or of a folder with a file per split.")
    output: str | None = option(None, "Write the criteria to this file, for rrm-lm reward --criteria.")
    uncovered: int = option(10, "How many of the clauses that no criterion covers are shown.")
    json: bool = option(False, "Print JSON.")

    def __post_init__(self) -> None:
        require(self, dataset="name a file: rrm-lm criteria --dataset my_feedback.jsonl")
        check_minimum(self, uncovered=0)
