"""An output folder whose run begins only once its input is known to be good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.errors import CheckpointError
from rrm_lm.training.output_folder import OutputFolder


def folder_of(path: Path, **options: Any) -> OutputFolder:
    return OutputFolder(path, command="rrm-lm reward", **{"overwrite": True, "deferred": True, **options})


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with the results of a run."""
    with OutputFolder(tmp_path / "run", command="rrm-lm reward") as folder:
        (folder / "model.bin").write_text("weights")
        (folder / "checkpoint-1").mkdir()
    return folder


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_there_stays_until_the_run_begins(fails: bool, earlier: Path) -> None:
    record = (earlier / "run.json").read_text()
    try:
        with folder_of(earlier):
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert names(earlier) == {"model.bin", "checkpoint-1", "run.json"}
    assert (earlier / "run.json").read_text() == record  # nor did a run take place


def test_beginning_replaces_it(earlier: Path) -> None:
    folder = folder_of(earlier, identity={"model": "m"})
    with folder:
        folder.begin()
        assert names(earlier) == {"run.json"}
        assert json.loads((earlier / "run.json").read_text())["outcome"] == "running"
        (earlier / "model.bin").write_text("new")
        folder.begin()  # a second time does nothing
        assert (earlier / "model.bin").read_text() == "new"
    record = json.loads((earlier / "run.json").read_text())
    assert (record["outcome"], record["identity"]) == ("finished", {"model": "m"})


def test_beginning_again_where_a_run_was_keeps_it(earlier: Path) -> None:
    folder = folder_of(earlier, overwrite=True, resume=True)
    with folder:
        folder.begin()
    assert names(earlier) == {"model.bin", "checkpoint-1", "run.json"}


def test_refusals_do_not_wait(earlier: Path) -> None:
    with pytest.raises(CheckpointError, match="holds an earlier run"), folder_of(earlier, overwrite=False):
        pytest.fail("entered")
    with folder_of(earlier), pytest.raises(CheckpointError, match="in use"), folder_of(earlier):
        pytest.fail("entered")


def test_resuming_is_offered_only_where_it_can_be_done(earlier: Path) -> None:
    with pytest.raises(CheckpointError, match="--resume_from_checkpoint"), folder_of(earlier, overwrite=False):
        pytest.fail("entered")
    (earlier / "checkpoint-1").rmdir()
    with pytest.raises(CheckpointError) as caught, folder_of(earlier, overwrite=False):
        pytest.fail("entered")
    assert "--resume" not in str(caught.value) and "--overwrite_output_dir true" in str(caught.value)


def test_a_process_that_does_not_write_changes_nothing(earlier: Path) -> None:
    folder = folder_of(earlier, active=False)
    with folder:
        folder.begin()
    assert names(earlier) == {"model.bin", "checkpoint-1", "run.json"}
