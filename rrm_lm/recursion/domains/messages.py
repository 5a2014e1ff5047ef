"""Constrained messages: include a word, avoid a word, keep it short, end as told.

A domain in prose. The overseer counts words and sees the ending; whether the words are there, helpers say, each with a
quotation that one string match checks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import NamedTuple

from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.recursion.tasks import Aspect

WORDS = (
    "train", "garden", "letter", "music", "river", "winter", "coffee", "window", "friend", "paper", "bread", "cloud"
)  # fmt: skip
ENDINGS = ("Thank you.", "See you soon.", "Best wishes.")
_FILLING = ("we", "will", "meet", "at", "the", "station", "and", "talk", "about", "your", "plan", "for", "a", "while")
_ASKED = re.compile(r"include (\w+), avoid (\w+), at most (\d+) words, end with (.+)")


class Order(NamedTuple):
    """What is asked of a message."""

    include: str
    avoid: str
    most: int
    end: str


def order_of(prompt: Prompt) -> Order:
    found = _ASKED.search(prompt[-1].content)
    assert found is not None, prompt
    return Order(found[1], found[2], int(found[3]), found[4])


def words_of(response: str) -> list[str]:
    return re.findall(r"\w+", response.lower())


def met(prompt: Prompt, response: str) -> dict[str, bool]:
    """By constraint, whether a message keeps it."""
    order, words = order_of(prompt), words_of(response)
    return {
        "include": order.include in words,
        "avoid": order.avoid not in words,
        "length": len(words) <= order.most,
        "end": response.strip().endswith(order.end),
    }


def _prompts() -> tuple[Prompt, ...]:
    rng, asked = random.Random(0), []
    for number in range(24):
        include, avoid = rng.sample(WORDS, 2)
        end, most = ENDINGS[number % len(ENDINGS)], rng.choice((8, 12, 16))
        text = f"Write a message: include {include}, avoid {avoid}, at most {most} words, end with {end}"
        asked.append((Message("user", text),))
    return tuple(asked)


def _aspect(name: str, question: str) -> Aspect:
    def measure(prompt: Prompt, response: str) -> str:
        return "YES" if met(prompt, response)[name] else "NO"

    def evidence(prompt: Prompt, response: str) -> list[str]:
        word = getattr(order_of(prompt), name)
        return [piece for piece in [word] if piece in response] + [response[:40]]

    return Aspect(question, ("YES", "NO"), measure, evidence, lambda prompt, rng: _message(prompt, rng, {name: False}))


def _message(prompt: Prompt, rng: random.Random, kept: Mapping[str, bool]) -> str:
    """A message that keeps the constraints as `kept` says, and the others as chance has it."""
    order, keeps = order_of(prompt), {name: rng.random() < 0.5 for name in ("include", "avoid", "end")} | dict(kept)
    words: list[str] = list(rng.choices(_FILLING, k=rng.randint(3, 14)))
    if keeps["include"]:
        words.insert(rng.randrange(len(words)), order.include)
    if not keeps["avoid"]:
        words.insert(rng.randrange(len(words)), order.avoid)
    text = " ".join(words).capitalize() + "."
    return f"{text} {order.end}" if keeps["end"] else text


class Messages:
    """Write a message that keeps four constraints."""

    name = "messages"
    kind = "message"
    limit = "counts the words and sees the ending; of the words to include and to avoid it knows what it is told"
    noise = 0.05
    prompts = _prompts()
    aspects: Mapping[str, Aspect] = {
        "include": _aspect("include", "Does it include the word that it should?"),
        "avoid": _aspect("avoid", "Does it avoid the word that it should?"),
    }

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        return _message(prompt, rng, {})

    def vary(self, prompt: Prompt, response: str, rng: random.Random) -> str:
        """One word less, or one more."""
        words = response.split()
        place = rng.randrange(len(words))
        more = [*words[:place], rng.choice((*WORDS, *_FILLING)), *words[place:]]
        return " ".join(words[:place] + words[place + 1 :] if len(words) > 3 and rng.random() < 0.5 else more)

    def parse(self, response: str) -> list[str] | None:
        return words_of(response) or None

    def gold(self, prompt: Prompt, response: str) -> float:
        """The fraction of constraints that are kept."""
        return sum(met(prompt, response).values()) / 4 if self.parse(response) else 0.0

    def impression(self, prompt: Prompt, response: str) -> float:
        kept = met(prompt, response)
        return (kept["length"] + kept["end"]) / 4

    def weight(self, prompt: Prompt, aspect: str, verdict: str) -> float:
        return 0.25 * (verdict == "NO")
