"""Do words help on top of a LoRA reward when there are few comparisons? `rrm-lm reward`, three ways, on the same draws.

    python scripts/bench/words_lora.py --draws 6 --minutes 60     (repeat until it is finished)
    python scripts/bench/words_lora.py --draws 0                  (only the summary)

Each draw of 16 comparisons of one simulated person of data/notes trains three reward models:

- `pairs`: the comparisons alone (`critique_weight 0`);
- `loss`: also learning to write the critiques, the default (`critique_weight 0.5`);
- `words`: the comparisons, and the criteria that their critiques name (`critique_weight 0`, `criteria critiques`).

Accuracy is on the same 100 comparisons of the validation part for all. Every run is one line of
results/words_lora_runs.jsonl and is not repeated; intervals in results/words_lora.json are over draws and prompts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from common import RESULTS, commit, machine, save

from rrm_lm.evaluation.statistics.metrics import over_runs, verdict

NOTES = Path(__file__).parents[2] / "data" / "notes"
RUNS = RESULTS / "words_lora_runs.jsonl"
PEOPLE = ("plain", "thorough")
BUDGET, HELD_OUT = 16, 100
# Fixed before the first run: 24 updates, which is what few comparisons need to be learned at all.
TRAINING = {
    "model_name_or_path": "smollm2-135m", "num_train_epochs": 6, "per_device_train_batch_size": 4,
    "learning_rate": 5e-4, "max_length": 384, "save_strategy": "no",
}  # fmt: skip
ARMS: Mapping[str, Mapping[str, Any]] = {
    "pairs": {"critique_weight": 0},
    "loss": {"critique_weight": 0.5},
    "words": {"critique_weight": 0, "criteria": "critiques"},
}


def rows(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()


def drawn(person: str, draw: int) -> list[str]:
    """The comparisons of a draw, all with critiques."""
    some = [row for row in rows(NOTES / f"train_{person}.jsonl.gz") if json.loads(row).get("rejected_critiques")]
    return random.Random(f"{person}/{draw}").sample(some, BUDGET)


def held_out(person: str) -> list[str]:
    return random.Random("held out").sample(rows(NOTES / f"validation_{person}.jsonl.gz"), HELD_OUT)


def run(person: str, draw: int, arm: str) -> dict[str, Any]:
    """Train one reward model; which of the held-out comparisons it gets right."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train, test, out = (Path(folder) / name for name in ("train.jsonl", "test.jsonl", "out"))
        train.write_text("\n".join(drawn(person, draw)), encoding="utf-8")
        test.write_text("\n".join(held_out(person)), encoding="utf-8")
        settings = {**TRAINING, **ARMS[arm], "seed": draw, "output_dir": out}
        files = ["--dataset_name", str(train), "--eval_dataset_name", str(test)]
        words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "rrm_lm", "reward", *files, *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        scores = [json.loads(line) for line in (out / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "person": person, "draw": draw, "arm": arm, "correct": [one["correct"] for one in scores],
        "prompts": [one["prompt_id"] for one in scores], "seconds": round(time.perf_counter() - began, 1),
        "commit": commit(),
    }  # fmt: skip


def kept() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()] if RUNS.is_file() else []


def missing(draws: int) -> Iterator[tuple[str, int, str]]:
    done = {(one["person"], one["draw"], one["arm"]) for one in kept()}
    for draw in range(draws):
        for person in PEOPLE:
            yield from ((person, draw, arm) for arm in ARMS if (person, draw, arm) not in done)


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy of each arm and gain over `pairs`, by person and for both, over the draws that all arms have."""
    found: dict[str, Any] = {}
    matrices: dict[str, dict[str, np.ndarray]] = {}
    prompts: dict[str, list[str]] = {}
    for person in PEOPLE:
        of = {(one["draw"], one["arm"]): one for one in runs if one["person"] == person}
        draws = sorted({draw for draw, _ in of if all((draw, arm) in of for arm in ARMS)})
        if len(draws) < 2:
            continue
        matrices[person] = {arm: np.array([of[draw, arm]["correct"] for draw in draws]) for arm in ARMS}
        prompts[person] = of[draws[0], "pairs"]["prompts"]
        found[person] = {"draws": draws, **table(matrices[person], prompts[person])}
    if len(matrices) == len(PEOPLE):
        fewest = min(len(one["pairs"]) for one in matrices.values())
        both = {arm: np.concatenate([matrices[p][arm][:fewest] for p in PEOPLE], axis=1) for arm in ARMS}
        found["both"] = {"draws": fewest, **table(both, [one for person in PEOPLE for one in prompts[person]])}
    return found


def table(of: Mapping[str, np.ndarray], prompts: Sequence[str]) -> dict[str, Any]:
    gains = {arm: over_runs(of[arm] - of["pairs"], prompts) for arm in ARMS if arm != "pairs"}
    return {
        "accuracy": {arm: asdict(over_runs(values, prompts)) for arm, values in of.items()},
        "gain_over_pairs": {arm: asdict(gain) | {"verdict": verdict(gain)} for arm, gain in gains.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after this time")
    args = parser.parse_args()
    began = time.perf_counter()
    for person, draw, arm in missing(args.draws):
        if time.perf_counter() - began > 60 * args.minutes:
            break
        found = run(person, draw, arm)
        with RUNS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found) + "\n")
        print(person, draw, arm, f"{100 * np.mean(found['correct']):.1f}%", f"{found['seconds']:.0f} s", flush=True)
    runs = kept()
    settings = {"budget": BUDGET, "held_out": HELD_OUT, "training": TRAINING, "arms": ARMS}
    save("words_lora.json", {"machine": machine(), **settings, **summary(runs)})


if __name__ == "__main__":
    main()
