"""What must be unchanged for a run to be resumed, and the command that resumes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.api import resuming
from rrm_lm.api.resuming import MAY_CHANGE, fingerprint, identity, is_asked, origin, resume_command
from rrm_lm.settings.data import DataArguments, PromptArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import MonitorArguments, PolicyRunArguments, RewardArguments, RewardCommandArguments
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.sft.config import SFTConfig


def of_reward(processes: int = 1, names: Any = (), **more: Any) -> dict[str, Any]:
    data = DataArguments(dataset_name=[str(name) for name in names])
    return identity(data, RewardConfig(use_cpu=True, **more), processes=processes)


def changed(**more: Any) -> set[str]:
    """Names of the settings whose identity differs from the defaults."""
    one, other = of_reward(), of_reward(**more)
    return {name for name in one if one[name] != other[name]}


def test_settings_that_change_what_is_learned_must_match() -> None:
    assert changed(learning_rate=1e-3) == {"learning_rate"}
    assert changed(max_steps=7, critique_weight=0.1, seed=3) == {"max_steps", "critique_weight", "seed"}


def test_logging_and_checkpointing_settings_may_change(tmp_path: Path) -> None:
    assert not changed(
        output_dir=str(tmp_path), logging_steps=1, save_steps=3, save_total_limit=1, report_to=[], disable_tqdm=True,
        micro_batch_tokens=100, run_name="other", resume_from_checkpoint="true", dataloader_num_workers=0,
    )  # fmt: skip


def test_the_batch_may_be_distributed_differently() -> None:
    one = of_reward(1, per_device_train_batch_size=8)
    assert one["global_batch_size"] == 8
    assert one == of_reward(2, per_device_train_batch_size=4)
    assert one == of_reward(2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert one != of_reward(2, per_device_train_batch_size=8)


def test_every_name_that_may_change_is_a_setting() -> None:
    kinds = (
        DataArguments, ModelArguments, RewardConfig, SFTConfig, PPOConfig, PromptArguments, RewardArguments,
        MonitorArguments, PolicyRunArguments, RewardCommandArguments,
    )  # fmt: skip
    known = {name for kind in kinds for name in kind.__dataclass_fields__}
    assert MAY_CHANGE - known <= {"allow_world_size_change"}


def test_file_contents_are_compared_as_well_as_names(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("{}")
    one = of_reward(names=[file])
    assert one == of_reward(names=[file])
    file.write_text("{ }")
    differences = {name for name, value in of_reward(names=[file]).items() if value != one[name]}
    assert differences == {f"contents of {file}"}
    assert "contents of Anthropic/hh-rlhf" not in of_reward(names=["Anthropic/hh-rlhf"])


@dataclass
class Named:
    reward_function: list[str] = field(default_factory=list)
    model_name_or_path: str | None = None


def test_code_and_models_are_compared(tmp_path: Path) -> None:
    code, model = tmp_path / "rewards.py", tmp_path / "model"
    code.write_text("def f(): pass")
    model.mkdir()
    (model / "adapter_model.safetensors").write_bytes(b"weights")
    named = Named([f"{code}:f"], str(model))
    one = identity(named, processes=1)
    assert set(one) == {"reward_function", "model_name_or_path", f"contents of {code}:f", f"contents of {model}"}
    (model / "run.json").write_text("{}")  # about the run that made it
    (model / "report.html").write_text("")
    assert identity(named, processes=1) == one
    (model / "adapter_model.safetensors").write_bytes(b"Weights")
    assert identity(named, processes=1) != one
    assert identity(replace(named, model_name_or_path="no-such-folder"), processes=1).keys() == {
        "reward_function", "model_name_or_path", f"contents of {code}:f"
    }  # fmt: skip


def test_only_the_ends_of_a_large_file_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "_HASHED_IN_FULL", 10)
    monkeypatch.setattr(resuming, "_ENDS", 4)
    file = tmp_path / "big.bin"

    def of(content: bytes) -> str:
        file.write_bytes(content)
        return fingerprint(file)

    one = of(b"head.......tail")
    assert of(b"head.......tail") == one and of(b"head...x...tail") == one
    assert len({one, of(b"Head.......tail"), of(b"head.......Tail"), of(b"head........tail")}) == 4


@pytest.mark.parametrize(
    ("asked", "resumes", "where"),
    [
        (None, False, None),
        ("false", False, None),
        ("true", True, None),
        ("outputs/a/checkpoint-4", True, Path("outputs/a")),
    ],
)
def test_which_run_is_resumed(asked: str | None, resumes: bool, where: Path | None) -> None:
    assert (is_asked(asked), origin(asked)) == (resumes, where)


def test_resume_command(monkeypatch: pytest.MonkeyPatch) -> None:
    on = "--resume_from_checkpoint true"
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert resume_command(["sft", "--seed", "1"]) == f"rrm-lm sft --seed 1 {on}"
    assert resume_command(["sft", "--resume_from_checkpoint", "x", "--seed", "1"]) == f"rrm-lm sft --seed 1 {on}"
    assert resume_command(["sft", "--resume-from-checkpoint=x", "--a", "b c"]) == f"rrm-lm sft --a 'b c' {on}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resume_command(["sft"]).startswith(f"rrm-lm sft {on}   (with the same launcher")
    monkeypatch.setenv("RRM_LM_COMMAND", "rrm-lm sft --num_processes 2 --a 'b c'")
    assert resume_command(["sft", "--a", "b c"]) == f"rrm-lm sft --num_processes 2 --a 'b c' {on}"
