"""Which words of a conversation a rendered text lacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rrm_lm.feedback.records import TOOLS, Message

_REASONING = ("reasoning_content", "reasoning", "thinking")
_ENDS_OF_THOUGHT = ("</think>", "[/THINK]", "</thinking>")
_OWN = "leaves out the reasoning of the response"
_EARLIER = "leaves out the reasoning of earlier assistant turns"


class Lost(NamedTuple):
    """What a chat template leaves out of a conversation, as the predicate of a sentence; "" for nothing."""

    refused: str = ""  # words that were judged, so nothing should be learned from the rendered text
    noted: str = ""  # words that are left out by design
    is_twice: bool = False  # a message contains the template's own marks, so it may have been rendered before

    @classmethod
    def of(cls, losses: Iterable[Lost]) -> Lost:
        """The first of each kind."""
        found = list(losses)
        refused = next((one.refused for one in found if one.refused), "")
        noted = next((one.noted for one in found if one.noted), "")
        return cls(refused, noted, any(one.is_twice for one in found))


NOTHING = Lost()


def left_out(messages: Sequence[Message], text: str) -> Lost:
    """Words of the messages that a rendered text lacks. A last message by the assistant is the response; `text` is what
    the messages were rendered to.
    """
    place, refused, noted = 0, "", ""
    for number, message in enumerate(messages):
        if message.role == TOOLS:
            continue
        content, is_response = message.content.strip(), number == len(messages) - 1 and message.role == "assistant"
        found = text.find(content, 0 if message.role == "system" else place)
        if found >= 0:
            place = place if message.role == "system" else found + len(content)
        elif not _has_words(messages, content, text):
            answer = _after_thought(content)
            if message.role == "assistant" and not is_response and answer is not None and answer in text:
                noted = _EARLIER
            else:
                refused = refused or _describe(message.role, answer, text, is_response)
        if message.extra:
            extra = message.to_dict()
            words = [value for name in _REASONING if isinstance(value := extra.get(name), str)]
            if any(value.strip() not in text for value in words):
                refused, noted = (_OWN, noted) if is_response else (refused, _EARLIER)
            speaker = extra.get("name")
            if isinstance(speaker, str) and message.role != "tool" and speaker not in text:
                noted = noted or "leaves out the names of speakers"
    return Lost(refused, noted)


def _has_words(messages: Sequence[Message], content: str, text: str) -> bool:
    """Whether a content is in the text in another place, with other whitespace or as JSON, as often as it was said."""
    words, rendered = "".join(content.split()), "".join(text.split())
    said = sum(words in "".join(message.content.split()) for message in messages)
    escaped = json.dumps(content, ensure_ascii=False)[1:-1]
    return rendered.count(words) >= said or (escaped != content and escaped in text)


def _after_thought(content: str) -> str | None:
    """The part after the reasoning; None if there is no reasoning."""
    end = next((mark for mark in _ENDS_OF_THOUGHT if mark in content), None)
    return None if end is None else content.rpartition(end)[2].strip()


def _describe(role: str, answer: str | None, text: str, is_response: bool) -> str:
    if not is_response:
        return "leaves out system messages" if role == "system" else f"leaves out words of {role} turns"
    if not answer:
        return "leaves out words of the response" if answer is None else "leaves out the response"
    return _OWN if answer in text else "leaves out words of the response"
