"""Rewards from everywhere, their sum, and what happens when one is no good."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, RewardScorer
from rrm_lm.feedback.records import Prompt
from rrm_lm.training.reward_sources import (
    ClassifierOnTokens,
    PythonReward,
    RewardSource,
    RewardSum,
    ScorerReward,
    load_function,
)
from tests.precision import Precision
from tests.tiny import tiny_chat, tiny_config, tiny_reward_model
from tests.tiny_policy import CHAT, PROMPTS

RESPONSES = ["the moon is blue", "yes", "no i do not know"]
ASKED: Sequence[Prompt] = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
LINES = [
    CHAT.sampled_line(CHAT.prompt_ids(prompt), [*CHAT.tokenizer(text).input_ids, CHAT.end_id])
    for prompt, text in zip(ASKED, RESPONSES, strict=True)
]


def lengths(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def source(values: Any, name: str = "made") -> RewardSource:
    return PythonReward(lambda prompts, responses: values, name)


def asked(*sources: Any, weights: Sequence[float] | None = None) -> dict[str, list[float]]:
    return RewardSum(sources, weights)(ASKED, RESPONSES, LINES)


def test_a_function_is_given_prompts_and_responses() -> None:
    seen: list[Any] = []

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> torch.Tensor:
        seen.append((list(prompts), list(responses)))
        return torch.tensor([1, 2, 3])

    assert asked(PythonReward(reward)) == {"reward": [1.0, 2.0, 3.0]}
    assert seen == [(list(ASKED), RESPONSES)]


def test_a_weighted_sum_keeps_each_by_itself() -> None:
    total = RewardSum([PythonReward(lengths), source([1.0, 0.0, -1.0])], [0.5, 10.0])
    found = total(ASKED, RESPONSES, LINES)
    assert found == {"lengths": [16.0, 3.0, 16.0], "made": [1.0, 0.0, -1.0]}
    assert total.total(found) == [18.0, 1.5, -2.0]
    assert RewardSum([PythonReward(lengths)]).total({"lengths": [16.0, 3.0, 16.0]}) == [16.0, 3.0, 16.0]


@pytest.mark.parametrize(
    ("sources", "weights", "says"),
    [
        ([], None, "no reward"),
        ([source([1.0]), source([2.0])], None, "called 'made'"),
        ([source([1.0])], [1.0, 2.0], "2 weights for 1"),
    ],
)
def test_sums_that_make_no_sense(sources: Any, weights: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RewardSum(sources, weights)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, None, "good"])
def test_what_is_no_number_stops_with_its_text(wrong: Any) -> None:
    with pytest.raises(TrainingError, match=r"made gave .*'yes' to 'what is the sea made of\?'"):
        asked(source([1.0, wrong, 2.0]))


@pytest.mark.parametrize(
    ("values", "says"),
    [([1.0, 2.0], "gave 2 rewards for 3 responses"), (0.5, "gave 0.5 for 3"), ([], "0 rewards"), (None, "gave None")],
)
def test_another_number_of_rewards_stops(values: Any, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        asked(source(values))


def test_a_function_that_raises_stops_with_the_text_it_raised_at() -> None:
    def strict(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        if "yes" in responses:
            raise ValueError("too short")
        return [0.0] * len(responses)

    with pytest.raises(TrainingError, match=r"strict raised ValueError: too short.*'yes' to"):
        asked(PythonReward(strict))


def test_a_long_text_is_quoted_in_part() -> None:
    with pytest.raises(TrainingError) as caught:
        RewardSum([source([math.nan])])(PROMPTS[:1], ["long " * 1000], LINES[:1])
    assert "long ..." in str(caught.value) and len(str(caught.value)) < 800


def test_a_constant_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    total = RewardSum([source([2.0, 2.0, 2.0])])
    with caplog.at_level(logging.WARNING):
        total(ASKED, RESPONSES, LINES)
        total(ASKED, RESPONSES, LINES)
    assert [record.getMessage() for record in caplog.records] == [
        "the reward made is 2 for each of 3 responses: nothing can be learned from a constant"
    ]


def test_functions_by_module_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def best(prompts, responses):\n    return [len(r) for r in responses]\n")
    assert PythonReward(f"{file}:best").name == "best"
    assert asked(PythonReward(f"{file}:best")) == {"best": [16.0, 3.0, 16.0]}
    assert load_function("tests.tiny_policy:counting").__name__ == "counting"


def test_functions_that_cannot_be_had(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    for spec, says in (
        ("best", "names no function"),
        (f"{tmp_path}/away.py:best", "cannot be loaded"),
        (f"{broken}:best", "ModuleNotFoundError"),
        ("nothing_of_that_name:best", "cannot be loaded"),
        ("math:worst", "no function 'worst'"),
        ("math:pi", "no function 'pi'"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_function(spec)


def test_a_reward_model_of_its_own_scores_text(precision: Precision) -> None:
    scorer = RewardScorer(tiny_reward_model().eval(), tiny_chat(), "folder/other")
    found = asked(ScorerReward(scorer))
    expected = scorer.score(list(ASKED), [[text] for text in RESPONSES])
    precision.close(found["other"], [values[0] for values in expected])


def test_a_response_without_text_gets_the_lowest_reward(caplog: pytest.LogCaptureFixture) -> None:
    reward = ScorerReward(RewardScorer(tiny_reward_model().eval(), tiny_chat(), "other"))
    with caplog.at_level(logging.WARNING):
        found = reward(ASKED, [RESPONSES[0], "", RESPONSES[2]])
        assert reward(ASKED[:2], ["", " "]) == [0.0, 0.0]
    assert found[1] == min(found[0], found[2])
    assert caplog.text.count("without text") == 1


def classifier() -> Any:
    torch.manual_seed(3)
    config = tiny_config("llama")
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def test_a_classifier_on_the_policys_tokens_is_read_at_the_last_one() -> None:
    """The same as a classifier that encodes the text anew, where that gives the same tokens."""
    model = classifier()
    found = asked(ClassifierOnTokens(model, micro_batch_tokens=30))["reward_model"]
    for line, reward in zip(LINES, found, strict=True):
        with torch.no_grad():
            alone = model.score(model.model(input_ids=torch.tensor([line.ids])).last_hidden_state)[0, -1]
        assert reward == pytest.approx(float(alone), abs=1e-5)
    text = ScorerReward(ClassifierScorer(model, CHAT, "text"))
    assert text(ASKED, RESPONSES) == pytest.approx(found, abs=1e-5)


def test_a_classifier_with_an_adapter_is_read_as_the_merged_one() -> None:
    adapted = get_peft_model(classifier(), LoraConfig(task_type="SEQ_CLS", init_lora_weights=False))
    found = asked(ClassifierOnTokens(adapted))["reward_model"]
    merged: Any = adapted.merge_and_unload()
    assert found == pytest.approx(asked(ClassifierOnTokens(merged))["reward_model"], abs=1e-5)
    assert found != pytest.approx(asked(ClassifierOnTokens(classifier()))["reward_model"], abs=1e-5)
