"""Conversations that another program has already rendered with the chat template, as servers of models receive them.

Programs differ in how they render: they add or remove the token that begins the sequence, append padding and eos
tokens, or continue the generation prompt with the sampled text. Everything up to the last generation prompt is kept,
and the response after it is rendered again, so that the tokens are those of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from rrm_lm.errors import DataError, TemplateError
from rrm_lm.feedback.records import Message, Prompt
from rrm_lm.text.batching import common_beginning
from rrm_lm.text.chat import ChatFormat, Encoded, Line

_RENDER = "send messages, or render them with the tokenizer in the model's folder"
_QUESTION = (Message("user", "\ue002"),)
_ANSWER = "\ue003"
_TALK = (*_QUESTION, Message("assistant", _ANSWER), Message("user", "\ue004"))
_SYSTEM = Message("system", "\ue005")


class _Frame(NamedTuple):
    """The template's text around a response."""

    begin: str  # the token that begins a sequence, or ""
    opening: str  # the first token after it
    mark: str  # begins the assistant's turn
    leads: tuple[str, ...]  # what may follow it: in a conversation, and in a generation prompt
    end: str  # ends the turn


@lru_cache(maxsize=64)
def _frame(chat: ChatFormat) -> _Frame:
    text, prompt = chat.transcript(_QUESTION, _ANSWER), chat.transcript(_QUESTION, None)
    between, asked = (one.partition(_QUESTION[0].content)[2] for one in (text.partition(_ANSWER)[0], prompt))
    skipped = max(0, between.find(chat.answer_mark))  # the end of the user's turn
    between, asked = between[skipped:], asked[skipped:]
    mark = between[: common_beginning([between, asked])].rstrip() or chat.answer_mark
    bos = chat.tokenizer.bos_token or ""
    leads = (between[len(mark) :], asked[len(mark) :])
    begin = bos if text.startswith(bos) else ""
    ids = chat.tokenizer(text.removeprefix(begin), add_special_tokens=False).input_ids
    return _Frame(begin, chat.tokenizer.decode(ids[:1]), mark, leads, text.rpartition(_ANSWER)[2])


def encode_rendered(chat: ChatFormat, text: str) -> tuple[str, str, Encoded]:
    """Encode a rendered conversation that ends with a response. Special tokens in the text are control tokens. A
    conversation longer than `max_length` loses its beginning.

    Returns:
        The text before the response, the response, and the line.

    Raises:
        DataError: The text is rendered with another template or none, has no response, or the template leaves out
            words of it.
    """
    frame, tokenizer = _frame(chat), chat.tokenizer
    before, found, response = text.rpartition(frame.mark)
    if not found:
        raise DataError(
            f"The text does not carry this model's chat template, whose responses begin with {frame.mark!r}",
            expected="a conversation that is rendered with the model's template",
            remedy=_RENDER,
        )
    lead = next((lead for lead in frame.leads if lead and response.startswith(lead)), "")
    response = without_ends(chat, response.removeprefix(lead))
    if not response.strip():
        raise DataError("The text ends where the response should begin", expected="a response with text in it")
    for token in (tokenizer.pad_token, tokenizer.bos_token):
        while token and before.startswith(token):
            before = before.removeprefix(token)
    again = chat.transcript(_QUESTION, response).partition(frame.mark)[2]
    if response.strip() not in again:
        Encoded((), lost=chat.lost(_QUESTION, response)).whole()
    whole = f"{frame.begin}{before}{frame.mark}{again}"
    ids = tokenizer(whole.rstrip() if chat.trim else whole, add_special_tokens=False).input_ids
    own = len(tokenizer(again, add_special_tokens=False).input_ids)
    cut = 0 if chat.max_length is None else max(0, len(ids) - chat.max_length)
    kept = ids[cut:]
    last = next((at for at in reversed(range(len(kept))) if kept[at] != chat.pad_id), 0)
    line = Line(tuple(kept), max(0, len(kept) - own), last)
    return before, response, Encoded(((line,),), cut_tokens=cut, cut_responses=int(own > len(kept)))


@lru_cache(maxsize=1024)
def messages_in(chat: ChatFormat, before: str) -> Prompt:
    """The messages in the text before a response (:func:`encode_rendered`). A system message that the template writes
    into the user's turn is part of that turn.

    Raises:
        DataError: The messages give another text when they are rendered again, for example because tools are missing.
    """
    frame = _frame(chat)
    try:
        readings = list(_readings(chat, before))
    except (TemplateError, ValueError):  # a template that leaves messages out, or takes a single turn
        readings = []
    for turns in readings:
        prompt = tuple(Message(role, content) for role, content in turns)
        again = chat.transcript(prompt, None).removeprefix(frame.begin).rpartition(frame.mark)[0]
        if again == before and not any(chat.has_special(text) for _, text in turns):
            return prompt
    raise DataError(
        "The messages in this text cannot be separated, and the criteria of this model need them",
        expected="a conversation without tools, rendered with the model's template",
        remedy="send messages",
    )


def _readings(chat: ChatFormat, before: str) -> Iterator[list[tuple[str, str]]]:
    """The roles and texts that the text may consist of: without a system message, and with one."""
    starts, (answered, asked, end) = _marks(chat)
    for start, after_system in starts:
        body = before.removeprefix(start).removesuffix(end)
        system, found, rest = body.partition(after_system) if after_system else ("", "", body)
        exchanges = [turn.split(answered) for turn in rest.split(asked)]
        if not before.startswith(start) or any(len(one) != 2 for one in exchanges[:-1]) or len(exchanges[-1]) != 1:
            continue
        turns = [("system", system)] if found else []
        turns += [turn for exchange in exchanges for turn in zip(("user", "assistant"), exchange, strict=False)]
        yield turns


@lru_cache(maxsize=64)
def _marks(chat: ChatFormat) -> tuple[list[tuple[str, str]], tuple[str, str, str]]:
    """What the template writes around messages: at the start, with the text after a system message or ""; between a
    question and its answer, between the answer and the next question, and after the last question.
    """
    begin, mark = _frame(chat).begin, _frame(chat).mark
    start, answered, asked, after = _around(chat, _TALK)
    starts = [(start.removeprefix(begin), "")]
    try:
        start, after_system, _ = _around(chat, (_SYSTEM, *_QUESTION))
        starts += [(start.removeprefix(begin), after_system)]
    except (TemplateError, ValueError):  # the template has no system message
        pass
    return starts, (answered, asked, after.rpartition(mark)[0])


def _around(chat: ChatFormat, prompt: Prompt) -> list[str]:
    """The template's texts before, between and after the messages of a prompt. Raises ValueError: one is left out."""
    rest, found = chat.transcript(prompt, None), []
    for message in prompt:
        at = rest.index(message.content)
        found.append(rest[:at])
        rest = rest[at + len(message.content) :]
    return [*found, rest]


def is_prompt_rendered(chat: ChatFormat, prompt: str) -> bool:
    """Whether a text is a rendered prompt: it begins as a conversation does, and ends with the generation prompt."""
    frame = _frame(chat)
    ends = any(prompt.rstrip().endswith(f"{frame.mark}{lead}".rstrip()) for lead in frame.leads)
    return ends and prompt.lstrip().removeprefix(frame.begin).startswith(frame.opening)


def end_of_turn(chat: ChatFormat) -> str:
    """What the template adds after a response, without whitespace."""
    return _frame(chat).end.strip()


def without_ends(chat: ChatFormat, response: str) -> str:
    """A response without the tokens that end it, in any order, and the whitespace around them."""
    ends = [end_of_turn(chat), chat.tokenizer.eos_token, chat.tokenizer.pad_token]
    while True:
        stripped = response.rstrip()
        found = next((end for end in ends if end and stripped.endswith(end)), None)
        if found is None:
            return response
        response = stripped.removesuffix(found)
