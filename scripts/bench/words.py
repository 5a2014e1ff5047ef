"""Do words help when there are few comparisons? Linear rewards from detectors, without and with criteria from words.

    python scripts/bench/words.py      (writes results/words_linear.json; minutes)

Only the part that is fitted on top of a reward model: there is no LoRA here, and no question to a model. Per draw of n
comparisons of one simulated person, arms differ in the criteria and in the prior's mean of their weights:

- `no_words`: all detectors, each in the direction of more, prior mean 0;
- `words`: criteria that the n comparisons' critiques name, with the prior that `rrm-lm criteria` gives;
- `words_and_all`: the same, and all other detectors with prior mean 0;
- `other_person`: as `words_and_all`, with the other person's critiques of the same responses;
- `flat`: as `words_and_all`, with the same prior mean for all that is named, in the direction that most want;
- `shuffled`: as `words_and_all`, with critiques of other responses of the draw.

Accuracy is on the validation part; intervals are over draws and prompts (`metrics.over_runs`).
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from common import save

from rrm_lm.evaluation.preferences.criteria import PRIOR_STD, CriteriaReward
from rrm_lm.evaluation.statistics.metrics import over_runs
from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.feedback.criteria.finding import find_criteria
from rrm_lm.feedback.criteria.records import Criterion
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison

DATA = Path(__file__).parents[2] / "data" / "notes"
PEOPLE = ("plain", "thorough")
BUDGETS, DRAWS = (8, 16, 32), 20
PLAIN = [Criterion(f"has more {name}", f"detector_{name}", name, weight=0.0) for name in DETECTORS]

Arm = Callable[[list[Comparison], list[Comparison], random.Random], list[Criterion]]


def named(pairs: Sequence[Comparison]) -> list[Criterion]:
    """What critiques name, without the questions to a model."""
    return [one for one in find_criteria(pairs).criteria if not one.question]


def with_all(criteria: list[Criterion]) -> list[Criterion]:
    used = {one.measure for one in criteria if one.target is None}
    return criteria + [one for one in PLAIN if one.measure not in used]


def shuffled(pairs: list[Comparison], generator: random.Random) -> list[Comparison]:
    texts = [critiques for one in pairs for critiques in (one.chosen_critiques, one.rejected_critiques)]
    generator.shuffle(texts)
    sides = zip(pairs, texts[::2], texts[1::2], strict=True)
    return [replace(one, chosen_critiques=first, rejected_critiques=second) for one, first, second in sides]


ARMS: dict[str, Arm] = {
    "no_words": lambda pairs, other, generator: PLAIN,
    "words": lambda pairs, other, generator: named(pairs),
    "words_and_all": lambda pairs, other, generator: with_all(named(pairs)),
    "other_person": lambda pairs, other, generator: with_all(named(other)),
    "flat": lambda pairs, other, generator: with_all([replace(one, weight=PRIOR_STD) for one in named(pairs)]),
    "shuffled": lambda pairs, other, generator: with_all(named(shuffled(pairs, generator))),
}


def others_critiques(pairs: Sequence[Comparison], critiques: dict[Any, tuple[str, ...]]) -> list[Comparison]:
    """The comparisons with another person's critiques of the same responses, where there are some."""
    return [
        replace(
            one,
            chosen_critiques=critiques.get((one.prompt, one.chosen), ()),
            rejected_critiques=critiques.get((one.prompt, one.rejected), ()),
        )
        for one in pairs
    ]


def accuracy(criteria: list[Criterion], pairs: list[Comparison], test: list[Comparison]) -> NDArray[np.float64]:
    """(test,) 1 where the fitted criteria prefer the chosen response, 1/2 for ties."""
    reward = CriteriaReward(criteria)
    reward.fit(pairs)
    found = np.array(reward.rewards([one.prompt for one in test], [[one.chosen, one.rejected] for one in test]))
    return (np.sign(found[:, 0] - found[:, 1]) + 1) / 2


def measured(person: str, draws: int) -> dict[str, Any]:
    """Accuracy and gains of one person, by budget and arm."""
    train, other = (
        load_feedback(str(DATA / f"train_{one}.jsonl.gz")).comparisons for one in sorted(PEOPLE, key=person.__ne__)
    )
    test = list(load_feedback(str(DATA / f"validation_{person}.jsonl.gz")).comparisons)
    critiques: dict[Any, tuple[str, ...]] = {}
    for one in other:
        critiques |= {
            (one.prompt, one.chosen): one.chosen_critiques,
            (one.prompt, one.rejected): one.rejected_critiques,
        }
    both = [one for one in train if {(one.prompt, one.chosen), (one.prompt, one.rejected)} <= set(critiques)]
    prompts = [one.prompt_id for one in test]
    found: dict[str, Any] = {"pairs_that_both_criticized": len(both), "validation_pairs": len(test)}
    for budget in BUDGETS:
        right: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ARMS}
        for draw in range(draws):
            generator = random.Random(f"{person}/{budget}/{draw}")
            pairs = generator.sample(both, budget)
            theirs = others_critiques(pairs, critiques)
            for name, arm in ARMS.items():
                right[name].append(accuracy(arm(pairs, theirs, random.Random(draw)), pairs, test))
        runs = {name: np.stack(rows) for name, rows in right.items()}
        found[str(budget)] = {
            "accuracy": {name: asdict(over_runs(rows, prompts)) for name, rows in runs.items()},
            "words_and_all_over": {
                name: asdict(over_runs(runs["words_and_all"] - rows, prompts))
                for name, rows in runs.items()
                if name != "words_and_all"
            },
        }
        print(person, budget, {name: f"{100 * rows.mean():.1f}" for name, rows in runs.items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    logging.getLogger("rrm_lm").setLevel(logging.ERROR)  # with few comparisons, many detectors do not vary
    for name, one in DETECTORS.items():
        DETECTORS[name] = replace(one, measure=cache(one.measure))  # each response is measured in many draws
    found = {person: measured(person, args.draws) for person in PEOPLE}
    print(save("words_linear.json", {"draws": args.draws, "prior_std": PRIOR_STD, "sets": found}))


if __name__ == "__main__":
    main()
