"""Gold rewards: the simulated user of a file of requests, and functions that people name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.policies.gold import CheckedFunction, Gold, rewards_by
from rrm_lm.runs.gold import load_gold
from rrm_lm.simulated.plain_user import PlainUser
from rrm_lm.simulated.plain_words import WEIGHTS
from rrm_lm.training.reward_sources import PythonReward
from tests.unit.evaluation.policy_cases import asked
from tests.unit.evaluation.samples import FunctionScorer

EGG = asked("How long should I boil an egg?")


def test_the_simulated_user_judges_its_own_requests(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"topic": "cooking", "request": EGG[0].content, "mentions": ["minutes"]}) + "\n")
    answer = "Eight minutes in boiling water. Enjoy!"
    rewards = load_gold(str(file))([EGG, EGG, asked("Who are you?")], [answer, "", answer])
    assert rewards[0] == PlainUser.from_file(file).gold(EGG, answer) == 1.0
    assert 0 <= rewards[1] < rewards[0] and math.isnan(rewards[2])


def test_the_parts_of_the_simulated_user_sum_up_to_its_gold(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({"topic": "cooking", "request": EGG[0].content, "mentions": ["minutes"]}) + "\n")
    gold = load_gold(str(file))
    texts = ["Xyzzy blorp frob. Enjoy!", "Sure! Some minutes."]
    parts = {name: part([EGG, EGG], texts) for name, part in gold.parts.items()}
    assert list(parts["answer"]) == [0.0, 1.0] and list(parts["close"]) == [1.0, 0.0]
    sums = [sum(WEIGHTS[name] * values[k] for name, values in parts.items()) for k in (0, 1)]
    assert list(gold([EGG, EGG], texts)) == pytest.approx(sums) and sums[0] == pytest.approx(0.65)
    assert math.isnan(gold.parts["answer"]([asked("Who are you?")], ["x"])[0])


def test_a_function_may_name_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(
        "def length(prompts, responses):\n    return [len(text) for text in responses]\n"
        "def gold(prompts, responses):\n    return [1.0 + len(text) for text in responses]\n"
        "gold.parts = {'length': length, 'broken': lambda prompts, responses: []}\n"
    )
    gold = load_gold(f"{file}:gold")
    assert gold([EGG], ["ab"]) == [3.0] and gold.parts["length"]([EGG], ["ab"]) == [2.0]
    with pytest.raises(DataError, match="returned 0 rewards"):
        gold.parts["broken"]([EGG], ["ab"])


def test_a_function_in_a_file_or_a_module(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text("def shorter(prompts, responses):\n    return [-len(text) for text in responses]\n")
    assert load_gold(f"{file}:shorter")([EGG, EGG], ["ab", "abc"]) == [-2.0, -3.0]
    assert load_gold("tests.unit.evaluation.policy_cases:reward_of_length")([EGG], ["abc"]) == [3.0]
    with pytest.raises(ConfigError, match="no function 'longer'"):
        load_gold(f"{file}:longer")


@pytest.mark.parametrize("name", ["gold", "no_such_file.jsonl"])
def test_names_that_are_neither_a_file_nor_a_function(name: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no gold reward .* module:function"):
        load_gold(name)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, responses: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda prompts, responses: [1.0], "returned 1 rewards for 2 responses"),
        (lambda prompts, responses: ["good", "bad"], "could not convert string to float"),
        (lambda prompts, responses: None, "not iterable"),
    ],
)
def test_faults_say_what_the_function_was_given(function, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        CheckedFunction(PythonReward(function, "mine:gold"))([EGG, EGG], ["the offending text", "another"])
    assert "the offending text" in caught.value.where and "mine:gold" in caught.value.where


def test_a_scorer_is_asked_once_for_equal_responses() -> None:
    scorer = FunctionScorer(lambda _, response: float(len(response)))
    other = asked("And rice?")
    rewards = rewards_by(scorer)([EGG, other, EGG, EGG], ["aa", "b", "aa", "ccc"])
    assert rewards == [2.0, 1.0, 2.0, 3.0]
    assert sorted(scorer.calls[0]) == [("And rice?", ("b",)), (EGG[0].content, ("aa", "ccc"))]


def test_the_part_with_the_largest_weighted_gain_decides() -> None:
    def part(word: str):
        return lambda prompts, responses: [math.nan if "?" in r else float(r.count(word)) for r in responses]

    gold = Gold(part("a"), {"a": part("a"), "b": part("b")}, {"b": 0.4})
    chosen, rejected = ["a", "bb", "abb", "abbb", "c", "b?", "ab"], ["c", "c", "c", "c", "a", "c", "aac"]
    assert gold.deciding([()] * 7, chosen, rejected) == ["a", "b", "a", "b", "", "", "b"]
