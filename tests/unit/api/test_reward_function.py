"""`rrm_lm.reward_function` gives the rewards of `RewardModel.score` in the calls of TRL, verl and OpenRLHF."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI, Request, Response
from transformers import AutoTokenizer

import rrm_lm
from rrm_lm.errors import DataError, ModelError
from rrm_lm.serving.app import create_app
from rrm_lm.serving.models import load_models
from rrm_lm.settings.serving import ServeArguments
from tests.unit.serving.conftest import served

USER = [{"role": "user", "content": "who?"}]
RENDERED = "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def url(reward_folder: Path) -> Iterator[str]:
    args = ServeArguments(model=[str(reward_folder)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        with served(create_app(load_models(args), args, "sesame")) as address:
            yield address


@pytest.fixture(params=["folder", "server"])
def function(request: Any, reward_folder: Path, url: str) -> Any:
    if request.param == "folder":
        return rrm_lm.reward_function(reward_folder)
    return rrm_lm.reward_function(url, token="sesame")


@pytest.fixture
def expected(reward_folder: Path) -> list[float]:
    return rrm_lm.RewardModel.from_pretrained(reward_folder).score("who?", ["yes", "no"]).tolist()  # type: ignore[union-attr]


def close(found: Any) -> Any:
    return pytest.approx(found, abs=1e-4)


def test_trl_with_texts_messages_and_rendered_prompts(function: Any, expected: list[float]) -> None:
    """Called as by TRL 1.16.0, trl/trainer/grpo_trainer.py, `_calculate_rewards`."""
    said = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    more = {"completion_ids": [[1], [2]], "trainer_state": None, "answer": ["", ""]}
    assert function(prompts=[USER, USER], completions=said, **more) == close(expected)
    assert function(prompts=["who?", "who?"], completions=["yes", "no"], **more) == close(expected)
    assert function(prompts=[RENDERED, RENDERED], completions=["yes", "no<|im_end|>"], **more) == close(expected)
    assert function.__name__
    found = asyncio.run(function.asynchronous(prompts=[USER, USER], completions=said, **more))
    assert found == close(expected) and inspect.iscoroutinefunction(function.asynchronous)


def test_trl_with_tool_calls(function: Any, reward_folder: Path) -> None:
    call = {"role": "assistant", "content": "i look", "reasoning_content": None}
    result = {"role": "tool", "content": "the sea"}
    said = [call, result, {"role": "assistant", "content": "yes"}]
    [found] = function(prompts=[USER], completions=[said], completion_ids=[[1]])
    reward = rrm_lm.RewardModel.from_pretrained(reward_folder)
    assert [found] == close(reward.score([*USER, {"role": "assistant", "content": "i look"}, result], ["yes"]))


def test_an_empty_completion_is_none_for_trl_and_an_error_for_others(function: Any, expected: list[float]) -> None:
    assert function(prompts=["who?", "who?"], completions=["", "no"], completion_ids=[[], []]) == [
        None, close(expected[1]),
    ]  # fmt: skip
    with pytest.raises(DataError, match="is empty"):
        function.reward_func(["who?"], ["who?"], [None])
    with pytest.raises(DataError, match="is empty"):
        function.compute_score(solution_str=" ", extra_info={"question": "who?"})


def test_verl(function: Any, expected: list[float]) -> None:
    """Called as by verl 0.9.1, verl/experimental/reward_loop/reward_manager/naive.py."""
    call = {"data_source": "d", "solution_str": "yes", "ground_truth": None}
    assert function(**call, extra_info={"question": "who?", "num_turns": 2}) == close(expected[0])
    assert function.compute_score(**call, extra_info={"prompt": USER}) == close(expected[0])
    with pytest.raises(DataError, match="no prompt"):
        function(**call, extra_info={"num_turns": 2})


def test_verl_with_the_reward_router(reward_folder: Path, url: str, expected: list[float]) -> None:
    function = rrm_lm.reward_function(None)
    router = {
        "reward_router_address": url.removeprefix("http://").replace("127", "any:sesame@127", 1) + "/verl",
        "reward_model_tokenizer": AutoTokenizer.from_pretrained(reward_folder),
    }
    call = {"data_source": "d", "solution_str": "yes", "ground_truth": None, "extra_info": {"prompt": USER}}
    assert function(**call, **router) == close(expected[0])
    with pytest.raises(ModelError, match="no model and no reward router"):
        function(**call)


def test_openrlhf(function: Any, expected: list[float]) -> None:
    """Called as by OpenRLHF 0.11.2, openrlhf/utils/agent.py, `_fetch_rewards_via_func`."""
    found = function([RENDERED + "yes<|im_end|>", "who?no<|im_end|>"], [RENDERED, "who?"], [None, None])
    assert set(found) == {"rewards", "scores", "extra_logs"}
    assert isinstance(found["rewards"], torch.Tensor) and found["rewards"].tolist() == close(expected)


def test_a_busy_server_is_waited_for_and_a_missing_one_is_an_error() -> None:
    app, seen = FastAPI(), []

    @app.post("/v1/rewards")
    async def rewards(request: Request) -> Any:
        seen.append((await request.json())["items"])
        if len(seen) < 3:
            return Response("{}", 429, {"retry-after": "0.01"})
        return {"items": [{"responses": [{"reward": 1.5}]} for _ in seen[-1]]}

    with served(app) as url:
        assert rrm_lm.reward_function(url)(prompts=["a"], completions=["b"], completion_ids=[[1]]) == [1.5]
        assert len(seen) == 3
        with pytest.raises(ModelError, match="status 404"):
            rrm_lm.reward_function(f"{url}/other")(prompts=["a"], completions=["b"], completion_ids=[[1]])
    with pytest.raises(ModelError, match="does not answer"):
        rrm_lm.reward_function("http://127.0.0.1:9")(prompts=["a"], completions=["b"], completion_ids=[[1]])


def test_a_language_model_is_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match="only used as a judge"):
        rrm_lm.reward_function(tiny)
