"""What the plain user sees in one response, and what each part of it is worth to this user."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS: dict[str, float] = {
    "answer": 0.35,
    "short": 0.20,
    "close": 0.15,
    "opening": 0.13,
    "prose": 0.12,
    "whole": 0.05,
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the user sees in one response.

    Attributes:
        parts: Each part of `WEIGHTS`, from 0 (missing) to 1 (as wanted).
        missing: The groups of words that do not occur.
        sentences: Sentences, a friendly close not counted.
        words: Words in all.
        items: List items and headings.
        opening: The filler it opens with, or "".
        close: The friendly close, or "".
        tail: The last words, if it stops in the middle of a sentence, or "".
    """

    parts: dict[str, float]
    missing: tuple[str, ...]
    sentences: int
    words: int
    items: int
    opening: str
    close: str
    tail: str

    @property
    def gold(self) -> float:
        """The weighted sum of the parts, 0 to 1."""
        return round(sum(weight * self.parts[part] for part, weight in WEIGHTS.items()), 6)
