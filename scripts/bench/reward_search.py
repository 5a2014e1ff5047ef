"""Settings of the reward model for data/notes, searched on the validation part.

    python scripts/bench/reward_search.py            (all settings below; about ten minutes each on two CPU cores)
    python scripts/bench/reward_search.py base slow  (only these)

Each setting is trained by `rrm-lm reward` and evaluated by `rrm-lm evaluate`. A setting with a result in
results/reward_search.json is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from common import RESULTS, commit, machine

from rrm_lm.storage import write_json

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "notes"
BASE: dict[str, Any] = {
    "num_train_epochs": 2, "learning_rate": 3e-4, "per_device_train_batch_size": 8, "lora_r": 16, "critique_weight": 0,
}  # fmt: skip
# What differs from BASE.
SETTINGS: dict[str, dict[str, Any]] = {
    "base": {},
    "slow": {"learning_rate": 1e-4},
    "fast": {"learning_rate": 1e-3},
    "one pass": {"num_train_epochs": 1},
    "three passes": {"num_train_epochs": 3},
    "rank 4": {"lora_r": 4},
    "rank 64": {"lora_r": 64, "lora_alpha": 128},
    "batch 4": {"per_device_train_batch_size": 4},
    "batch 16": {"per_device_train_batch_size": 16},
    "critiques": {"critique_weight": 0.5},
    "half of the data": {"max_comparisons": 0.5},
    "quarter of the data": {"max_comparisons": 0.25},
}


def run(name: str, out: Path, seed: int) -> dict[str, Any]:
    """Train and evaluate one setting; what results/reward_search.json holds about it."""
    settings = BASE | SETTINGS[name]
    if "max_comparisons" in settings:
        settings["max_comparisons"] = round(settings["max_comparisons"] * comparisons())
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    model, started = out / f"{name} {seed}".replace(" ", "_"), time.time()
    rrm_lm(
        "reward", "--dataset_name", DATA / "train_plain.jsonl.gz",
        "--eval_dataset_name", DATA / "validation_plain.jsonl.gz",
        "--output_dir", model, "--max_length", 384, "--seed", seed, "--save_strategy", "no", *flags,
    )  # fmt: skip
    seconds = time.time() - started
    found = model / "validation"
    rrm_lm("evaluate", "--model", model, "--dataset", DATA / "validation_plain.jsonl.gz", "--output_dir", found)
    (scored,) = json.loads((found / "results.json").read_text(encoding="utf-8"))["sets"].values()
    by_source = {source: one["accuracy"] for source, one in scored["by_source"].items()}
    return {
        "settings": settings, "seed": seed, "seconds": round(seconds), "commit": commit(), "machine": machine(),
        "accuracy": scored["accuracy"], "by_source": by_source,
    }  # fmt: skip


def rrm_lm(*parts: object) -> None:
    """Run a command of rrm-lm."""
    subprocess.run([sys.executable, "-m", "rrm_lm", *map(str, parts)], check=True, cwd=ROOT)


def comparisons() -> int:
    """The number of training comparisons."""
    statistics = json.loads((DATA / "statistics.json").read_text(encoding="utf-8"))
    return int(statistics["train"]["plain"]["comparisons"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SETTINGS), help=", ".join(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "reward_search")
    args = parser.parse_args()
    file = RESULTS / "reward_search.json"
    for name in args.names:
        key = f"{name}, seed {args.seed}"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if key not in found:
            found[key] = run(name, args.output.resolve(), args.seed)
            write_json(file, found)
        print(key, found[key]["accuracy"]["value"], {s: a["value"] for s, a in found[key]["by_source"].items()})


if __name__ == "__main__":
    main()
