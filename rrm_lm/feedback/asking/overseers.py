"""The protocol for overseers, who give feedback, and a way to ask one in both orders.

A person, a simulated person, an LLM judge and an overseer assisted by helpers are all an `Overseer`. They compare and
critique but never reveal a gold reward.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rrm_lm.feedback.records import Prompt

NO_ANSWER = "no answer"  # a temporary abstention: the question may be asked again
CONTRADICTION = "contradicts itself"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An overseer's judgment of several responses to one prompt."""

    preferred: int | None  # index of the best response; None for a tie or an abstention
    strength: float | None = None  # how much better it is, at least 0, in the overseer's own units; None if not graded
    reason: str = ""  # why, in words; may be empty
    # Why there is no verdict, such as "refused" or `NO_ANSWER`; "" for a verdict. A tie is a verdict.
    abstained: str = ""


@runtime_checkable
class Overseer(Protocol):
    """Gives feedback on responses."""

    @property
    def name(self) -> str:
        """The overseer's name in records and reports."""
        ...

    @property
    def limit(self) -> str:
        """What this overseer cannot see or do, in words."""
        ...

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Say which of at least two responses is best."""
        ...

    def critique(self, prompt: Prompt, response: str) -> str:
        """Say in words what is good or bad about one response; "" for nothing."""
        ...


def uniform(*parts: str) -> float:
    """A pseudorandom number strictly between 0 and 1, a hash of the parts."""
    digest = hashlib.blake2b("\x1d".join(parts).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52


@dataclass(frozen=True)
class BothOrders:
    """Asks an overseer about two responses in both orders, and abstains if the answers contradict each other."""

    overseer: Overseer

    @property
    def name(self) -> str:
        return self.overseer.name

    @property
    def limit(self) -> str:
        return self.overseer.limit

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """The verdict for the given order, or an abstention."""
        first = self.overseer.compare(prompt, responses)
        again = self.overseer.compare(prompt, list(reversed(responses)))
        if first.abstained or again.abstained:
            return first if first.abstained else again
        mirrored = None if again.preferred is None else len(responses) - 1 - again.preferred
        return first if first.preferred == mirrored else Verdict(None, abstained=CONTRADICTION)

    def critique(self, prompt: Prompt, response: str) -> str:
        return self.overseer.critique(prompt, response)
