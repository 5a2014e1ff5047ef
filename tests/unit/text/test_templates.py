"""Chat templates of known families: the date, system messages, and the text before responses."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from rrm_lm.errors import ConfigError, TemplateError
from rrm_lm.models.portable import unreadable
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.templates import align_responses, date_of, prepare_template, without_date
from tests.published_templates import PUBLISHED, published_tokenizer
from tests.tiny import CHATML, prompt_of, tiny_tokenizer

DATED = "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}  {{ day }}\n" + CHATML
TALK = prompt_of("who are you?", "nobody", "why?", system="be short")
REASONED = "<think>\nbecause\n</think>\n\nthe sea"


def later(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 3, 5, 10) + timedelta(days=days)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)


def prepared(name: str, **options: Any) -> ChatFormat:
    """The chat format of a family as training loads it. System messages are folded if the template refuses them."""
    tokenizer = published_tokenizer(name)
    prepare_template(tokenizer, **{"fold_system": PUBLISHED[name].refuses_system, **options})
    align_responses(tokenizer)
    return ChatFormat(tokenizer)


def with_answer(chat: ChatFormat, answer: str) -> str:
    return chat.transcript(TALK, answer)


# -- every family -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_published_template_does(name: str) -> None:
    """The table that the other tests rely on: the templates as they are published."""
    what, chat = PUBLISHED[name], ChatFormat(published_tokenizer(name))
    talk = TALK[1:] if what.refuses_system else TALK
    if what.refuses_system:
        with pytest.raises(TemplateError, match="cannot render"):
            chat.lost(TALK, "the sea")
    assert chat.lost(talk, "the sea").refused == ("leaves out system messages" if what.loses_system else "")
    assert chat.lost(talk[-1:], REASONED).refused == (
        "leaves out the reasoning of the response" if what.cuts_reasoning else ""
    )
    start, text = chat.transcript(talk, None), chat.transcript(talk, "the sea")
    assert text.startswith(start) == (not (what.opens_thought or what.loses_system))
    assert start.endswith("<think>\n") == what.opens_thought
    assert ("strftime_now" in chat.tokenizer.chat_template) == what.dated


@pytest.mark.parametrize("answer", ["the sea", REASONED])
@pytest.mark.parametrize("name", PUBLISHED)
def test_all_words_are_there_after_the_generation_prompt(name: str, answer: str) -> None:
    chat = prepared(name)
    assert chat.lost(TALK, answer) == ("", "", False)
    (line,) = chat.encode(TALK, [answer]).lines[0]
    ids = chat.prompt_ids(TALK)
    assert list(line.ids[: len(ids)]) == ids and line.response_start == len(ids)
    assert line.ids[-1] == chat.end_id == chat.tokenizer.convert_tokens_to_ids(PUBLISHED[name].end)


def test_a_turn_ends_before_the_eos_token_that_ends_a_conversation() -> None:
    chat, plain = prepared("phi-3"), ChatFormat(published_tokenizer("phi-3"))
    assert with_answer(plain, "the sea").endswith("the sea<|end|>\n<|endoftext|>")
    assert with_answer(chat, "the sea").endswith("<|assistant|>\nthe sea<|end|>")
    again = prompt_of("who?", "the sea", "why?")
    assert chat.transcript(again, None) == plain.transcript(again, None)
    (line,) = chat.encode(TALK, ["the sea"], [["too long"]]).lines[0]
    words = chat.tokenizer.decode(list(line.ids))
    assert line.ids[line.reward_at] == chat.end_id
    assert words.endswith("the sea<|end|>\n<|user|>\ntoo long<|end|>")


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_programs_read_the_saved_template_the_same_way(name: str) -> None:
    assert unreadable(prepared(name)) == ""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_text_does_not_depend_on_the_clock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 0)
    chat = prepared(name)
    then = with_answer(chat, "the sea"), chat.transcript(TALK[1:], None)
    assert date_of(chat.tokenizer) == ("2026-03-05" if PUBLISHED[name].dated else None)
    later(monkeypatch, 40)
    assert (with_answer(chat, "the sea"), chat.transcript(TALK[1:], None)) == then


@pytest.mark.parametrize("name", [name for name, what in PUBLISHED.items() if not what.is_changed])
def test_templates_that_need_no_change_keep_their_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 0)
    chat, plain = prepared(name), ChatFormat(published_tokenizer(name))
    for talk in (TALK[1:2], TALK[1:]):
        assert chat.transcript(talk, "the sea") == plain.transcript(talk, "the sea")
        assert chat.transcript(talk, None) == plain.transcript(talk, None)


# -- the date ---------------------------------------------------------------------------------------------------------


def test_a_date_that_is_fixed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 0)
    tokenizer = tiny_tokenizer(DATED)
    prepare_template(tokenizer)
    later(monkeypatch, 1)
    prepare_template(tokenizer)  # as when a saved tokenizer is loaded
    assert ChatFormat(tokenizer).transcript(prompt_of("a"), None).startswith("  05 Mar 2026\n<|im_start|>user\na")
    prepare_template(tokenizer, "2024-02-29")
    assert date_of(tokenizer) == "2024-02-29"
    assert ChatFormat(tokenizer).transcript(prompt_of("a"), None).startswith("  29 Feb 2024\n<|im_start|>user\na")
    assert without_date(tokenizer).chat_template == DATED and date_of(without_date(tokenizer)) is None
    assert date_of(tokenizer) == "2024-02-29"


def test_a_template_without_a_date_takes_none() -> None:
    tokenizer = tiny_tokenizer()
    prepare_template(tokenizer, "2024-02-29")
    assert tokenizer.chat_template == CHATML and date_of(tokenizer) is None
    with pytest.raises(ConfigError, match="not a date"):
        prepare_template(tokenizer, "yesterday")


def test_named_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 0)
    tokenizer = tiny_tokenizer({"default": DATED, "tool_use": CHATML})  # type: ignore[arg-type]
    prepare_template(tokenizer, fold_system=True)
    align_responses(tokenizer)
    assert date_of(tokenizer) == "2026-03-05"
    assert all("folded" in text for text in tokenizer.chat_template.values())


# -- system messages --------------------------------------------------------------------------------------------------


def test_folded_system_messages() -> None:
    tokenizer = tiny_tokenizer("{{ raise_exception('no') if messages[0].role == 'system' }}" + CHATML)
    prepare_template(tokenizer, fold_system=True)
    prepare_template(tokenizer, fold_system=True)  # once
    chat = ChatFormat(tokenizer)
    assert chat.transcript(TALK, "the sea") == (
        "<|im_start|>user\nbe short\n\nwho are you?<|im_end|>\n<|im_start|>assistant\nnobody<|im_end|>\n"
        "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nthe sea<|im_end|>\n"
    )
    assert chat.transcript(TALK[1:2], None) == "<|im_start|>user\nwho are you?<|im_end|>\n<|im_start|>assistant\n"


# -- reasoning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "after"),
    [
        ("<think>because</think>so", "because</think>so"),
        ("<think>\nbecause\n</think>\n\nso", "because\n</think>\n\nso"),
        ("because\n</think>\n\nso", "because\n</think>\n\nso"),  # as a policy samples it
        ("<think>because", "because"),  # not finished
        ("so", "</think>\n\nso"),
    ],
)
@pytest.mark.parametrize("name", ["qwq", "deepseek-r1"])
def test_responses_after_an_opened_thought(name: str, answer: str, after: str) -> None:
    chat = prepared(name)
    start = chat.transcript(TALK, None)
    assert start.endswith("<think>\n")
    assert with_answer(chat, answer).rstrip() == start + after + PUBLISHED[name].end


def test_reasoning_that_would_be_cut_out() -> None:
    """The generation prompt opens no thought: other responses keep the published text."""
    tokenizer = tiny_tokenizer(CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"))
    align_responses(tokenizer)
    align_responses(tokenizer)  # once
    chat, plain = ChatFormat(tokenizer), ChatFormat(tiny_tokenizer())
    assert with_answer(chat, "the sea") == with_answer(plain, "the sea")
    assert with_answer(chat, REASONED).rstrip() == with_answer(plain, REASONED).rstrip()
    assert chat.lost(prompt_of("a", REASONED, "b"), "c").noted == "leaves out the reasoning of earlier assistant turns"


def test_a_template_that_drops_answers_is_left_as_it_is() -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    tokenizer = tiny_tokenizer(template)
    align_responses(tokenizer)
    assert tokenizer.chat_template == template
