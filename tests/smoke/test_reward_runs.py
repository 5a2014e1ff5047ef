"""Runs of `rrm-lm reward` that are stopped, are resumed, or find their folder in use."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.locks import lock
from rrm_lm.storage import verify
from rrm_lm.training.reward.trainer import RewardTrainer
from tests.smoke.commands import contents, pair_rows, read, rewards_of, same, train, write_rows

# -- interruptions --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> Any:
    """The user presses Ctrl-C in this step."""
    own = RewardTrainer.training_step

    def training_step(self: RewardTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "training_step", training_step)
        yield


@contextlib.contextmanager
def a_nan(monkeypatch: pytest.MonkeyPatch, step: int) -> Any:
    """The loss of this step is NaN."""
    own = RewardTrainer._loss

    def loss(self: RewardTrainer, *args: Any) -> Any:
        return own(self, *args) * (math.nan if self.state.global_step == step else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(RewardTrainer, "_loss", loss)
        yield


CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", 2, "--max_steps", 6)


@pytest.mark.parametrize(("trouble", "code"), [(interrupted, 130), (a_nan, 2)])
def test_stopped_run_resumes_bit_for_bit(
    trouble: Any, code: int, tiny: Path, pairs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(capsys, tiny, pairs, tmp_path / "whole", *CHECKPOINTS).code == 0
    with trouble(monkeypatch, 3):
        stopped = train(capsys, tiny, pairs, tmp_path / "parts", *CHECKPOINTS)
    assert stopped.code == code, stopped.err
    if code == 2:
        assert stopped.error["error"].startswith("The loss is nan; training stopped before the step")
        assert f"step 4, feedback from {pairs}, row " in stopped.error["where"]
        assert "--resume_from_checkpoint true" in stopped.error["what to do"]
    assert verify(tmp_path / "parts" / "checkpoint-2") == []
    assert not (tmp_path / "parts" / "checkpoint-4").exists()
    assert not (tmp_path / "parts" / "adapter_model.safetensors").exists()
    assert read(tmp_path / "parts" / "run.json")["outcome"].startswith("stopped by")
    refused = train(capsys, tiny, pairs, tmp_path / "parts", *CHECKPOINTS)
    assert refused.code == 2 and "--resume_from_checkpoint true" in refused.error["what to do"]
    rest = train(capsys, tiny, pairs, tmp_path / "parts", *CHECKPOINTS, "--resume_from_checkpoint", "true")
    assert rest.code == 0, rest.err
    assert "resume_from_checkpoint" not in (tmp_path / "parts" / "config.yaml").read_text()  # it repeats the whole run
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert rewards_of(tmp_path / "whole") == rewards_of(tmp_path / "parts")
    steps = [log["step"] for log in read(tmp_path / "parts" / "trainer_state.json")["log_history"]]
    assert steps == [log["step"] for log in read(tmp_path / "whole" / "trainer_state.json")["log_history"]]


def test_diverging_learning_rate(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("--learning_rate", 1e30, "--save_strategy", "steps", "--save_steps", 1)
    result = train(capsys, tiny, pairs, tmp_path / "out", *words)
    assert result.code == 2
    assert result.error["error"].startswith("The loss is nan; training stopped before the step")
    assert "lower --learning_rate" in result.error["what to do"]


def test_resuming_without_a_checkpoint(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(capsys, tiny, pairs, tmp_path / "out").code == 0
    before = contents(tmp_path / "out")
    result = train(capsys, tiny, pairs, tmp_path / "out", "--resume_from_checkpoint", "true")
    assert result.code == 2
    assert result.error["error"] == "There is no whole checkpoint to resume from"
    assert contents(tmp_path / "out") == before


def test_resuming_another_run(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(capsys, tiny, pairs, tmp_path / "out", *CHECKPOINTS, "--max_steps", 2).code == 0
    before = contents(tmp_path / "out")
    words = ("--resume_from_checkpoint", "true", "--lora_r", 8)
    result = train(capsys, tiny, pairs, tmp_path / "out", *CHECKPOINTS, *words)
    assert result.code == 2
    assert "lora_r was 4 and is 8" in result.error["error"]
    assert contents(tmp_path / "out") == before


def test_resuming_with_what_changed(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """Changed data under the same name is refused; settings that do not affect the result may change."""
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(12))
    assert train(capsys, tiny, data, tmp_path / "out", *CHECKPOINTS).code == 0
    write_rows(data, pair_rows(12, seed=1))
    on = (*CHECKPOINTS, "--resume_from_checkpoint", "true", "--logging_steps", 1, "--save_steps", 3)
    refused = train(capsys, tiny, data, tmp_path / "out", *on, "--learning_rate", 1e-4)
    assert refused.code == 2 and "--allow_config_change true" in refused.error["what to do"]
    found = refused.error["error"].removeprefix("The run to resume is another one: ").split("; ")
    assert [difference.partition(" was ")[0] for difference in found] == [f"contents of {data}", "learning_rate"]
    assert found[1] == "learning_rate was 0.005 and is 0.0001."[:-1]
    # Also where the run goes on in another folder.
    on = ("--max_steps", 6, "--save_strategy", "no", "--resume_from_checkpoint", tmp_path / "out" / "checkpoint-4")
    elsewhere = train(capsys, tiny, data, tmp_path / "new", *on)
    assert elsewhere.code == 2 and f"contents of {data} was " in elsewhere.error["error"]
    allowed = train(capsys, tiny, data, tmp_path / "new", *on, "--allow_config_change", "true")
    assert allowed.code == 0, allowed.err
    assert f"warning: resuming although the run is not the same: contents of {data} was" in allowed.err


# -- the output folder ----------------------------------------------------------------------------------------------


def test_second_run_needs_permission_to_replace_the_first(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(capsys, tiny, pairs, tmp_path / "out").code == 0
    (tmp_path / "out" / "left-over.txt").write_text("of the first run")
    before = contents(tmp_path / "out")
    refused = train(capsys, tiny, pairs, tmp_path / "out")
    assert refused.code == 2
    assert "holds an earlier run of `rrm-lm reward`" in refused.error["error"]
    assert "--overwrite_output_dir true" in refused.error["what to do"]
    assert contents(tmp_path / "out") == before
    again = train(capsys, tiny, pairs, tmp_path / "out", "--overwrite_output_dir", "true", "--seed", 1)
    assert again.code == 0
    assert not (tmp_path / "out" / "left-over.txt").exists()
    assert contents(tmp_path / "out")["adapter_model.safetensors"] != before["adapter_model.safetensors"]


def test_overwriting_keeps_the_first_run_until_the_input_is_checked(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(capsys, tiny, pairs, tmp_path / "out").code == 0
    before = contents(tmp_path / "out")
    bad = write_rows(tmp_path / "bad.jsonl", [*pair_rows(3), {"prompt": "who?", "chosen": "", "rejected": "no"}])
    words = ("--overwrite_output_dir", "true")
    assert train(capsys, tiny, bad, tmp_path / "out", *words).code == 2
    assert contents(tmp_path / "out") == before
    assert train(capsys, tmp_path / "no-model", pairs, tmp_path / "out", *words).code == 2
    assert contents(tmp_path / "out") == before


def test_a_folder_in_use(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    with lock(tmp_path / "out" / ".lock", what="The output folder"):
        result = train(capsys, tiny, pairs, tmp_path / "out", "--overwrite_output_dir", "true")
    assert result.code == 2
    assert "The output folder is in use by another run: process " in result.error["error"]
    assert result.error["where"] == str(tmp_path / "out")
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_folder_of_another_user(overwrite: str, tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "out" / "thesis.jsonl", [{"years": 3}])
    before = contents(tmp_path / "out")
    result = train(capsys, tiny, pairs, tmp_path / "out", "--overwrite_output_dir", overwrite)
    assert result.code == 2
    assert result.error["error"] == "The output folder holds files that no run of this program made: thesis.jsonl"
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".lock").exists()
