"""Settings of `rrm-lm feedback`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rrm_lm.errors import ConfigError
from rrm_lm.options import option
from rrm_lm.settings.data import DatasetSource

ACTIONS = ("export", "import", "merge", "retract", "stats")


@dataclass
class FeedbackArguments(DatasetSource):
    """What to do with which store."""

    words: list[str] = option([], "An action (export, import, merge, retract, stats), the store, and for import files.")
    output: str = option("", "Export: the folder, or the file if format is trl or argilla.")
    format: Literal["rrm_lm", "trl", "argilla"] = option("rrm_lm", "Export: the format. Import reads all of them.")
    person: str = option("", "Import: whose feedback it is. Unset: as in the file. Retract: whose answers.")
    item: str = option("", "Retract: answers about this item only (its id is on the page and in Argilla's export).")
    split: str = option("train", "Import: split of a Hub dataset, or of a folder with a file per split.")

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "rrm-lm feedback ACTION STORE, with the action one of " + ", ".join(ACTIONS)
        if not self.words or self.words[0] not in ACTIONS or len(self.words) < 2:
            what = f"There is no action {' '.join(self.words)!r}" if self.words else "There is no action"
            raise ConfigError(what, where="the command line", expected=expected)
        if (self.action in ("import", "merge")) != bool(self.others):
            raise ConfigError(f"{len(self.others)} files after the store", where=self.action, expected=expected)
        if self.action == "export" and not self.output:
            raise ConfigError("`output` is not given", where="export", remedy="pass --output my_feedback")
        if self.action == "retract" and not (self.person or self.item):
            raise ConfigError("Nothing says what to retract", where="retract", remedy="pass --person or --item")

    @property
    def action(self) -> str:
        return self.words[0]

    @property
    def store(self) -> str:
        return self.words[1]

    @property
    def others(self) -> list[str]:
        """The files or stores after the store."""
        return self.words[2:]
