"""Ten agents on one backbone need little more memory than one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("memory_probe.py")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_peak_memory_of_ten_agents_is_at_most_1_3_times_that_of_one(tmp_path: Path) -> None:
    root = PROBE.parents[3]
    done = subprocess.run(
        [sys.executable, str(PROBE), str(tmp_path)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    one, ten = map(float, done.stdout.split()[-2:])
    assert one > 100, "the backbone itself is larger than that"
    assert ten / one <= 1.3, (one, ten)
