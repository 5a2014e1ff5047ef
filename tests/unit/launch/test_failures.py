"""Which of several processes failed first, and what becomes of the others."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed

from rrm_lm.errors import DataError
from rrm_lm.launch import failures, signals
from rrm_lm.launch.failures import OneOfSeveral, SingleProcess

dist: Any = torch.distributed  # whose stores are documented and not declared


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_POLL", 0.02), ("_GRACE", 0.2), ("_CLOSED", 0.5), ("_REPORT", 0.3)):
        monkeypatch.setattr(failures, name, seconds)
    monkeypatch.setattr(signals, "ignore_sigterm", lambda: None)


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


class Run:
    """Processes 0 and 1 of a run in this process, each of which takes the other for its neighbour."""

    def __init__(self) -> None:
        self.store: Any = dist.HashStore()
        self.left: list[int] = []
        self.ranks = [OneOfSeveral(self.store, rank, [1 - rank], self.left.append) for rank in (0, 1)]

    def end(self) -> None:
        for rank in self.ranks:
            rank.end()


def test_one_process_tells_its_error() -> None:
    reported: list[str] = []
    SingleProcess().report(ValueError("x"), lambda: reported.append("x"))
    assert reported == ["x"] and SingleProcess().cause() is None


def test_the_first_failure_is_reported_and_the_others_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    run, reported = Run(), []
    run.ranks[1].report(DataError("no such word"), lambda: reported.append(1))
    run.ranks[0].report(RuntimeError("Connection closed by peer"), lambda: reported.append(0))
    run.end()
    assert reported == [1]
    assert "stopped, because process 1 failed (RuntimeError: Connection closed by peer)" in capsys.readouterr().err


def test_what_both_find_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    run, reported = Run(), []
    for rank in (0, 1):
        run.ranks[rank].report(DataError("row 3 is empty"), lambda rank=rank: reported.append(rank))
    run.end()
    assert reported == [0] and capsys.readouterr().err == ""


def test_the_others_wait_until_the_first_is_reported() -> None:
    run, order = Run(), []

    def slowly() -> None:
        time.sleep(0.1)
        order.append("first")

    first = threading.Thread(target=run.ranks[1].report, args=(DataError("a"), slowly))
    first.start()
    while not run.store.check(["first"]):
        time.sleep(0.001)
    run.ranks[0].report(DataError("b"), lambda: order.append("never"))
    order.append("second")
    first.join()
    run.end()
    assert order == ["first", "second"]


def test_a_process_that_is_killed_is_reported_by_its_neighbour(
    neighbour: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    store: Any = dist.HashStore()
    left: list[int] = []
    store.set("pid/1", str(neighbour.pid))
    here = OneOfSeveral(store, 0, [1], left.append)
    time.sleep(0.1)
    assert here.cause() is None and not left
    neighbour.kill()
    reported: list[int] = []
    here.report(RuntimeError("Connection closed by peer"), lambda: reported.append(0))
    here.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: Process 1 was killed: it is gone (process id ")
    assert "stopped, because process 1 failed" in lines[-1] and not reported and not left


def test_a_process_that_waits_for_one_that_is_gone_is_ended(
    neighbour: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    store: Any = dist.HashStore()
    left: list[int] = []
    store.set("pid/1", str(neighbour.pid))
    here = OneOfSeveral(store, 0, [1], left.append)
    neighbour.kill()
    deadline = time.monotonic() + 5
    while not left and time.monotonic() < deadline:
        time.sleep(0.01)
    here.end()
    assert left == [failures.FAULT]
    assert "stopped while waiting, because process 1 failed" in capsys.readouterr().err


def test_a_process_that_is_done_is_not_missed(neighbour: subprocess.Popen[bytes]) -> None:
    store: Any = dist.HashStore()
    left: list[int] = []
    store.set("pid/1", str(neighbour.pid))
    store.set("done/1", "")
    here = OneOfSeveral(store, 0, [1], left.append)
    neighbour.kill()
    neighbour.wait()
    time.sleep(0.4)
    assert here.cause() is None and not left
    here.end()


class Gone:
    """A store whose launcher has died."""

    def __init__(self) -> None:
        self.alive = True

    def __getattr__(self, name: str) -> Any:
        def answer(*args: Any) -> Any:
            if not self.alive:
                raise RuntimeError("Connection reset by peer")

        return answer


def test_without_a_launcher_a_process_ends(capsys: pytest.CaptureFixture[str]) -> None:
    store, left, reported = Gone(), [], []
    here = OneOfSeveral(store, 0, [1], left.append)
    store.alive = False
    deadline = time.monotonic() + 5
    while not left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == [failures.FAULT] and "because the launcher is gone" in capsys.readouterr().err
    here.report(DataError("a"), lambda: reported.append(0))
    here.end()
    assert reported == [0]


def test_outside_a_launch_there_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    with failures.shared() as here:
        assert type(here) is SingleProcess
    assert failures.process_prefix() == ""


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:34567"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:1945: Connection reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("closed by peer"), False),
    ],
)
def test_connections_that_broke_are_known_by_their_words(error: Exception, broken: bool) -> None:
    assert failures.is_broken_connection(error) is broken
