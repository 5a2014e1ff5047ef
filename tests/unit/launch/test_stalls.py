"""A run whose steps do not end says where each process is, and names the one that the others wait for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from rrm_lm.launch import stalls
from rrm_lm.launch.stalls import StallReport, describe, place
from tests.distributed.processes import ROOT


def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_single_process_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    report = StallReport(0.2)
    report.start()
    until(lambda: report.stalls >= 3)  # again, after twice the time each; two are printed before the third is counted
    report.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("no step has ended for 0 s; this process is at unit/launch/test_stalls.py:")
    assert "in until" in lines[0] and len(lines) >= 2


def test_steps_are_no_stall(capsys: pytest.CaptureFixture[str]) -> None:
    report: Any = StallReport(0.4)
    report.start()
    for _ in range(8):
        time.sleep(0.1)
        report.on_step_end(None, None, None)
    assert report.stalls == 0 and 0.1 <= report.longest < 0.4
    report.longest = 30.0  # a run of slow steps: ten of them must pass
    time.sleep(0.6)
    report.end()
    assert report.stalls == 0 and capsys.readouterr().err == ""


def test_processes_compare_their_places(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(stalls, "_COLLECT", 1.0)
    distributed: Any = torch.distributed
    store = distributed.HashStore()
    over = threading.Event()

    def waits_for_the_others() -> None:
        over.wait()

    def reads_a_dead_file_system() -> None:
        over.wait()

    reports = [StallReport(0.2, store, rank, 4) for rank in range(3)]  # the fourth does not answer
    for rank, report in enumerate(reports):
        work = reads_a_dead_file_system if rank == 1 else waits_for_the_others
        thread = threading.Thread(target=work)
        thread.start()
        report.main = thread.ident
        report.start()
    err = ""
    end = time.monotonic() + 10
    while "\n" not in err and time.monotonic() < end:
        time.sleep(0.05)
        err += capsys.readouterr().err
    for report in reports:
        report.end()
    over.set()
    line = err.splitlines()[0]
    silent, suspect, others = line.split("; ")[1:]
    assert silent.startswith("process 3 is not answering")
    assert suspect.startswith("process 1 is at ") and "in reads_a_dead_file_system (in wait of " in suspect
    assert others.startswith("processes 0, 2 are at ") and "in waits_for_the_others" in others


def test_many_processes_are_not_all_listed() -> None:
    places = {rank: "a" for rank in range(64)} | {17: "b"}
    assert describe(places, 64) == "process 17 is at b; processes 0, 1, 2, 3, 4, 5, 6, 7 ... are at a"


def test_a_place_names_the_innermost_line_outside_of_libraries() -> None:
    found: list[str] = []
    sorted([1], key=lambda _: found.append(place(sys._getframe())) or 0)
    assert found[0].startswith("unit/launch/test_stalls.py:") and "in <lambda>" in found[0]


SCRIPT = """
import sys, time
from transformers import TrainerCallback
from rrm_lm.launch.stalls import stalls_are_reported
import torch.distributed as dist

dist.init_process_group("gloo")

class Trainer:
    def add_callback(self, callback): pass
    remove_callback = add_callback

def hangs():
    time.sleep(8)

with stalls_are_reported(Trainer(), 1.0):
    if dist.get_rank() == 1:
        hangs()
    dist.barrier()
"""


def test_two_processes_name_the_one_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "hangs.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if "no step has ended" in line][:1]
    assert "process 1 is at " in line and "hangs.py:" in line and "in hangs" in line
    assert "process 0 is at " in line and "(in barrier of distributed/distributed_c10d.py)" in line
