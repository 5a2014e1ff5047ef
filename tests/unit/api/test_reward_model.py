"""`rrm_lm.RewardModel` and `rrm_lm.evaluate`: the rewards and numbers that the commands give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import rrm_lm
from rrm_lm.cli.main import main
from rrm_lm.errors import DataError, ModelError
from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.feedback.records import Message
from rrm_lm.models.reward_files import merge_reward_model
from rrm_lm.storage import write_jsonl
from tests.smoke.commands import pair_rows
from tests.tiny import prompt_of, some_comparisons, tiny_tokenizer

PROMPT = "what is the moon made of?"
RESPONSES = ["the answer is yes", "no i do not know the answer sorry", "yes"]


@pytest.fixture(scope="module")
def reward(reward_folder: Path) -> rrm_lm.RewardModel:
    return rrm_lm.RewardModel.from_pretrained(reward_folder, dtype="float32")


def test_one_prompt_gives_an_array(reward: rrm_lm.RewardModel, reward_folder: Path) -> None:
    found: Any = reward.score(PROMPT, RESPONSES)
    assert isinstance(found, np.ndarray) and found.shape == (3,) and found.dtype == np.float64
    [expected] = load_scorer(str(reward_folder), dtype="float32").score([prompt_of(PROMPT)], [RESPONSES])
    assert found.tolist() == expected and len(set(expected)) == 3


def test_messages_and_a_list_of_prompts_are_taken(reward: rrm_lm.RewardModel) -> None:
    talk = [
        {"role": "user", "content": "who lives?"},
        {"role": "assistant", "content": "the sea"},
        {"role": "user", "content": "no"},
    ]
    alone: Any = [reward.score(PROMPT, RESPONSES), reward.score(talk, RESPONSES[:2]), reward.score(PROMPT, ["no"])]
    together: Any = reward.score([PROMPT, talk, PROMPT], [RESPONSES, RESPONSES[:2], ["no"]])
    assert [len(one) for one in together] == [3, 2, 1]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(reward.score([Message("user", PROMPT)], RESPONSES), alone[0])


def test_a_response_without_text_and_the_same_response_twice(reward: rrm_lm.RewardModel) -> None:
    found: Any = reward.score(PROMPT, ["yes", "", "yes"])
    assert found[0] == found[2] and np.isnan(found[1])


def test_a_prompt_without_responses_has_no_rewards(reward: rrm_lm.RewardModel) -> None:
    several: Any = reward.score([PROMPT, "who lives?"], [[], ["yes"]])
    assert [len(one) for one in several] == [0, 1]
    alone: Any = reward.score(PROMPT, [])
    assert alone.shape == (0,)


@pytest.mark.parametrize(
    ("prompts", "responses"), [(PROMPT, "yes"), ([PROMPT, PROMPT], [["yes"]]), ([PROMPT], ["yes"])]
)
def test_other_shapes_are_refused(reward: rrm_lm.RewardModel, prompts: Any, responses: Any) -> None:
    with pytest.raises(DataError, match="a list of texts for one prompt"):
        reward.score(prompts, responses)


def test_a_merged_checkpoint_and_a_saved_copy_give_the_same(
    reward: rrm_lm.RewardModel, reward_folder: Path, tmp_path: Path
) -> None:
    expected: Any = reward.score(PROMPT, RESPONSES)
    merge_reward_model(reward_folder, tmp_path / "merged", tiny_tokenizer())
    merged = rrm_lm.RewardModel.from_pretrained(tmp_path / "merged", dtype="float32")
    np.testing.assert_allclose(merged.score(PROMPT, RESPONSES), expected, atol=1e-4)
    for model, name in ((reward, "adapter"), (merged, "classifier")):
        model.save_pretrained(tmp_path / name)
        again = rrm_lm.RewardModel.from_pretrained(tmp_path / name, dtype="float32")
        np.testing.assert_array_equal(again.score(PROMPT, RESPONSES), model.score(PROMPT, RESPONSES))


def test_a_language_model_is_a_judge(tiny: Path, tmp_path: Path) -> None:
    judge = rrm_lm.RewardModel.from_pretrained(tiny, dtype="float32")
    assert np.isfinite(judge.score(PROMPT, RESPONSES)).all()
    with pytest.raises(ModelError, match="no weights of its own"):
        judge.save_pretrained(tmp_path)


def test_evaluate_gives_the_numbers_of_the_command(reward_folder: Path, tmp_path: Path) -> None:
    rows = pair_rows(12)
    file = tmp_path / "pairs.jsonl"
    write_jsonl(file, rows)
    out = tmp_path / "out"
    words = ["evaluate", "--model", reward_folder, "--dataset", file, "--dtype", "float32", "--output_dir", out]
    assert main([str(word) for word in words]) == 0
    expected = json.loads((out / "results.json").read_text(encoding="utf-8"))
    reward = rrm_lm.RewardModel.from_pretrained(reward_folder, dtype="float32")
    found = rrm_lm.evaluate(reward, str(file), output_dir=tmp_path / "own")
    assert json.loads(json.dumps(found["sets"])) == expected["sets"] and list(found["sets"]) == ["pairs"]
    assert json.loads((tmp_path / "own" / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    for data in (rows, Dataset.from_list(rows), some_comparisons(12)):
        [numbers] = reward.evaluate(data)["sets"].values()
        assert numbers["accuracy"] == found["sets"]["pairs"]["accuracy"]


def test_evaluate_without_comparisons_is_refused(reward: rrm_lm.RewardModel) -> None:
    with pytest.raises(DataError, match="no comparisons"):
        reward.evaluate([{"prompt": "who?", "response": "the sea", "critique": "short"}])
