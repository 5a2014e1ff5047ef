"""Every shipped configuration is accepted by its command and describes its purpose."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from rrm_lm.cli.main import main
from rrm_lm.cli.pipeline import pipeline
from rrm_lm.feedback.reading.files import READERS, data_suffix
from rrm_lm.feedback.reading.tables import HUB_NAME
from rrm_lm.runs import recurse as recurse_run

ROOT = Path(__file__).parents[2]
EVERY = sorted((ROOT / "configs").glob("*.yaml"))
PIPELINES = [path for path in EVERY if path.stem in ("asked", "demo", "notes")]  # a section for each command
TREES = [path for path in EVERY if path.stem.startswith("chip")]
CONFIGS = [path for path in EVERY if path not in (*PIPELINES, *TREES)]
SCRIPTS = {
    "scripts/train_reward.py": "reward",
    "scripts/train_sft.py": "sft",
    "scripts/train_policy.py": "policy",
    "scripts/evaluate.py": "evaluate",
    "scripts/score.py": "score",
}
# What commands start once their settings are read.
RUNS = ("reward.train_reward_model", "sft.fine_tune", "policy.train_policy")

every_file = pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def head(path: Path) -> list[str]:
    """The comment lines at the start of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line[1:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


def commands(path: Path) -> list[list[str]]:
    """The commands in those lines, each as the arguments of `rrm-lm`."""
    found = []
    for words in (shlex.split(line) for line in head(path) if line.startswith("   ")):
        if words[0] == "rrm-lm":
            found.append(words[1:])
        else:
            assert words[:2] == ["accelerate", "launch"], words
            found.append([SCRIPTS[words[2]], *words[3:]])
    return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the runs that would start in the project's folder, with their settings, instead of starting them."""
    started: list[Any] = []
    for name in RUNS:
        monkeypatch.setattr(f"rrm_lm.runs.{name}", lambda *settings: started.append(settings))
    monkeypatch.chdir(ROOT)
    return started


def test_promised_configurations_exist() -> None:
    promised = {
        "asked",
        "chip",
        "chip_quick",
        "demo",
        "hh",
        "hh_policy",
        "policy",
        "reward",
        "ultrafeedback",
        "helpsteer3",
        "notes",
        "sft",
    }
    assert promised <= {path.stem for path in EVERY}


@every_file
def test_first_lines_describe_the_configuration(path: Path) -> None:
    text = "\n".join(head(path))
    assert len(head(path)[0]) > 40
    assert re.search(r"\b(minutes?|hours?|days?)\b", text), "how long does it take?"
    assert re.search(r"\b(GPUs?|CPU cores)\b", text), "on what?"
    assert commands(path)
    assert all(["--config", f"configs/{path.name}"] == words[1:3] for words in commands(path))


@every_config
def test_its_commands_start_a_run_with_its_settings(path: Path, runs: list[Any]) -> None:
    for words in commands(path):
        assert main(words) == 0
        (run,) = runs
        runs.clear()
        settings = {key: value for part in run for key, value in vars(part).items()}
        overridden = {word[2:].replace("-", "_") for word in words[3:] if word.startswith("--")}
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            assert key in overridden or settings[key] == value, key
        for flag, value in pairwise(words):
            if flag.startswith("--") and flag != "--config":
                found = settings[flag[2:]]
                assert value in found if isinstance(found, list) else str(found) == value


@every_config
def test_files_named_in_configurations_exist_or_are_hub_sets(path: Path) -> None:
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    kinds = ("dataset_name", "eval_dataset_name", "prompts", "eval_prompts")
    names = [name for kind in kinds for name in settings.get(kind, [])]
    assert names
    for name in names:
        local = data_suffix(Path(name)) in READERS
        assert (ROOT / name).is_file() if local else HUB_NAME.fullmatch(name), name


@every_config
def test_an_unknown_key_in_it_names_the_nearest(
    path: Path, tmp_path: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text(encoding="utf-8")
    wrong = tmp_path / path.name
    wrong.write_text(text.replace("\nlearning_rate:", "\nlearnin_rate:"), encoding="utf-8")
    line = text[: text.index("\nlearning_rate:")].count("\n") + 2
    assert main([commands(path)[0][0], "--config", str(wrong)]) == 2
    message = capsys.readouterr().err
    assert f"There is no setting `learnin_rate` in line {line} (did you mean `learning_rate`?)" in message
    assert f"where: {wrong}" in message
    assert not runs


@every_config
def test_word_in_place_of_a_number_is_reported_with_its_line(
    path: Path, tmp_path: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    text = re.sub(r"\nmax_length: \d+", "\nmax_length: long", path.read_text(encoding="utf-8"))
    wrong = tmp_path / path.name
    wrong.write_text(text, encoding="utf-8")
    assert main([commands(path)[0][0], "--config", str(wrong)]) == 2
    line = text[: text.index("\nmax_length:")].count("\n") + 2
    assert f"where: {wrong}, line {line}" in capsys.readouterr().err
    assert not runs


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_section_of_a_pipeline_is_one_that_its_command_accepts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pipeline.Pipeline, "run", lambda self: self._check() or planned.append(self) or 0)
    for words in commands(path):
        assert main(words) == 0
        if path.stem != "asked":  # whose feedback people give
            assert main([*words, "--rounds", "2"]) == 0
    names = [stage.name for stage in planned[1].stages]
    first = (
        ["sft", "reward"] if path.stem == "demo" else ["reward", "sft"]
    )  # the demo's reward model starts from the policy
    assert [name for name in names if name != "reward_first"] == [
        *first, "policy", *["collect-2", "reward-2", "policy-2"] * (path.stem != "asked"), "compare",
    ]  # fmt: skip
    assert ("reward_first" in names) == (path.stem == "notes")


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_every_tree_is_one_that_its_command_accepts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(recurse_run.RecurseRun, "run", lambda self: read.append(self))
    for words in commands(path):
        assert main(words) == 0
    nodes = yaml.safe_load(path.read_text(encoding="utf-8"))["tree"]
    assert {node.name for node in read[0].tree.walk()} == set(nodes)
    assert read[0].tree.settings.questions == nodes["design"]["questions"]
