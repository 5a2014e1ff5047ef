"""Settings of `rrm-lm inspect`."""

from __future__ import annotations

from dataclasses import dataclass

from rrm_lm.options import check_minimum, option, require
from rrm_lm.settings.data import TrainingSource
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
