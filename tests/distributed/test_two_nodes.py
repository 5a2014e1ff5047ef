"""Two launchers in two network namespaces, which only share files: as two machines do. One of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rrm_lm.launch import failures
from tests.smoke.commands import read
from tests.smoke.launches import ROOT, environment
from tests.smoke.policies import write_prompts
from tests.tiny import save_tiny_model, tiny_chat

pytestmark = pytest.mark.slow

# Seconds. The kernel closes a dead process's connections, which fails the collective operation here; the process looks
# for a cause, and is ended by its watch if it still waits. The rest is for the launcher to stop, on busy cores.
NOTICED = failures._CLOSED + failures._POLL + failures._GRACE + 30


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces that are connected with each other alone; skips without the rights to make them."""
    names = [f"rrm{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "first", "netns", names[0], "type", "veth", "peer", "name", "second", "netns", names[1])
        for name, device, address in zip(names, ("first", "second"), ("10.99.0.1/24", "10.99.0.2/24"), strict=True):
            ip("-n", name, "addr", "add", address, "dev", device)
            for one in (device, "lo"):
                ip("-n", name, "link", "set", one, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def start(nodes: list[str], rank: int, log: Path, *words: object) -> subprocess.Popen[bytes]:
    launch = ["--accelerate_config", "two_nodes", "--num_machines", 2, "--num_processes", 2, "--machine_rank", rank]
    launch += ["--main_process_ip", "10.99.0.1"]
    command = ["ip", "netns", "exec", nodes[rank], sys.executable, "-m", "rrm_lm", *words, *launch]
    device = ("first", "second")[rank]
    with log.open("w") as file:
        return subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdout=file, stderr=file,
            env={**environment(), "GLOO_SOCKET_IFNAME": device},
        )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its workers, as a power cut does."""
    if process.poll() is None:
        top = psutil.Process(process.pid)
        for one in (top, *top.children(recursive=True)):
            one.kill()
        process.wait()


@pytest.mark.timeout(400)
def test_two_nodes_train_and_one_goes_on_when_the_other_dies(nodes: list[str], tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "base", tokenizer=tiny_chat().tokenizer)
    prompts, out = write_prompts(tmp_path / "data"), tmp_path / "out"
    words: list[Any] = ["policy", "--model_name_or_path", model, "--prompts", prompts, "--allow_code"]
    words += ["--reward_function", f"{prompts.parent / 'rewards.py'}:gold", "--response_length", 4, "--save_steps", 2]
    words += ["--save_strategy", "steps", "--report_to", "none", "--eval_fraction", 0, "--output_dir", out]
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    share = ("--per_device_train_batch_size", 2)
    both = [start(nodes, rank, logs[rank], *words, *share, "--max_steps", 5000) for rank in (0, 1)]
    try:
        end = time.monotonic() + 150
        while not (out / "checkpoint-4").is_dir() and time.monotonic() < end:
            assert all(one.poll() is None for one in both), logs[0].read_text() + logs[1].read_text()
            time.sleep(0.1)
        assert "FSDP2 over 2 processes: each holds at most 5" in logs[0].read_text()
        kill(both[1])
        died = time.monotonic()
        code = both[0].wait(90)
        seconds = time.monotonic() - died
    finally:
        for one in both:
            kill(one)
    text = logs[0].read_text()
    assert code == failures.FAULT, text
    assert seconds < NOTICED, text
    assert "closed" in text or "reset by peer" in text, text
    assert "the connection to a process on another machine broke" in text, text
    # On with the machine that is left: the same episodes of an update on one process.
    last = max(int(one.name.partition("-")[2]) for one in out.glob("checkpoint-*"))
    alone = ["--per_device_train_batch_size", 4, "--allow_world_size_change", "true", "--allow_config_change", "true"]
    alone += ["--resume_from_checkpoint", "true", "--max_steps", last + 1]
    done = subprocess.run(
        [sys.executable, "-m", "rrm_lm", *map(str, [*words, *alone])], env=environment(), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"update {last + 1} of {last + 1}" in done.stderr and read(out / "run.json")["outcome"] == "finished"
