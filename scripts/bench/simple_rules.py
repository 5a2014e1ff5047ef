"""Accuracy of simple rules on data/assistant, and of models on the true parts with few comparisons.

    python scripts/bench/simple_rules.py      (writes results/simple_rules.json; seconds)

Linear models are Bradley-Terry models on differences of features, with a small, untuned L2 penalty.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parent))

from common import save

from rrm_lm.evaluation.statistics.metrics import correctness, share
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison
from rrm_lm.simulated.plain_user import PlainUser
from rrm_lm.simulated.plain_words import WEIGHTS

DATA = Path(__file__).parents[2] / "data" / "assistant"
BUDGETS, DRAWS = (8, 16, 32), 200
PENALTY = 0.01

Floats = NDArray[np.float64]
Features = Callable[[Comparison, str], Sequence[float]]


def differences(pairs: Sequence[Comparison], features: Features) -> Floats:
    """Features of the chosen response minus those of the rejected one, `(pairs, features)`."""
    return np.array([np.subtract(features(pair, pair.chosen), features(pair, pair.rejected)) for pair in pairs])


def fitted(x: Floats) -> Floats:
    """The weights of a Bradley-Terry model of preferred differences, `(features,)`."""

    def loss(w: Floats) -> tuple[float, Floats]:
        margins = x @ w
        slope = -1 / (1 + np.exp(np.clip(margins, -500, 500)))
        return np.logaddexp(0, -margins).mean() + PENALTY / 2 * w @ w, x.T @ slope / len(x) + PENALTY * w

    return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x


def words(text: str) -> Counter[str]:
    found = re.findall(r"[a-z']+|[^\w\s]", text.lower())
    return Counter([*found, *map(" ".join, itertools.pairwise(found))])


def results() -> dict[str, object]:
    user = PlainUser.from_file(DATA / "requests.jsonl")
    train, heldout = (list(load_feedback(str(DATA / f"{n}.jsonl.gz")).comparisons) for n in ("train", "heldout"))
    prompts = [pair.prompt_id for pair in heldout]

    def estimate(margins: Floats) -> dict[str, float | int]:
        return share(correctness(margins), prompts).to_dict()

    def linear(features: Features) -> dict[str, float | int]:
        return estimate(differences(heldout, features) @ fitted(differences(train, features)))

    def parts(pair: Comparison, text: str) -> list[float]:
        judged = user.judge(pair.prompt, text).parts
        return [judged[name] for name in WEIGHTS]

    common = Counter(word for p in train for text in {p.chosen, p.rejected} for word in set(words(text)))
    vocabulary = [word for word, count in common.items() if count >= 5]
    known, fresh = differences(train, parts), differences(heldout, parts)
    rng = np.random.default_rng(0)
    draws = {
        n: [float(correctness(fresh @ fitted(known[rng.choice(len(known), n, replace=False)])).mean())
            for _ in range(DRAWS)]
        for n in BUDGETS
    }  # fmt: skip
    return {
        "longer": estimate(differences(heldout, lambda _, text: [len(text)])[:, 0]),
        "length": linear(lambda _, text: [len(text) / 100, len(text.split()) / 10, np.log(len(text.split()) + 1)]),
        "words": linear(lambda _, text: [min(words(text)[word], 1) for word in vocabulary]),
        "parts": {name: estimate(fresh[:, place]) for place, name in enumerate(WEIGHTS)},
        "true_parts": {
            str(n): {"value": float(np.mean(one)), "p5": float(np.quantile(one, 0.05)), "draws": DRAWS}
            for n, one in draws.items()
        },
    }


if __name__ == "__main__":
    print(save("simple_rules.json", results()))
