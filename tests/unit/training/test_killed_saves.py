"""A run that is killed in the middle of a save loses at most what it did since the checkpoint before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.killed_saves import BEFORE, SAVED

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "every", "randomly", "least"), [("reward", 1, 10, 60), ("policy", 4, 5, 20)])
def test_killed_at_every_write_of_a_save(kind: str, every: int, randomly: int, least: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed_saves", str(tmp_path), kind, str(every), str(randomly)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    whole, *kills = found["kills"]
    assert whole["moment"] == "whole" and whole["newest"] == f"checkpoint-{SAVED}"
    assert len(kills) >= least
    for kill in kills:
        assert kill["newest"] in (f"checkpoint-{BEFORE}", f"checkpoint-{SAVED}"), kill
        assert kill["from"] == int(kill["newest"].removeprefix("checkpoint-")), kill  # no step is done again
        assert kill["same"], kill  # bit for bit what an uninterrupted run ends with
        assert not [name for name in kill["left"] if name.startswith(".")], kill
    # The old one counts until the new one is whole, and never neither.
    named = [kill["newest"] for kill in kills if isinstance(kill["moment"], int)]
    assert named == sorted(named) and len(set(named)) == 2
