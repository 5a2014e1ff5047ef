"""A third domain, as small as they come: nothing in the package knows of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.recursion.tasks import Aspect

WORDS = ("moon", "sea", "blue", "story", "answer", "sorry", "short", "clear")


def _has(letter: str) -> Callable[[Prompt, str], str]:
    return lambda prompt, response: "yes" if letter in response else "no"


class Letters:
    """Say something long; an `s` in it is bad, and the overseer does not see letters."""

    name, kind, noise = "letters", "saying", 0.01
    limit = "sees how long it is"
    prompts = tuple((Message("user", f"tell me about the {word}"),) for word in ("sea", "moon", "story"))
    aspects: Mapping[str, Aspect] = {
        "letter_s": Aspect(
            "Is there an s?", ("no", "yes"), _has("s"), lambda prompt, response: [*response.split()[:1], response],
            lambda prompt, rng: "sea story " + rng.choice(WORDS), ("small_s", "capital_s"),
            lambda said: "yes" if "yes" in said.values() else "no",
        ),
        "letter_b": Aspect(
            "Is there a b?", ("no", "yes"), _has("b"), lambda prompt, response: [*response.split()[:1], response],
            lambda prompt, rng: "blue " + rng.choice(WORDS),
        ),
        "small_s": Aspect("Small s?", ("no", "yes"), _has("s"), lambda p, r: [r], lambda p, rng: "sea"),
        "capital_s": Aspect("Capital S?", ("no", "yes"), _has("S"), lambda p, r: [r], lambda p, rng: "Sea"),
    }  # fmt: skip

    def draft(self, prompt: Prompt, rng: random.Random) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))

    def vary(self, prompt: Prompt, response: str, rng: random.Random) -> str:
        return f"{response} {rng.choice(WORDS)}"

    def parse(self, response: str) -> Any | None:
        return response.split() or None

    def gold(self, prompt: Prompt, response: str) -> float:
        return len(response) / 40 - 0.5 * ("s" in response) - 0.5 * ("b" in response) if response.strip() else -2.0

    def impression(self, prompt: Prompt, response: str) -> float:
        return len(response) / 40

    def weight(self, prompt: Prompt, aspect: str, verdict: str) -> float:
        return 0.5 * (verdict == "yes" and aspect.startswith("letter"))
