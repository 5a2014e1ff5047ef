"""Repetition and stock phrases in a policy's texts. Pure functions of the texts.

Over-optimization shows here first: the policy writes longer texts, repeats itself, or ends every answer alike. Words
are lower-cased runs of characters between whitespace.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

RUN = 4  # words, as in "seq-rep-4" (Welleck et al. 2020, arXiv 1908.04319)


def word_runs(text: str, length: int) -> list[tuple[str, ...]]:
    """Every run of `length` words of a text, in order."""
    words = text.lower().split()
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def distinct(text: str, length: int = 2) -> float:
    """Share of a text's word runs that are distinct: distinct-n of Li et al. 2016 (arXiv 1510.03055).

    1 without repetition; NaN for a text shorter than a run.
    """
    runs = word_runs(text, length)
    return len(set(runs)) / len(runs) if runs else math.nan


def repeated(text: str, length: int = RUN) -> float:
    """Share of a text's word runs that occurred earlier in it: 0 without repetition, NaN for too short a text."""
    return 1 - distinct(text, length)


def stock_phrases(texts: Sequence[Sequence[str]], length: int = RUN) -> list[list[float]]:
    """For each prompt and text, the share of its word runs that also occur in a response to another prompt.

    It rises if a policy writes the same text for every prompt. It also rises with the number of texts, so only compare
    equal numbers of texts on the same prompts. NaN for a text shorter than a run.
    """
    runs = [[word_runs(text, length) for text in group] for group in texts]
    prompts_with = Counter(run for group in runs for run in {run for text in group for run in text})
    return [
        [sum(prompts_with[run] > 1 for run in text) / len(text) if text else math.nan for text in group]
        for group in runs
    ]
