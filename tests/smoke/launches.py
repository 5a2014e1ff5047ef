"""Launches commands on two separate processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "rrm_lm")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")


def environment() -> dict[str, str]:
    """The environment without ACCELERATE_USE_CPU, and with one thread, so that sums are the same to the last bit."""
    there = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    there.pop("ACCELERATE_USE_CPU", None)
    return there


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_script(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script of `scripts/` on two processes, as a launcher would, without setting ACCELERATE_USE_CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "scripts" / script), *map(str, words)],
        capture_output=True, text=True, check=False, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def launch_sharded(*words: object, config: str = "fsdp2") -> str:
    """Run a command on two processes that shard a model; returns stderr. Fails if one process holds the full model."""
    done = subprocess.run(
        [*PROGRAM, *map(str, words), "--accelerate_config", config, "--num_processes", "2"],
        capture_output=True, text=True, check=False, env=environment(), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shares = re.findall(r"FSDP2 over 2 processes: each holds at most (\d+)%", done.stderr)
    assert shares and all(int(share) <= 55 for share in shares), done.stderr
    return done.stderr


class Launched:
    """A running launch.

    Args:
        words: The command.
        log: File for its output.
    """

    def __init__(self, words: Sequence[object], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                list(map(str, words)), stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment()
            )

    @property
    def text(self) -> str:
        """Its output so far."""
        return self.log.read_text()

    def wait_for(self, what: Callable[[], object], seconds: float = 120.0) -> None:
        """Wait until a condition is true; fails if the launch ends first."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.05)

    def workers(self) -> dict[int, psutil.Process]:
        """Its worker processes by rank."""
        there = [child for child in psutil.Process(self.process.pid).children() if "RANK" in child.environ()]
        return {int(child.environ()["RANK"]): child for child in there}

    def end(self, seconds: float) -> tuple[int, float]:
        """Wait at most so many seconds until it exits; returns the exit code and the seconds."""
        began = time.monotonic()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text) from None
        return code, time.monotonic() - began

    def close(self) -> None:
        """Kill it if it is still running after a failed test."""
        if self.process.poll() is None:
            for worker in self.workers().values():
                worker.kill()
            self.process.kill()
            self.process.wait()
