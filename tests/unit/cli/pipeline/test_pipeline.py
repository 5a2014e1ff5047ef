"""The plan of `rrm-lm run`, and when a stage is run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rrm_lm.cli.pipeline.pipeline import config_file, plan, take_stage_flags
from rrm_lm.cli.pipeline.stages import Stage
from rrm_lm.cli.pipeline.views import stage_view
from rrm_lm.errors import CheckpointError, ConfigError
from rrm_lm.feedback.records import Message
from rrm_lm.feedback.store.events import Item
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.workflows import PipelineArguments

FILE = """\
output_dir: out
reward:
  dataset_name: train.jsonl
  learning_rate: 1e-4
  save_strategy: no
sft:
  dataset_name: [train.jsonl]
policy:
  model_name_or_path: $sft
  prompts: [prompts.jsonl]
collect:
  overseer: user.py:overseer
compare:
  prompts: [heldout.jsonl]
"""


def planned(folder: Path, rounds: int = 1, text: str = FILE, **flags: list[str]) -> list[Stage]:
    file = folder / "run.yaml"
    file.write_text(text)
    sections: Any = {key: value for key, value in yaml.safe_load(text).items() if isinstance(value, dict)}
    return plan(PipelineArguments(output_dir="out", rounds=rounds, **sections), file, flags)


def settings(stage: Stage) -> dict[str, Any]:
    return yaml.load(stage.settings, Loader=yaml.BaseLoader)


def test_each_stage_uses_the_outputs_of_earlier_ones(tmp_path: Path) -> None:
    reward, sft, policy, compare = planned(tmp_path)
    assert [stage.name for stage in (reward, sft, policy, compare)] == ["reward", "sft", "policy", "compare"]
    assert settings(policy)["model_name_or_path"] == "out/sft"
    assert settings(policy)["reward_model"] == ["out/reward"]
    assert settings(compare)["policies"] == ["out/sft", "out/policy"]
    assert settings(compare)["proxy"] == "out/reward"


def test_the_reward_model_continues_the_one_that_learned_from_the_clearest_comparisons(tmp_path: Path) -> None:
    text = FILE.replace("reward:\n", "reward_first:\n  dataset_name: clear.jsonl\nreward:\n", 1)
    first, reward, _, policy, _ = planned(tmp_path, text=text, reward_first=["--seed", "1"])
    assert (first.name, first.command, first.flags) == ("reward_first", "reward", ("--seed", "1"))
    assert settings(first)["dataset_name"] == "clear.jsonl"
    assert settings(reward)["model_name_or_path"] == "out/reward_first"
    assert settings(policy)["reward_model"] == ["out/reward"]


def test_a_reward_model_that_starts_from_the_imitating_policy_comes_after_it(tmp_path: Path) -> None:
    text = FILE.replace("reward:\n", "reward:\n  model_name_or_path: $sft\n", 1)
    stages = planned(tmp_path, rounds=2, text=text)
    assert [stage.name for stage in stages] == [
        "sft",
        "reward",
        "policy",
        "collect-2",
        "reward-2",
        "policy-2",
        "compare",
    ]
    assert settings(stages[1])["model_name_or_path"] == settings(stages[2])["model_name_or_path"] == "out/sft"
    first = text.replace(
        "reward:\n  model_name_or_path: $sft\n", "reward_first:\n  model_name_or_path: $sft\nreward:\n", 1
    )
    names = [stage.name for stage in planned(tmp_path, text=first)]
    assert names == ["sft", "reward_first", "reward", "policy", "compare"]


def test_values_reach_the_commands_as_they_were_written(tmp_path: Path) -> None:
    """YAML alone would make a text of 1e-4 and false of no."""
    reward = planned(tmp_path)[0]
    assert "learning_rate: 1e-4\n" in reward.settings
    assert "save_strategy: no\n" in reward.settings


def test_explicit_settings_are_not_replaced(tmp_path: Path) -> None:
    text = FILE.replace("  prompts: [prompts.jsonl]\n", "  prompts: [prompts.jsonl]\n  reward_model: other\n")
    assert settings(planned(tmp_path, text=text)[2])["reward_model"] == "other"


def test_second_round_collects_on_the_policy_and_trains_both_again(tmp_path: Path) -> None:
    stages = planned(tmp_path, rounds=3)
    names = "reward sft policy collect-2 reward-2 policy-2 collect-3 reward-3 policy-3 compare"
    assert [stage.name for stage in stages] == names.split()
    by_name = {stage.name: settings(stage) for stage in stages}
    assert by_name["collect-3"] == {"overseer": "user.py:overseer", "policy": "out/policy-2", "round": "3"}
    files = ["out/collect-3/feedback.jsonl", "out/collect-2/feedback.jsonl", "train.jsonl"]
    assert by_name["reward-3"]["dataset_name"] == files
    assert by_name["policy-3"]["model_name_or_path"] == "out/policy-2"
    assert by_name["policy-3"]["reward_model"] == ["out/reward-3"]
    assert by_name["reward"]["dataset_name"] == "train.jsonl"


def test_reference_to_a_later_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no stage \$policy before") as caught:
        planned(tmp_path, text=FILE.replace("$sft", "$policy"))
    assert "section policy" in caught.value.where and "$sft" in caught.value.expected


def test_flags_of_an_unknown_stage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no section polcy"):
        planned(tmp_path, polcy=["--max_steps", "3"])


def test_flags_are_sorted_by_stage() -> None:
    words, flags = take_stage_flags(["--config", "a.yaml", "--policy.max_steps", "3", "--rounds", "2", "--sft.seed=1"])
    assert words == ["--config", "a.yaml", "--rounds", "2"]
    assert flags == {"policy": ["--max_steps", "3"], "sft": ["--seed=1"]}
    assert config_file(words) == Path("a.yaml")


def test_more_rounds_need_an_overseer() -> None:
    with pytest.raises(ConfigError, match="there is no section `collect`"):
        PipelineArguments(rounds=2)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    made = Stage("reward", "reward", f"dataset_name: [{data}]\n", (), tmp_path / "out", tmp_path / "records")
    made.start()
    made.folder.mkdir()
    (made.folder / "adapter_model.safetensors").write_bytes(b"weights")
    return made


def test_a_stage_is_done_until_its_inputs_or_outputs_change(stage: Stage) -> None:
    assert not stage.is_done()
    stage.finish(1.5)
    assert stage.is_done()
    assert not Stage("reward", "reward", stage.settings, ("--seed", "1"), stage.folder, stage.records).is_done()
    weights = stage.folder / "adapter_model.safetensors"
    weights.write_bytes(b"other weights")
    assert not stage.is_done()
    weights.write_bytes(b"weights")
    assert stage.is_done()
    (stage.folder.parent / "data.jsonl").write_text("{}\n{}\n")
    assert not stage.is_done()


def test_python_files_are_inputs_with_and_without_a_name_in_them(tmp_path: Path) -> None:
    for named in ("", ":polite"):
        file = tmp_path / f"rewards{len(named)}.py"
        file.write_text("one")
        settings = f"reward_function: {file}{named}\n"
        made = Stage("policy", "policy", settings, (), tmp_path / "out", tmp_path / "records")
        before = made.inputs()
        file.write_text("another")
        assert made.inputs() != before, named


@pytest.mark.parametrize(
    ("named", "flags", "file"),
    [
        ("~/set.csv", (), "set.csv"),
        ("other", ("--dataset_name", "{home}/set.csv"), "set.csv"),
        ("other", ("--dataset_name={home}/set.csv",), "set.csv"),
        ("{home}/set", (), "set/train.csv"),
        ("{home}/set", (), "set/data/train-00000-of-00001.parquet"),
        ("{home}/set", (), "set/scores.jsonl"),
        ("{home}/set", (), "set/train/data.arrow"),
    ],
)
def test_changed_data_is_noticed_however_it_is_named(
    named: str, flags: tuple[str, ...], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("one")
    settings = f"dataset_name: ['{named.format(home=tmp_path)}']\n"
    flags = tuple(flag.format(home=tmp_path) for flag in flags)
    made = Stage("reward", "reward", settings, flags, tmp_path / "out", tmp_path / "records")
    before = made.inputs()
    (tmp_path / file).write_text("another")
    assert made.inputs() != before


@pytest.mark.parametrize("value", ["~", ".", "/", "'~'", "null"])
def test_values_that_are_wide_folders_by_chance_are_not_searched(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    made = Stage("reward", "reward", f"max_steps: {value}\n", (), tmp_path / "out", tmp_path / "records")
    before = made.inputs()
    (tmp_path / "deep" / "other.csv").write_text("one")
    assert made.inputs() == before


def test_a_store_is_an_input_by_its_answers(tmp_path: Path) -> None:
    """Not by its bytes: those of a store that is in use are partly in another file, and retraction only adds some."""
    item = Item((Message("user", "Capital of Norway?"),), ("Oslo.", "Rome."))
    with Store(tmp_path / "feedback.db", create=True) as store:
        store.add_items([item])
        made = Stage("reward", "reward", f"dataset_name: {store.path}\n", (), tmp_path / "out", tmp_path / "records")
        before = made.inputs()
        store.append("answer", person="anna", item=item.id, body={"verdict": "skip"})
        assert made.inputs() == before
        store.append("answer", person="anna", item=item.id, body={"verdict": "first"})
        assert made.inputs() != before
        store.append("retract", body={"person": "anna"})
        assert made.inputs() == before


def test_rewriting_a_page_changes_nothing(stage: Stage) -> None:
    stage.finish(1.5)
    (stage.folder / "report.html").write_text("a page")
    (stage.folder / "scores.jsonl").write_text("{}\n")
    assert stage.is_done()


def test_stopped_stage_resumes_only_with_the_same_inputs(stage: Stage) -> None:
    assert not stage.can_resume()
    (stage.folder / "checkpoint-3").mkdir()
    assert stage.can_resume()
    (stage.folder.parent / "data.jsonl").write_text("{}\n{}\n")
    assert not stage.can_resume()


def test_stage_without_outputs_is_not_done(stage: Stage) -> None:
    (stage.folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="left no weights"):
        stage.finish(1.0)
    assert not stage.is_done()


@pytest.mark.parametrize(
    ("passes", "said"), [(0.222, "imitates 100 of 450 responses"), (3.0, "imitates 450 responses")]
)
def test_only_the_responses_that_training_reached_are_called_imitated(
    passes: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (sft,) = [one for one in planned(tmp_path) if one.name == "sft"]
    sft.folder.mkdir(parents=True)
    (sft.folder / "examples.json").write_text('{"learned_responses": 450}')
    (sft.folder / "trainer_state.json").write_text(json.dumps({"epoch": passes}))
    assert stage_view(sft, tmp_path / "out").outcome == said
