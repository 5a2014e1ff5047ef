"""A disk that fills up during a save: a clear error, and no earlier file is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.storage import verify
from rrm_lm.training.trainer import ResumableTrainer
from tests.smoke.commands import read, same, train
from tests.smoke.policies import teach, write_prompts

SAVES = ("--save_strategy", "steps", "--save_steps", 2, "--max_steps", 4, "--eval_fraction", 0)


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A separate in-memory file system with 16 MiB."""
    place = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root can make a small file system here ({mounted.stderr.strip()})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, left: int) -> Path:
    """Fill a file system except for `left` bytes; returns the file that fills it."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - left))
    return filler


def bytes_in(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", ["reward", "policy"])
def test_full_disk_during_a_save(
    command: str, small_disk: Path, tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    prompts = write_prompts(tmp_path / "data")

    def start(folder: Path, *words: object) -> Any:
        if command == "reward":
            return train(capsys, tiny, pairs, folder, *SAVES, *words)
        return teach(capsys, tiny, prompts, folder, *SAVES, *words)

    assert start(tmp_path / "whole").code == 0
    needed = bytes_in(tmp_path / "whole" / "checkpoint-4")
    own = ResumableTrainer._save_checkpoint
    for part in (0.0, 0.3, 0.6, 0.99):  # of what the checkpoint needs is left
        folder = small_disk / f"{command}-{part}"

        def save(self: Any, model: Any, trial: Any, part: float = part) -> None:
            if self.state.global_step == 4:
                fill(small_disk, int(part * needed))
            own(self, model, trial)

        with monkeypatch.context() as patch:
            patch.setattr(ResumableTrainer, "_save_checkpoint", save)
            stopped = start(folder)
        assert stopped.code == 2, stopped.err
        error = stopped.error
        assert "disk is full" in error["error"] or "No space left on device" in error["error"], error
        assert str(small_disk) in error["where"] and "free some space" in error["what to do"]
        assert verify(folder / "checkpoint-2") == [], part
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".lock")} == {
            *("checkpoint-2", "config.yaml", "run.json"),
        }, part
        assert read(folder / "run.json")["command"] == f"rrm-lm {command}"
        (small_disk / "filler").unlink()
        if part == 0.6:
            rest = start(folder, "--resume_from_checkpoint", "true")
            assert rest.code == 0, rest.err
            assert same(folder, tmp_path / "whole")
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_full_disk_before_the_run(small_disk: Path, tiny: Path, pairs: Path, capsys: Any) -> None:
    filler = fill(small_disk, 0)
    try:
        stopped = train(capsys, tiny, pairs, small_disk / "out")
        assert stopped.code == 2 and "No space left on device" in stopped.error["error"]
        left = [name for _, _, names in os.walk(small_disk / "out") for name in names if name != ".lock"]
        assert left == []
    finally:
        filler.unlink()
