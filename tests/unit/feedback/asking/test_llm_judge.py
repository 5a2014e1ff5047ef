"""A language model behind a server as an overseer, against a small server on loopback."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.feedback.asking.collection import collect
from rrm_lm.feedback.asking.judge_questions import (
    CRITIQUE_QUESTION,
    CUT_OFF,
    EMPTY,
    LETTER_QUESTION,
    REFUSED,
    UNREADABLE,
    fill,
)
from rrm_lm.feedback.asking.llm_judge import INCONSISTENT, TOO_LONG, TURNED_DOWN, ServedJudge
from rrm_lm.feedback.asking.overseers import NO_ANSWER, Overseer, Verdict
from rrm_lm.feedback.records import Message
from tests.openai_server import Reply, fake_server, prefers, shown

pytest.importorskip("openai", reason="the optional package openai is not installed")

PROMPT = (Message("user", "What is blue?"),)
SHORT, LONG = "the sea", "the sea is blue, and so is the sky"
SHORTER = prefers(lambda text: -len(text))
KEY = "sk-a-very-secret-key"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield


def test_both_orders_are_asked_and_agree() -> None:
    with fake_server(SHORTER) as server:
        judge = ServedJudge("fake", server.url)
        assert isinstance(judge, Overseer) and judge.name == "fake" and "fake" in judge.limit
        assert judge.compare(PROMPT, [LONG, SHORT]) == Verdict(1, reason="That decides it.")
        assert judge.compare(PROMPT, [SHORT, LONG]).preferred == 0
        assert [shown(question) for question in server.questions[:2]] == [
            {"A": LONG, "B": SHORT},
            {"A": SHORT, "B": LONG},
        ]
        assert server.requests[0]["temperature"] == 0 and server.requests[0]["max_tokens"] == 400
        assert server.requests[0]["model"] == "fake"
    assert not judge.abstentions
    assert judge.usage == {"requests": 4, "prompt_tokens": 28, "completion_tokens": 8}


def test_equally_good_in_both_orders_is_a_verdict_and_no_abstention() -> None:
    with fake_server(prefers(lambda _: 0)) as server:
        judge = ServedJudge("fake", server.url)
        verdict = judge.compare(PROMPT, [SHORT, LONG])
        assert judge.compare(PROMPT, [SHORT, SHORT]) == Verdict(None)
    assert (verdict.preferred, verdict.abstained) == (None, "") and not judge.abstentions
    assert len(server.requests) == 2  # equal texts are not asked about


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_who_prefers_a_place_abstains(always: str) -> None:
    with fake_server(lambda _: always) as server:
        judge = ServedJudge("fake", server.url)
        verdict = judge.compare(PROMPT, [SHORT, LONG])
    assert (verdict.preferred, verdict.abstained) == (None, INCONSISTENT)
    assert judge.abstentions == {INCONSISTENT: 1}


def test_a_preference_in_one_order_and_a_tie_in_the_other_contradict() -> None:
    with fake_server(lambda question: "A" if shown(question)["A"] == SHORT else "tie") as server:
        assert ServedJudge("fake", server.url).compare(PROMPT, [LONG, SHORT]).abstained == INCONSISTENT


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (Reply("Well, it depends."), UNREADABLE),
        (Reply(None), EMPTY),
        (Reply(None, refusal="I can't do that."), REFUSED),
        (Reply("A", finish_reason="content_filter"), REFUSED),
        (Reply("I'm sorry, but I can't help with that."), REFUSED),
        (Reply("It is the first one.\nA", finish_reason="length"), CUT_OFF),
        (Reply("maximum context length is 10 tokens", status=400), TOO_LONG),
        (Reply("content_filter was triggered", status=400), REFUSED),
        (Reply("unknown field top_k", status=422), TURNED_DOWN),
        (Reply(body="<html>hello</html>"), NO_ANSWER),
        (Reply(body={"choices": []}), NO_ANSWER),
        (Reply(body={"detail": "odd"}), NO_ANSWER),
    ],
)
def test_without_a_readable_verdict_it_abstains(reply: Reply, cause: str) -> None:
    with fake_server(lambda _: reply) as server:
        judge = ServedJudge("fake", server.url, max_retries=0)
        verdict = judge.compare(PROMPT, [SHORT, LONG])
        assert (verdict.preferred, verdict.abstained) == (None, cause)
        assert judge.judge([(PROMPT, SHORT, LONG)]) == [None]
    assert judge.abstentions == {cause: 2}
    assert len(server.requests) == 2  # the other order would change nothing


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_asks_again_where_that_may_help(status: int) -> None:
    replies = iter([Reply("busy", status=status), Reply("busy", status=status), "A", "B"])
    with fake_server(lambda _: next(replies)) as server:
        judge = ServedJudge("fake", server.url, max_retries=2)
        assert judge.compare(PROMPT, [SHORT, LONG]) == Verdict(0)
    assert len(server.requests) == 4 and not judge.abstentions


def test_an_answer_that_does_not_come_in_time_is_an_abstention() -> None:
    release = threading.Event()

    def answer(question: str) -> str:
        if "slow" in question:
            release.wait(20)
        return SHORTER(question)

    with fake_server(answer) as server:
        judge = ServedJudge("fake", server.url, timeout=0.3, max_retries=1)
        verdict = judge.compare(PROMPT, ["slow", LONG])
        release.set()
        assert verdict == Verdict(None, abstained=NO_ANSWER)
        assert len(server.requests) == 2  # asked again once
        assert judge.compare(PROMPT, [SHORT, LONG]).preferred == 0


def test_many_questions_are_under_way_at_once_and_answers_are_in_order() -> None:
    together = threading.Barrier(4, timeout=20)

    def answer(question: str) -> str:
        together.wait()
        return SHORTER(question)

    questions = [(PROMPT, "a" * (n + 1), "b" * (8 - n)) for n in range(8)]
    with fake_server(answer) as server:
        verdicts = ServedJudge("fake", server.url, at_once=4).judge(questions)
    assert verdicts == [1.0] * 4 + [0.0] * 4


def test_of_more_than_two_the_one_that_beats_all_others() -> None:
    texts = ["four", "a", "seven77"]
    with fake_server(SHORTER) as server:
        assert ServedJudge("fake", server.url).compare(PROMPT, texts).preferred == 1
        assert len(server.requests) == 6
    beats = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}
    with fake_server(lambda q: "A" if (shown(q)["A"], shown(q)["B"]) in beats else "B") as server:
        judge = ServedJudge("fake", server.url)
        assert judge.compare(PROMPT, ["rock", "paper", "scissors"]) == Verdict(None)
        assert not judge.abstentions
        with pytest.raises(ConfigError, match="at least two"):
            judge.compare(PROMPT, ["rock"])


def test_critiques_are_asked_for_and_cleaned() -> None:
    with fake_server(SHORTER) as server:
        assert ServedJudge("fake", server.url).critique(PROMPT, SHORT) == "It is a reply. It could be shorter."
        assert server.questions == [fill(CRITIQUE_QUESTION, PROMPT, SHORT)]
    with fake_server(lambda _: Reply("Too long. It al", finish_reason="length")) as server:
        assert ServedJudge("fake", server.url).critique(PROMPT, SHORT) == "Too long."
    with fake_server(lambda _: Reply(None, refusal="no")) as server:
        judge = ServedJudge("fake", server.url)
        assert judge.critique(PROMPT, SHORT) == ""
        assert judge.abstentions == {f"critique: {REFUSED}": 1}


def test_a_server_that_stops_answering_stops_the_asking() -> None:
    with fake_server(lambda _: Reply("out of memory", status=500)) as server:
        judge = ServedJudge("fake", server.url, max_retries=0, patience=3, at_once=1)
        with pytest.raises(ModelError, match=r"3 questions in a row.*out of memory"):
            judge.judge([(PROMPT, SHORT, LONG + str(n)) for n in range(10)])
    assert len(server.requests) == 3


def test_single_losses_do_not() -> None:
    lost = iter([True, True, False] * 4)
    with fake_server(lambda q: Reply("no", status=500) if next(lost) else SHORTER(q)) as server:
        judge = ServedJudge("fake", server.url, max_retries=0, patience=3, at_once=1)
        assert judge.judge([(PROMPT, SHORT, LONG)] * 12) == [None, None, 1.0] * 4


@pytest.mark.parametrize(("status", "said"), [(401, "API key"), (403, "API key"), (404, "does not know the model")])
def test_what_no_other_question_can_change_stops_at_once(
    status: int, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    with fake_server(lambda _: Reply(f"Incorrect key provided: {KEY}", status=status)) as server:
        judge = ServedJudge("fake", server.url)
        with pytest.raises(ModelError, match=said) as error:
            judge.compare(PROMPT, [SHORT, LONG])
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert len(server.requests) == 1
    assert KEY not in str(error.value) + repr(judge) + judge.limit and "[key]" in str(error.value)
    assert error.value.__suppress_context__
    assert not any(KEY in record.getMessage() for record in caplog.records if record.name.startswith("rrm_lm"))


def test_the_key_goes_only_where_it_should(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", "other")
    with fake_server(SHORTER) as server:
        ServedJudge("fake", server.url, key_variable="OTHER_KEY").critique(PROMPT, SHORT)
        ServedJudge("fake", server.url, key_variable="").critique(PROMPT, SHORT)
    sent = [headers["authorization"] for headers in server.headers]
    assert sent == ["Bearer other", "Bearer none"]
    assert not caplog.records
    ServedJudge("fake", "http://judge.invalid/v1", key_variable="OPENAI_API_KEY")
    assert "without encryption" in caplog.text and KEY not in caplog.text
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY") as error:
        ServedJudge("fake", "https://judge.invalid/v1", key_variable="OPENAI_API_KEY")
    assert "sk-two" not in str(error.value)
    with pytest.raises(ConfigError, match="judge_key_env: UNSET_KEY"):
        ServedJudge("fake", "https://judge.invalid/v1", key_variable="UNSET_KEY")


@pytest.mark.parametrize(
    "url",
    [
        *("https://api.openai.com/v1", "https://API.OpenAI.com:443/v1", "http://LOCALHOST:8000/v1"),
        *("http://127.0.0.1:8000/v1", "http://127.8.0.1/v1", "http://[::1]:8000/v1"),
    ],
)
def test_openai_and_this_machine_get_the_key_of_openai(url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ServedJudge("fake", url)._client.api_key == KEY
    assert not caplog.records


@pytest.mark.parametrize(
    "url",
    [
        *("http://api.openai.com/v1", "https://api.openai.com:444/v1", "https://api.openai.com.evil.com/v1"),
        *("https://eu.api.openai.com/v1", "https://evil-api.openai.com/v1", "http://localhost.evil.com/v1"),
        *("http://127.0.0.1.evil.com/v1", "http://10.0.0.1:8000/v1", "http://[::2]/v1", "http://0.0.0.0/v1"),
    ],
)
def test_no_other_server_gets_it(url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ServedJudge("fake", url)._client.api_key == "none"
    assert "--judge_key_env OPENAI_API_KEY" in caplog.text and KEY not in caplog.text


def test_what_reaches_another_server_has_nothing_of_the_users_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy stands for the other server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    monkeypatch.setenv("OTHER_KEY", "other")
    with fake_server(SHORTER) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}\nX-Gateway: {KEY}")
        assert ServedJudge("fake", "http://judge.invalid/v1").critique(PROMPT, SHORT)
        monkeypatch.delenv("OPENAI_CUSTOM_HEADERS")
        ServedJudge("fake", "http://judge.invalid/v1", key_variable="OTHER_KEY").critique(PROMPT, SHORT)
    text = str(server.headers[0])
    assert KEY not in text and "mine" not in text and "authorization" not in server.headers[0]
    assert server.headers[1]["authorization"] == "Bearer other"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with fake_server(SHORTER) as other:
        target = f"{other.url}/chat/completions"
        with (
            fake_server(lambda _: Reply(status=status, location=target)) as server,
            pytest.raises(ModelError, match=rf"redirects to {target}, which is not followed") as error,
        ):
            ServedJudge("fake", server.url).critique(PROMPT, SHORT)
        assert not other.headers and not other.requests
    assert len(server.requests) == 1 and "base_url" in error.value.remedy


def test_no_server_is_said_at_once() -> None:
    with fake_server(SHORTER) as server:
        pass
    with pytest.raises(ModelError, match="cannot be reached"):
        ServedJudge("fake", server.url, max_retries=0).compare(PROMPT, [SHORT, LONG])


@pytest.mark.parametrize(
    "url",
    [
        "judge",
        "ftp://judge/v1",
        "http://",
        "http://me:secret@judge/v1",
        "http://j/v1?k=secret",
        "http://127.0.0.1@evil.com/v1",
        "http://127.0.0.1\\@evil.com/v1",
        "http://127.0.0.1\n.evil.com/v1",
        "http://127.0.0.1\\.evil.com/v1",
        "http://127.0.0.1 .evil.com/v1",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address") as error:
        ServedJudge("fake", url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("setting", ["at_once", "max_tokens", "patience"])
def test_settings_below_one_are_refused(setting: str) -> None:
    wrong: dict[str, Any] = {setting: 0}
    with pytest.raises(ConfigError, match=setting):
        ServedJudge("fake", "http://127.0.0.1:9/v1", **wrong)


def test_options_change_each_request() -> None:
    with fake_server(SHORTER) as server:
        options = {"max_tokens": None, "max_completion_tokens": 9, "temperature": None, "reasoning_effort": "low"}
        ServedJudge("fake", server.url, options=options).critique(PROMPT, SHORT)
    assert set(server.requests[0]) == {"model", "messages", "max_completion_tokens", "reasoning_effort"}


def test_another_question_can_be_asked() -> None:
    with fake_server(SHORTER) as server:
        judge = ServedJudge("fake", server.url, question=LETTER_QUESTION)
        assert judge.judge([(PROMPT, LONG, SHORT)]) == [0.0]
        assert server.questions == [fill(LETTER_QUESTION, PROMPT, LONG, SHORT)]


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'rrm_lm\[judge\]'"):
        ServedJudge("fake", "http://127.0.0.1:9/v1")


def test_collecting_from_a_server(tmp_path: Any) -> None:
    def answer(question: str) -> Reply | str:
        replies = shown(question)
        if "odd" in replies.get("A", "") + replies.get("B", ""):
            return "Hm."
        return SHORTER(question)

    prompts = [(Message("user", f"Question {n}"),) for n in range(6)]
    responses = [[f"answer {n}", f"a longer answer {n}"] for n in range(5)] + [["odd", "odder"]]
    with fake_server(answer) as server:
        first = collect(ServedJudge("fake", server.url), prompts, responses, path=tmp_path / "new.jsonl")
        asked = len(server.requests)
        again = collect(ServedJudge("fake", server.url), prompts, responses, path=tmp_path / "new.jsonl")
        assert len(server.requests) == asked == 2 * 5 + 1 + 2 * 5
    assert first == again
    assert [record.chosen for record in first.records] == [f"answer {n}" for n in range(5)]
    assert all(record.chosen_critiques == ("It is a reply. It could be shorter.",) for record in first.records)
    assert first.counts.abstentions == {UNREADABLE: 1} and first.counts.critiques == 10
