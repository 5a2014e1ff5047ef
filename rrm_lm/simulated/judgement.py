"""The plain user's (`plain_user.py`) judgment of one response, and the weight of each part."""

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
    """The user's judgment of one response."""

    parts: dict[str, float]  # score of each part of `WEIGHTS`, from 0 (missing) to 1 (as wanted)
    missing: tuple[str, ...]  # groups of words that do not occur
    sentences: int  # number of sentences, not counting a friendly close
    words: int
    items: int  # number of list items and headings
    opening: str  # the filler at the start; "" if none
    close: str  # the friendly close; "" if none
    tail: str  # the last words if it ends mid-sentence, else ""

    @property
    def gold(self) -> float:
        """The weighted sum of the parts, 0 to 1."""
        return round(sum(weight * self.parts[part] for part, weight in WEIGHTS.items()), 6)
