"""Comparisons and scorers made for the tests of evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from rrm_lm.evaluation.preferences.results import SetResult
from rrm_lm.evaluation.preferences.scoring import evaluate_preferences
from rrm_lm.feedback.records import Comparison, Message, Origin, Prompt


def compare(prompt: str, chosen: str, rejected: str, *, row: int = 1, file: str = "pairs.jsonl", **more) -> Comparison:
    return Comparison(
        prompt=(Message("user", prompt),), chosen=chosen, rejected=rejected, origin=Origin(file, row), **more
    )


class FunctionScorer:
    """Rewards by a function of prompt and response; remembers what it was asked, and in which calls."""

    def __init__(self, reward: Callable[[str, str], float], name: str = "org/tiny") -> None:
        self.reward, self.name = reward, name
        self.calls: list[list[tuple[str, tuple[str, ...]]]] = []

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]:
        texts = [prompt[0].content for prompt in prompts]
        self.calls.append([(text, tuple(rows)) for text, rows in zip(texts, responses, strict=True)])
        return [[self.reward(text, r) for r in rows] for text, rows in zip(texts, responses, strict=True)]


def hashed(prompt: str, response: str) -> float:
    """An arbitrary but fixed reward in [-3, 3)."""
    return zlib.crc32(f"{prompt}|{response}".encode()) / 2**32 * 6 - 3


def many(count: int, per_prompt: int = 2) -> list[Comparison]:
    """`count` comparisons about `count / per_prompt` prompts, responses of different lengths, from two sources."""
    return [
        compare(
            f"question {i // per_prompt}",
            f"answer {i} " + "yes " * (i % 7),
            f"reply {i} " + "no " * (i % 5),
            row=i + 1,
            source=("forum", "desk")[i % 2],
            subset=("easy", "hard", "hard")[i % 3],
        )
        for i in range(count)
    ]


def evaluate(comparisons: Sequence[Comparison], reward: Callable[[str, str], float] = hashed, **more) -> SetResult:
    more = {"name": "dev", **more}
    return evaluate_preferences(FunctionScorer(reward), comparisons, progress=False, **more)


def rewards_of(table: dict[str, float]) -> Callable[[str, str], float]:
    """A reward function that looks responses up."""
    return lambda _prompt, response: table[response]
