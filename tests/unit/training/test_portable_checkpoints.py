"""Which checkpoints a number of processes can go on from. That they do is in tests/distributed/test_sharded.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import write_json
from rrm_lm.training.checkpoints import PROCESSES_FILE, check_processes
from tests.tiny_training import config, trained


def of(folder: Path, processes: int, items: int) -> Path:
    write_json(folder / PROCESSES_FILE, {"processes": processes, "items_per_step": items})
    return folder


def test_the_same_processes_go_on(tmp_path: Path) -> None:
    check_processes(of(tmp_path, 2, 8), {"processes": 2, "items_per_step": 8}, allowed=False)


def test_others_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    checkpoint, shape = of(tmp_path, 2, 8), {"processes": 4, "items_per_step": 8}
    with pytest.raises(CheckpointError, match="written by 2 processes, and these are 4") as error:
        check_processes(checkpoint, shape, allowed=False)
    assert "--allow_world_size_change" in str(error.value.remedy)
    check_processes(checkpoint, shape, allowed=True)


def test_a_step_must_take_as_many_items(tmp_path: Path) -> None:
    """The place in the data is counted in steps."""
    checkpoint = of(tmp_path, 2, 8)
    with pytest.raises(CheckpointError, match="would take 16") as error:
        check_processes(checkpoint, {"processes": 4, "items_per_step": 16}, allowed=True)
    assert "to 2, for 4 processes" in str(error.value.remedy)
    with pytest.raises(CheckpointError) as error:
        check_processes(checkpoint, {"processes": 3, "items_per_step": 9}, allowed=True)
    assert "a share of 8" in str(error.value.remedy)


def test_a_run_writes_down_how_many_processes_it_has(tmp_path: Path) -> None:
    trained(config(tmp_path, max_steps=1, save_strategy="steps", save_steps=1))
    written = tmp_path / "checkpoint-1"
    check_processes(written, {"processes": 1, "items_per_step": 4}, allowed=False)
    with pytest.raises(CheckpointError):
        trained(config(tmp_path, max_steps=2, per_device_train_batch_size=2), resume=str(written))
