"""How users' reward functions are called: TRL's names, ours, columns, async, None, and the trial call."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.api.data.rows import read_prompts
from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.evaluation.policies.gold import CheckedFunction, Gold
from rrm_lm.evaluation.policies.samples import drawn_text, rewards_of_drawn
from rrm_lm.feedback.reading.prompts import prompt_sources
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.training.reward_functions import UserFunction
from rrm_lm.training.reward_sources import PythonReward, RewardSum
from tests.tiny import tiny_chat

MOON, SEA = (Message("user", "the moon?"),), (Message("user", "the sea?"),)
TEXT = {MOON: {"prompt": "the moon?", "answer": "blue", "level": 1}, SEA: {"prompt": "the sea?", "answer": "wet"}}
TALK = {MOON: {"prompt": [{"role": "user", "content": "the moon?"}], "answer": "blue"}}
CALL = ([MOON, SEA], ["is blue", "no"], [[5, 6], [7]])
CHAT = tiny_chat()
LINES = [CHAT.sampled_line(CHAT.prompt_ids(prompt), [5, CHAT.end_id]) for prompt in (MOON, SEA)]


def seen_by(function: Callable[..., Any], rows: Any = TEXT) -> Any:
    return UserFunction(function, rows)(*CALL)


def test_trls_names_give_strings_for_plain_prompts() -> None:
    """https://github.com/huggingface/trl/issues/2644"""

    def swapped(completions: Any, prompts: Any, **kwargs: Any) -> Any:
        return completions, prompts, kwargs

    completions, prompts, more = seen_by(swapped)
    assert completions == ["is blue", "no"] and prompts == ["the moon?", "the sea?"]
    assert more == {"answer": ["blue", "wet"], "level": [1, None], "completion_ids": [[5, 6], [7]]}


def test_trls_names_give_messages_for_conversations() -> None:
    """https://github.com/huggingface/trl/issues/4939: one conversation makes all of them conversations, as in TRL."""
    system = (Message("tools", "[]"), Message("system", "Be brief."), *MOON)
    for rows in (TALK, {system: {"prompt": "the moon?", "system": "Be brief."}}, None):
        prompts, completions = UserFunction(lambda prompts, completions: (prompts, completions), rows)(
            [system, SEA], ["is blue", "no"], [[], []]
        )
        roles = [[message["role"] for message in prompt] for prompt in prompts]
        assert roles == [["system", "user"], ["user"]] and prompts[1] == [{"role": "user", "content": "the sea?"}]
        assert completions == [[{"role": "assistant", "content": text}] for text in ("is blue", "no")]


def test_only_what_is_named_is_passed() -> None:
    assert seen_by(lambda completions: completions) == ["is blue", "no"]
    assert seen_by(lambda completions, answer: answer) == ["blue", "wet"]
    assert seen_by(lambda answer, *, completion_ids: (completion_ids, answer)) == ([[5, 6], [7]], ["blue", "wet"])
    assert set(seen_by(lambda **kwargs: kwargs)) == {"prompts", "completions", "completion_ids", "answer", "level"}
    assert seen_by(lambda completions, scale=2: scale) == 2


class Counter:
    def __call__(self, prompts: Any, responses: Any) -> Any:
        return prompts, responses


def test_this_projects_own_names_give_prompts_and_strings() -> None:
    ours = ([MOON, SEA], ["is blue", "no"])
    assert seen_by(lambda prompts, responses: (prompts, responses)) == ours
    assert seen_by(lambda responses, prompts: (prompts, responses)) == ours  # by name
    assert seen_by(lambda _, responses: responses) == ours[1]
    assert seen_by(lambda prompts, texts, scale=1.0: (prompts, texts)) == ours
    assert seen_by(lambda *both: both) == ours
    assert seen_by(Counter()) == ours
    assert seen_by(lambda prompts, responses, answer: answer) == ["blue", "wet"]
    assert seen_by(lambda prompts, responses, **kwargs: sorted(kwargs)) == ["answer", "completion_ids", "level"]


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (lambda answers, prompts: 0, "answers"),  # swapped, and by place
        (lambda texts, questions: 0, "texts"),
        (lambda x: 0, "x"),
        (lambda prompts, completions, solution, **kwargs: 0, "solution"),
        (lambda prompts, answer: 0, "answer"),  # the responses, or the column
    ],
)
def test_parameters_that_could_mean_something_else_are_refused(function: Any, parameter: str) -> None:
    with pytest.raises(ConfigError, match=f"not clear what the parameter `{parameter}`.*columns of .*answer, level"):
        UserFunction(function, TEXT)


def test_async_functions_are_awaited_in_one_loop() -> None:
    loops = []

    async def judge(completions: Any, **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return [float(len(text)) for text in completions]

    reward = UserFunction(judge, TEXT)

    async def notebook() -> Any:
        return reward(*CALL)

    assert reward(*CALL) == asyncio.run(notebook()) == [7.0, 2.0]
    assert loops[0] is loops[1]


def test_none_leaves_a_reward_out_of_the_sum() -> None:
    math_only = PythonReward(lambda completions: [1.0, None], "math", TEXT)
    total = RewardSum([math_only, PythonReward(lambda completions: [0.5, 3.0], "style", TEXT)], [2.0, 1.0])
    found = total(*CALL[:2], LINES)
    assert math.isnan(found["math"][1]) and total.total(found) == [2.5, 3.0]
    with pytest.raises(
        TrainingError, match=r"The reward math gave None, and no other reward applies.*'no' to 'the sea"
    ):
        RewardSum([math_only])(*CALL[:2], LINES)
    assert math.isnan(RewardSum([math_only], is_part=True)(*CALL[:2], LINES)["math"][1])


def test_the_sum_passes_the_sampled_tokens() -> None:
    found = RewardSum([PythonReward(lambda completion_ids: [len(ids) for ids in completion_ids], "tokens")])
    assert found(*CALL[:2], LINES) == {"tokens": [2.0, 2.0]}


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda completions, **kwargs: kwargs["solution"], "raised KeyError: 'solution'"),
        (lambda completions, **kwargs: [1.0], "gave 1 rewards for 3 responses"),
        (lambda completions, **kwargs: 1.0, "gave 1.0 for 3 responses"),
        (lambda completions, **kwargs: ["good"] * len(completions), "gave 'good'"),
    ],
)
def test_the_trial_call_finds_what_cannot_be_used(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=f"mine fails on a trial call before training.*{says}.*def f\\(prompts, comp"):
        PythonReward(function, "mine", TEXT).try_on([MOON])


def test_the_trial_call_accepts_none_and_one_prompt() -> None:
    PythonReward(lambda completions, **kwargs: [None] * len(completions), "mine", TEXT).try_on([MOON])


def test_gold_functions_are_called_in_the_same_way() -> None:
    def gold(completions: Any, completion_ids: Any, answer: Any) -> Any:
        right = [text.endswith(wanted) for text, wanted in zip(completions, answer, strict=True)]
        return [len(ids) if ok else None for ok, ids in zip(right, completion_ids, strict=True)]

    function = Gold(CheckedFunction(PythonReward(gold, rows=TEXT)))
    function.try_on([MOON])
    drawn = [[drawn_text(CHAT, prompt, "is blue")] for prompt in (MOON, SEA)]
    (first,), (second,) = rewards_of_drawn(function, [MOON, SEA], drawn)
    assert first == len(CHAT.tokenizer.encode("is blue", add_special_tokens=False)) + 1 and math.isnan(second)
    with pytest.raises(ConfigError, match="trial call"):
        Gold(CheckedFunction(PythonReward(lambda completions: 1.0, rows=TEXT))).try_on([MOON])


# -- the rows of prompts --------------------------------------------------------------------------------------------


def test_rows_of_a_file_keep_every_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "the moon?", "solution": 3}, {"prompt": "the sea?"}, {"prompt": "the moon?", "solution": 4}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows: dict[Prompt, Any] = {}
    assert list(prompt_sources([str(file)], rows=rows)) == [MOON, SEA]
    assert rows[MOON]["solution"] == 3 and rows[SEA] == {"prompt": "the sea?"}
    assert "1 rows repeat the prompt of another row with other columns" in caplog.text


def test_rows_of_feedback_keep_every_column(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "the moon?", "chosen": "blue", "rejected": "no", "solution": 3}) + "\n")
    rows: dict[Prompt, Any] = {}
    assert list(prompt_sources([str(file)], rows=rows)) == [MOON] and rows[MOON]["solution"] == 3


def test_rows_in_memory_keep_every_column() -> None:
    for given, text in (
        (["the moon?"], True),
        ([{"prompt": "the moon?"}], True),
        ([{"prompt": "the moon?", "solution": 3}], True),
        ([[{"role": "user", "content": "the moon?"}]], False),
    ):
        rows: dict[Prompt, Any] = {}
        assert read_prompts(given, rows=rows) == [MOON]
        (prompts, _, more) = UserFunction(lambda prompts, completions, **more: (prompts, completions, more), rows)(
            [MOON], ["yes"], [[1]]
        )
        assert prompts == ["the moon?"] if text else prompts == [[{"role": "user", "content": "the moon?"}]]
        assert more.get("solution", [3]) == [3]
