"""Do words help the policy? PPO against the reward of 16 comparisons, with and without criteria from their critiques.

    python scripts/bench/words_policy.py --part validation --draws 0      (a pilot)
    python scripts/bench/words_policy.py --draws 1 2 3 4 5 --minutes 60   (repeat until it is finished)
    python scripts/bench/words_policy.py --draws                          (only the summary)

For each simulated person of data/notes and each draw of 16 comparisons with critiques, `rrm-lm reward` trains a reward
model (see words_lora.py), once without criteria and once with those that the critiques name; SmolLM2, after it imitated
both people, is trained with PPO against each, and answers 150 questions of the part at temperature 0. Gold and right
answers are those of that person. Each run is one line of results/words_policy_runs.jsonl and is not repeated. Policies
that need no model are judged on the same questions (`trivial`, see aligned.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from aligned import trivial
from common import RESULTS, commit, machine, save
from words_lora import FOLDER, NOTES, PEOPLE, rows, start, trained
from words_runs import is_kept, keep, kept, run_command

from rrm_lm import Policy
from rrm_lm.evaluation.statistics.metrics import over_runs, verdict
from rrm_lm.simulated.note_users import NoteUser

RUNS = RESULTS / "words_policy_runs.jsonl"
ARMS = ("pairs", "words")
# On draw 0 of the validation part, ten updates with learning rate 5e-4 and kl_coef 0.05 made answers worse in both arms
# (these runs are kept, too).
TRAINING = {
    "max_steps": 6, "per_device_train_batch_size": 32, "samples_per_prompt": 4, "num_mini_batches": 2,
    "num_ppo_epochs": 1, "learning_rate": 3e-4, "lr_scheduler_type": "constant", "kl_coef": 0.2,
    "response_length": 64, "max_length": 384, "eval_fraction": 0, "save_strategy": "no",
}  # fmt: skip
NEW_TOKENS = 80
READ = 5  # answers that are kept to be read


def policy(person: str, draw: int, arm: str) -> str:
    """The folder of a policy; trains it if it is not there."""
    reward = trained(person, draw, arm)
    folder = FOLDER / f"{person}_{draw}" / f"policy_{arm}"
    if not (folder / "adapter_model.safetensors").is_file():
        settings = {**TRAINING, "seed": draw, "output_dir": folder}
        prompts = {"prompts": NOTES / "train_questions.jsonl.gz", "reward_model": reward}
        run_command("policy", model_name_or_path=start(), **prompts, **settings)
    return str(folder)


def questions(part: str) -> list[str]:
    """150 questions: all of the validation part, every second one of the test part."""
    every = rows(NOTES / f"{part}_questions.jsonl.gz")
    return every[:: len(every) // 150]


def answers(name: str, questions: Sequence[str]) -> list[str]:
    return Policy.from_pretrained(name).respond(questions, temperature=0, max_new_tokens=NEW_TOKENS)


def judged(part: str, person: str, name: str) -> dict[str, Any]:
    """Gold and its parts of a policy's answers, for each question."""
    user = NoteUser.from_file(NOTES / f"{part}_questions.jsonl.gz", person)
    asked = [json.loads(row)["prompt"] for row in questions(part)]
    given = answers(name, asked)
    found = [user.judge(prompt, text) for prompt, text in zip(asked, given, strict=True)]
    parts = {one: [round(judgement.parts[one], 3) for judgement in found] for one in user.parts}
    return {"gold": [round(one.gold, 4) for one in found], "parts": parts, "first": given[:READ]}


def key(part: str, person: str, draw: int, arm: str) -> dict[str, Any]:
    """What tells runs apart: a policy depends on the settings of PPO, the start model (whose draw is -1) does not."""
    found = {"part": part, "person": person, "draw": draw, "arm": arm}
    return found if arm == "start" else found | {"settings": settings()}


def measure(part: str, person: str, draw: int, arm: str) -> None:
    """Judge a policy, or the start model (arm "start"), and keep what was found."""
    began = time.perf_counter()
    found = judged(part, person, str(start()) if arm == "start" else policy(person, draw, arm))
    seconds = round(time.perf_counter() - began, 1)
    keep(
        RUNS,
        [{**key(part, person, draw, arm), **found, "seconds": seconds, "commit": commit(), "cpu": machine()["cpu"]}],
    )
    right = 100 * np.mean(found["parts"]["answer"])
    print(f"{part} {person} {draw} {arm}: gold {np.mean(found['gold']):.3f}, right {right:.1f}%, {seconds:.0f} s")
    print("   ", found["first"][0].replace("\n", "\n    "), flush=True)


def record_use(draws: Sequence[int]) -> None:
    """Append a use of the test part to the ledger of aligned.py."""
    use = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": commit(), "script": "words_policy.py"}
    keep(RESULTS / "aligned_ledger.jsonl", [{**use, "seeds": [*draws], "settings": settings()}])


def settings() -> str:
    return json.dumps([TRAINING, NEW_TOKENS], sort_keys=True)


def summary(part: str) -> dict[str, Any]:
    """Gold and its parts of each arm, and the gain of `words` over the others, for each person, over the draws that
    both arms have; for both people together, gold and right answers.
    """
    runs = [one for one in kept(RUNS) if key(part, one["person"], one["draw"], one["arm"]).items() <= one.items()]
    patterns = [json.loads(row)["pattern"] for row in questions(part)]
    found: dict[str, Any] = {}
    by_person: list[dict[str, dict[str, np.ndarray]]] = []
    for person in PEOPLE:
        of = {(one["draw"], one["arm"]): one for one in runs if one["person"] == person}
        draws = sorted({draw for draw, arm in of if arm == "words" and (draw, "pairs") in of})
        if len(draws) < 2:
            continue
        starts = [of[-1, "start"]] * len(draws)
        lines = {"start": starts} | {arm: [of[draw, arm] for draw in draws] for arm in ARMS}
        metrics = ["gold", *lines["start"][0]["parts"]]
        values = {arm: {one: matrix(some, one) for one in metrics} for arm, some in lines.items()}
        by_person.append(values)
        first = {arm: some[0]["first"] for arm, some in lines.items()}
        without = {"trivial": without_model(part, person)}
        found[person] = {"draws": draws, **table(values, patterns), **without, "first_answers": first}
    if len(by_person) == len(PEOPLE):
        fewest = min(len(one["pairs"]["gold"]) for one in by_person)
        both = {
            arm: {m: np.concatenate([one[arm][m][:fewest] for one in by_person], axis=1) for m in ("gold", "answer")}
            for arm in by_person[0]
        }
        found["both"] = {"draws": fewest, **table(both, patterns * len(by_person))}
    return found


def without_model(part: str, person: str) -> dict[str, dict[str, float]]:
    """The mean gold and right answers of policies that need no model, on the same questions."""
    user = NoteUser.from_file(NOTES / f"{part}_questions.jsonl.gz", person)
    asked = {json.loads(row)["prompt"] for row in questions(part)}
    at = [number for number, one in enumerate(user.requests.values()) if one.text in asked]
    return {
        name: {metric: round(float(values[metric][at].mean()), 4) for metric in ("gold", "answer")}
        for name, values in trivial(user).items()
    }


def matrix(runs: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    """(runs, questions) of gold or one of its parts."""
    return np.array([one["gold"] if metric == "gold" else one["parts"][metric] for one in runs])


def table(values: Mapping[str, Mapping[str, np.ndarray]], patterns: Sequence[str]) -> dict[str, Any]:
    """Each arm and metric, and the gains of `words`; notes of one pattern are not independent."""
    gains = {
        f"words_minus_{arm}": {
            one: over_runs(found - values[arm][one], patterns) for one, found in values["words"].items()
        }
        for arm in values
        if arm != "words"
    }
    return {
        "arms": {arm: {m: asdict(over_runs(v, patterns)) for m, v in some.items()} for arm, some in values.items()},
        **{
            name: {m: asdict(gain) | {"verdict": verdict(gain)} for m, gain in some.items()}
            for name, some in gains.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--draws", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--people", nargs="+", default=PEOPLE, choices=PEOPLE)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after this time")
    args = parser.parse_args()
    began = time.perf_counter()
    wanted = [(person, draw, arm) for draw in args.draws for person in args.people for arm in ARMS]
    wanted = [*((person, -1, "start") for person in args.people if wanted), *wanted]
    missing = [one for one in wanted if not is_kept(kept(RUNS), key(args.part, *one))]
    if args.part == "test" and missing:
        record_use(args.draws)
    for one in missing:
        if time.perf_counter() - began < 60 * args.minutes:
            measure(args.part, *one)
    save("words_policy.json", {"machine": machine(), "training": TRAINING, "part": args.part, **summary(args.part)})


if __name__ == "__main__":
    main()
