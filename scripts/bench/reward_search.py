"""What the reward model of data/notes should learn first, and how long: chains of trainings, judged on validation.

    python scripts/bench/reward_search.py                       (all chains below; 10 to 30 minutes each on two cores)
    python scripts/bench/reward_search.py "values, then all"    (only this one)

Each step of a chain continues the reward model of the step before, by `rrm-lm reward`; chains with the same first steps
share them. The last model is judged as `rrm-lm reward` does it, on the validation part. A chain with a result in
results/reward_search.json is not run again. Results "(450 questions)" are of an earlier file of contrasts, which had
the questions of the training part alone, and of three or more passes over it (commit 7790508); "values, then
contrasts" of a file without the kinds "both" and "aside".
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from common import RESULTS, commit, machine

from rrm_lm.storage import sha256, write_json, write_jsonl

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "notes"
FILE = RESULTS / "reward_search.json"
VALIDATION = DATA / "validation_plain.jsonl.gz"
Step = tuple[str, Mapping[str, Any]]  # what is learned from, and the settings of the training

FIRST = {"num_train_epochs": 0.6, "learning_rate": 3e-4, "per_device_train_batch_size": 8}
TOGETHER = FIRST | {"comparisons_together": 3}
STEADY = {
    "max_steps": 300, "learning_rate": 5e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10,
    "per_device_train_batch_size": 8, "comparisons_together": 3, "sft_weight": 0.3,
}  # fmt: skip
ALL = {"num_train_epochs": 1, "learning_rate": 2e-4, "per_device_train_batch_size": 4, "comparisons_together": 4}
# The kinds of contrasts that a step learns from; "all" is the training part of the set.
KINDS = {
    "values": ("demonstrated",),
    "values and things": ("demonstrated", "elsewhere"),
    "contrasts": ("demonstrated", "elsewhere", "both", "aside", "missing"),
}
VALUES: Step = ("values", FIRST)
CONTRASTS: Step = ("contrasts", TOGETHER)
CHAINS: dict[str, list[Step]] = {
    "all at once": [("all", ALL | {"num_train_epochs": 4})],
    "values": [VALUES],
    "values, then all": [VALUES, ("all", ALL)],
    "values and things": [("values and things", TOGETHER | {"num_train_epochs": 1})],
    "contrasts": [("contrasts", TOGETHER | {"num_train_epochs": 1})],
    "values, then contrasts": [VALUES, CONTRASTS],
    "contrasts at a constant rate": [("contrasts", STEADY)],
    "contrasts at a constant rate, then all": [("contrasts", STEADY), ("all", ALL | {"sft_weight": 0.3})],
}


def learned_from(name: str, out: Path) -> Path:
    """The file of a step."""
    if name == "all":
        return DATA / "train_plain.jsonl.gz"
    file = out / f"{name}.jsonl"
    write_jsonl(file, [row for row in read(DATA / "train_plain_contrasts.jsonl.gz") if row["made"] in KINDS[name]])
    return file


def read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def run(chain: Sequence[Step], out: Path, seed: int) -> dict[str, Any]:
    """Train the steps that no other chain has trained; what the results hold about the last model."""
    model, seconds, name = "smollm2-135m", [], ""
    for data, settings in chain:
        given = {"seed": seed} | dict(settings)
        file = learned_from(data, out)
        name = hashlib.sha256(f"{name} {sha256(file)} {given}".encode()).hexdigest()[:12]
        folder, started = out / name, time.time()
        if not (folder / "results.json").is_file():
            flags = [part for key, value in given.items() for part in (f"--{key}", str(value))]
            rrm_lm(
                "reward", "--model_name_or_path", model, "--dataset_name", file, "--eval_dataset_name", VALIDATION,
                "--output_dir", folder, "--max_length", 384, "--critique_weight", 0, "--save_strategy", "no",
                "--overwrite_output_dir", "true", *flags,
            )  # fmt: skip
            write_json(folder / "seconds.json", {"seconds": round(time.time() - started)})
        seconds.append(json.loads((folder / "seconds.json").read_text())["seconds"])
        model = str(folder)
    return {
        "chain": [[data, dict(settings)] for data, settings in chain], "seed": seed, "seconds": seconds,
        "commit": commit(), "machine": machine(), "data": sha256(VALIDATION), **judged(Path(model)),
    }  # fmt: skip


def judged(model: Path) -> dict[str, Any]:
    """Held-out accuracy of a reward model: of all comparisons, by kind of pair, and by how answer pairs were made."""
    (found,) = json.loads((model / "results.json").read_text(encoding="utf-8"))["sets"].values()
    scores = [json.loads(line) for line in (model / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    made: dict[str, list[float]] = defaultdict(list)
    for row, scored in zip(read(VALIDATION), scores, strict=True):
        if "answer" in row["source"]:
            made[row["made"]].append(scored["correct"])
    return {
        "accuracy": found["accuracy"],
        "by_source": {source: one["accuracy"] for source, one in found["by_source"].items()},
        "answer_pairs_by_made": {
            kind: {"right": sum(right), "of": len(right)} for kind, right in sorted(made.items())
        },
    }  # fmt: skip


def rrm_lm(*parts: object) -> None:
    """Run a command of rrm-lm."""
    subprocess.run([sys.executable, "-m", "rrm_lm", *map(str, parts)], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CHAINS), help="; ".join(CHAINS))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "reward_search")
    args = parser.parse_args()
    out = args.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        key = f"{name}, seed {args.seed}"
        found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        if key not in found:
            found[key] = run(CHAINS[name], out, args.seed)
            write_json(FILE, found)
        one = found[key]
        print(f"{key}: {one['accuracy']['value']:.3f} of all; answer pairs by how they were made:")
        print("  " + ", ".join(f"{k} {v['right']:.0f} of {v['of']}" for k, v in one["answer_pairs_by_made"].items()))


if __name__ == "__main__":
    main()
