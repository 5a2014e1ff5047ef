"""How processes end: programs that are waited for, signals that Python does not see, and the exit itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rrm_lm.launch import signals

ROOT = Path(__file__).parents[3]
CHILD = """
import signal, sys, time
def end(signum, frame):
    time.sleep(0.5)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(30)
"""
PARENT = f"""
import sys
from rrm_lm.launch import signals
sys.exit(signals.call([sys.executable, "-c", {CHILD!r}]))
"""
STUCK = """
import ctypes, sys
from rrm_lm.launch import signals
signals._CLEANUP = 0.3
with signals._handlers(dict.fromkeys(signals._SIGNALS, signals._StopRequest())), signals._exit_if_stuck():
    lib, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    lib.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    lib.pthread_mutex_lock(mutex)  # for ever, and no signal is seen in there
"""
EXIT = """
import atexit, sys
from rrm_lm.launch.signals import exit_process

class Late:
    def __del__(self, write=sys.__stderr__.write):
        write("torn down")

sys.late = Late()  # deleted when the interpreter is finalized, not before
atexit.register(print, "tracked")
print("written", end=" ")
exit_process(3)
"""


def test_exit_codes() -> None:
    assert signals.call([sys.executable, "-c", "raise SystemExit(5)"]) == 5
    assert signals.call([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def started(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_sigterm_is_passed_on_and_the_end_waited_for() -> None:
    parent = started(PARENT)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(20) == 7


def test_ctrl_c_is_left_to_the_program() -> None:
    parent = started(PARENT)
    parent.send_signal(signal.SIGINT)  # as the terminal does; the child gets its own
    time.sleep(0.3)
    assert parent.poll() is None
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(20) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="of other systems it is not known what a mutex looks like")
def test_a_second_signal_ends_what_no_handler_reaches() -> None:
    process = started(STUCK)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


@pytest.mark.parametrize(("processes", "error"), [("1", "torn down"), ("2", "")])
def test_all_is_written_and_the_code_is_kept(processes: str, error: str) -> None:
    """Only a single process finalizes its interpreter: gloo's threads need it longer than the run does."""
    environment = {**os.environ, "WORLD_SIZE": processes}
    done = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "written tracked\n", error)
