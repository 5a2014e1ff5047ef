"""What SIGTERM and Ctrl-C do: end the command in order, or, during training, after the step and its checkpoint.

During training a second one, a second or more after the first, stops at once. Those that come sooner are taken for the
same one: schedulers and launchers send a signal to all processes, and launchers pass it on to theirs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rrm_lm.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 1.0  # seconds in which signals are taken for one
_IN_ORDER = 5.0  # seconds that a process has to end in order after a second signal

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def _handlers(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Let functions take signals in the block; only the main thread can have any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def sigterm_ends_in_order() -> Iterator[None]:
    """Let SIGTERM raise, as Ctrl-C does, so that locks are given back and unfinished files removed."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    with _handlers({signal.SIGTERM: end}):
        yield


def ignore_sigterm() -> None:
    """From here on; for a process that is ending already, and has something left to say."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _StopRequest:
    """The signal that asked to stop, 0 while none has."""

    def __init__(self) -> None:
        self.signum = 0
        self._since = 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._since = signum, now
            if os.environ.get("RANK", "0") == "0":
                # Not print: a handler may run in the middle of one.
                name = signal.Signals(signum).name
                os.write(2, f"\n{name}: finishing this step and saving it; once more stops at once\n".encode())
        elif now - self._since >= _SAME:
            raise Interrupted(signum)


@contextmanager
def steps_are_finished(trainer: Any, *, every: int = 1) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the training in the block after its step, with a checkpoint of it.

    Args:
        trainer: Which trains in the block; a `transformers.Trainer`.
        every: Steps that belong together, and after which alone it can be resumed.

    Raises:
        Interrupted: It was ended so.
    """
    from rrm_lm.training.interruption import StopCallback

    request = _StopRequest()
    callback = StopCallback(lambda: request.signum, every)
    trainer.add_callback(callback)
    try:
        with _handlers(dict.fromkeys(_SIGNALS, request)), _stuck_code_is_left():
            yield
    finally:
        trainer.remove_callback(callback)
    if request.signum:  # which came after the last step
        raise Interrupted(request.signum)


@contextmanager
def _stuck_code_is_left() -> Iterator[None]:
    """End the process some seconds after a second signal even where it is in C code, which handlers do not reach.

    For example in a collective operation that waits for processes that have died.
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
        writer.close()  # which ends the thread


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
        reader.settimeout(_IN_ORDER)
        try:
            while reader.recv(1):
                pass
        except TimeoutError:
            os._exit(exit_code(data[0]))


def call(words: Sequence[str]) -> int:
    """Run a program to its end, and leave it to that program what a signal does; returns its exit code.

    The terminal sends Ctrl-C to it, too; SIGTERM is passed on.
    """
    child = subprocess.Popen(words)

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGINT:
            child.send_signal(signum)

    with _handlers(dict.fromkeys(_SIGNALS, pass_on)):
        code = child.wait()
    return code if code >= 0 else exit_code(-code)


def exit_code(signum: int) -> int:
    """What shells take for the exit code of a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signum
