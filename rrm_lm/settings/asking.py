"""Settings of `rrm-lm ask`."""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rrm_lm.errors import ConfigError
from rrm_lm.options import check, check_minimum, option, refuse_repeats
from rrm_lm.settings.data import DatasetSource
from rrm_lm.settings.serving import is_loopback

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
    train_dir: str = option("outputs/ask", "Folder of these trainings.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(
            self, samples=1, max_new_tokens=1, overlap=1, port=0, max_body_kb=1, max_requests=1, train_every=1
        )
        check(self, ("lease", self.lease > 0, "above 0"), ("temperature", self.temperature > 0, "above 0"))
        refuse_repeats("people", self.people)
        wrong = [name for name in self.people if not (name.isprintable() and name.strip() == name and len(name) <= 40)]
        if wrong:
            raise ConfigError(f"{wrong[0]!r} is not a name", where="people", expected="at most 40 printable characters")
        if not is_loopback(self.host) and not self.people:
            what = f"{self.host} is open to other machines, and nobody is invited"
            raise ConfigError(what, where="host", remedy="pass --people with the names of those who will answer")
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
