"""How many answers `--ask disagreement` saves over random questions, with simulated people.

A person's comparisons are the pool. Either 16 random ones are asked about at a time; or, after the first 16, those on
whose margin an ensemble disagrees most: 4 members, each fitted to a bootstrap sample of the answers so far. The reward
is linear in frozen hidden states of SmolLM2 (`rrm_lm.evaluation.preferences.baselines`), which are fitted in
milliseconds; a LoRA reward model would take minutes for each of the 145 fits of a seed. Accuracy is that of a fit to
all answers so far, on the held-out comparisons of the same person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrm_lm.evaluation.preferences.baselines import fit, frozen_states
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.evaluation.statistics.metrics import Floats, correctness, over_runs
from rrm_lm.feedback.reading.datasets import load_feedback
from scripts.bench.common import commit, machine

DATA = Path(__file__).parents[2] / "data"
SETS = {
    "notes": (DATA / "notes" / "train_plain.jsonl.gz", DATA / "notes" / "validation_plain.jsonl.gz"),
    "assistant": (DATA / "assistant" / "train.jsonl.gz", DATA / "assistant" / "heldout.jsonl.gz"),
}
SEEDS = (1, 2, 3, 4, 5)
BUDGETS = (16, 32, 64, 128, 256)
STEP, MEMBERS = 16, 4


def curve() -> dict[str, Any]:
    """The numbers of `curve`, by data set."""
    scorer: Any = load_scorer("smollm2-135m")
    probe = frozen_states(scorer)
    found = {name: of_set(*files, probe) for name, files in SETS.items()}
    about = {"budgets": BUDGETS, "seeds": SEEDS, "reward": "linear in frozen hidden states of smollm2-135m"}
    return {"curve": found | about | {"machine": machine(), "commit": commit()}} | {
        "labels_to_match_random_256": {name: one["labels_to_match_random_256"] for name, one in found.items()}
    }


def of_set(train: Path, test: Path, probe: Callable[..., Floats]) -> dict[str, Any]:
    pool, held = (list(load_feedback(str(file)).comparisons) for file in (train, test))
    x, x_held = probe(pool), probe(held)
    right: dict[str, list[dict[int, Floats]]] = {"random": [], "disagreement": []}
    for seed in SEEDS:
        for name, runs in right.items():
            runs.append(asked(x, x_held, name == "disagreement", seed))
    prompts = [one.prompt_id for one in held]
    accuracy = {name: {n: np.mean([run[n] for run in runs]) for n in runs[0]} for name, runs in right.items()}
    goal = accuracy["random"][max(BUDGETS)]

    def over(values: Sequence[Floats]) -> dict[str, Any]:
        return over_runs(np.array(values), prompts).to_dict()

    return {
        "pool": len(pool), "held_out": len(held),
        "accuracy": {name: {n: over([run[n] for run in runs]) for n in BUDGETS} for name, runs in right.items()},
        "disagreement_minus_random": {
            n: over([a[n] - b[n] for a, b in zip(right["disagreement"], right["random"], strict=True)])
            for n in BUDGETS
        },
        # the first number of answers with which the mean over seeds is that of 256 random ones; None: not within 256
        "labels_to_match_random_256": next((n for n, value in accuracy["disagreement"].items() if value >= goal), None),
    }  # fmt: skip


def asked(x: Floats, x_held: Floats, by_disagreement: bool, seed: int) -> dict[int, Floats]:
    """(held out,) 1 where the reward is right, 1/2 for ties, by the number of answers.

    Args:
        x: (pool, features) of the chosen response minus those of the rejected one.
        x_held: The same of held-out comparisons.
        by_disagreement: How the comparisons are chosen.
        seed: Of the random choices.
    """
    rng = np.random.default_rng(seed)
    chosen = list(rng.permutation(len(x))[:STEP])
    found = {}
    while True:
        found[len(chosen)] = correctness(x_held @ fit(x[chosen], np.arange(len(chosen))))
        if len(chosen) == max(BUDGETS):
            return found
        left = np.setdiff1d(np.arange(len(x)), chosen)
        worth = rng.random(len(left))
        if by_disagreement:
            worth = np.std([x[left] @ _member(x[chosen], rng) for _ in range(MEMBERS)], axis=0)
        chosen += list(left[np.argsort(-worth)[:STEP]])


def _member(x: Floats, rng: np.random.Generator) -> Floats:
    drawn = rng.integers(len(x), size=len(x))
    return fit(x[drawn], drawn)  # copies of a comparison are in the same fold
