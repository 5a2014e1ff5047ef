"""Every dialect gives the rewards of `rrm_lm.RewardModel`, for every family of chat templates."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

import rrm_lm
from rrm_lm.serving.app import create_app
from rrm_lm.serving.dialects import ALL, Dialect
from rrm_lm.serving.models import load_models
from rrm_lm.settings.serving import ServeArguments
from tests.templates import TEMPLATES
from tests.tiny import prompt_of
from tests.unit.serving.conftest import save_reward

TALKS = [
    (prompt_of("what is the moon made of?"), "the answer is yes"),
    (prompt_of("what is the moon made of?"), "no"),
    (prompt_of("who lives in the sea?", "the moon", "no\n"), " - one\n\nblue "),
]
DIALECTS = [one for group in ALL.values() for one in group]


def scored(reward: rrm_lm.RewardModel, talks: list[Any]) -> list[float]:
    return [float(reward.score(prompt, [response])[0]) for prompt, response in talks]


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward model of a family, its tokenizer, a client of its server, and the rewards of `TALKS`."""
    folder = save_reward(tmp_path_factory.mktemp("family") / "mine", request.param)
    expected = scored(rrm_lm.RewardModel.from_pretrained(folder), TALKS)
    args = ServeArguments(model=[str(folder)])
    with TestClient(create_app(load_models(args), args)) as client:
        yield client, AutoTokenizer.from_pretrained(folder), expected


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.paths[0])
def test_a_dialect_gives_the_rewards_of_score(dialect: Dialect, family: Any) -> None:
    client, tokenizer, expected = family
    reply = client.post(dialect.paths[-1], json=dialect.request(TALKS, tokenizer, "mine"))
    assert reply.status_code == 200, reply.text
    assert dialect.rewards(reply.json()) == pytest.approx(expected, abs=1e-5)


def test_own_dialect_reads_prompts_messages_and_several_responses(
    client: TestClient, reward: rrm_lm.RewardModel
) -> None:
    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the sea"}]
    items = [{"prompt": "who?", "responses": ["yes", "no"]}, {"messages": messages}]
    reply = client.post("/v1/rewards", json={"items": items}).json()
    found = [one["reward"] for item in reply["items"] for one in item["responses"]]
    assert found == pytest.approx([*reward.score("who?", ["yes", "no"]), *reward.score("who?", ["the sea"])], abs=1e-5)
    assert reply["model"] == "mine" and len(reply["digest"]) == 16
    assert reply["items"][0]["responses"][0]["tokens"] > 4 and not reply["items"][0]["responses"][0]["truncated"]


def test_each_item_gets_its_own_rewards_however_it_lists_them(client: TestClient, reward: rrm_lm.RewardModel) -> None:
    items = [
        {"prompt": "who?", "response": ["yes", "no"]},
        {"prompt": "who?", "responses": ["the sea"]},
        {"prompt": "who?", "query": "who?maybe", "responses": ["x", "y"]},
        {"prompt": "who?", "response": "the moon"},
    ]
    reply = client.post("/v1/rewards", json={"items": items}).json()
    found = [[one["reward"] for one in item["responses"]] for item in reply["items"]]
    assert [len(item) for item in found] == [2, 1, 1, 1]
    expected = reward.score("who?", ["yes", "no", "the sea", "maybe", "the moon"])
    assert [value for item in found for value in item] == pytest.approx([*expected], abs=1e-5)
