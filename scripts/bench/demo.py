"""Writes results/demo.json from a finished run of configs/demo.yaml: the time of each stage, and the results.

rrm-lm run --config configs/demo.yaml
python scripts/bench/demo.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import commit, machine, save


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def results(folder: Path) -> dict[str, object]:
    stages = {name: read(folder / "stages" / f"{name}.json") for name in ("reward", "sft", "policy", "compare")}
    minutes = {name: round(stage["seconds"] / 60, 1) for name, stage in stages.items()}
    (heldout,) = read(folder / "reward" / "results.json")["sets"].values()
    return {
        "command": "rrm-lm run --config configs/demo.yaml",
        "commit": commit(),
        "machine": machine(),
        "minutes": minutes | {"all": round(sum(minutes.values()), 1)},
        "reward": {"accuracy": heldout["accuracy"], "by_source": heldout["by_source"]},
        "compare": read(folder / "compare" / "results.json"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/demo"))
    print(save("demo.json", results(parser.parse_args().folder)))
