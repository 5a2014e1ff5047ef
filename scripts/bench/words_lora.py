"""Do words help on top of a LoRA reward? Each draw has 16 (or 256) comparisons of one person.

    python scripts/bench/words_lora.py --draws 20 --minutes 60                (repeat until it is finished)
    python scripts/bench/words_lora.py --draws 3 --budget 256 --minutes 60
    python scripts/bench/words_lora.py --draws 0                              (only the summary)

A reward model is trained on each draw of each simulated person of data/notes:

- `pairs`: the comparisons alone (`rrm-lm reward --critique_weight 0 --criteria none`).

To its rewards are added, with weights fitted to the same comparisons,

- `words`: the criteria that their critiques name (what `--criteria critiques` does);
- `other_person`: those that the other person's critiques of the same responses name, as far as there are any;
- `detectors`: all detectors, without words.

`words_alone` is the first of these without the LoRA part. Only if `--arms` names them, reward models without criteria
are trained on the comparisons and

- `loss`: on writing the critiques (`--critique_weight 0.5`);
- `stars`: on the person's ratings of the compared responses;
- `directed`: on edits of 48 other responses, each preferred to its original, or not, by the criteria of `words`;
- `random`: on the same edits, each preferred or not by chance;
- `distilled`: on 24 of these edits and 24 other pairs of responses, with the probabilities that the reward with words
  gives them.

`after_criteria` is how `--criteria critiques` first was: the
LoRA part learned what the fitted criteria left to explain (three runs, from before that was changed). Accuracy is on
the same 100 comparisons of the validation part for all. Every run is one line of results/words_lora_runs.jsonl and is
not repeated; intervals in results/words_lora.json are over draws and prompts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from common import RESULTS, commit, machine, save
from words import comparisons, notes
from words_arms import DETECTORS_ALONE, named, with_critiques
from words_runs import is_kept, keep, kept, run_command

from rrm_lm import RewardModel
from rrm_lm.evaluation.preferences.criteria import CriteriaReward, save_criteria
from rrm_lm.evaluation.statistics.metrics import over_runs, verdict
from rrm_lm.feedback.criteria.edits import edited
from rrm_lm.feedback.records import Comparison
from rrm_lm.feedback.store.records import comparison_row

NOTES = Path(__file__).parents[2] / "data" / "notes"
RUNS = RESULTS / "words_lora_runs.jsonl"
FOLDER = Path(__file__).parents[2] / "outputs" / "words_lora"
PEOPLE = ("plain", "thorough")
HELD_OUT = 100
# Fixed before the first run. 16 comparisons: 24 updates, which they need to be learned at all.
EPOCHS = {16: 6, 256: 2}
TRAINING = {
    "model_name_or_path": "smollm2-135m", "per_device_train_batch_size": 4,
    "learning_rate": 5e-4, "max_length": 384, "criteria": "none", "save_strategy": "no",
}  # fmt: skip
UNLABELLED = 48  # other responses; their pairs are seen as often as the comparisons
IMITATION = {
    "model_name_or_path": "smollm2-135m", "max_steps": 50, "per_device_train_batch_size": 8, "learning_rate": 5e-4,
    "max_length": 384, "eval_fraction": 0, "save_strategy": "no", "seed": 0,
}  # fmt: skip
TRAINED: Mapping[str, Mapping[str, Any]] = {
    "pairs": {"critique_weight": 0},
    "loss": {"critique_weight": 0.5},
    "stars": {"critique_weight": 0, "pair_ratings": True},
    "directed": {"critique_weight": 0},
    "random": {"critique_weight": 0},
    "distilled": {"critique_weight": 0, "grades": "target"},
}
ADDED = ("words", "other_person", "detectors", "words_alone")


def rows(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()


def drawn(person: str, draw: int, budget: int = 16) -> list[str]:
    """The comparisons of a draw, all with critiques."""
    some = [row for row in rows(NOTES / f"train_{person}.jsonl.gz") if json.loads(row).get("rejected_critiques")]
    return random.Random(f"{person}/{draw}").sample(some, budget)


def held_out(person: str) -> list[str]:
    return random.Random("held out").sample(rows(NOTES / f"validation_{person}.jsonl.gz"), HELD_OUT)


def trained(person: str, draw: int, arm: str, budget: int = 16) -> Path:
    """The folder of a reward model; trains it if it is not there."""
    folder = FOLDER / (f"{person}_{draw}" if budget == 16 else f"{person}_{draw}_{budget}") / arm
    if arm == "words" and not folder.is_dir():
        shutil.copytree(trained(person, draw, "pairs", budget), folder)
        save_criteria(criteria_of(arm, person, draw, budget), folder)
    if (folder / "scores.jsonl").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    train, test = folder.parent / f"train_{arm}.jsonl", folder.parent / "test.jsonl"
    lines = drawn(person, draw, budget) + [json.dumps(comparison_row(one)) for one in more(arm, person, draw, budget)]
    train.write_text("\n".join(lines), encoding="utf-8")
    test.write_text("\n".join(held_out(person)), encoding="utf-8")
    settings = {**TRAINING, **TRAINED[arm], "num_train_epochs": EPOCHS[budget], "seed": draw, "output_dir": folder}
    run_command("reward", "--dataset_name", train, "--eval_dataset_name", test, **settings)
    return folder


def more(arm: str, person: str, draw: int, budget: int) -> list[Comparison]:
    """What an arm learns of responses that nobody judged, besides the comparisons."""
    if arm in ("directed", "random"):
        rewards = criteria_of("words", person, draw, budget)
        pairs = edits(rewards, person, draw, budget)
        found = [better(one, *rewards.rewards([one.prompt], [[one.chosen, one.rejected]])) for one in pairs]
        return [flipped(one, draw) for one in found] if arm == "random" else found
    if arm == "distilled":
        some = edits(criteria_of("words", person, draw, budget), person, draw, budget)[::2]
        some += unlabelled(person, draw, budget)[1::2]
        model = RewardModel.from_pretrained(trained(person, draw, "words", budget))
        texts = [[one.chosen, one.rejected] for one in some]
        found = model.scorer.score([one.prompt for one in some], texts)
        return [better(one, rewards) for one, rewards in zip(some, found, strict=True)]
    return []


def unlabelled(person: str, draw: int, budget: int) -> list[Comparison]:
    """Pairs of responses to other questions than those of the draw, in an order that says nothing."""
    asked = {one.prompt for one in read(drawn(person, draw, budget))}
    others = [one for one in read(rows(NOTES / f"train_{person}.jsonl.gz")) if one.prompt not in asked]
    some = random.Random(f"unlabelled/{person}/{draw}").sample(others, UNLABELLED)
    plain = [replace(one, chosen_critiques=(), rejected_critiques=(), margin=None) for one in some]
    return [flipped(one, draw) for one in plain]


def edits(rewards: CriteriaReward, person: str, draw: int, budget: int) -> list[Comparison]:
    """An unlabelled response and an edit of it that moves one of the criteria, for each pair where there is one."""
    found: list[Comparison] = []
    pairs = unlabelled(person, draw, budget)
    for one, other in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        texts = [*edited(rewards.criteria, one.prompt[-1].content, one.chosen, other.chosen).values()]
        if texts:
            text = random.Random(f"{draw}/{one.chosen}").choice(texts)
            found.append(replace(one, rejected=text))
    return found


def better(pair: Comparison, rewards: Sequence[float]) -> Comparison:
    """The pair with the response of the higher reward as the chosen one, by the difference of the rewards."""
    first, second = rewards
    turned = pair if first >= second else replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    return replace(turned, margin=abs(first - second), chosen_rating=None, rejected_rating=None)


def flipped(pair: Comparison, draw: int) -> Comparison:
    """The pair in an order that a hash of its texts decides."""
    texts = sorted([pair.chosen, pair.rejected])
    random.Random(f"{draw}/{texts}").shuffle(texts)
    return replace(pair, chosen=texts[0], rejected=texts[1], chosen_rating=None, rejected_rating=None)


def criteria_of(arm: str, person: str, draw: int, budget: int = 16) -> CriteriaReward:
    """The criteria of an arm, fitted to the comparisons of the draw."""
    pairs = read(drawn(person, draw, budget))
    if arm == "detectors":
        criteria = DETECTORS_ALONE
    elif arm == "other_person":
        theirs = notes(person).theirs
        texts = (theirs.get((pair.prompt, text), ()) for pair in pairs for text in (pair.chosen, pair.rejected))
        criteria = named(with_critiques(pairs, texts))
    else:
        criteria = named(pairs)
    reward = CriteriaReward(criteria)
    reward.fit(pairs)
    return reward


def read(lines: Sequence[str]) -> list[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("\n".join(lines), encoding="utf-8")
        return comparisons(file)


def margins(person: str, draw: int, arm: str, budget: int = 16) -> list[float]:
    """The margins of the held-out comparisons."""
    if arm in TRAINED:
        rows = (trained(person, draw, arm, budget) / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["margin"] for line in rows]
    test = read(held_out(person))
    responses = [[one.chosen, one.rejected] for one in test]
    rewards = criteria_of(arm, person, draw, budget).rewards([one.prompt for one in test], responses)
    lora = [0.0] * len(test) if arm == "words_alone" else margins(person, draw, "pairs", budget)
    return [one + chosen - rejected for one, (chosen, rejected) in zip(lora, rewards, strict=True)]


def run(person: str, draw: int, arm: str, budget: int = 16) -> dict[str, Any]:
    began = time.perf_counter()
    found = [round(one, 5) for one in margins(person, draw, arm, budget)]
    return {
        "budget": budget, "person": person, "draw": draw, "arm": arm, "margins": found,
        "prompts": [one.prompt_id for one in read(held_out(person))],
        "seconds": round(time.perf_counter() - began, 1), "commit": commit(), "cpu": machine()["cpu"],
    }  # fmt: skip


def start() -> Path:
    """The folder of the policy that words_best_of.py and words_policy.py begin with; trains it if it is not there. It
    imitates demonstrations of both people, so that it gives answers that either of them likes.
    """
    folder = FOLDER / "start"
    if not (folder / "adapter_model.safetensors").is_file():
        shown = [NOTES / f"train_{person}_demonstrations.jsonl.gz" for person in PEOPLE]
        run_command("sft", "--dataset_name", *shown, **IMITATION, output_dir=folder)
    return folder


def right(run: Mapping[str, Any]) -> np.ndarray:
    """(comparisons,) 1 where the chosen response has the higher reward, 1/2 for ties."""
    return np.array(run["correct"]) if "correct" in run else (np.sign(run["margins"]) + 1) / 2


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy of each arm, and the gains of `words` over the others, by person and for both; each arm over the draws
    that it and `words` have.
    """
    found: dict[str, Any] = {}
    values: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    prompts: dict[str, list[str]] = {}
    for one in runs:
        values.setdefault(one["person"], {}).setdefault(one["arm"], {})[one["draw"]] = right(one)
        prompts[one["person"]] = one["prompts"]
    for person, arms in values.items():
        found[person] = table(arms, prompts[person])
    if len(values) == len(PEOPLE):
        first, second = (values[person] for person in PEOPLE)
        both = {
            arm: {
                draw: np.concatenate([first[arm][draw], second[arm][draw]]) for draw in {*first[arm]} & {*second[arm]}
            }
            for arm in first
            if arm in second
        }
        found["both"] = table(both, [one for person in PEOPLE for one in prompts[person]])
    return found


def table(arms: Mapping[str, Mapping[int, np.ndarray]], prompts: Sequence[str]) -> dict[str, Any]:
    """Each arm over the draws that it and `words` have, and gains over the draws that both arms have."""
    several = {arm: values for arm, values in arms.items() if len({*values} & {*arms["words"]}) > 1}
    accuracy = {arm: over_runs(_both(values, arms["words"])[0], prompts) for arm, values in several.items()}

    def gains(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        found = {pair: _both(several[pair[0]], several[pair[1]]) for pair in pairs}
        differences = {pair: over_runs(one - other, prompts) for pair, (one, other) in found.items() if len(one) > 1}
        return {"/".join(pair): asdict(gain) | {"verdict": verdict(gain)} for pair, gain in differences.items()}

    others = [arm for arm in several if arm != "words"]
    of_words = gains([("words", arm) for arm in others])
    contrasts = [(arm, "pairs") for arm in ("stars", "directed", "random", "distilled", "loss") if arm in several]
    contrasts += [("directed", "random")] * ({"directed", "random"} <= several.keys())
    return {
        "accuracy": {arm: asdict(one) for arm, one in accuracy.items()},
        "gain_of_words_over": {name.split("/")[1]: gain for name, gain in of_words.items()},
        "gains": gains(contrasts),
    }


def _both(first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(draws, comparisons) of each, for the draws that both have."""
    draws = sorted({*first} & {*second})
    return np.stack([first[draw] for draw in draws]), np.stack([second[draw] for draw in draws])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--budget", type=int, default=16, choices=EPOCHS)
    parser.add_argument("--people", nargs="+", default=PEOPLE, choices=PEOPLE)
    parser.add_argument("--arms", nargs="+", default=["pairs", *ADDED], choices=[*TRAINED, *ADDED])
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after this time")
    args = parser.parse_args()
    began = time.perf_counter()
    wanted = [(draw, person, arm) for draw in range(args.draws) for person in args.people for arm in args.arms]
    for draw, person, arm in wanted:
        if time.perf_counter() - began > 60 * args.minutes:
            break
        key = {"budget": args.budget, "person": person, "draw": draw, "arm": arm}
        if is_kept(kept(RUNS), key):
            continue
        found = run(person, draw, arm, args.budget)
        keep(RUNS, [found])
        print(person, draw, arm, f"{100 * right(found).mean():.1f}%", f"{found['seconds']:.0f} s", flush=True)
    settings = {"held_out": HELD_OUT, "epochs": EPOCHS, "training": TRAINING}
    found = {str(n): summary([one for one in kept(RUNS) if one["budget"] == n]) for n in EPOCHS}
    save("words_lora.json", {"machine": machine(), **settings, "budgets": found})


if __name__ == "__main__":
    main()
