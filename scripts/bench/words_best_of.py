"""Do words help to choose an answer? Best of 8 answers, by the rewards of words_lora.py.

    python scripts/bench/words_best_of.py --draws 6 --minutes 60     (repeat until it is finished)

SmolLM2, after it imitated both people, answers each question of the validation part of data/notes 8 times. For each
simulated person and each draw of 16 comparisons, each arm of words_lora.py chooses one of these answers: its gold and
right answers are those of that person. `any` is the mean of the 8, `best` the one with the highest gold. Each run is
one line of results/words_best_of_runs.jsonl and is not repeated; intervals in results/words_best_of.json are over draws
and questions.
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
from common import RESULTS, commit, machine, save
from words_lora import ADDED, FOLDER, NOTES, PEOPLE, criteria_of, rows, start, trained
from words_runs import is_kept, keep, kept

from rrm_lm import Policy, RewardModel
from rrm_lm.evaluation.statistics.metrics import over_runs, verdict
from rrm_lm.feedback.records import Message
from rrm_lm.simulated.note_users import NoteUser
from rrm_lm.storage import write_json

RUNS = RESULTS / "words_best_of_runs.jsonl"
SAMPLES, NEW_TOKENS = 8, 64
QUESTIONS = NOTES / "validation_questions.jsonl.gz"
FIRST = 5  # chosen answers that are kept to be read


def questions() -> list[str]:
    return [json.loads(row)["prompt"] for row in rows(QUESTIONS)]


def sampled() -> list[list[str]]:
    """(questions, 8) answers of the start policy; sampled if there are none yet."""
    file = FOLDER / "samples_validation.json"
    if not file.is_file():
        settings = {"n": SAMPLES, "temperature": 1.0, "max_new_tokens": NEW_TOKENS, "seed": 0}
        write_json(file, Policy.from_pretrained(start()).respond(questions(), **settings))
    return json.loads(file.read_text(encoding="utf-8"))


def rewards(person: str, draw: int) -> dict[str, np.ndarray]:
    """(questions, 8) rewards of each arm."""
    asked, answers = questions(), sampled()
    model = RewardModel.from_pretrained(trained(person, draw, "pairs"))
    lora = np.array([model.score(one, texts) for one, texts in zip(asked, answers, strict=True)])
    prompts = [(Message("user", one),) for one in asked]
    found = {"pairs": lora}
    for arm in ADDED:
        criteria = np.array(criteria_of(arm, person, draw).rewards(prompts, answers))
        found[arm] = criteria if arm == "words_alone" else lora + criteria
    return found


def run(person: str, draw: int) -> list[dict[str, Any]]:
    """What each arm chooses: gold, right answers, and the first texts."""
    answers, user = sampled(), NoteUser.from_file(QUESTIONS, person)
    judged = [[user.judge(q, text) for text in texts] for q, texts in zip(questions(), answers, strict=True)]
    gold = np.array([[one.gold for one in some] for some in judged])
    right = np.array([[one.parts["answer"] for one in some] for some in judged])
    chosen = {arm: np.nan_to_num(found, nan=-np.inf).argmax(1) for arm, found in rewards(person, draw).items()}
    chosen["best"] = gold.argmax(1)
    every = range(len(gold))
    lines = [
        {"arm": arm, "gold": gold[every, at].tolist(), "right": right[every, at].tolist(),
         "first": [answers[n][at[n]] for n in range(FIRST)]}
        for arm, at in chosen.items()
    ]  # fmt: skip
    lines.append({"arm": "any", "gold": gold.mean(1).round(5).tolist(), "right": right.mean(1).tolist()})
    return [{"part": "validation", "person": person, "draw": draw, **line, "commit": commit()} for line in lines]


def summary() -> dict[str, Any]:
    """Gold and right answers of each arm, and the gains of `words`, by person and for both people."""
    patterns = [json.loads(row)["pattern"] for row in rows(QUESTIONS)]
    runs = kept(RUNS)
    found: dict[str, Any] = {}
    values: list[dict[str, dict[str, np.ndarray]]] = []
    for person in PEOPLE:
        of = {(one["arm"], one["draw"]): one for one in runs if one["person"] == person}
        draws = sorted({draw for _, draw in of})
        if len(draws) > 1:
            arms = sorted({arm for arm, _ in of})
            mine = {m: {arm: np.array([of[arm, draw][m] for draw in draws]) for arm in arms} for m in ("gold", "right")}
            values.append(mine)
            first = {arm: of[arm, draws[0]].get("first") for arm in ("pairs", "words")}
            found[person] = {"draws": draws, "first_answers": first, **tables(mine, patterns)}
    if len(values) == len(PEOPLE):
        both = {m: {arm: _side_by_side([one[m][arm] for one in values]) for arm in values[0][m]} for m in values[0]}
        found["both"] = tables(both, patterns * len(PEOPLE))
    return found


def _side_by_side(matrices: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([one[: min(map(len, matrices))] for one in matrices], axis=1)


def tables(values: Mapping[str, Mapping[str, np.ndarray]], patterns: Sequence[str]) -> dict[str, Any]:
    """The means of each metric and arm, and the gains of `words`; notes of one pattern are not independent."""
    found: dict[str, Any] = {}
    for metric, arms in values.items():
        gains = {arm: over_runs(arms["words"] - one, patterns) for arm, one in arms.items() if arm != "words"}
        found[metric] = {arm: asdict(over_runs(one, patterns)) for arm, one in arms.items()}
        found[f"{metric}_gain_of_words_over"] = {a: asdict(g) | {"verdict": verdict(g)} for a, g in gains.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--people", nargs="+", default=PEOPLE, choices=PEOPLE)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after this time")
    args = parser.parse_args()
    began = time.perf_counter()
    for draw in range(args.draws):
        for person in args.people:
            out_of_time = time.perf_counter() - began > 60 * args.minutes
            if out_of_time or is_kept(kept(RUNS), {"person": person, "draw": draw}):
                continue
            found = run(person, draw)
            keep(RUNS, found)
            print(person, draw, {one["arm"]: round(float(np.mean(one["gold"])), 3) for one in found}, flush=True)
    settings = {"samples": SAMPLES, "max_new_tokens": NEW_TOKENS, "temperature": 1.0}
    save("words_best_of.json", {"machine": machine(), "part": "validation", **settings, **summary()})


if __name__ == "__main__":
    main()
