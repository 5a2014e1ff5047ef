"""Shared code of the benchmarks: the machine and its ceilings, peak memory, and pairs to measure on."""

from __future__ import annotations

import os
import platform
import random
import resource
import subprocess
import time
from pathlib import Path

import torch

from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison, Message, Origin
from rrm_lm.storage import write_json

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"  # human feedback next to the checkout, if available


def machine() -> dict[str, object]:
    """A description of this machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def commit() -> str:
    """The current commit, with `-changed` appended if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-changed" if changed else "")


def matrix_ceiling(rows: int = 1024, inner: int = 576, outer: int = 1536, repeats: int = 60) -> float:
    """Operations per second of an fp32 matrix product with the shape of the model's: the best of three."""
    left, right = torch.randn(rows, inner), torch.randn(inner, outer)
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right)
        best = max(best, 2 * rows * inner * outer * repeats / (time.perf_counter() - started))
    return best


def read_ceiling(megabytes: int = 512, repeats: int = 4) -> float:
    """Bytes per second when reading memory that is not cached: the best of several repeats."""
    numbers = torch.ones(megabytes * 2**20 // 4)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        numbers.sum()
        best = max(best, 4 * numbers.numel() / (time.perf_counter() - started))
    return best


def peak_rss_mb() -> float:
    """Peak resident memory of this process in megabytes.

    Linux reports it in /proc; `getrusage` in a child process would report the peak of the parent it was forked from.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hh_pairs(count: int, seed: int = 0) -> tuple[list[Comparison], str]:
    """Pairs of HH if they are next to the checkout, otherwise generated ones of similar lengths; and which they are."""
    path = SHARED / "hh" / "train.jsonl.gz"
    if path.is_file():
        records = list(load_feedback(str(path)).comparisons)
        return random.Random(seed).sample(records, count), "hh"
    return [_generated_pair(number) for number in range(count)], "generated"


def _generated_pair(number: int) -> Comparison:
    rng = random.Random(number)

    def text(median: int) -> str:
        length = max(4, int(median * rng.lognormvariate(0, 0.6)))
        return " ".join(rng.choice(_WORDS) for _ in range(length))

    turns = [Message("user", text(25))]
    for _ in range(rng.choice((0, 1, 1, 2))):
        turns += [Message("assistant", text(40)), Message("user", text(20))]
    return Comparison(prompt=tuple(turns), chosen=text(45), rejected=text(45), origin=Origin("generated", number + 1))


_WORDS = [
    "the",
    "a",
    "one",
    "my",
    "your",
    "time",
    "water",
    "house",
    "garden",
    "letter",
    "friend",
    "morning",
    "answer",
    "question",
    "small",
    "large",
    "old",
    "new",
    "quickly",
    "slowly",
    "find",
    "keep",
    "make",
    "write",
    "read",
    "open",
    "close",
    "because",
    "when",
    "where",
    "while",
    "never",
    "always",
    "people",
    "children",
    "city",
    "road",
]


def save(name: str, result: dict[str, object]) -> Path:
    """Write a result to the results folder."""
    path = RESULTS / name
    write_json(path, result)
    return path
