"""Says where training is when no step ends for a long time, and which process the others wait for.

A process that hangs (a dead file system, a broken network link, a deadlock in a user's function) keeps all others
waiting in their next collective operation, which gives up after half an hour (`ddp_timeout`) without naming it. A
thread of each process notes where its main thread is. The main process compares these places: the one that differs is
the suspect.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rrm_lm.launch.failures import launchers_store, print_line

SECONDS = 600.0  # without a step, at least
_TIMES = 10  # or this many times the longest step so far
_COLLECT = 30.0  # seconds in which the other processes note their places
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class StallReport(TrainerCallback):
    """Reports a stall when no step has ended for `seconds`, or for ten times the longest step if that is more, and
    again after each doubling. `store` is shared by the processes.
    """

    def __init__(self, seconds: float = SECONDS, store: Any = None, rank: int = 0, processes: int = 1) -> None:
        self.seconds, self.store, self.rank, self.processes = seconds, store, rank, processes
        self.main = threading.main_thread().ident
        self.longest, self.last, self.stalls = 0.0, time.monotonic(), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self.longest, self.last = max(self.longest, now - self.last), now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    on_save = on_evaluate

    def start(self) -> None:
        self.last = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        times, seen = 1, self.last
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if self.last != seen:
                times, seen = 1, self.last
            stalled = time.monotonic() - self.last
            if stalled >= times * max(self.seconds, _TIMES * self.longest):
                times *= 2
                with suppress(RuntimeError):  # the store is gone, and the launcher with it
                    self._report(stalled)

    def _report(self, stalled: float) -> None:
        self.stalls += 1
        mine = place(sys._current_frames().get(self.main or 0))
        if self.store is None:
            print_line(f"no step has ended for {stalled:.0f} s; this process is at {mine}")
            return
        # The latest place of each process, with its time: processes notice a stall at slightly different times.
        self.store.set(f"place/{self.rank}", json.dumps([time.time(), mine]))
        if self.rank:
            return
        self._over.wait(min(_COLLECT, self.seconds / 2))
        keys = {rank: f"place/{rank}" for rank in range(self.processes)}
        noted = {rank: json.loads(self.store.get(key)) for rank, key in keys.items() if self.store.check([key])}
        found = {rank: where for rank, (at, where) in noted.items() if time.time() - at < stalled}
        print_line(f"no step has ended for {stalled:.0f} s; {describe(found, self.processes)}")


def describe(places: Mapping[int, str], processes: int) -> str:
    """Which process differs from the others, from the places of those that have answered."""
    silent = [rank for rank in range(processes) if rank not in places]
    ranks = Counter(places.values())
    groups = [
        f"{_named([rank for rank, where in places.items() if where == one])} at {one}"
        for one, _ in sorted(ranks.items(), key=lambda item: item[1])  # the suspect first
    ]
    if silent:
        groups = [f"{_named(silent)} not answering, though alive as far as is known", *groups]
    return "; ".join(groups)


def _named(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]} is"
    shown = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"processes {shown} are"


def place(frame: Any) -> str:
    """Where a thread is: the innermost line outside of libraries, and the innermost function."""
    stack = traceback.extract_stack(frame)
    own = [one for one in stack if not one.filename.startswith((*_LIBRARIES, "<"))] or list(stack)
    line, inner = own[-1], stack[-1]
    within = "" if inner is line else f" (in {inner.name} of {'/'.join(Path(inner.filename).parts[-2:])})"
    return f"{'/'.join(Path(line.filename).parts[-3:])}:{line.lineno} in {line.name}{within}"


@contextmanager
def stalls_are_reported(trainer: Any, seconds: float = SECONDS) -> Iterator[None]:
    """Report stalls of this trainer in the block."""
    store, rank, processes = launchers_store("rrm_lm/stalls")
    report = StallReport(seconds, store, rank, processes)
    trainer.add_callback(report)
    report.start()
    try:
        yield
    finally:
        report.end()
        trainer.remove_callback(report)
