"""The protocol for overseers, who give feedback, and an overseer simulated from a gold reward with a stated limit.

A person, a simulated person, an LLM judge and an overseer assisted by helpers are all an `Overseer`. They compare and
critique but never reveal a gold reward.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.records import Prompt
from rrm_lm.options import check

GoldReward = Callable[[Prompt, str], float]
View = Callable[[Prompt, str], tuple[Prompt, str]]
Critic = Callable[[Prompt, str], str]

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


@dataclass(frozen=True)
class SimulatedOverseer:
    """A person simulated from a gold reward, with a limited view and with noise.

    Noise is a function of `seed`, the prompt and the responses. A repeated question gets the same answer in any order,
    so feedback can be gathered in parallel and resumed.
    """

    gold: GoldReward  # finite reward of a response to a prompt; higher is better
    name: str = "simulated"
    limit: str = "none: sees everything"  # what `view` hides, in words for reports
    # the part of the prompt and response that this overseer sees and `gold` is evaluated on; by default everything
    view: View = lambda prompt, response: (prompt, response)
    # Noise in units of the gold reward. The best of k is drawn with probability softmax(gold / temperature), which for
    # two is Bradley-Terry (1952); 0 always takes the best.
    temperature: float = 0.0
    epsilon: float = 0.0  # probability of a slip: taking one of the others, uniformly
    indifference: float = 0.0  # if the best response leads by no more than this, the verdict is a tie, without noise
    critic: Critic | None = None  # writes critiques of what is seen; without one, the overseer can only compare
    seed: int = 0  # tells apart simulated people with equal settings

    def __post_init__(self) -> None:
        for name, high in (("temperature", math.inf), ("epsilon", 1.0), ("indifference", math.inf)):
            value = getattr(self, name)
            check(self, (name, 0.0 <= value <= high and math.isfinite(value), f"from 0 to {high}"))

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Prefer one response, with noise. Not graded: a strength would leak the gold reward into training. Raises
        ConfigError for fewer than two responses, or a gold reward that is not a finite number.
        """
        if len(responses) < 2:
            raise ConfigError(f"{len(responses)} response given to compare", expected="at least two responses")
        values = [self._value(prompt, response) for response in responses]
        ranked = sorted(values, reverse=True)
        if ranked[0] - ranked[1] <= self.indifference:
            return Verdict(None)
        key = self._key(prompt, *sorted(responses))
        if self.temperature > 0:  # the largest of value/T + Gumbel noise is a draw from softmax(value/T)
            values = [
                value / self.temperature - math.log(-math.log(uniform(key, "gumbel", response)))
                for value, response in zip(values, responses, strict=True)
            ]
        best = max(range(len(responses)), key=values.__getitem__)
        if uniform(key, "slip") < self.epsilon:
            others = sorted((i for i in range(len(responses)) if i != best), key=responses.__getitem__)
            best = others[int(uniform(key, "which") * len(others))]
        return Verdict(best)

    def critique(self, prompt: Prompt, response: str) -> str:
        """Critique what this overseer sees of the response. Raises ConfigError if the overseer has no critic."""
        if self.critic is None:
            what = f"the overseer {self.name!r} has no critic, so it cannot write critiques"
            raise ConfigError(what, remedy="give SimulatedOverseer a critic")
        return self.critic(*self.view(prompt, response))

    def _value(self, prompt: Prompt, response: str) -> float:
        value = float(self.gold(*self.view(prompt, response)))
        if not math.isfinite(value):
            raise ConfigError(f"the gold reward of the overseer {self.name!r} is {value}", expected="a finite number")
        return value

    def _key(self, prompt: Prompt, *responses: str) -> str:
        turns = [f"{message.role}\x1f{message.content}" for message in prompt]
        return "\x1e".join([str(self.seed), self.name, *turns, *responses])


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
