"""Do words help when there are few comparisons? Linear rewards from detectors, without and with criteria from words.

    python scripts/bench/words.py                                   (data/notes and data/assistant; minutes)
    python scripts/bench/words.py --feedbackqa FOLDER               (also FeedbackQA: train.jsonl.gz, dev.jsonl.gz)

This measures the part that `rrm-lm reward --criteria` fits on top of the LoRA reward, alone: there is no LoRA and no
question to a model. Each draw of n comparisons of one person is given to all arms (`words_arms.py`):

- `no_words`: all detectors with prior mean 0; `words`: the same, and the criteria that the n comparisons' critiques
  name, with the prior that `rrm-lm criteria` gives; `words_only`: those criteria alone;
- `default`: all detectors, with prior means that were fitted to other sets;
- `other_person`: the other simulated person's critiques of the same responses, compared with `words` on draws of their
  own, from the comparisons whose responses both people criticized (`both_people`), of which some kinds have none;
  `shuffled`: critiques of other responses of the draw; `flat`: one prior mean for all that is named, in the wanted
  direction;
- `checkboxes`: the aspects that the critiques name, in clauses that are read without fault;
- `equal_time`: no words, and as many comparisons as take a person the time of n comparisons with critiques.

Accuracy is on the held-out part (`validation` of data/notes); intervals are over draws and prompts
(`metrics.over_runs`). The primary contrast is `words` against `no_words` and `other_person` at n = 16, both simulated
people together; all others are secondary, with p-values by Holm's method.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parent))

from common import commit, machine, save
from words_arms import ARMS, DETECTORS_ALONE, Draw, arms_of, with_critiques

from rrm_lm.evaluation.preferences.criteria import PRIOR_STD, CriteriaReward
from rrm_lm.evaluation.statistics.metrics import over_runs, verdict
from rrm_lm.feedback.criteria.detectors import DETECTORS
from rrm_lm.feedback.criteria.records import Criterion
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison

DATA = Path(__file__).parents[2] / "data"
PEOPLE = ("plain", "thorough")
BUDGETS, PRIMARY_BUDGET, AIM = {8: 20, 16: 20, 32: 20, 256: 3}, 16, 0.03  # draws of each budget
# Assumed seconds of a person: to read two answers and choose one, and to write two critiques of 8 to 40 words.
SECONDS_TO_COMPARE, SECONDS_TO_CRITICIZE = 20, 40
Floats = NDArray[np.float64]
Runs = dict[str, Floats]  # for each arm, (draws, pairs): 1 where the chosen response is preferred, 1/2 for ties


@dataclass
class Set:
    """One person's comparisons, to draw from and held out."""

    train: list[Comparison]
    test: list[Comparison]
    person: str = ""
    theirs: dict[Any, tuple[str, ...]] = field(default_factory=dict)  # critiques by another person, of responses
    both: list[Comparison] = field(default_factory=list)  # those of `train` that another person criticized, too

    @property
    def prompts(self) -> list[str]:
        return [one.prompt_id for one in self.test]


def comparisons(file: Path) -> list[Comparison]:
    return list(load_feedback(str(file)).comparisons)


def notes(person: str) -> Set:
    """A simulated person of data/notes, with the other person's critiques of the same responses."""
    mine, other = (comparisons(DATA / "notes" / f"train_{one}.jsonl.gz") for one in sorted(PEOPLE, key=person.__ne__))
    theirs: dict[Any, tuple[str, ...]] = {}
    for one in other:
        theirs |= {(one.prompt, one.chosen): one.chosen_critiques, (one.prompt, one.rejected): one.rejected_critiques}
    both = [one for one in mine if {(one.prompt, one.chosen), (one.prompt, one.rejected)} <= set(theirs)]
    return Set(mine, comparisons(DATA / "notes" / f"validation_{person}.jsonl.gz"), person, theirs, both)


def default_weights(name: str, sets: Mapping[str, Set]) -> dict[str, float]:
    """The weights of all detectors, fitted to the comparisons of the other sets. The two simulated people of data/notes
    judge the same responses, so neither is used for the other.
    """
    others = [one for other, one in sets.items() if other != name and not (one.person and sets[name].person)]
    reward = CriteriaReward(DETECTORS_ALONE)
    reward.fit([pair for other in others for pair in other.train])
    return {one.measure: one.weight for one in reward.criteria if one.scale}


def right(criteria: list[Criterion], pairs: list[Comparison], test: list[Comparison]) -> Floats:
    """(test,) 1 where the fitted criteria prefer the chosen response, 1/2 for ties."""
    reward = CriteriaReward(criteria)
    reward.fit(pairs)
    found = np.array(reward.rewards([one.prompt for one in test], [[one.chosen, one.rejected] for one in test]))
    return (np.sign(found[:, 0] - found[:, 1]) + 1) / 2


def drawn(name: str, one: Set, pool: list[Comparison], budget: int, number: int, default: Mapping[str, float]) -> Draw:
    generator = random.Random(f"{name}/{budget}/{number}")
    pairs = generator.sample(pool, budget)
    used = set(map(id, pairs))
    rest = [pair for pair in pool if id(pair) not in used]
    more = budget * SECONDS_TO_CRITICIZE // SECONDS_TO_COMPARE
    longer = pairs + generator.sample(rest, min(more, len(rest)))
    texts = (one.theirs.get((pair.prompt, text), ()) for pair in pairs for text in (pair.chosen, pair.rejected))
    theirs = with_critiques(pairs, texts) if pool is one.both else []
    return Draw(pairs, longer, theirs, default, number, one.person)


def runs_of(name: str, one: Set, budget: int, draws: int, default: Mapping[str, float]) -> Runs:
    found: dict[str, list[Floats]] = {}
    for number in range(draws):
        draw = drawn(name, one, one.train, budget, number, default)
        for arm in arms_of(draw):
            pairs = draw.longer if arm == "equal_time" else draw.pairs
            found.setdefault(arm, []).append(right(ARMS[arm](draw), pairs, one.test))
        if one.both:
            draw = drawn(name, one, one.both, budget, number, default)
            for arm, kept in (("words", "both_people"), ("other_person", "other_person")):
                found.setdefault(kept, []).append(right(ARMS[arm](draw), draw.pairs, one.test))
    print(name, budget, {arm: f"{100 * np.mean(rows):.1f}" for arm, rows in found.items()}, flush=True)
    return {arm: np.stack(rows) for arm, rows in found.items()}


def gain_over(runs: Runs, arm: str) -> Floats:
    """(draws, pairs) `words` minus another arm, on the same draws."""
    return runs["both_people" if arm == "other_person" else "words"] - runs[arm]


def table(runs: Runs, prompts: Sequence[str]) -> dict[str, Any]:
    """Accuracy of each arm, and the gain of `words` over each other arm."""
    gains = {arm: over_runs(gain_over(runs, arm), prompts) for arm in runs if arm not in ("words", "both_people")}
    return {
        "accuracy": {arm: asdict(over_runs(rows, prompts)) for arm, rows in runs.items()},
        "gain_over": {arm: asdict(gain) for arm, gain in gains.items()},
    }


def primary(runs: Mapping[tuple[str, int], Runs], sets: Mapping[str, Set]) -> dict[str, Any]:
    """The primary contrast, with its verdict by rule: both gains at least the aim, and both intervals above 0."""
    some = [runs[person, PRIMARY_BUDGET] for person in PEOPLE]
    prompts = [prompt for person in PEOPLE for prompt in sets[person].prompts]
    gains = {
        arm: over_runs(np.concatenate([gain_over(one, arm) for one in some], axis=1), prompts)
        for arm in ("no_words", "other_person")
    }
    reached = all(gain.value >= AIM and verdict(gain) == "better" for gain in gains.values())
    return {
        "budget": PRIMARY_BUDGET, "aim": AIM, "verdict": "aim reached" if reached else "aim not reached",
        "gain_over": {arm: asdict(gain) | {"verdict": verdict(gain)} for arm, gain in gains.items()},
    }  # fmt: skip


def add_p_values(found: Mapping[str, Any]) -> None:
    """Add Holm's adjusted two-sided p-values to all gains with intervals, which are secondary."""
    gains = [gain for budgets in found.values() for one in budgets.values() for gain in one["gain_over"].values()]
    gains = [gain for gain in gains if not gain["kind"].startswith("range")]  # too few draws
    raw = np.array([p_value(gain) for gain in gains])
    order = np.argsort(raw)
    adjusted = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    for place, value in zip(order, adjusted, strict=True):
        gains[place]["p_holm"] = round(float(min(value, 1.0)), 4)


def p_value(gain: Mapping[str, Any]) -> float:
    """Two-sided, from a 95% interval."""
    half = (gain["high"] - gain["low"]) / 2
    return float(2 * norm.sf(abs(gain["value"]) / half * norm.ppf(0.975))) if half > 0 else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feedbackqa", type=Path, help="folder with train.jsonl.gz and dev.jsonl.gz")
    args = parser.parse_args()
    logging.getLogger("rrm_lm").setLevel(logging.ERROR)  # with few comparisons, many detectors do not vary
    for name, one in DETECTORS.items():
        DETECTORS[name] = replace(one, measure=cache(one.measure))  # each response is measured in many draws
    sets = {person: notes(person) for person in PEOPLE}
    folders = {"assistant": (DATA / "assistant", "heldout"), "feedbackqa": (args.feedbackqa, "dev")}
    for name, (folder, held_out) in folders.items():
        if folder is not None:
            sets[name] = Set(comparisons(folder / "train.jsonl.gz"), comparisons(folder / f"{held_out}.jsonl.gz"))
    runs: dict[tuple[str, int], Runs] = {}
    for name, one in sets.items():
        default = default_weights(name, sets)
        for budget, draws in BUDGETS.items():
            if budget <= len(one.train) // 2:
                runs[name, budget] = runs_of(name, one, budget, draws, default)
    found = {
        name: {str(n): table(some, one.prompts) for (other, n), some in runs.items() if other == name}
        for name, one in sets.items()
    }
    add_p_values(found)
    print(
        save(
            "words.json",
            {
                "commit": commit(), "machine": machine(), "draws": BUDGETS, "prior_std": PRIOR_STD,
                "seconds": {"to_compare": SECONDS_TO_COMPARE, "to_criticize": SECONDS_TO_CRITICIZE},
                "pairs": {
                    name: {"train": len(one.train), "both_people": len(one.both), "held_out": len(one.test)}
                    for name, one in sets.items()
                },
                "primary": primary(runs, sets), "sets": found,
            },
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
