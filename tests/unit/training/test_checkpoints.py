"""Which checkpoints are whole, which one a run resumes from, with how many processes, and which ones are deleted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import staged_folder, verify, write_json
from rrm_lm.training.checkpoints import (
    PROCESSES_FILE,
    check_processes,
    check_space,
    checkpoint_to_resume,
    newest_verified,
    prune,
)
from tests.tiny_training import config, trained


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def make_checkpoint(output_dir: Path, step: int, text: str = "weights") -> Path:
    folder = output_dir / f"checkpoint-{step}"
    with staged_folder(folder) as staged:
        (staged / "model.bin").write_text(text)
    return folder


class TestSave:
    def test_a_checkpoint_has_a_manifest(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 40)
        assert names(checkpoint) == ["manifest.json", "model.bin"]
        assert verify(checkpoint) == []


class TestResume:
    def test_steps_are_compared_as_numbers(self, tmp_path: Path) -> None:
        for step in (9, 100, 20):
            make_checkpoint(tmp_path, step)
        assert newest_verified(tmp_path) == tmp_path / "checkpoint-100"

    def test_what_is_broken_is_passed_over_and_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        make_checkpoint(tmp_path, 40)
        (make_checkpoint(tmp_path, 60) / "model.bin").write_text("weighty")
        (tmp_path / "checkpoint-80").mkdir()
        (tmp_path / "checkpoint-80" / "model.bin").write_text("no manifest yet")
        (tmp_path / "checkpoint-99").mkdir()
        (tmp_path / "checkpoint-100").write_text("a file")
        (tmp_path / "checkpoint-last").mkdir()
        assert newest_verified(tmp_path) == tmp_path / "checkpoint-40"
        messages = [record.getMessage() for record in caplog.records]
        assert [message.partition(": ")[0].rpartition("/")[2] for message in messages] == [
            "checkpoint-99",
            "checkpoint-80",
            "checkpoint-60",
        ]
        assert "it is empty" in messages[0]
        assert "no manifest.json" in messages[1]
        assert "model.bin changed" in messages[2]

    @pytest.mark.parametrize("there", [True, False])
    def test_no_checkpoint(self, tmp_path: Path, there: bool) -> None:
        assert newest_verified(tmp_path if there else tmp_path / "missing") is None

    @pytest.mark.parametrize("asked", [None, False, "false", "no", ""])
    def test_not_asked_for(self, tmp_path: Path, asked: str | bool | None) -> None:
        make_checkpoint(tmp_path, 40)
        assert checkpoint_to_resume(tmp_path, asked) is None

    @pytest.mark.parametrize("asked", [True, "true", "True"])
    def test_the_newest(self, tmp_path: Path, asked: str | bool) -> None:
        make_checkpoint(tmp_path, 40)
        (tmp_path / "checkpoint-99").mkdir()
        assert checkpoint_to_resume(tmp_path, asked) == tmp_path / "checkpoint-40"

    def test_the_newest_where_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            checkpoint_to_resume(tmp_path, True)

    def test_one_by_name_must_be_whole(self, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 40)
        assert checkpoint_to_resume(tmp_path / "elsewhere", str(checkpoint)) == checkpoint
        (checkpoint / "model.bin").unlink()
        with pytest.raises(CheckpointError, match=r"model\.bin is missing"):
            checkpoint_to_resume(tmp_path, str(checkpoint))


class TestPrune:
    def left(self, tmp_path: Path) -> list[int]:
        return sorted(int(name.removeprefix("checkpoint-")) for name in names(tmp_path))

    @pytest.mark.parametrize(("limit", "left"), [(None, [9, 10, 100]), (0, [9, 10, 100]), (2, [10, 100]), (1, [100])])
    def test_the_oldest_go(self, tmp_path: Path, limit: int | None, left: list[int]) -> None:
        for step in (10, 9, 100):
            make_checkpoint(tmp_path, step)
        prune(tmp_path, limit)
        assert self.left(tmp_path) == left

    def test_the_best_and_the_last_stay(self, tmp_path: Path) -> None:
        folders = {step: make_checkpoint(tmp_path, step) for step in (20, 40, 60)}
        prune(tmp_path, 1, keep=[folders[60], folders[20]])
        assert self.left(tmp_path) == [20, 60]

    def test_a_branch_that_was_left_goes_first(self, tmp_path: Path) -> None:
        folders = {step: make_checkpoint(tmp_path, step) for step in (20, 40, 60, 80)}
        prune(tmp_path, 2, keep=[folders[40]])  # resumed at 20, just saved 40: 60 and 80 are of the run before
        assert self.left(tmp_path) == [20, 40]


# -- the number of processes ------------------------------------------------------------------------------------------


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


class TestSpace:
    def free(self, monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
        usage = SimpleNamespace(free=megabytes * 1e6)
        monkeypatch.setattr("rrm_lm.training.checkpoints.shutil.disk_usage", lambda folder: usage)

    def check(self, folder: Path, *, merge: bool = False, **settings: Any) -> None:
        model = torch.nn.ModuleList([torch.nn.Linear(1000, 1000, bias=False) for _ in range(2)])
        model[0].requires_grad_(False)  # 4 MB of weights are trained, and Adam adds 8 MB
        check_space(folder, model, config(folder, **settings), merge)

    @pytest.mark.parametrize(
        ("settings", "needed"),
        [
            ({"save_strategy": "no"}, 4),
            ({"save_strategy": "steps"}, 12),
            ({"save_strategy": "steps", "optim": "adamw_bnb_8bit"}, 6),
            ({"save_strategy": "steps", "optim": "sgd"}, 4),
            ({"save_strategy": "no", "merge": True}, 12),
        ],
    )
    def test_no_space_for_one_checkpoint_is_refused(
        self, settings: dict[str, Any], needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rrm_lm.training.arguments.check_packages", lambda args: None)
        self.free(monkeypatch, needed + 0.01)
        self.check(tmp_path, **settings)
        self.free(monkeypatch, needed - 0.01)
        with pytest.raises(CheckpointError, match=f"has about {needed} MB"):
            self.check(tmp_path, **settings)

    def test_space_for_some_checkpoints_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = {"save_strategy": "steps", "save_total_limit": 3}  # 4 MB, and four times 12 MB
        self.free(monkeypatch, 52.01)
        self.check(tmp_path, **settings)
        assert caplog.text == ""
        self.free(monkeypatch, 51.99)
        self.check(tmp_path, **settings)
        assert "the checkpoints and the final model have about 52 MB" in caplog.text


def test_checkpoints_of_an_abandoned_branch_are_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run was resumed from step 20 with other settings, and `true` must not take step 50 of the earlier branch."""
    for step in (10, 20, 30, 40, 50):
        make_checkpoint(tmp_path, step)
    saved = make_checkpoint(tmp_path, 25)
    prune(tmp_path, None, keep=[saved, tmp_path / "checkpoint-40"])  # the best one stays
    left = ["abandoned-checkpoint-30", "abandoned-checkpoint-50", *(f"checkpoint-{n}" for n in (10, 20, 25, 40))]
    assert names(tmp_path) == left
    assert "is of a later step than the run" in caplog.text
    make_checkpoint(tmp_path, 30)
    prune(tmp_path, None, keep=[saved])
    assert newest_verified(tmp_path) == saved
