"""A reward ensemble through the commands: trained, merged, evaluated and scored, with its standard deviation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.commands import adapter, read, read_rows, rewards_of, run, train, write_rows
from tests.smoke.policies import teach, updates, write_prompts


@pytest.mark.timeout(240)
def test_an_ensemble_is_trained_saved_and_scored(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "ensemble"
    how = ("--ensemble_heads", 3, "--ensemble", "mean_minus_std", "--ensemble_k", 0.5)
    made = train(capsys, tiny, pairs, out, *how, "--merge", "true", "--logging_steps", 1)
    assert made.code == 0, made.err
    assert adapter(out)["base_model.model.score.weight"].shape[0] == 3
    settings = read(out / "reward_model.json")
    assert (settings["ensemble_heads"], settings["ensemble"], settings["ensemble_k"]) == (3, "mean_minus_std", 0.5)
    assert all(row["std_chosen"] > 0 and row["std_rejected"] > 0 for row in read_rows(out / "scores.jsonl"))
    assert "num_labels=3" in (out / "README.md").read_text()
    state = json.loads((out / "trainer_state.json").read_text())
    assert all(entry["disagreement"] > 0 for entry in state["log_history"] if "loss_pairs" in entry)
    assert "ensemble_heads" not in read(out / "merged" / "reward_model.json")

    found: dict[str, list[dict[str, Any]]] = {}
    data = write_rows(
        tmp_path / "responses.jsonl", [{"prompt": "the sea?", "completion": f"blue {n}"} for n in range(4)]
    )
    for name, more in {
        "saved": (),
        "mean": ("--ensemble", "mean"),
        "min": ("--ensemble", "min"),
        "less": ("--ensemble_k", 2),
    }.items():
        file = tmp_path / f"{name}.jsonl"
        done = run(
            capsys, "score", "--model", out, "--dataset", data, "--output_file", file, "--dtype", "float32", *more
        )
        assert done.code == 0, done.err
        found[name] = read_rows(file)
    merged = tmp_path / "merged.jsonl"
    done = run(capsys, "score", "--model", out / "merged", "--dataset", data, "--output_file", merged)
    assert done.code == 0, done.err
    for saved, mean, least, less, plain in zip(*found.values(), read_rows(merged), strict=True):
        std = mean["std"]
        assert std > 0 and saved["std"] == least["std"] == pytest.approx(std)
        assert saved["reward"] == pytest.approx(mean["reward"] - 0.5 * std, abs=1e-6)
        assert less["reward"] == pytest.approx(mean["reward"] - 2.0 * std, abs=1e-6)
        # Of three numbers the least lies between sqrt(1/2) and sqrt(2) standard deviations below the mean.
        assert (
            mean["reward"] - math.sqrt(2) * std - 1e-6
            <= least["reward"]
            <= mean["reward"] - math.sqrt(0.5) * std + 1e-6
        )
        assert plain["reward"] == pytest.approx(mean["reward"], abs=1e-3) and "std" not in plain


@pytest.mark.timeout(240)
def test_policy_reward_uses_the_chosen_combination_of_the_ensemble(
    tiny: Path, pairs: Path, tmp_path: Path, capsys: Any
) -> None:
    """The same first episodes with the mean of three heads, their minimum, and their mean minus standard deviation."""
    out = tmp_path / "ensemble"
    assert train(capsys, tiny, pairs, out, "--ensemble_heads", 3, "--max_steps", 2).code == 0
    prompts = write_prompts(tmp_path)
    first: list[dict[str, Any]] = []
    for how in (("mean",), ("min",), ("mean_minus_std", "--ensemble_k", 2)):
        folder = tmp_path / how[0]
        done = teach(capsys, tiny, prompts, folder, "--reward_model", out, "--max_steps", 1, "--ensemble", *how)
        assert done.code == 0, done.err
        first.append(updates(folder)[0])
    mean, least, less = (entry["objective/scores"] for entry in first)
    disagreement = first[0]["disagreement/ensemble"]
    assert disagreement > 0 and {entry["disagreement/ensemble"] for entry in first} == {disagreement}
    assert least < mean and less == pytest.approx(mean - 2 * disagreement, abs=1e-4)


def test_single_head_output_does_not_mention_ensembles(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    made = train(capsys, tiny, pairs, tmp_path / "one", "--max_steps", 1)
    assert made.code == 0, made.err
    assert not any(name.startswith("ensemble") for name in read(tmp_path / "one" / "reward_model.json"))
    assert not any(name.startswith("std") for row in read_rows(tmp_path / "one" / "scores.jsonl") for name in row)
    assert "num_labels=1" in (tmp_path / "one" / "README.md").read_text()
    assert len(rewards_of(tmp_path / "one"))


def test_invalid_ensemble_settings(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    wrong = train(capsys, tiny, pairs, tmp_path / "wrong", "--ensemble_heads", 0)
    assert wrong.code == 2 and wrong.error["error"] == "ensemble_heads is 0"
    wrong = train(capsys, tiny, pairs, tmp_path / "wrong", "--ensemble", "median")
    assert wrong.code == 2 and "mean, min, mean_minus_std" in wrong.error["expected"]
    assert not (tmp_path / "wrong").exists()
