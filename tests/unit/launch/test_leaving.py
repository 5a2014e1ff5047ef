"""The end of a process, alone and as one of several."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ENDS = """
import atexit, sys
from rrm_lm.launch.leaving import leave

class Late:
    def __del__(self, write=sys.__stderr__.write):
        write("torn down")

sys.late = Late()  # which goes when the interpreter is taken down, and not before
atexit.register(print, "tracked")
print("written", end=" ")
leave(3)
"""


@pytest.mark.parametrize(("processes", "error"), [("1", "torn down"), ("2", "")])
def test_all_is_written_and_the_code_is_kept(processes: str, error: str) -> None:
    """Only a process that is alone takes its interpreter down: threads of gloo need it longer than the run does."""
    environment = {**os.environ, "WORLD_SIZE": processes}
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "written tracked\n", error)
