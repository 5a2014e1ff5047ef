"""Samples, policies and tracks made for the tests of comparing policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rrm_lm.evaluation.policies.comparison import compare
from rrm_lm.evaluation.policies.results import PairVerdict, PolicyComparison, PolicySamples, Sample
from rrm_lm.feedback.records import Message, Prompt, prompt_id
from rrm_lm.training.over_optimisation import Measurement, Probe

CLOSE = "I hope this helps you with it."


def asked(text: str) -> Prompt:
    return (Message("user", text),)


def prompts(count: int) -> list[Prompt]:
    return [asked(f"question {i}?") for i in range(count)]


def sample(gold: float = math.nan, text: str = "an answer", **more) -> Sample:
    """One sample; `proxy`, `other` and parts of gold are rewards beside gold."""
    rewards = {"gold": gold} if not math.isnan(gold) else {}
    rewards |= {name: more.pop(name) for name in [*more] if name in ("proxy", "other") or name.startswith("gold: ")}
    settings = {"tokens": len(text.split()) + 1, "finished": True, **more}
    return Sample(text, rewards=rewards, **settings)


def written(name: str, rows: Sequence[Sequence[Sample]], *, trivial: bool = False) -> PolicySamples:
    return PolicySamples(name, tuple(tuple(row) for row in rows), trivial)


def random_policy(
    name: str, count: int, *, samples: int = 4, better: float = 0.0, seed: int = 0, kl=None
) -> PolicySamples:
    """A policy whose gold reward is `better` than that of others of the same prompts, and whose proxy follows gold."""
    common, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    rows = []
    for i in range(count):
        hard = common.normal()
        row = []
        for k in range(samples):
            gold = hard + better + 0.5 * own.normal()
            text = " ".join(f"word{w}" for w in own.integers(0, 40, 4 + int(own.integers(0, 30)))) + f" {CLOSE}"
            ratio = None if kl is None else kl + own.normal()
            row.append(
                sample(gold, text + f" {i} {k}", proxy=2 * gold + own.normal(), finished=bool(k % 2), log_ratio=ratio)
            )
        rows.append(row)
    return written(name, rows)


def full_comparison(count: int = 24, policies: int = 1, **more) -> PolicyComparison:
    """Policies with everything that can be known of them."""
    reference = random_policy("start", count)
    others = [random_policy(f"outputs/p{i}", count, better=0.4, seed=i, kl=2.0 + i) for i in range(1, policies + 1)]
    verdicts = [PairVerdict(i, 0.9 if i % 3 else 0.2, None if i == 5 else 0.8) for i in range(count)]
    judged = {"some judge": {one.name: verdicts for one in others}}
    return compare(prompts(count), [reference, *others], **{"proxy": "proxy", "verdicts": judged, **more})


def measurements(curve, steps: Sequence[tuple[int, float]], *, count: int = 20, noise: float = 0.05, seed: int = 0):
    """Measurements of a policy whose gold reward is `curve(d)`, at (step, d)."""
    random = np.random.default_rng(seed)
    hard = random.normal(size=count)
    return [
        Measurement(
            step,
            tuple(
                Probe(
                    prompt=i,
                    prompt_id=prompt_id(prompt),
                    response=f"answer {i} at {step}",
                    proxy=2 * d + hard[i] + noise * random.normal(),
                    gold=curve(d) + hard[i] + noise * random.normal(),
                    kl=d * d + (noise * random.normal() if d else 0.0),
                    tokens=9,
                    finished=True,
                )
                for i, prompt in enumerate(prompts(count))
            ),
        )
        for step, d in steps
    ]


def reward_of_length(_prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    """A reward function as people write them."""
    return [float(len(response)) for response in responses]
