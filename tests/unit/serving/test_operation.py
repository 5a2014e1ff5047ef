"""Bad requests, full queues, slow and leaving clients, and one server as a user starts it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient

import rrm_lm
from rrm_lm.api import asks
from rrm_lm.cli.main import main
from rrm_lm.errors import ConfigError
from rrm_lm.serving.app import create_app
from rrm_lm.serving.checks import check_app
from rrm_lm.serving.models import Served, load_models
from rrm_lm.settings.serving import DIALECTS, ServeArguments
from tests.unit.serving.conftest import save_reward, served

HI = {"items": [{"prompt": "who?", "responses": ["yes"]}]}
HI_AGAIN = {"role": "user", "content": "and?"}
TALK = "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n"


# -- requests --------------------------------------------------------------------------------------------------------


def test_a_failed_response_is_an_error_in_its_place(client: TestClient, reward: rrm_lm.RewardModel) -> None:
    items = [
        {"prompt": "who?", "responses": ["yes", "", None, 3, "\ud800", "no"]},
        {"messages": []},
        7,
        {"messages": [{"role": "user", "content": "who?"}], "responses": ["yes<|im_end|>"]},
        {"messages": [{"role": "king", "content": "who?"}], "responses": ["a", "b"]},
    ]
    sent = json.dumps({"items": items})
    answer = client.post("/v1/rewards", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    found = [item["responses"] for item in answer.json()["items"]]
    assert [len(one) for one in found] == [6, 1, 1, 1, 2]
    problems = [one.get("error", {}).get("what", "") for group in found for one in group]
    for place, what in enumerate(
        ("", "is empty", "is null", "is int", "surrogate", "", "is empty", "int", "ends with '<|im_end|>'", "king")
    ):
        assert (what in problems[place]) if what else problems[place] == "", (place, problems)
    assert [found[0][0]["reward"], found[0][5]["reward"]] == pytest.approx(
        reward.score("who?", ["yes", "no"]), abs=1e-5
    )


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "tools", "content": "search, calculator"}, {"role": "user", "content": "who?"}],
        [{"role": "tools", "content": "{}"}, {"role": "user", "content": "who?"}],
        [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "", "tool_calls": 5}, HI_AGAIN],
    ],
)
def test_a_malformed_message_fails_alone_and_the_server_goes_on(client: TestClient, messages: list[Any]) -> None:
    sent = {"items": [{"messages": messages, "responses": ["yes"]}], "timeout": 20}
    found = client.post("/v1/rewards", json=sent)
    assert found.status_code == 200
    assert "not a JSON list" in found.json()["items"][0]["responses"][0]["error"]["what"]
    again = client.post("/v1/rewards", json=HI | {"timeout": 20})
    assert again.status_code == 200 and "reward" in again.json()["items"][0]["responses"][0]
    assert client.get("/health").status_code == 200


def test_no_failure_of_reading_a_response_ends_the_server(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    real = asks.read

    def broken(*args: Any) -> Any:
        if args[1].response == "no":
            raise ValueError("planted")
        return real(*args)

    monkeypatch.setattr("rrm_lm.serving.queue.read", broken)
    sent = {"items": [{"prompt": "who?", "responses": ["yes", "no"]}], "timeout": 20}
    good, bad = client.post("/v1/rewards", json=sent).json()["items"][0]["responses"]
    assert "reward" in good and "ValueError: planted" in bad["error"]["what"]
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "sent", "status", "says"),
    [
        ("/v1/rewards", b'{"items": {"a', 422, "JSON"),
        ("/v1/rewards", b'{"items": ["\xff\xfe"]}', 400, "parsing"),
        ("/v1/rewards", b"[" * 100_000, 400, "parsing"),
        ("/v1/rewards", b"[1]", 422, "dict"),
        ("/v1/rewards", b'{"item": 3}', 422, "`items` is missing"),
        ("/v1/rewards", b'{"items": []}', 400, "no responses"),
        ("/v1/rewards", b'{"model": "\\ud800", "items": [1]}', 404, "There is no model"),
        ("/v1/rewards", b'{"model": "/etc/passwd", "items": [1]}', 404, "one of mine"),
        ("/v1/rewards", b'{"timeout": NaN, "items": [1]}', 422, "timeout"),
        ("/vllm/classify", b'{"input": [1, 2]}', 400, "token ids"),
        ("/vllm/classify", b'{"input": "no template"}', 422, "does not carry this model's chat template"),
        ("/vllm/pooling", b'{"task": "embed", "input": "a"}', 400, "task"),
        ("/openrlhf", b'{"query": ["a"], "prompts": []}', 422, "does not carry"),
        ("/llamafactory", b'{"model": "model", "messages": [null]}', 422, "1 of 1 responses failed"),
        ("/nothing", b"{}", 404, "Not Found"),
    ],
)
def test_a_bad_request_is_answered_with_one_sentence(
    client: TestClient, path: str, sent: bytes, status: int, says: str
) -> None:
    answer = client.post(path, content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == status and says in answer.json()["error"]["message"], answer.text


def test_lists_of_numbers_are_never_answered_in_part(client: TestClient, reward: rrm_lm.RewardModel) -> None:
    body = {"query": [TALK + "yes<|im_end|>", "bare"], "prompts": [TALK, "other"], "labels": ["", ""]}
    answer = client.post("/openrlhf", json=body)
    assert answer.status_code == 422 and "1 of 2 responses failed, the first at 1" in answer.json()["error"]["message"]
    assert answer.json()["items"][0] == pytest.approx(float(reward.score("who?", ["yes"])[0]), abs=1e-5)
    body |= {"query": body["query"][:1], "prompts": [TALK]}
    assert client.post("/openrlhf", json=body).json()["extra_logs"] == {"truncated": [0.0]}


def test_prompts_without_a_template_are_read_as_text(client: TestClient, reward: rrm_lm.RewardModel) -> None:
    """OpenRLHF without apply_chat_template, a flat pair of TEI, and a rendered prompt in the own dialect."""
    expected = pytest.approx(float(reward.score("who?", ["yes"])[0]), abs=1e-5)
    answer = client.post("/openrlhf", json={"query": ["who?yes<|im_end|>"], "prompts": ["who?"], "labels": [None]})
    assert answer.json()["rewards"] == [expected]
    [found] = client.post("/tei/predict", json={"inputs": ["who?", "yes"], "raw_scores": True}).json()
    assert found == {"score": expected, "label": "LABEL_0"}
    answer = client.post("/v1/rewards", json={"items": [{"prompt": TALK, "responses": ["yes"]}]}).json()
    assert answer["items"][0]["responses"][0]["reward"] == expected


def test_control_tokens_in_messages_are_text(client: TestClient, reward: rrm_lm.RewardModel) -> None:
    for text in ("<|im_end|>\n<|im_start|>assistant", TALK, "say <|im_start|>"):
        body = {"items": [{"messages": [{"role": "user", "content": text}], "responses": ["yes"]}]}
        [found] = client.post("/v1/rewards", json=body).json()["items"][0]["responses"]
        assert found["reward"] == pytest.approx(float(reward.score(text, ["yes"])[0]), abs=1e-5)


def test_truncation_is_reported_or_refused(client: TestClient, models: dict[str, Served]) -> None:
    long = "the sea " * 600
    answer = client.post("/v1/rewards", json={"items": [{"prompt": long, "responses": ["yes", long]}]}).json()
    for one in answer["items"][0]["responses"]:
        assert one["truncated"] and one["tokens"] == models["mine"].chat.max_length
    text = TALK.replace("who?", long) + "yes"
    assert "longer than 512 tokens" in client.post("/vllm/classify", json={"input": text}).text
    cut = client.post("/vllm/classify", json={"input": text, "truncate_prompt_tokens": -1}).json()
    assert cut["usage"]["prompt_tokens"] == 512
    assert client.post("/llamafactory", json={"model": "model", "messages": [text]}).json()["truncated"] == [True]


def test_ten_thousand_responses_in_one_request(client: TestClient, reward: rrm_lm.RewardModel) -> None:
    responses = ["" if i % 10 > 2 else ("yes", "no", "the sea")[i % 10] for i in range(10_000)]
    answer = client.post("/v1/rewards", json={"items": [{"prompt": "who?", "responses": responses}]}).json()
    found = answer["items"][0]["responses"]
    expected = reward.score("who?", responses[:3])
    assert len(found) == 10_000 and all("error" in one for one in found[3::10])
    for start in range(3):
        assert [one["reward"] for one in found[start::10]] == pytest.approx([expected[start]] * 1000, abs=1e-5)


def test_several_models_are_asked_by_name(reward_folder: Path, tmp_path: Path) -> None:
    """Two adapters share a backbone; one of another family has its own."""
    other = tmp_path / "other"
    save_reward(tmp_path / "foreign", "llama3")
    base = json.loads((reward_folder / "reward_model.json").read_text())["base_model"]
    (tmp_path / "chatml-base").symlink_to(base)
    save_reward(other, seed=5)
    args = ServeArguments(model=[str(reward_folder), str(other), str(tmp_path / "foreign")])
    models = load_models(args)
    assert models["mine"].scorer.model.backbone is not models["foreign"].scorer.model.backbone
    with TestClient(create_app(models, args)) as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["mine", "other", "foreign"]
        for name, one in models.items():
            expected = rrm_lm.RewardModel.from_pretrained(one.location).score("who?", ["yes"])
            for asked in (name, one.location, f"{one.location}/merged"):
                answer = client.post("/v1/rewards", json={"model": asked, **HI}).json()
                assert answer["items"][0]["responses"][0]["reward"] == pytest.approx(float(expected[0]), abs=1e-5)
        assert client.post("/v1/rewards", json=HI).status_code == 404
        # LLaMA-Factory sends the name "model", and OpenRLHF none: the URL names it.
        assert client.post("/llamafactory", json={"model": "model", "messages": [TALK + "yes"]}).status_code == 404
        expected = rrm_lm.RewardModel.from_pretrained(other).score("who?", ["yes"])
        sent = {"model": "model", "messages": [TALK + "yes"]}
        found = client.post("/llamafactory?model=other", json=sent).json()["scores"]
        assert found == pytest.approx(expected, abs=1e-5)
    asyncio.run(check_app(create_app(models, args), models, ""))


# -- operation -------------------------------------------------------------------------------------------------------


class Slow:
    """A scorer that waits for permission before each batch."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.go, self.batches = scorer, threading.Event(), []
        self.model, self.chat, self.micro_batch_tokens = scorer.model, scorer.chat, 64
        self.may_score: Callable[[], bool] = lambda: self.go.wait(20)

    def score_lines(self, lines: Any) -> Any:
        self.batches.append(sum(map(len, lines)))
        assert self.may_score()
        if any(len(line.ids) == 13 for group in lines for per in group for line in per):
            raise RuntimeError("thirteen tokens")
        return self.scorer.score_lines(lines)


@pytest.fixture
def slow(models: dict[str, Served]) -> Iterator[Slow]:
    made = Slow(models["mine"].scorer)
    yield made
    made.go.set()


def serve_slowly(slow: Slow, **settings: Any) -> Any:
    model = Served("mine", "slow", slow)
    return served(create_app({"mine": model}, ServeArguments(**settings)))


def post(url: str, body: Any = HI, path: str = "/v1/rewards", **options: Any) -> httpx2.Response:
    return httpx2.post(url + path, json=body, timeout=options.pop("timeout", 20), **options)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting(url: str) -> int:
    text = httpx2.get(f"{url}/metrics").text
    return int(float(text.rpartition("rrm_lm_waiting ")[2].split()[0]))


def test_a_full_queue_refuses_and_loses_nothing(slow: Slow) -> None:
    body = {"items": [{"prompt": "who?", "responses": ["yes", "no"]}]}
    with serve_slowly(slow, max_waiting=3) as url:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(post(url, body)))
        thread.start()
        wait_until(lambda: waiting(url) == 2)
        refused = post(url, body)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        verl = post(url, {"input": [TALK + "yes"] * 2}, "/verl/classify")
        assert verl.status_code == 503 and "retry-after" in verl.headers
        slow.go.set()
        thread.join()
        assert answers[0].status_code == 200 and waiting(url) == 0


def test_a_client_that_leaves_frees_its_place(slow: Slow) -> None:
    many = {"items": [{"prompt": "who?", "responses": ["yes"] * 200}]}
    with serve_slowly(slow) as url:
        with pytest.raises(httpx2.ReadTimeout):
            post(url, many, timeout=0.5)
        wait_until(lambda: waiting(url) == 0)
        slow.go.set()
        assert post(url).status_code == 200
        assert slow.batches[1:] == [1]  # after the batch that was being scored, only the second request


def test_a_deadline_answers_504(slow: Slow) -> None:
    with serve_slowly(slow) as url:
        assert post(url, HI | {"timeout": 0.2}).status_code == 504
        assert waiting(url) == 0


def test_requests_take_turns_and_a_response_that_breaks_the_model_fails_alone(slow: Slow) -> None:
    many = {"items": [{"prompt": "who?", "responses": ["yes"] * 1000}]}
    bad = {"items": [{"prompt": "who?", "responses": ["yes", "yes no yes", "no"]}]}
    lengths = [asks.read(slow.chat, ask).tokens for ask in asks.asks_of(bad["items"][0])]
    # 20 batches are enough for the first one, the shared one with its halves, and not for all of `many`.
    permits, done = threading.Semaphore(0), []
    slow.may_score = lambda: permits.acquire(timeout=20)
    with serve_slowly(slow) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: (post(url, many), done.append("many")))
        wait_until(lambda: waiting(url) == 1000)
        second = pool.submit(post, url, bad)
        wait_until(lambda: waiting(url) == 1003)
        permits.release(20)
        answer = second.result(20)
        assert not done
        permits.release(1000)
        first.result(20)
    errors = ["error" in one for one in answer.json()["items"][0]["responses"]]
    assert errors == [length == 13 for length in lengths]


def test_a_large_or_slow_body_is_refused(models: dict[str, Served]) -> None:
    args = ServeArguments(max_body_mb=0.001, body_timeout=0.5)
    with served(create_app(models, args)) as url:
        assert post(url, {"items": ["x" * 2000]}).status_code == 413
        assert httpx2.post(f"{url}/v1/rewards", content=iter([b"x" * 600] * 3)).status_code == 413
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=5) as connection:
            connection.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n")
            began = time.monotonic()
            connection.sendall(b"{")
            assert b" 408 " in connection.recv(200) and time.monotonic() - began < 3
        assert post(url).status_code == 200


def test_the_token_is_asked_for_and_urls_may_carry_it(models: dict[str, Served]) -> None:
    with served(create_app(models, ServeArguments(), "sesame")) as url:
        assert post(url).status_code == post(url, headers={"Authorization": "Bearer no"}).status_code == 401
        assert post(url, headers={"Authorization": "Basic !"}).status_code == 401
        assert post(url, headers={"Authorization": "Bearer sesame"}).status_code == 200
        assert post(url.replace("http://", "http://any:sesame@")).status_code == 200
        assert httpx2.get(f"{url}/health").status_code == 200 and httpx2.get(f"{url}/metrics").status_code == 401


def test_other_machines_need_a_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "x", "--host", "0.0.0.0"]) == 2
    assert "there is no token" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="NO_SUCH is not set"):
        ServeArguments(model=["x"], token_env="NO_SUCH").token()
    ServeArguments(model=["x"], host="::1").require()


def test_every_dialect_is_a_setting() -> None:
    from rrm_lm.serving.dialects import ALL

    assert tuple(ALL) == DIALECTS


@pytest.mark.slow
def test_a_server_as_a_user_starts_it(reward_folder: Path, reward: rrm_lm.RewardModel) -> None:
    """It checks itself, answers, and on SIGTERM answers the open requests and exits with 0."""
    words = [sys.executable, "-m", "rrm_lm", "serve", "--model", str(reward_folder), "--port", "0"]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "KEY": "sesame"}
    process = subprocess.Popen([*words, "--token_env", "KEY"], stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None
    log = ""
    while "serving" not in log:
        line = process.stderr.readline()
        assert line, log
        log += line
    assert "all dialects give the rewards" in log
    url = "http://" + log.partition("on http://")[2].split(";")[0]

    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer sesame"}, timeout=20) as client:
            many = {"items": [{"prompt": "who?", "responses": ["yes"] * 100}]}
            open_requests = [asyncio.create_task(client.post(f"{url}/v1/rewards", json=many)) for _ in range(4)]
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            return [await one for one in open_requests]

    expected = pytest.approx(float(reward.score("who?", ["yes"])[0]), abs=1e-5)
    for answer in asyncio.run(ask()):
        assert [one["reward"] for one in answer.json()["items"][0]["responses"]] == [expected] * 100
    rest = process.stderr.read()
    assert process.wait(20) == 0 and "all open requests were answered" in rest and "sesame" not in log + rest
