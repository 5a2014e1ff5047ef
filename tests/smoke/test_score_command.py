"""`rrm-lm score`: a reward for each response of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.smoke.commands import read_rows, run, write_rows
from tests.smoke.conftest import TrainedReward
from tests.tiny import save_tiny_model


def scored(capture: Any, model: Path, data: Path, *more: object) -> list[dict[str, Any]]:
    """The rows that the command prints; stdout must contain nothing else."""
    result = run(capture, "score", "--model", model, "--dataset", data, "--dtype", "float32", *more)
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_prompts_with_completions(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "who?"},
    ]
    data = write_rows(
        tmp_path / "responses.jsonl",
        [
            {"prompt": "what is blue?", "completion": "the sea"},
            {"prompt": talk, "completion": [{"role": "assistant", "content": "no one"}]},
            {"prompt": "what is blue?", "completion": "the moon"},
            {"prompt": "what is blue?", "completion": "the sea"},  # once more: scored and told once
        ],
    )
    rows = scored(capsys, trained.folder, data)
    assert [(row["prompt"], row["response"], row["origin"]) for row in rows] == [
        ([{"role": "user", "content": "what is blue?"}], "the sea", f"{data}, row 1"),
        ([{"role": "user", "content": "what is blue?"}], "the moon", f"{data}, row 3"),
        (talk, "no one", f"{data}, row 2"),
    ]
    assert len({row["reward"] for row in rows}) == 3


@pytest.mark.parametrize("kind", ["adapter", "merged", "judge"])
def test_the_rewards_are_those_of_the_evaluation(
    kind: str, trained: TrainedReward, tmp_path: Path, capsys: Any
) -> None:
    model = {"adapter": trained.folder, "merged": trained.merged, "judge": trained.model}[kind]
    words = ("--model", model, "--dataset", trained.heldout, "--dtype", "float32", "--output_dir", tmp_path / "out")
    assert run(capsys, "evaluate", *words).code == 0
    rewards = {
        (row["prompt"][-1]["content"], row["response"]): row["reward"] for row in scored(capsys, model, trained.heldout)
    }
    assert len(rewards) == 24
    for given, found in zip(read_rows(trained.heldout), read_rows(tmp_path / "out" / "scores.jsonl"), strict=True):
        assert rewards[given["prompt"], given["chosen"]] == pytest.approx(found["reward_chosen"], abs=1e-5)
        assert rewards[given["prompt"], given["rejected"]] == pytest.approx(found["reward_rejected"], abs=1e-5)


def test_reward_depends_only_on_its_own_text(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    """Also if the prompt must be truncated: other responses do not affect how much of it is kept."""
    prompt = "the sea is blue because the answer is too long " * 12
    responses = ["no", "yes, the sea is blue and the moon is made of what was asked " * 2]
    rows = [{"prompt": prompt, "completion": response} for response in responses]
    together = scored(capsys, trained.folder, write_rows(tmp_path / "all.jsonl", rows))
    for row, expected in zip(rows, together, strict=True):
        (alone,) = scored(capsys, trained.folder, write_rows(tmp_path / "one.jsonl", [row]))
        assert alone["reward"] == pytest.approx(expected["reward"], abs=1e-5)


def test_into_a_file(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    printed = scored(capsys, trained.folder, trained.heldout)
    file = tmp_path / "new" / "rewards.jsonl"
    assert scored(capsys, trained.folder, trained.heldout, "--output_file", file) == []
    assert read_rows(file) == printed
    refused = run(capsys, "score", "--model", tmp_path / "gone", "--dataset", trained.heldout, "--output_file", file)
    assert refused.code == 2
    assert read_rows(file) == printed


def test_columns_and_skipped_rows(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    rows = [{"q": "who?", "a": "the sea"}, {"q": "who?", "a": ""}, {"q": "who?", "a": "no"}]
    data = write_rows(tmp_path / "q.jsonl", rows)
    columns = ("--columns", "q=prompt", "a=completion")
    result = run(capsys, "score", "--model", trained.folder, "--dataset", data, *columns)
    assert result.code == 2 and result.error["where"] == f"{data}, row 2, column 'completion'"
    found = scored(capsys, trained.folder, data, *columns, "--skip_bad_rows", "true")
    assert [row["response"] for row in found] == ["the sea", "no"]


def test_a_response_without_a_reward_is_named(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    folder = save_tiny_model(tmp_path / "broken")
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=1, pad_token_id=0)
    torch.nn.init.constant_(model.score.weight, float("inf"))
    model.save_pretrained(str(folder))
    result = run(capsys, "score", "--model", folder, "--dataset", trained.heldout)
    assert result.code == 0
    assert f"warning: 24 of 24 responses got no reward (null), the first in {trained.heldout}, row 1" in result.err
    assert json.loads(result.out.splitlines()[0])["reward"] is None


def test_nothing_to_score(trained: TrainedReward, tmp_path: Path, capsys: Any) -> None:
    data = write_rows(tmp_path / "goals.jsonl", [{"goal_example": "the sea is clean"}])
    result = run(capsys, "score", "--model", trained.folder, "--dataset", data)
    assert result.code == 2
    assert result.error["error"] == "There are no responses to score"
