"""Settings of commands about feedback: `rrm-lm inspect`, `criteria`, `ask` and `feedback`."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rrm_lm.errors import ConfigError
from rrm_lm.options import check, check_minimum, is_loopback, option, refuse_repeats, require
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
        super().__post_init__()
        require(self, dataset="name a file: rrm-lm criteria --dataset my_feedback.jsonl")
        check_minimum(self, uncovered=0)


KEYS = {
    "A much better": "1", "A better": "2", "A slightly better": "3", "tie": "4", "B slightly better": "5",
    "B better": "6", "B much better": "7", "both bad": "0", "skip": "s", "next": "Enter", "undo": "u", "answer A": "a",
    "answer B": "b", "critique": "c", "mark selection": "m", "edit": "e", "rate": "r", "goal example": "g",
    "unacceptable": "x", "write": "w", "notes": "n", "keys": "?",
}  # fmt: skip


@dataclass
class AskArguments(DatasetSource):
    """What is asked, of whom, and where the answers go."""

    store: str = option("feedback.db", "The store of answers, which is created if it does not exist.")
    responses: list[str] = option([], "Responses to ask about: rows of prompt and responses, or feedback of any kind.")
    prompts: list[str] = option([], "Prompts that the model answers while people judge; without a model, to write for.")
    model: str | None = option(None, "The policy that answers them: a folder, a Hub id or an alias.")
    split: str = option("train", "Split of a Hub dataset, or of a folder with a file per split.")
    samples: int = option(2, "Answers of the model per prompt; each two are compared.")
    max_new_tokens: int = option(128, "Most tokens per answer of the model.")
    temperature: float = option(1.0, "Sampling temperature.")
    seed: int = option(0, "Seed of the order of items and of the model's answers.")
    ask: Literal["random", "disagreement"] = option(
        "random", "What to ask about first: random, or pairs on which the reward models differ most."
    )
    reward_model: list[str] = option([], "Two or more reward models, for --ask disagreement.")
    people: list[str] = option([], "Names, each of which gets an invitation link. Unset: you, without a link.")
    overlap: int = option(1, "How many people answer each item.")
    lease: float = option(600.0, "Seconds for which an item is kept for the person who sees it.")
    criteria: list[str] = option([], "Criteria to tick if they decided: words such as correct short, or criteria.yaml.")
    instructions: str | None = option(None, "Markdown file that is shown first.")
    keys: list[str] = option([], "Other keys, as action=key, for example skip=k; the page shows all with ?.")
    host: str = option("127.0.0.1", "Address to listen on. Other machines always need an invitation link.")
    port: int = option(8001, "Port to listen on; 0 for a free one.")
    hostname: list[str] = option([], "Other names of this machine that browsers use, such as lab.example.org:8001.")
    max_body_kb: int = option(512, "Largest request in kilobytes.")
    max_requests: int = option(600, "Most requests per minute from one person or address.")
    train: bool = option(False, "Train a reward model again as answers arrive, in another process.")
    train_every: int = option(20, "How many new answers start the next training.")
    train_config: str | None = option(None, "Settings file for these trainings, as for rrm-lm reward.")
    policy_config: str | None = option(
        None,
        "Settings file for rrm-lm policy: each new reward model trains the policy further, which answers the prompts "
        "again.",
    )
    train_dir: str = option("outputs/ask", "Folder of these trainings.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(
            self, samples=1, max_new_tokens=1, overlap=1, port=0, max_body_kb=1, max_requests=1, train_every=1
        )
        check(self, ("lease", self.lease > 0, "above 0"), ("temperature", self.temperature > 0, "above 0"))
        if self.policy_config and not (self.train and self.model):
            remedy = "pass --train true, and --prompts and --model for a policy that answers"
            raise ConfigError("There is nothing to train the policy with", where="policy_config", remedy=remedy)
        refuse_repeats("people", self.people)
        wrong = [name for name in self.people if not (name.isprintable() and name.strip() == name and len(name) <= 40)]
        if wrong:
            raise ConfigError(f"{wrong[0]!r} is not a name", where="people", expected="at most 40 printable characters")
        if not is_loopback(self.host) and not self.people:
            what = f"{self.host} is open to other machines, and nobody is invited"
            raise ConfigError(what, where="host", remedy="pass --people with the names of those who will answer")
        if self.ask == "disagreement" and self.model:
            what = "Answers that a model writes are asked about as they come, not by disagreement"
            raise ConfigError(what, where="ask and model", expected="--responses FILE", remedy="leave one of them out")
        if (self.ask == "disagreement") != (len(self.reward_model) >= 2):
            raise ConfigError("To ask about disagreement, two or more reward models are needed", where="reward_model")
        unknown = [pair for pair in self.keys if pair.partition("=")[0] not in KEYS or not pair.partition("=")[2]]
        if unknown:
            expected = "action=key, with the action one of " + ", ".join(KEYS)
            raise ConfigError(f"{unknown[0]!r} sets no key", where="keys", expected=expected)

    @property
    def instructions_text(self) -> str:
        """The Markdown of `instructions`. Raises ConfigError: it cannot be read."""
        try:
            return Path(self.instructions).read_text(encoding="utf-8") if self.instructions else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The instructions cannot be read ({error})", where="instructions") from error

    @property
    def key_map(self) -> dict[str, str]:
        """The key of each action."""
        return {**KEYS, **dict(pair.split("=", 1) for pair in self.keys)}

    @property
    def everybody(self) -> list[str]:
        """Who may answer: those invited, or the user of this computer."""
        return self.people or [getpass.getuser()]


ACTIONS = ("export", "import", "merge", "retract", "stats")


@dataclass
class FeedbackArguments(DatasetSource):
    """What to do with which store."""

    words: list[str] = option([], "An action (export, import, merge, retract, stats), the store, and for import files.")
    output: str = option("", "Export: the folder, or the file if format is trl or argilla.")
    format: Literal["rrm_lm", "trl", "argilla"] = option("rrm_lm", "Export: the format. Import reads all of them.")
    reliability: bool = option(
        False, "Export: estimate how often each person is right, for rrm-lm reward --grades target."
    )
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
        if self.reliability and (self.action != "export" or self.format != "rrm_lm"):
            what = f"`reliability` is for export in the format rrm_lm, and this is {self.action} in {self.format}"
            raise ConfigError(what, where="reliability", remedy="leave it out")
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
