"""Conversion of text to token ids and loss positions. The only place that applies a chat template.

A *line* is one token sequence: the prompt, one response and, optionally, a critique of it, written as the next user
turn::

    <prompt> <response> <|im_end|>  \\n <|im_start|> user \\n <critique> <|im_end|>
                             ^ reward is read here          ^^^^^^^^^^^^^^^^^^^^^ trained on

The reward is read at the last token of the response's turn. Whitespace that a template adds after the end-of-turn
token (ChatML does) is removed, because a policy stops at that token and must be scored there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rrm_lm.errors import DataError, ModelError, TemplateError
from rrm_lm.feedback.records import TOOLS, Message, Prompt
from rrm_lm.text.batching import common_beginning
from rrm_lm.text.template_words import NOTHING, Lost, left_out
from rrm_lm.text.templates import require_template

_HIDE = "\ue000"  # private-use characters: placeholders for special-token text during rendering,
_SHOW = "\ue001"
_ANSWER, _CRITIQUE = "\ue002", "\ue003"  # and for text whose surroundings in the template are needed


@dataclass(frozen=True, slots=True)
class Line:
    """One token sequence: prompt, response and optionally a critique."""

    ids: tuple[int, ...]  # all token ids
    response_start: int  # position of the first token of the response
    reward_at: int  # position of the token at which the reward is read
    critique: range = range(0)  # positions of the critique's trained tokens, including its end-of-turn token
    # First position that tokens after `reward_at` attend to. 0 is the whole line; `reward_at` limits the critique's
    # view of the response to the hidden state that the reward is read from.
    critique_view: int = 0

    @property
    def blind(self) -> tuple[int, int]:
        """The argument ``(start, first)`` of :func:`rrm_lm.text.batching.share`."""
        return (self.reward_at + 1, self.critique_view) if self.critique_view else (0, 0)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The lines of one prompt's responses, and counts of what was cut to fit the context."""

    lines: tuple[tuple[Line, ...], ...]  # the lines of each response: one without a critique, or one per critique
    dropped_turns: int = 0  # number of the prompt's oldest messages that were dropped
    cut_tokens: int = 0  # tokens cut from the start of the remaining prompt
    cut_responses: int = 0  # number of responses longer than the context, which lost their beginning
    lost: Lost = NOTHING  # what the template leaves out; see :meth:`ChatFormat.lost`

    def whole(self) -> Encoded:
        """These lines; raises a TemplateError if words are missing from them."""
        if self.lost.refused:
            raise TemplateError(f"The chat template {self.lost.refused}")
        return self


class ChatFormat:
    """Renders conversations with a tokenizer's chat template and encodes them.

    Special tokens inside messages are encoded as ordinary text, never as control tokens.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        max_length: Maximum prompt plus response, in tokens; ``None`` for no limit.
        max_critique_length: Maximum critique, in tokens; longer ones are cut.
        trim: End lines at the end-of-turn token. False keeps the whitespace that templates add after it, as other
            programs do when they train reward models.
        pad_id: For models of other programs: the reward is read at the last token that is not this one, even if the
            template ends with it, as sequence classifiers of transformers do.

    Raises:
        ModelError: The tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        max_critique_length: int = 128,
        trim: bool = True,
        pad_id: int | None = None,
    ) -> None:
        require_template(tokenizer, str(getattr(tokenizer, "name_or_path", "")))
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.max_critique_length = max_critique_length
        self.trim, self.pad_id = trim, pad_id
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self._special_texts = special
        pattern = [re.escape(text) for text in sorted(special, key=len, reverse=True) if text]
        self._special = re.compile("|".join([*pattern, _HIDE]))

    # -- public ---------------------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt up to the start of the assistant's response, cut to ``max_length``."""
        _, (ids,), _ = self._drop_turns(prompt, lambda kept: [self._prompt_ids(kept)])
        return ids if self.max_length is None else ids[-self.max_length :]

    @cached_property
    def uncut(self) -> ChatFormat:
        """The same format without a length limit."""
        return ChatFormat(self.tokenizer, None, self.max_critique_length, self.trim, self.pad_id)

    def critique_prompt_ids(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids up to the start of a critique of ``response``."""
        line = self.encode(prompt, [response], [["x"]]).lines[0][0]
        return list(line.ids[: line.critique.start])

    def with_critique_ids(self, prompt: Prompt, response: str, critiques: Sequence[Sequence[int]]) -> list[Line]:
        """Lines with sampled critiques: continuations of :meth:`critique_prompt_ids`, with or without the end-of-turn
        token. The reward is read at the critique's last token.
        """
        start = self.critique_prompt_ids(prompt, response)
        plain = self.encode(prompt, [response]).lines[0][0]
        lines = []
        for critique in critiques:
            words = critique[:-1] if critique and critique[-1] == self.end_id else critique
            ids = (*start, *self._ended(words))
            lines.append(Line(ids, plain.response_start, len(ids) - 1, range(len(start), len(ids))))
        return lines

    @staticmethod
    def sampled_line(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Line:
        """The line of a sampled response, without re-encoding, after :meth:`prompt_ids`; the reward is read at its last
        token. `response_ids` are one or more tokens, ending in the end-of-turn token unless sampling was cut off.
        """
        ids = (*prompt_ids, *response_ids)
        return Line(ids, len(prompt_ids), len(ids) - 1)

    def encode(
        self, prompt: Prompt, responses: Sequence[str], critiques: Sequence[Sequence[str]] | None = None
    ) -> Encoded:
        """Encode the responses to one prompt. All lines have the same prompt, even if it is cut.

        A conversation longer than ``max_length`` first loses its oldest turns, except a system message and the last
        user turn, then the first tokens of the rest. The response is kept. `critiques` are those of each response to
        train on; ``None`` for none. Raises DataError: a response has no tokens; TemplateError (a DataError, too): the
        chat template cannot render the conversation.
        """
        losses: list[Lost] = []
        prompt, sequences, dropped = self._drop_turns(
            prompt, lambda kept: [self._response_ids(kept, response, losses) for response in responses]
        )
        start = self._prompt_ids(prompt)
        starts = [common_beginning([start, ids]) for ids in sequences]
        for ids, begin, response in zip(sequences, starts, responses, strict=True):
            if begin >= len(ids) or not response.strip():
                Encoded((), lost=Lost.of(losses)).whole()
                raise DataError("A response has no tokens left", expected="text", remedy="drop or repair this row")
        excess = 0 if self.max_length is None else max(0, max(map(len, sequences)) - self.max_length)
        cut = min(excess, *starts)
        lines, cut_responses = [], 0
        for index, (ids, begin) in enumerate(zip(sequences, starts, strict=True)):
            lost = cut
            if self.max_length is not None and len(ids) - lost > self.max_length:
                lost, cut_responses = len(ids) - self.max_length, cut_responses + 1
            kept = ids[lost:]
            last = next((at for at in reversed(range(len(kept))) if kept[at] != self.pad_id), 0)
            plain = Line(tuple(kept), max(0, begin - lost), last)
            texts = critiques[index] if critiques is not None else ()
            lines.append(tuple(self._with_critique(plain, text) for text in texts) or (plain,))
        return Encoded(tuple(lines), dropped, cut, cut_responses, Lost.of(losses))

    def has_special(self, text: str) -> bool:
        """Whether special tokens are written in a text."""
        return self._special.search(text) is not None

    def is_as_rendered(self, prompt: Prompt, response: str) -> bool:
        """Whether a line's tokens are those of the rendered messages: no cuts, tools or special tokens in the text."""
        if any(message.role == TOOLS for message in prompt):
            return False
        if any(map(self.has_special, (response, *(m.content + m.extra for m in prompt)))):
            return False
        try:
            encoded = self.encode(prompt, [response])
        except (DataError, ModelError):
            return False
        return not (encoded.dropped_turns or encoded.cut_tokens or encoded.cut_responses)

    def show(self, line: Line) -> list[tuple[str, str]]:
        """Split the line into pieces of text, labeled prompt, response, frame or critique."""
        end = line.critique.start if line.critique else len(line.ids)
        stop = min(line.reward_at + 1, end)  # the reward may be read after the critique
        bounds = [
            ("prompt", range(0, line.response_start)),
            ("response", range(line.response_start, stop)),
            ("frame", range(stop, end)),
            ("critique", line.critique),
        ]
        return [(self.tokenizer.decode(list(line.ids[span.start : span.stop])), name) for name, span in bounds if span]

    def transcript(self, prompt: Prompt, response: str | None) -> str:
        """The text that the model reads for a prompt, with or without a response."""
        _, text, literals = self._turns(prompt, response)
        return _shown(text, literals)

    def lost(self, prompt: Prompt, response: str | None) -> Lost:
        """What the template leaves out of a conversation. Raises a TemplateError if it cannot render it."""
        return self._lost(*self._turns(prompt, response))

    @cached_property
    def end_id(self) -> int:
        """The token that the template adds after the assistant's text; the eos token if there is none.

        In some families they differ (Gemma: <end_of_turn> and <eos>).
        """
        end = self._after_answer()[0]
        if end in self._special_texts:
            return int(self.tokenizer.convert_tokens_to_ids(end))
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no token that ends a turn", expected="an eos token")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def answer_mark(self) -> str:
        """The template's text between a user turn and its answer, without the end of the user turn."""
        between = self._render((Message("user", _CRITIQUE), Message("assistant", _ANSWER)), [])
        between = between.partition(_CRITIQUE)[2].partition(_ANSWER)[0].strip()
        end = self._special.match(between)
        return (between[end.end() :].strip() if end else "") or between or _HIDE

    # -- rendering ------------------------------------------------------------------------------------------------

    def _render(self, messages: Sequence[Message], literals: list[str], generation: bool = False) -> str:
        """Render messages. Special-token text in them becomes placeholders, and is collected in ``literals``."""

        def hide(match: re.Match[str]) -> str:
            literals.append(match.group())
            return f"{_HIDE}{len(literals) - 1}{_SHOW}"

        def hide_all(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: hide_all(item) for key, item in value.items()}
            if isinstance(value, list):
                return [hide_all(item) for item in value]
            return self._special.sub(hide, value) if isinstance(value, str) else value

        turns = [hide_all(m.to_dict() | {"role": ""}) | {"role": m.role} for m in messages if m.role != TOOLS]
        tools = [tool for m in messages if m.role == TOOLS for tool in hide_all(json.loads(m.content))]
        more = {"tools": tools} if tools else {}
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **more)
        except Exception as error:  # Jinja raises many kinds
            raise TemplateError(
                f"The chat template cannot render this conversation: {error}",
                where=" > ".join(message.role for message in messages),
                remedy="merge or rename the roles, or pass another template with --chat_template_path",
            ) from error
        called = [name for m in messages for name in _function_names(m)]
        if called and (
            any(name not in str(text) for name in called) or self._ignores_tools(turns, more, generation, str(text))
        ):
            raise TemplateError(
                f"The chat template leaves out tools or tool calls: {', '.join(dict.fromkeys(called))}",
                where=" > ".join(message.role for message in messages),
                remedy="use a model whose template shows tools, or leave these rows out",
            )
        return str(text)

    def _ignores_tools(self, turns: list[dict[str, Any]], more: dict[str, Any], generation: bool, text: str) -> bool:
        """Whether the text would be the same without the tools, or without the calls: their names may occur anyway."""
        without_calls = [{name: value for name, value in turn.items() if name != "tool_calls"} for turn in turns]
        others = [(turns, {})] * bool(more) + [(without_calls, more)] * (without_calls != turns)
        for changed, tools in others:
            try:
                other = self.tokenizer.apply_chat_template(
                    changed, tokenize=False, add_generation_prompt=generation, **tools
                )
            except Exception:  # a template that needs them does not ignore them
                continue
            if other == text:
                return True
        return False

    def _encode(self, text: str, literals: Sequence[str]) -> list[int]:
        pieces = re.split(f"{_HIDE}(\\d+){_SHOW}", text)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                ids += self.tokenizer(
                    literals[int(piece)], add_special_tokens=False, split_special_tokens=True
                ).input_ids
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False).input_ids
        return ids

    def _turns(self, prompt: Prompt, response: str | None) -> tuple[Prompt, str, list[str]]:
        """A conversation, or a prompt to be continued: its messages, the rendered text, and what is hidden in it."""
        literals: list[str] = []
        turns = prompt if response is None else (*prompt, Message("assistant", response))
        return turns, self._render(turns, literals, generation=response is None), literals

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        return self._encode(*self._turns(prompt, None)[1:])

    def _lost(self, turns: Sequence[Message], text: str, literals: Sequence[str]) -> Lost:
        lost = left_out(turns, _shown(text, literals))
        is_twice = bool(literals) and any(self.answer_mark in message.content for message in turns)
        return lost._replace(is_twice=is_twice)

    def _response_ids(self, prompt: Prompt, response: str, losses: list[Lost]) -> list[int]:
        turns, text, literals = self._turns(prompt, response)
        losses.append(self._lost(turns, text, literals))
        return self._encode(text.rstrip() if self.trim else text, literals)

    def _with_critique(self, plain: Line, critique: str) -> Line:
        """Append the critique as the next user turn; only the text after the response is encoded."""
        words = self.tokenizer(critique.strip(), add_special_tokens=False, split_special_tokens=True).input_ids
        start = (*plain.ids, *self._critique_frame)
        ids = (*start, *self._ended(words))
        return replace(plain, ids=ids, critique=range(len(start), len(ids)))

    def _ended(self, words: Sequence[int]) -> list[int]:
        """A critique cut to the maximum length, with the token that ends it."""
        return [*words[: self.max_critique_length - 1], self.end_id]

    @cached_property
    def _critique_frame(self) -> list[int]:
        """Token ids between a response and a critique of it: the start of the next user turn.

        The critique is encoded separately, so trained and sampled critiques have the same tokens.
        """
        end, after = self._after_answer()
        frame, mark, _ = after.removeprefix(end).partition(_CRITIQUE)
        # Separate them by a newline if the template omits the user turn or ends the answer in another way.
        return self._encode(frame if mark and after.startswith(end) else "\n", [])

    def _after_answer(self) -> tuple[str, str]:
        """The template's text after the assistant's last answer, and after an answer followed by a user turn.

        Some templates render earlier answers differently from the last one (Qwen 3).
        """
        messages = (Message("user", "?"), Message("assistant", _ANSWER), Message("user", _CRITIQUE))
        last, earlier = (self._render(messages[:count], []).rpartition(_ANSWER)[2] for count in (2, 3))
        return last.rstrip(), earlier

    def _drop_turns(
        self, prompt: Prompt, encode: Callable[[Prompt], list[list[int]]]
    ) -> tuple[Prompt, list[list[int]], int]:
        """Drop the oldest exchanges until all sequences from ``encode`` fit. Returns the prompt, its sequences, and the
        number of dropped messages.
        """
        heads = next((place for place, message in enumerate(prompt) if message.role not in ("system", TOOLS)), 0)
        head, rest = prompt[:heads], prompt[heads:]
        sequences, dropped = encode(prompt), 0
        while self.max_length is not None and max(map(len, sequences)) > self.max_length:
            users = [place for place, message in enumerate(rest) if message.role == "user"]
            if len(users) < 2:
                break
            following = users[0] if users[0] > 0 else users[1]
            rest, dropped = rest[following:], dropped + following
            sequences = encode(head + rest)
        return head + rest, sequences, dropped


def _shown(text: str, literals: Sequence[str]) -> str:
    """A rendered text with the special-token text of messages in place of placeholders."""
    return re.sub(f"{_HIDE}(\\d+){_SHOW}", lambda match: literals[int(match[1])], text) if literals else text


def _function_names(message: Message) -> list[str]:
    """The names of the tools that a message lists or calls."""
    found = json.loads(message.content) if message.role == TOOLS else message.to_dict().get("tool_calls", [])
    functions = [item.get("function", item) for item in found if isinstance(item, dict)]
    return [item["name"] for item in functions if isinstance(item, dict) and isinstance(item.get("name"), str)]
