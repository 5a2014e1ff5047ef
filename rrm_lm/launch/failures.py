"""In a run on several processes, the first failure is reported first and ends all of them.

A failure in another process is usually a consequence, such as a closed connection, and hides the cause. So a failing
process writes its error to the launcher's store before it prints anything. Each process also checks that the others on
its machine are alive, because a killed process reports nothing. A process that a failure leaves waiting, in a
collective operation that no other will join, exits after a while.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

from rrm_lm.errors import RRMError
from rrm_lm.launch import signals

FAULT = 1  # exit code of a bug
# Seconds:
_POLL = 1.0  # between two checks
_GRACE = 10.0  # for a process to exit on its own after the run has failed
_CLOSED = 3.0  # between a closed connection and the detection of a dead process
_REPORT = 5.0  # to wait for the first failure to be printed
_SHOWN = 200  # characters printed of an error that is a consequence of another
_BROKEN = ("closed by peer", "reset by peer", "ncclremoteerror", "remote process exited")


class Failure(NamedTuple):
    """What ended a run: the process, and what happened to it."""

    rank: int
    text: str


class SingleProcess:
    """The only process of a command: no other can fail."""

    def end(self) -> None:
        """Announce that this process has finished its work, and stop watching the others."""

    def report(self, error: BaseException, print_error: Callable[[], object]) -> None:
        """Print an error of this process. If another process failed first, only print that this one stopped."""
        print_error()

    def cause(self, seconds: float = 0.0) -> Failure | None:
        """The failure of another process that preceded one in this process; waits up to `seconds` for it."""
        return None


class OneOfSeveral(SingleProcess):
    """One of several processes that share a `torch.distributed.Store`. `neighbours` are the ranks of the others on this
    machine; `leave` exits at once, a parameter for tests.
    """

    def __init__(self, store: Any, rank: int, neighbours: list[int], leave: Callable[[int], object] = os._exit) -> None:
        self._store, self._rank, self._neighbours, self._leave = store, rank, neighbours, leave
        self._pids: dict[int, int] = {}
        self._over = threading.Event()
        store.set(f"pid/{rank}", str(os.getpid()))
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        with suppress(RuntimeError):  # the store closes with the launcher
            self._store.set(f"done/{self._rank}", "")

    def report(self, error: BaseException, print_error: Callable[[], object]) -> None:
        signals.ignore_sigterm()  # the launcher sends it as soon as any process has exited
        text = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            # If a connection broke, the cause may be a dead process, which is detected only a moment later.
            first = self.cause(_CLOSED if isinstance(error, RuntimeError) else 0.0)
            first = first or self._claim(Failure(self._rank, text))
            if first.rank == self._rank:
                print_error()
                self._store.set("reported", "")
            elif first.text != text:  # each process reads the same input and finds the same errors in it
                deadline = time.monotonic() + _REPORT
                while not self._store.check(["reported"]) and time.monotonic() < deadline:
                    time.sleep(0.05)
                print_line(f"stopped, because process {first.rank} failed ({text[:_SHOWN]})")
        except RuntimeError:  # the store is gone, and the launcher with it
            print_error()

    def cause(self, seconds: float = 0.0) -> Failure | None:
        deadline = time.monotonic() + seconds
        with suppress(RuntimeError):  # the store is gone, and the launcher with it
            while not (found := self._first_failure()) and time.monotonic() < deadline:
                time.sleep(0.1)
            return found
        return None

    def _first_failure(self) -> Failure | None:
        """The first failure of the run, if any. Reports a neighbour that has died."""
        if self._store.check(["first"]):
            return Failure(*json.loads(self._store.get("first"))[:2])
        for rank in self._neighbours:
            if rank not in self._pids and self._store.check([f"pid/{rank}"]):
                self._pids[rank] = int(self._store.get(f"pid/{rank}"))
            if rank in self._pids and _is_gone(self._pids[rank]):
                if self._store.check([f"done/{rank}"]):
                    self._neighbours = [other for other in self._neighbours if other != rank]
                    continue
                return self._claim(
                    Failure(rank, f"it is gone (process id {self._pids[rank]} on {socket.gethostname()})")
                )
        return None

    def _claim(self, failure: Failure) -> Failure:
        """Record a failure unless there was an earlier one; returns the first. Prints that of another process."""
        mine = [*failure, self._rank]
        first = json.loads(self._store.compare_set("first", "", json.dumps(mine)))
        if failure.rank != self._rank and first == mine:
            print_line(
                f"error: Process {failure.rank} was killed: {failure.text}\n"
                "  what to do: find out why (usually it ran out of memory), and resume from the last checkpoint with "
                "--resume_from_checkpoint true"
            )
            self._store.set("reported", "")
        return Failure(*first[:2])

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            try:
                first = self._first_failure()
            except RuntimeError:
                first = Failure(-1, "the launcher is gone")
            if first is None:
                continue
            if not self._over.wait(_GRACE):
                who = "" if first.rank < 0 else f"process {first.rank} failed: "
                print_line(f"stopped while waiting, because {who}{first.text[:_SHOWN]}")
                self._leave(FAULT)
            return


@contextmanager
def shared() -> Iterator[SingleProcess]:
    """Watch the other processes of this command during the block."""
    here, (store, rank, _) = SingleProcess(), launchers_store("rrm_lm")
    if store is not None:
        first = rank - int(os.environ["LOCAL_RANK"])
        machine = range(first, first + int(os.environ["LOCAL_WORLD_SIZE"]))
        here = OneOfSeveral(store, rank, [other for other in machine if other != rank])
    try:
        yield here
    finally:
        here.end()


def launchers_store(prefix: str) -> tuple[Any, int, int]:
    """The store that `accelerate launch` or `torchrun` keeps for its processes, this process's rank, and their number;
    no store for a single process, or with another launcher.
    """
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) < 2 or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None, 0, 1
    import torch.distributed

    dist: Any = torch.distributed  # the stores have no type declarations
    address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    attempt = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"{prefix}/{attempt}", store), int(env["RANK"]), int(env["WORLD_SIZE"])


def is_broken_connection(error: Exception) -> bool:
    """Whether gloo or NCCL raised this error because another process of a collective operation is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _BROKEN)


def process_prefix() -> str:
    """`[process 3] ` in a distributed run, where several processes may print the same line."""
    return f"[process {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _is_gone(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def print_line(text: str) -> None:
    print(f"{process_prefix()}{text}", file=sys.stderr, flush=True)


def print_error(error: RRMError) -> None:
    """Print an error to stderr, one line per part, in color on a terminal."""
    from rich.console import Console
    from rich.text import Text

    parts = [("where", error.where), ("expected", error.expected), ("what to do", error.remedy)]
    text = Text.assemble((f"{process_prefix()}error: ", "bold red"), (error.what, "bold"))
    for label, part in parts:
        if part:
            text.append(f"\n  {label}: ", "dim").append(part)
    # Not wrapped: a path or setting that is split across lines cannot be searched or copied.
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
