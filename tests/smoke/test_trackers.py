"""`report_to: [tensorboard, trackio]`: what each tracker gets from every kind of training.

Neither package is needed: stand-ins with their calls, as Hugging Face's callbacks make them, keep what they are sent.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers.integrations import integration_utils

from tests.smoke.commands import run, train
from tests.smoke.policies import HELD_OUT, teach, write_prompts


def both(folder: Path) -> tuple[object, ...]:
    """Flags for both trackers and a log at every step."""
    (folder / "trackers.yaml").write_text("report_to: [tensorboard, trackio]\nlogging_steps: 1\n", encoding="utf-8")
    return "--config", folder / "trackers.yaml"


@dataclass
class Sent:
    """What a tracker was sent: numbers and texts by name, each with its step."""

    numbers: dict[str, dict[int, float]] = field(default_factory=dict)
    tables: dict[str, dict[int, Any]] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)  # "begin" and "end"

    def number(self, name: str, value: float, step: int) -> None:
        assert self.runs[-1:] == ["begin"], f"{name} comes after the end"
        self.numbers.setdefault(name, {})[step] = value

    def table(self, name: str, value: Any, step: int) -> None:
        assert self.runs[-1:] == ["begin"], f"{name} comes after the end"
        self.tables.setdefault(name, {})[step] = value


class Table:
    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        self.columns, self.data = columns, data


def tensorboard(sent: Sent) -> Any:
    """A stand-in for `SummaryWriter`."""

    class SummaryWriter:
        def __init__(self, log_dir: str | None = None) -> None:
            sent.runs.append("begin")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            sent.number(name, value, step)

        def add_text(self, name: str, text: str, step: int = 0) -> None:
            sent.table(name, text, step)

        def flush(self) -> None: ...

        def close(self) -> None:
            sent.runs.append("end")

    return SummaryWriter


def trackio(sent: Sent) -> ModuleType:
    """A stand-in for the package."""

    def log(values: dict[str, Any]) -> None:
        step = values["train/global_step"]
        for name, value in values.items():
            if isinstance(value, Table):
                sent.table(name, value, step)
            else:
                sent.number(name, value, step)

    class Settings(dict[str, Any]):
        def update(self, values: Any, allow_val_change: bool) -> None: ...  # type: ignore[override]

    module: Any = ModuleType("trackio")
    module.init = lambda **_: sent.runs.append("begin")
    module.finish = lambda: sent.runs.append("end")
    module.log, module.Table, module.config = log, Table, Settings()
    module.context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
    return module


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """What TensorBoard and Trackio were sent."""
    found = [Sent(), Sent()]
    writer = ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = tensorboard(found[0])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    monkeypatch.setitem(sys.modules, "trackio", trackio(found[1]))
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    return found


def test_a_reward_model(tiny: Path, pairs: Path, tmp_path: Path, sent: list[Sent], capsys: Any) -> None:
    words = ("--eval_fraction", 0.3, "--eval_strategy", "steps", "--eval_steps", 1, *both(tmp_path))
    result = train(capsys, tiny, pairs, tmp_path / "out", *words)
    assert result.code == 0, result.err
    for one in sent:
        assert one.runs == ["begin", "end"]
        for name in ("loss", "loss_pairs", "loss_critiques", "accuracy", "margin", "tokens_per_second"):
            assert set(one.numbers[f"train/{name}"]) == {1, 2, 3}, name
        assert set(one.numbers["eval/accuracy"]) == {1, 2, 3}  # held out
        assert all(value > 0 for value in one.numbers["train/tokens_per_second"].values())


def test_a_policy(tiny: Path, tmp_path: Path, sent: list[Sent], capsys: Any) -> None:
    prompts = write_prompts(tmp_path)
    functions = prompts.parent / "rewards.py"
    watched = ("--gold", f"{functions}:gold", "--eval_prompts", prompts.parent / "heldout.jsonl", "--monitor_steps", 2)
    rewards = ("--reward_function", f"{functions}:counting", f"{functions}:short")
    result = teach(capsys, tiny, prompts, tmp_path / "out", *rewards, *watched, *both(tmp_path))
    assert result.code == 0, result.err
    for one in sent:
        assert one.runs == ["begin", "end"]
        trained = ("objective/kl", "reward/counting", "reward/short", "loss/policy_avg", "loss/value_avg")
        for name in (*trained, "tokens_per_second"):
            assert set(one.numbers[f"train/{name}"]) == {1, 2, 3}, name
        assert set(one.numbers["train/held_out/gold"]) == {0, 2, 3} == set(one.numbers["train/held_out/kl"])
        assert set(one.tables["held_out/samples"]) == {0, 2, 3}
    text, table = (one.tables["held_out/samples"][3] for one in sent)
    assert table.columns == ["prompt", "response", "gold", "sum of rewards", "KL"]
    assert [row[0] for row in table.data] == HELD_OUT
    assert text.splitlines()[:2] == ["| " + " | ".join(table.columns) + " |", "| --- | --- | --- | --- | --- |"]
    assert text.splitlines()[2].startswith(f"| {HELD_OUT[0]} | ")


def test_fine_tuning(tiny: Path, pairs: Path, tmp_path: Path, sent: list[Sent], capsys: Any) -> None:
    names = ("--model_name_or_path", tiny, "--dataset_name", pairs, "--output_dir", tmp_path / "out")
    quick = ("--max_steps", 2, "--save_strategy", "no", "--dtype", "float32", "--use_cpu", "true", "--max_length", 160)
    result = run(capsys, "sft", *names, "--sft_on", "chosen", *quick, *both(tmp_path))
    assert result.code == 0, result.err
    for one in sent:
        assert one.runs == ["begin", "end"]
        assert all(value > 0 for value in one.numbers["train/tokens_per_second"].values())
        assert set(one.numbers["train/loss"]) == {1, 2} == set(one.numbers["train/tokens_per_second"])
