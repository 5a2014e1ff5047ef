"""How a process ends: on SIGTERM and Ctrl-C after cleaning up (in training, after the step and its checkpoint).

In training, a second signal that comes a second or more after the first stops at once. An earlier one counts as the
same: schedulers and launchers signal all processes, and launchers forward the signal to theirs.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, NoReturn

from rrm_lm.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 1.0  # seconds in which signals count as one
_CLEANUP = 5.0  # seconds to clean up after a second signal

Handler = Callable[[int, FrameType | None], Any]


def exit_process(code: int) -> NoReturn:
    """Exit after flushing all output; one of several processes exits without finalizing the interpreter.

    Gloo's threads release the tensors of the last collective operation at some later time. A thread that does so after
    finalization aborts the process, and with it a run that had succeeded (github.com/pytorch/pytorch/pull/179291; with
    torch 2.13 and busy cores, a third of the runs of a script that only does collective operations). Destroying the
    process group only makes this rarer, because anything that holds the group, such as a DDP model, keeps its threads.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        sys.exit(code)
    atexit._run_exitfuncs()  # experiment trackers and temporary folders
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _handlers(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals with these functions in the block; only the main thread can have any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def sigterm_interrupts() -> AbstractContextManager[None]:
    """Make SIGTERM raise like Ctrl-C in a `with` block, so that locks are released and unfinished files removed."""
    return _handlers({signal.SIGTERM: _interrupt})


def ignore_sigterm() -> None:
    """Ignore SIGTERM while the process exits, because it still has something to print."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _StopRequest:
    """The signal that requested a stop; 0 before that."""

    def __init__(self) -> None:
        self.signum = 0
        self._since = 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._since = signum, now
            if os.environ.get("RANK", "0") == "0":
                # Not print: the handler may run in the middle of another print.
                name = signal.Signals(signum).name
                os.write(2, f"\n{name}: finishing this step and saving it; send it again to stop at once\n".encode())
        elif now - self._since >= _SAME:
            raise Interrupted(signum)


@contextmanager
def steps_are_finished(trainer: Any, *, every: int = 1) -> Iterator[None]:
    """Make SIGTERM and Ctrl-C end training in the block after the current step, with a checkpoint.

    `every`: steps per update; training can only be resumed after the last step of an update. Raises Interrupted: a
    signal ended it.
    """
    from rrm_lm.training.interruption import StopCallback

    request = _StopRequest()
    callback = StopCallback(lambda: request.signum, every)
    trainer.add_callback(callback)
    try:
        with _handlers(dict.fromkeys(_SIGNALS, request)), _exit_if_stuck():
            yield
    finally:
        trainer.remove_callback(callback)
    if request.signum:  # it came after the last step
        raise Interrupted(request.signum)


@contextmanager
def _exit_if_stuck() -> Iterator[None]:
    """Exit some seconds after a second signal even if C code is running, where Python runs no handlers.

    An example is a collective operation that waits for processes that have died.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # ends the thread


def _watch(reader: socket.socket) -> None:
    first = 0.0
    with reader:
        while data := reader.recv(1):
            now = time.monotonic()
            if data[0] not in _SIGNALS:
                continue
            if first and now - first >= _SAME:
                break
            first = first or now
        else:
            return
        reader.settimeout(_CLEANUP)
        try:
            while reader.recv(1):
                pass
        except TimeoutError:
            os._exit(exit_code(data[0]))


def call(words: Sequence[str]) -> int:
    """Run a program to its end and let it handle signals; returns its exit code.

    The terminal sends Ctrl-C to the program too; SIGTERM is forwarded.
    """
    child = subprocess.Popen(words)

    def forward(signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGINT:
            child.send_signal(signum)

    with _handlers(dict.fromkeys(_SIGNALS, forward)):
        code = child.wait()
    return code if code >= 0 else exit_code(-code)


def exit_code(signum: int) -> int:
    """The exit code that shells report for a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signum
