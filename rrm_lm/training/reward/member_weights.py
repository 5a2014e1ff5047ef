"""Which prompts each member of a reward ensemble learns from, and how often."""

from __future__ import annotations

import hashlib
import math


def member_weights(seed: int, heads: int, prompt_id: str) -> tuple[float, ...]:
    """How often each member is shown what was said of a prompt: a bootstrap of the prompts for each member.

    In a bootstrap of many prompts a prompt is drawn 0, 1, 2 ... times with the probabilities of a Poisson distribution
    of mean 1 (Oza and Russell 2001). The numbers are a function of seed, member and prompt alone, so that everything
    said of one prompt goes to the same members, and neither batches nor processes nor a resumed run change them.

    Args:
        seed: Of the run.
        heads: How many members there are; a single one sees every prompt once.
        prompt_id: See :func:`rrm_lm.feedback.records.prompt_id`.

    Returns:
        (heads,) whole numbers, of mean 1 over prompts.
    """
    if heads == 1:
        return (1.0,)
    return tuple(_poisson(_uniform(f"{seed}/{member}/{prompt_id}")) for member in range(heads))


def _uniform(text: str) -> float:
    """A number in [0, 1) that is a function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _poisson(uniform: float) -> float:
    """The count of mean 1 at which the cumulated probability passes a number."""
    count, probability = 0, math.exp(-1)
    passed = probability
    while uniform >= passed and probability > 0:
        count += 1
        probability /= count
        passed += probability
    return float(count)
