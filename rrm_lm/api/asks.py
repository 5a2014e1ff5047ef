"""Responses that other programs ask a reward model about: as messages, or as text that they rendered themselves.

The server and :func:`rrm_lm.reward_function` read and score them here, with the encoding and batches of `rrm-lm score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rrm_lm.errors import DataError, ModelError
from rrm_lm.evaluation.preferences.criteria import CriteriaScorer
from rrm_lm.feedback.counts import FileCounts
from rrm_lm.feedback.reading.formats.row import Row
from rrm_lm.feedback.records import Origin, Prompt, check_prompt, find_surrogate
from rrm_lm.models.ensemble import with_added
from rrm_lm.text.chat import ChatFormat, Encoded
from rrm_lm.text.rendered import encode_rendered, end_of_turn, is_prompt_rendered, messages_in, without_ends


class Ask(NamedTuple):
    """One response to score: to messages, or in a rendered conversation, or to a text that may be a rendered prompt."""

    prompt: Prompt = ()
    response: Any = ""  # text; anything else is refused when it is read
    rendered: str | None = None  # the conversation as one text; if there is a prompt, it says whether it is rendered


class Read(NamedTuple):
    """A response that is ready to be scored."""

    key: Any  # equal for responses to one prompt, which then share its computation: messages, or text before a response
    response: str
    encoded: Encoded

    @property
    def tokens(self) -> int:
        return len(self.encoded.lines[0][0].ids)

    @property
    def truncated(self) -> bool:
        """Whether part of the conversation did not fit."""
        return bool(self.encoded.dropped_turns or self.encoded.cut_tokens or self.encoded.cut_responses)


class Scored(NamedTuple):
    """A reward, and what each criterion adds to it, in nats."""

    reward: float  # with its disagreement, for an ensemble
    criteria: dict[str, float]


def asks_of(item: Any, where: str = "the item") -> list[Ask | DataError]:
    """The responses of one item, each with its prompt; an error in place of each that cannot be read.

    Args:
        item: ``{"messages" or "prompt", "responses": [...]}``, where a prompt is text or messages; ``{"messages"}``
            that end with the response; or OpenRLHF's ``{"query", "prompt"}``.
        where: Names the item in errors.
    """
    try:
        if not isinstance(item, Mapping):
            raise DataError(
                f"the item is not an object but {type(item).__name__}", expected='{"messages", "responses"}'
            )
        if "query" in item:
            return [query_of(item["query"], item.get("prompt"))]
        row = Row(dict(item), Origin(where, 1), "", FileCounts(where, "request"))
        name = row.first("messages", "prompt")
        responses = _responses_in(item)
        responses = [responses] if isinstance(responses, str) else responses
        if isinstance(item.get(name), str):
            row.values[name] = [{"role": "user", "content": item[name]}]
        prompt = row.in_context(row.messages(name))
        if responses is None and prompt[-1].role == "assistant":
            prompt, responses = prompt[:-1], [prompt[-1].content]
        if not isinstance(responses, Sequence) or not responses:
            raise DataError("the item has no responses", expected='"responses": a list of texts')
        check_prompt(prompt, Origin(where, 1))
    except DataError as error:
        return [DataError(error.what, where=where, expected=error.expected, remedy=error.remedy)] * size_of(item)
    text = item[name] if isinstance(item[name], str) else None
    return [
        Ask(prompt, response, text + response if text is not None and isinstance(response, str) else None)
        for response in responses
    ]


def text_of(value: Any, where: str) -> Ask | DataError:
    """The response in a rendered conversation."""
    if isinstance(value, str):
        return Ask(rendered=value)
    return DataError(f"The text is {'null' if value is None else type(value).__name__}", where=where, expected="text")


def query_of(query: Any, prompt: Any) -> Ask | DataError:
    """OpenRLHF's query: prompt and response as text, rendered if the prompt was."""
    place = query.find(prompt) if isinstance(query, str) and isinstance(prompt, str) and prompt else -1
    if place < 0:
        return text_of(query, "query")
    return asks_of({"prompt": prompt, "responses": [query[place + len(prompt) :]]}, "query")[0]


def size_of(item: Any) -> int:
    """How many responses or errors :func:`asks_of` finds in an item."""
    responses = _responses_in(item) if isinstance(item, Mapping) and "query" not in item else None
    return max(1, len(responses)) if isinstance(responses, list) else 1


def _responses_in(item: Mapping[str, Any]) -> Any:
    return item.get("responses", item.get("response"))


def read(chat: ChatFormat, ask: Ask | DataError, cut: bool = True) -> Read:
    """Encode one response. Without `cut`, a conversation that is too long is an error. Raises DataError."""
    if isinstance(ask, DataError):
        raise ask
    found = _encode(chat, ask)
    if found.truncated and not cut:
        raise DataError(f"The conversation is longer than {chat.max_length} tokens", remedy="allow truncation")
    return found


def _encode(chat: ChatFormat, ask: Ask) -> Read:
    """Encode one response. Special tokens in messages are text; those of a rendered conversation are control tokens.
    Raises DataError: the response is empty or not text, the text carries no template or carries it twice, or the
    template cannot render the conversation or leaves words out.
    """
    if ask.rendered is not None:
        _check_text(ask.rendered, "text")
        if not ask.prompt or is_prompt_rendered(chat, ask.prompt[-1].content):
            return Read(*encode_rendered(chat, ask.rendered))
        ask = Ask(ask.prompt, without_ends(chat, ask.response))
    _check_text(ask.response, "response")
    end = end_of_turn(chat)
    if end and ask.response.rstrip().endswith(end):
        what = f"The response ends with {end!r}, which the chat template adds"
        raise DataError(what, remedy="decode responses with skip_special_tokens=True")
    return Read(ask.prompt, ask.response, chat.encode(ask.prompt, [ask.response]).whole())


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"The {name} is {'null' if value is None else type(value).__name__}", expected="text")
    if not value.strip():
        raise DataError(f"The {name} is empty", expected="text")
    if surrogate := find_surrogate(value):
        raise DataError(f"The {name} contains {surrogate}", expected="valid Unicode")


def check_scorer(scorer: Any, name: str) -> None:
    """Raise a ModelError unless a scorer reads the reward from one line per response."""
    settings = getattr(getattr(scorer, "model", None), "settings", None)
    kind = "" if hasattr(scorer, "score_lines") else "a language model, which is only used as a judge"
    remedy = "use rrm-lm score"
    if isinstance(scorer, CriteriaScorer):
        kind = "a file of criteria, without a reward model and its tokenizer"
    if getattr(settings, "critique_first", False):
        kind = "a model that writes a critique before it scores"
    if kind:
        raise ModelError(f"This is {kind}", where=name, expected="a reward model", remedy=remedy)


def score(scorer: Any, asked: Sequence[Read]) -> list[Scored]:
    """Score each response. Responses to one prompt share its computation, in rows within the token budget. Raises
    DataError: the model has criteria, and the messages of a rendered conversation cannot be separated.
    """
    parts = _criteria_parts(scorer, asked)
    rewards = _rewards(scorer, asked)
    return [Scored(with_added(one, sum(part.values())), part) for one, part in zip(rewards, parts, strict=True)]


def messages_of(scorer: Any, one: Read) -> Prompt:
    """The messages before a response, if the model's criteria need them; () if they do not. Raises DataError: they
    cannot be separated in a rendered conversation.
    """
    if getattr(scorer, "criteria", None) is None:
        return ()
    return messages_in(scorer.chat, one.key) if isinstance(one.key, str) else one.key


def _criteria_parts(scorer: Any, asked: Sequence[Read]) -> list[dict[str, float]]:
    """What each criterion adds to each reward, in nats; empty for a model without criteria."""
    criteria = getattr(scorer, "criteria", None)
    if criteria is None:
        return [{}] * len(asked)
    prompts = [messages_of(scorer, one) for one in asked]
    return [part for (part,) in criteria.parts(prompts, [[one.response] for one in asked])]


def _rewards(scorer: Any, asked: Sequence[Read]) -> list[float]:
    """The rewards without criteria."""
    groups: list[list[int]] = []
    open_groups: dict[Any, tuple[list[int], int]] = {}  # for each prompt, its last group and the tokens in it
    for place, one in enumerate(asked):
        group, tokens = open_groups.get(one.key, ([], 0))
        if not group or tokens + one.tokens > scorer.micro_batch_tokens:
            group, tokens = [], 0
            groups.append(group)
        group.append(place)
        open_groups[one.key] = group, tokens + one.tokens
    found = scorer.score_lines([[list(asked[place].encoded.lines[0]) for place in group] for group in groups])
    rewards = [math.nan] * len(asked)
    for group, values in zip(groups, found, strict=True):
        for place, value in zip(group, values, strict=True):
            rewards[place] = value
    return rewards
