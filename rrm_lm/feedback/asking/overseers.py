"""Whoever gives feedback: the protocol they all fit, and overseers simulated from a gold reward with a stated limit.

A person at a page, a simulated person, a language model as judge and an overseer assisted by helpers are all an
`Overseer`. None of them ever hands out the gold reward itself: they prefer, and they write.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.records import Prompt

GoldReward = Callable[[Prompt, str], float]
View = Callable[[Prompt, str], tuple[Prompt, str]]
Critic = Callable[[Prompt, str], str]

NO_ANSWER = "no answer"  # an abstention that says nothing about the question: asked again, it may get a verdict
CONTRADICTION = "contradicts itself"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an overseer said about several responses to one prompt.

    Attributes:
        preferred: Index of the best response; None when the overseer cannot tell them apart, or abstains.
        strength: How much better it is, at least 0, in the overseer's own units; None if not graded.
        reason: Why, in words; may be empty.
        abstained: Why there is no verdict at all, such as "refused" or `NO_ANSWER`; "" where there is one. That two
            responses are equally good is a verdict; an abstention says nothing about them.
    """

    preferred: int | None
    strength: float | None = None
    reason: str = ""
    abstained: str = ""


@runtime_checkable
class Overseer(Protocol):
    """Whoever gives feedback."""

    @property
    def name(self) -> str:
        """What to call this overseer in records and reports."""
        ...

    @property
    def limit(self) -> str:
        """What this overseer cannot see or do, in plain words."""
        ...

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Say which of at least two responses is best."""
        ...

    def critique(self, prompt: Prompt, response: str) -> str:
        """Say in words what is good or bad about one response; "" for nothing to say."""
        ...


def see_all(prompt: Prompt, response: str) -> tuple[Prompt, str]:
    """The view of an overseer without a limit."""
    return prompt, response


def see_first_words(count: int) -> View:
    """The view of an overseer who reads only the first `count` words of a response."""
    if count < 1:
        raise ConfigError(f"an overseer who reads {count} words sees nothing", expected="at least 1 word")

    def view(prompt: Prompt, response: str) -> tuple[Prompt, str]:
        return prompt, " ".join(response.split()[:count])

    return view


@dataclass(frozen=True)
class SimulatedOverseer:
    """A person simulated from a gold reward: sees through `view`, and errs as `temperature` and `epsilon` say.

    Noise is a function of `seed`, the prompt and the responses: the same question gets the same answer whatever was
    asked before and in whatever order the responses are shown, so feedback can be gathered in parallel and resumed.

    Attributes:
        gold: Reward of a response to a prompt; higher is better, and finite.
        limit: The limit in words, as reports show it. It should say what `view` hides.
        view: What of the prompt and response this overseer sees; `gold` is evaluated on that.
        temperature: Noise in units of the gold reward. The best of k is drawn with probability
            softmax(gold / temperature), which for two is Bradley-Terry (1952); 0 always takes the best.
        epsilon: Probability of a slip: taking one of the others, evenly.
        indifference: The best response must beat the second by more than this, or the overseer cannot tell (no noise
            is drawn then).
        critic: Writes the critique of what is seen; without one, the overseer can only compare.
        seed: Which of many equal people this one is.
    """

    gold: GoldReward
    name: str = "simulated"
    limit: str = "none: sees everything"
    view: View = see_all
    temperature: float = 0.0
    epsilon: float = 0.0
    indifference: float = 0.0
    critic: Critic | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0.0, math.inf), ("epsilon", 0.0, 1.0), ("indifference", 0.0, math.inf)):
            value = getattr(self, name)
            if not low <= value <= high or math.isinf(value):
                raise ConfigError(f"{name} of a simulated overseer is {value}", expected=f"from {low} to {high}")

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """Prefer one response, with this overseer's noise.

        The verdict is not graded: a strength taken from the gold reward would carry the gold reward into training.

        Raises:
            ConfigError: Fewer than two responses, or a gold reward that is not a finite number.
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
        """Write about what this overseer sees of the response.

        Raises:
            ConfigError: This overseer was made without a critic.
        """
        if self.critic is None:
            raise ConfigError(
                f"the overseer {self.name!r} has no critic, so it cannot write critiques",
                remedy="give SimulatedOverseer a critic",
            )
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
    """A number strictly between 0 and 1 that depends on the parts alone: noise that a repeated question gets again."""
    digest = hashlib.blake2b("\x1d".join(parts).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52


@dataclass(frozen=True)
class BothOrders:
    """An overseer who is asked about two responses in both orders; where the answers contradict, there is no verdict.

    Attributes:
        overseer: Whom to ask. Twice as many questions are asked of it.
    """

    overseer: Overseer

    @property
    def name(self) -> str:
        return self.overseer.name

    @property
    def limit(self) -> str:
        return self.overseer.limit

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Verdict:
        """The verdict of the order given, or an abstention."""
        first = self.overseer.compare(prompt, responses)
        again = self.overseer.compare(prompt, list(reversed(responses)))
        if first.abstained or again.abstained:
            return first if first.abstained else again
        mirrored = None if again.preferred is None else len(responses) - 1 - again.preferred
        return first if first.preferred == mirrored else Verdict(None, abstained=CONTRADICTION)

    def critique(self, prompt: Prompt, response: str) -> str:
        return self.overseer.critique(prompt, response)
