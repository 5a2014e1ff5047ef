"""Where several processes run a command: the first failure of one is reported first, and ends all of them.

What fails in the others is mostly a consequence, such as a connection that was closed, and hides the cause. So a
process that fails says so in the store that the launcher keeps for its processes, before it prints anything. Each also
looks whether the others on its machine are still there: one that is killed has no last words. A process that such a
failure leaves waiting, in a collective operation that nobody else will join, is ended after a while.
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

FAULT = 1
_POLL = 1.0  # seconds between two looks
_GRACE = 10.0  # seconds in which a process whose run has failed may end by itself
_CLOSED = 3.0  # seconds from the end of a process's connections until it is seen to be gone
_BROKEN = ("closed by peer", "reset by peer", "ncclremoteerror", "remote process exited")
_SHOWN = 200  # characters of an error that is a consequence of another
_TOLD = 5.0  # seconds to wait for the first failure to be printed


class Failure(NamedTuple):
    """What ended a run: the process, and what happened to it."""

    rank: int
    text: str


class SingleProcess:
    """The only process of a command: nobody else can fail, or has to be reported."""

    def report(self, error: BaseException, print_error: Callable[[], object]) -> None:
        """Print an error of this process, or only its consequence for it if another process failed first."""
        print_error()

    def cause(self, seconds: float = 0.0) -> Failure | None:
        """The failure of another process that came before one in this process, waiting so long for one to show."""
        return None


class OneOfSeveral(SingleProcess):
    """One process of several that share a store.

    Args:
        store: A `torch.distributed.Store`.
        rank: The number of this process.
        neighbours: The numbers of the others on this machine.
        leave: Ends this process at once; for tests.
    """

    def __init__(self, store: Any, rank: int, neighbours: list[int], leave: Callable[[int], object] = os._exit) -> None:
        self._store, self._rank, self._neighbours, self._leave = store, rank, neighbours, leave
        self._pids: dict[int, int] = {}
        self._over = threading.Event()
        store.set(f"pid/{rank}", str(os.getpid()))
        self._thread = threading.Thread(target=self._watch, name="failures", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Say that this process ends because it has nothing left to do, and stop looking after the others."""
        self._over.set()
        with suppress(RuntimeError):  # there may be nobody to tell: the launcher is gone
            self._store.set(f"done/{self._rank}", "")

    def report(self, error: BaseException, print_error: Callable[[], object]) -> None:
        signals.ignore_sigterm()  # which the launcher sends as soon as any process has ended
        text = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            # Where a connection broke, the cause may be a process that is gone, which is seen a moment later only.
            first = self.cause(_CLOSED if isinstance(error, RuntimeError) else 0.0)
            first = first or self._claim(Failure(self._rank, text))
            if first.rank == self._rank:
                print_error()
                self._store.set("reported", "")
            elif first.text != text:  # most input is read by each of them, and is as faulty for each
                self._wait_until_reported()
                _say(f"stopped, because process {first.rank} failed ({text[:_SHOWN]})")
        except RuntimeError:  # the store is gone, and the launcher with it
            print_error()

    def cause(self, seconds: float = 0.0) -> Failure | None:
        deadline = time.monotonic() + seconds
        try:
            while not (found := self._look()) and time.monotonic() < deadline:
                time.sleep(0.1)
        except RuntimeError:  # the store is gone, and the launcher with it
            return None
        return found

    def _look(self) -> Failure | None:
        """The first failure of the run, None while there is none; that a neighbour is gone is reported here."""
        if self._store.check(["first"]):
            return Failure(*json.loads(self._store.get("first"))[:2])
        for rank in self._neighbours:
            if rank not in self._pids and self._store.check([f"pid/{rank}"]):
                self._pids[rank] = int(self._store.get(f"pid/{rank}"))
            if rank in self._pids and _is_gone(self._pids[rank]):
                if self._store.check([f"done/{rank}"]):
                    self._neighbours = [other for other in self._neighbours if other != rank]
                    continue
                lost = Failure(rank, f"it is gone (process id {self._pids[rank]} on {socket.gethostname()})")
                return self._claim(lost, _print_lost)
        return None

    def _claim(self, failure: Failure, print_it: Callable[[Failure], object] | None = None) -> Failure:
        """The first failure of the run, which is this one if there was none yet; only then is it printed."""
        mine = json.dumps([*failure, self._rank])
        first = json.loads(self._store.compare_set("first", "", mine))
        if print_it is not None and first == json.loads(mine):
            print_it(failure)
            self._store.set("reported", "")
        return Failure(*first[:2])

    def _wait_until_reported(self) -> None:
        deadline = time.monotonic() + _TOLD
        while not self._store.check(["reported"]) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            try:
                first = self._look()
            except RuntimeError:
                first = Failure(-1, "the launcher is gone")
            if first is None:
                continue
            if not self._over.wait(_GRACE):
                who = "" if first.rank < 0 else f"process {first.rank} failed: "
                _say(f"stopped while it was waiting, because {who}{first.text[:_SHOWN]}")
                self._leave(FAULT)
            return


@contextmanager
def shared() -> Iterator[SingleProcess]:
    """What knows of the other processes of this command, as long as the block lasts."""
    here = _joined()
    try:
        yield here
    finally:
        if isinstance(here, OneOfSeveral):
            here.end()


def _joined() -> SingleProcess:
    """OneOfSeveral with the processes of an `accelerate launch` or `torchrun`, whose launcher keeps the store."""
    there = os.environ
    if int(there.get("WORLD_SIZE", "1")) < 2 or there.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return SingleProcess()
    import torch.distributed

    dist: Any = torch.distributed  # whose stores are documented and not declared
    rank, local = int(there["RANK"]), int(there["LOCAL_RANK"])
    first = rank - local
    neighbours = [other for other in range(first, first + int(there["LOCAL_WORLD_SIZE"])) if other != rank]
    address, port = there["MASTER_ADDR"], int(there["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    attempt = there.get("TORCHELASTIC_RESTART_COUNT", "0")
    return OneOfSeveral(dist.PrefixStore(f"rrm_lm/{attempt}", store), rank, neighbours)


def is_broken_connection(error: Exception) -> bool:
    """Whether an error is that of a collective operation whose other process is gone, of which gloo and NCCL tell."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _BROKEN)


def process_prefix() -> str:
    """`[process 3] ` in a distributed run, where the same line may come from several."""
    return f"[process {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""


def _is_gone(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def _print_lost(failure: Failure) -> None:
    _say(
        f"error: Process {failure.rank} did not end by itself: {failure.text}\n"
        "  what to do: see why it was killed (too little memory is the usual reason), and go on from the last "
        "checkpoint with --resume_from_checkpoint true"
    )


def _say(text: str) -> None:
    print(f"{process_prefix()}{text}", file=sys.stderr, flush=True)


def print_error(error: RRMError) -> None:
    """Print an error to stderr, a line for each of its parts, in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    parts = [("where", error.where), ("expected", error.expected), ("what to do", error.remedy)]
    text = Text.assemble((f"{process_prefix()}error: ", "bold red"), (error.what, "bold"))
    for label, part in parts:
        if part:
            text.append(f"\n  {label}: ", "dim").append(part)
    # Not wrapped: a path or a setting cut in two can be neither searched for nor copied.
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
