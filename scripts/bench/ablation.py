"""What each fast path is worth: every workload with the path on and off, interleaved in one process.

    python scripts/bench/ablation.py            writes scripts/bench/results/ablation.json

A ratio is time without the path over time with it, so 1.25 means that the path makes the workload 25% faster. Times are
CPU seconds of one thread, which other programs on the machine disturb less than wall-clock time. Memory is the peak of
all tensors that a run allocates, weights excluded, counted tensor by tensor; its ratio is peak without over peak with.
`off_in_bf16` marks the paths that switch themselves off for a bfloat16 model, `deleted` those that were not worth their
code: under 5% of the time, and off in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from ablation_workloads import NEW_TOKENS, Switch, Workload, policy_workloads, reward_workloads
from common import RESULTS, commit, machine, save
from policy_sides import MODEL

from rrm_lm.planning.peak_memory import AllocationPeak

CLOSE = 1.15
# Measured, worth under 5% of the time and off in bfloat16: these were deleted. The file keeps their numbers.
DELETED = ("fused_lora", "fused_norm", "fused_mlp")
OFF_IN_BF16 = (*DELETED, "packed_weights", "merged_adapter")


def cpu_seconds(run: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds of a run, and how many units it did."""
    started = time.process_time()
    count = run()
    return time.process_time() - started, count


def peak_mb(work: Workload) -> float:
    """Peak of what a run allocates."""
    held = [p for m in work.models for p in (*m.parameters(), *m.buffers())]
    with AllocationPeak(held) as peak:
        work.run()
    return peak.most / 2**20


def paired_ratio(work: Workload, off: Switch, on_first: bool) -> tuple[float, float]:
    """CPU time without the path over CPU time with it, one run each; and units per CPU second with it."""
    seconds: dict[bool, float] = {}
    count = 0.0
    for on in (on_first, not on_first):
        with nullcontext() if on else off():
            seconds[on], count = cpu_seconds(work.run)
    return seconds[False] / seconds[True], count / seconds[True]


def measure(work: Workload, rounds: int, close_rounds: int, kept: dict[str, Any]) -> None:
    """Each fast path of a workload, on and off in turn; paths worth less than `CLOSE` get `close_rounds` rounds."""
    work.run()  # what is found out about a model once is not counted
    peak = peak_mb(work)
    for name, off in work.off.items():
        with off():
            peak_without = peak_mb(work)
        found: list[tuple[float, float]] = []
        while len(found) < rounds or (len(found) < close_rounds and median(r for r, _ in found) < CLOSE):
            found.append(paired_ratio(work, off, len(found) % 2 == 0))
        ratios, speeds = zip(*found, strict=True)
        kept[name] = {
            "n": len(found),
            "time_ratio": {f.__name__: round(f(ratios), 3) for f in (min, median, max)},
            f"{work.unit}_per_cpu_second": round(median(speeds), 2),
            "peak_mb": round(peak, 1),
            "peak_mb_without": round(peak_without, 1),
            "memory_ratio": round(peak_without / peak, 3),
            "off_in_bf16": name in OFF_IN_BF16,
            "deleted": name in DELETED,
        }
        print(name, json.dumps(kept[name]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--close_rounds", type=int, default=7, help="rounds of a path that makes little difference")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="some of the workloads; the others are kept as the file has them")
    parser.add_argument("--shared_machine", action="store_true", help="note that other programs ran meanwhile")
    parser.add_argument("--output", default="ablation.json", help="file in scripts/bench/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = RESULTS / args.output
    before: dict[str, Any] = json.loads(path.read_text())["workloads"] if path.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        found, source = reward_workloads(args.pairs, folder)
        found |= policy_workloads(folder, args.prompts)
        result: dict[str, Any] = {
            "machine": machine(), "shared_machine": args.shared_machine, "commit": commit(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
            "setting": {"model": MODEL, "dtype": "float32", "threads": 1, "pairs": args.pairs,
                        "pair_data": source, "prompts": args.prompts, "new_tokens": NEW_TOKENS},
            "workloads": before,
        }  # fmt: skip
        for name, work in found.items():
            if args.only and name not in args.only:
                continue
            print(f"-- {name}", flush=True)
            old = before.get(name, {})
            result["workloads"][name] = {path: old[path] for path in DELETED if path in old}
            measure(work, args.rounds, args.close_rounds, result["workloads"][name])
            save(args.output, result)
    print(path)


if __name__ == "__main__":
    main()
