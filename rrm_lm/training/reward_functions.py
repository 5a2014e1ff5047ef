"""The arguments of users' reward functions: by name, as TRL passes them, or ``f(prompts, responses)``."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.feedback.records import TOOLS, Prompt

PromptRows = Mapping[Prompt, Mapping[str, Any]]  # the row of its file that each prompt was read from

FORM = "def f(prompts, completions, **kwargs), as in TRL, which returns a number or None for each completion"
_GIVEN = {"prompts", "completions", "completion_ids"}


class UserFunction:
    """A reward function. It may be async, and is called with the arguments that its parameters name.

    - ``prompts``, ``completions``: strings if every prompt is one plain text in its file, else lists of messages.
    - ``completion_ids``: the sampled token ids.
    - any other name: that column of the prompts' file, None where a row lacks it. ``**kwargs`` receives every column.
    - ``responses``: strings; ``prompts`` are then tuples of `Message`. ``f(prompts, texts)`` is called the same way.

    `rows` holds the row of each prompt. Raises ConfigError if the function has parameters that are neither of these nor
    a column.
    """

    def __init__(self, function: Callable[..., Any], rows: PromptRows | None = None) -> None:
        self._function, self._rows = function, rows or {}
        columns = dict.fromkeys(column for row in self._rows.values() for column in row)
        self._columns = [column for column in columns if column not in {"prompt", "completion", *_GIVEN}]
        self._is_text = bool(self._rows) and all(_is_text(prompt, row) for prompt, row in self._rows.items())
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # written in C
            parameters = []
        self._takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
        named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        names = [one.name for one in named]
        first, second = (*[one.name for one in named if one.kind != one.KEYWORD_ONLY], "", "")[:2]
        prompt_first = second and "prompt" not in second and ("prompt" in first or first.startswith("_"))
        by_place = second == "responses" or prompt_first or not named
        self._by_place = second == "responses" or bool(
            by_place and not self._takes_all and not {"completions", "completion_ids", "responses"}.intersection(names)
        )
        self._reads_responses = self._by_place or "responses" in names
        self._names = names[2:] if self._by_place else names
        known = {*_GIVEN, *self._columns, *(["responses"] if self._reads_responses else [])}
        unclear = [one.name for one in named if one.default is one.empty and one.name in {*self._names} - known]
        if self._by_place and second in self._columns and second != "responses":
            unclear.append(second)  # the responses or the column?
        if unclear:
            raise ConfigError(
                f"It is not clear what the parameter `{unclear[0]}` of the reward function stands for",
                where=f"{getattr(function, '__name__', 'function')}({', '.join(map(str, parameters))})",
                expected=f"{FORM}; other parameters name columns of the prompts ({', '.join(self._columns) or 'none'})",
            )

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ids: Sequence[Sequence[int]] | None = None
    ) -> Any:
        rows = [self._rows.get(prompt, {}) for prompt in prompts]
        given: dict[str, Any] = {name: [row.get(name) for row in rows] for name in self._columns}
        given["completion_ids"] = [list(one) for one in ids or [[]] * len(responses)]
        if self._reads_responses:
            given |= {"prompts": list(prompts), "responses": list(responses)}
        elif self._is_text:
            given |= {"prompts": [prompt[0].content for prompt in prompts], "completions": list(responses)}
        else:
            talks = [[message.to_dict() for message in prompt if message.role != TOOLS] for prompt in prompts]
            given |= {"prompts": talks, "completions": [[{"role": "assistant", "content": one}] for one in responses]}
        first = [given.pop("prompts"), given.pop("responses")] if self._by_place else []
        if not self._takes_all:
            given = {name: value for name, value in given.items() if name in self._names}
        return _result(self._function(*first, **given))


def _is_text(prompt: Prompt, row: Mapping[str, Any]) -> bool:
    """Whether a row has the prompt as one plain text, so that TRL would pass strings."""
    columns = [row["prompt"]] if "prompt" in row else row.values()
    has_messages = any(isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) for value in columns)
    return [(one.role, one.extra) for one in prompt] == [("user", "")] and not has_messages


def _result(value: Any) -> Any:
    """A value, or what an async function returns."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run_coroutine_threadsafe(wait(), _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all calls: clients of servers are bound to theirs, and the caller (a notebook) may be in another."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward functions", daemon=True).start()
    return loop
