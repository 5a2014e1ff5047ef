"""Programs that are waited for, and processes that signals do not reach in Python."""

from __future__ import annotations

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
signals._IN_ORDER = 0.3
with signals._handlers(dict.fromkeys(signals._SIGNALS, signals._StopRequest())), signals._stuck_code_is_left():
    lib, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    lib.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    lib.pthread_mutex_lock(mutex)  # for ever, and no signal is seen in there
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
