"""How a process ends: like any other, except where it is one of several."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and nothing that it has written unwritten.

    One of several ends without taking the interpreter down. The threads of gloo let go of the last collective
    operation's tensors whenever they get to it, and one that is late finds no interpreter left and aborts the process,
    and with it a run that had succeeded (github.com/pytorch/pytorch/pull/179291; with torch 2.13, on crowded cores, a
    third of the runs of a script that does nothing but collective operations). Destroying the process group makes it
    rarer only: whatever holds the group, such as a model under DDP, keeps its threads.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        sys.exit(code)
    atexit._run_exitfuncs()  # trackers of experiments and temporary folders
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
