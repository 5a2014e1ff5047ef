"""A reward model with criteria is served in every dialect: the criteria read the messages in rendered text, too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

import rrm_lm
from rrm_lm.api.asks import Ask, read, score
from rrm_lm.errors import DataError, ModelError, RRMError
from rrm_lm.feedback.criteria.records import CRITERIA_FILE, Criterion, write_criteria
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.models.portable import messages_of
from rrm_lm.serving.app import create_app
from rrm_lm.serving.checks import check_app, check_server
from rrm_lm.serving.dialects import Dialect
from rrm_lm.serving.models import load_models
from rrm_lm.settings.serving import CheckServerArguments, ServeArguments
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.rendered import encode_rendered, messages_in
from tests.templates import TEMPLATES, family_tokenizer
from tests.tiny import prompt_of
from tests.unit.serving.conftest import save_reward
from tests.unit.serving.test_dialects import DIALECTS

TALKS = [
    (prompt_of("what is the moon made of?"), "the answer is yes. the moon is blue."),
    (prompt_of("what is the moon made of?"), "no"),
    (prompt_of("who lives in the sea?", "the moon", "and in the moon?"), "- one\n\nblue sea"),
]
CRITERIA = [
    Criterion("is short", "short", "words", "less", weight=0.7, mean=-4.0, scale=3.0),
    Criterion("speaks of what was asked", "topic", "prompt_overlap", weight=1.5, mean=0.4, scale=0.2),
    Criterion("answers", weight=0.3, mean=0.0, scale=0.01),  # asked of the model
]


def save_with_criteria(folder: Path, family: str = "chatml", **settings: Any) -> Path:
    save_reward(folder, family, **settings)
    write_criteria(folder / CRITERIA_FILE, CRITERIA, "For a test.")
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def family(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward model with criteria: its tokenizer, a client of its server, and the model from Python."""
    folder = save_with_criteria(tmp_path_factory.mktemp("criteria") / "mine", request.param)
    args = ServeArguments(model=[str(folder)])
    with TestClient(create_app(load_models(args), args)) as client:
        yield client, AutoTokenizer.from_pretrained(folder), rrm_lm.RewardModel.from_pretrained(folder)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.paths[0])
def test_a_dialect_adds_the_criteria(dialect: Dialect, family: Any) -> None:
    client, tokenizer, reward = family
    reply = client.post(dialect.paths[-1], json=dialect.request(TALKS, tokenizer, "mine"))
    assert reply.status_code == 200, reply.text
    expected = [float(reward.score(prompt, [response])[0]) for prompt, response in TALKS]
    assert dialect.rewards(reply.json()) == pytest.approx(expected, abs=1e-4)


def test_the_own_dialect_says_what_each_criterion_adds(family: Any) -> None:
    client, _, reward = family
    prompt, response = TALKS[0]
    items = [{"messages": messages_of(prompt, response)}, {"prompt": "what?", "responses": [" "]}]
    found, failed = client.post("/v1/rewards", json={"items": items}).json()["items"]
    (one,) = found["responses"]
    (expected,) = reward.scorer.criteria.contributions([prompt], [[response]])
    assert one["criteria"] == pytest.approx(
        dict(zip(("short", "topic", "answers"), expected[0], strict=True)), abs=1e-5
    )
    assert len({round(part, 3) for part in one["criteria"].values()}) == 3
    (without,) = reward.scorer.score_lines([reward.scorer._lines([prompt], [[response]])[0]])
    assert one["reward"] == pytest.approx(without[0] + sum(one["criteria"].values()), abs=1e-4)
    assert "empty" in failed["responses"][0]["error"]["what"]


def test_the_check_at_the_start_adds_the_criteria_to_what_was_recorded(tmp_path: Path) -> None:
    folders = [save_with_criteria(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    plain = save_reward(tmp_path / "plain", seed=5)
    args = ServeArguments(model=[str(one) for one in (*folders, plain)])
    models = load_models(args)
    asyncio.run(check_app(create_app(models, args), models, ""))
    backbones = {id(one.scorer.model.backbone.causal_lm) for one in models.values()}
    assert len(backbones) == 1 and [one.scorer.criteria is None for one in models.values()] == [False, False, True]
    for served in models.values():
        again = rrm_lm.RewardModel.from_pretrained(served.location)
        assert served.scorer.score(*zip(*[(p, [r]) for p, r in TALKS], strict=True)) == [
            pytest.approx([float(again.score(p, [r])[0])], abs=1e-4) for p, r in TALKS
        ]


def test_another_server_cannot_be_checked(tmp_path: Path) -> None:
    folder = save_with_criteria(tmp_path / "mine")
    with pytest.raises(ModelError, match="has criteria, which other servers do not add"):
        check_server(CheckServerArguments(url="http://127.0.0.1:9", model=str(folder), dialect="vllm"))


def test_rewards_for_trainers_have_the_criteria(family: Any) -> None:
    _, _, reward = family
    function = rrm_lm.reward_function(reward)
    messages = [[turn.to_dict() for turn in prompt] for prompt, _ in TALKS]
    found = function(prompts=messages, completions=[response for _, response in TALKS])
    assert found == pytest.approx([float(reward.score(prompt, [response])[0]) for prompt, response in TALKS], abs=1e-4)


SYSTEM = (Message("system", "be kind"), *prompt_of("who?"))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "prompt",
    [prompt_of("what?"), prompt_of("one\n\ntwo", "[yes] <b>", "three"), SYSTEM],
    ids=["short", "long", "system"],
)
def test_messages_are_found_in_rendered_text(name: str, prompt: Prompt) -> None:
    chat = ChatFormat(family_tokenizer(name))
    try:
        text = chat.transcript(prompt, "the moon")
    except DataError:
        pytest.skip("this template has no system message")
    before, response, _ = encode_rendered(chat, text)
    found = messages_in(chat, before)
    assert response == "the moon"
    if found != prompt:  # the template writes the system message into the user's turn
        assert prompt is SYSTEM and [turn.role for turn in found] == ["user"]
        assert found[0].content.startswith("be kind") and found[0].content.endswith("who?")


def test_text_whose_messages_cannot_be_separated_is_refused(tmp_path: Path) -> None:
    reward = rrm_lm.RewardModel.from_pretrained(save_with_criteria(tmp_path / "mine"))
    scorer: Any = reward.scorer
    chat = scorer.chat
    text = chat.transcript(prompt_of("what?"), "no").replace(
        "<|im_end|>", " <|im_end|>\n<|im_start|>tool\n1<|im_end|>", 1
    )
    with pytest.raises(DataError, match="cannot be separated"):
        score(scorer, [read(chat, Ask(rendered=text))])
    args = ServeArguments(model=[str(tmp_path / "mine")])
    with TestClient(create_app(load_models(args), args)) as client:
        good = chat.transcript(prompt_of("what?"), "no")
        (bad, fine) = client.post("/vllm/classify", json={"input": [text, good]}).json()["data"]
    assert "send messages" in bad["error"]["remedy"] and isinstance(fine["probs"][0], float)


def test_a_file_of_criteria_is_not_served(tmp_path: Path) -> None:
    write_criteria(tmp_path / "mine.yaml", CRITERIA[:2], "For a test.")
    with pytest.raises(RRMError, match="a file of criteria, without a reward model"):
        load_models(ServeArguments(model=[str(tmp_path / "mine.yaml")]))
