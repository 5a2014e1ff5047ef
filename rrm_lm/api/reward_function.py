"""`rrm_lm.reward_function`: a reward model, in this process or on a server, as other projects' trainers call it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from rrm_lm.api.asks import asks_of, check_scorer, messages_of, read, score
from rrm_lm.api.reward_model import RewardModel
from rrm_lm.errors import DataError, ModelError, RRMError

_SENT = 1000  # items per request
_QUESTIONS = ("prompt", "question", "raw_prompt")  # where verl's data sets keep the prompt in `extra_info`


def reward_function(
    model: str | Path | RewardModel | None,
    *,
    name: str | None = None,
    token: str = "",
    timeout: float = 600,
    **options: Any,
) -> RewardFunction:
    """A reward model as a function that TRL, verl and OpenRLHF call.

    Args:
        model: A name for :meth:`rrm_lm.RewardModel.from_pretrained`, a loaded model, or the URL of `rrm-lm serve`. None
            for verl's own reward router.
        name: The model's name on the server, if it serves several.
        token: The server's token.
        timeout: Seconds for an answer of the server, including waiting when it is busy.
        options: As in :meth:`rrm_lm.RewardModel.from_pretrained`.

    Raises:
        ModelError: No such model, or one that is not a reward model.

    Example:
        >>> GRPOTrainer(..., reward_funcs=rrm_lm.reward_function("outputs/mine"))
    """
    if isinstance(model, str) and model.startswith(("http://", "https://")):
        return RewardFunction(_Server(model, name, token, timeout), "reward_model")
    if model is None:
        return RewardFunction(_nowhere, "reward_model")
    loaded = model if isinstance(model, RewardModel) else RewardModel.from_pretrained(model, **options)
    check_scorer(loaded.scorer, loaded.name)
    return RewardFunction(_Local(loaded.scorer), Path(loaded.name).name)


class RewardFunction:
    """It recognizes calls by TRL, verl and OpenRLHF by their keywords; :func:`reward_function` makes it.

    Its methods are for each of them. A response that cannot be scored is None for TRL, and an error for the others.
    """

    def __init__(self, items: Any, name: str) -> None:
        self._items, self.__name__ = items, name

    def __call__(self, *args: Any, **given: Any) -> Any:
        """Call :meth:`reward_func` (three positional arguments), :meth:`compute_score` or :meth:`rewards`."""
        if args or "queries" in given:
            return self.reward_func(*args, **given)
        return self.compute_score(**given) if "solution_str" in given else self.rewards(**given)

    def rewards(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """TRL's ``reward_funcs``: prompts and completions are texts, or messages with tool calls and their results."""
        tools = columns.get("tools") or [None] * len(prompts)
        items = [_item(*one) for one in zip(prompts, completions, tools, strict=True)]
        return [None if isinstance(one, RRMError) else one for one in self._items(items)]

    @property
    def asynchronous(self) -> Any:
        """:meth:`rewards` as an async function, so that TRL calls several at once."""

        async def rewards(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
            return await asyncio.to_thread(self.rewards, prompts, completions, **columns)

        rewards.__name__ = self.__name__
        return rewards

    def compute_score(
        self,
        data_source: Any = None,
        solution_str: str = "",
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        *,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
        **_: Any,
    ) -> float:
        """verl's ``custom_reward_function``. The prompt is ``prompt`` or ``question`` of `extra_info`, because verl
        passes no other. Without a model, verl's reward router is asked.

        Raises:
            DataError: `extra_info` has no prompt, or the response cannot be scored.
            ModelError: The server does not answer.
        """
        found = [extra_info[key] for key in _QUESTIONS if extra_info and extra_info.get(key) is not None]
        if not found:
            raise DataError(
                "verl's extra_info has no prompt",
                expected=f"one of {', '.join(_QUESTIONS)}",
                remedy="add it to the data",
            )
        prompt = found[0] if isinstance(found[0], str) else list(found[0])
        if self._items is _nowhere and reward_router_address is not None:
            turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            turns = [*turns, {"role": "assistant", "content": solution_str}]
            text = reward_model_tokenizer.apply_chat_template(turns, tokenize=False)
            text = text.removeprefix(reward_model_tokenizer.bos_token or "")
            sent = {"input": text, "use_activation": False}
            answer = _Server(f"http://{reward_router_address}", None, "", 600).post("/classify", sent)
            return float(answer["data"][-1]["probs"][-1])
        return self._all([_item(prompt, solution_str)])[0]

    def reward_func(self, queries: Sequence[str], prompts: Sequence[str], labels: Any = None) -> dict[str, Any]:
        """OpenRLHF's ``reward_func``: queries are prompts with their responses.

        Raises:
            DataError: A response cannot be scored.
        """
        import torch

        items = [{"query": query, "prompt": prompt} for query, prompt in zip(queries, prompts, strict=True)]
        rewards = torch.tensor(self._all(items))
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    def _all(self, items: list[Any]) -> list[float]:
        """The rewards. Raises the first error."""
        found = self._items(items)
        for one in found:
            if isinstance(one, RRMError):
                raise one
        return found


def _item(prompt: Any, completion: Any, tools: Any = None) -> dict[str, Any]:
    """One response as the server reads it."""
    more = {"tools": tools} if tools else {}
    if isinstance(prompt, str):
        text = completion if isinstance(completion, str) else completion[-1].get("content")
        return {"prompt": prompt, "responses": [text], **more}
    turns = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    return {"messages": [*prompt, *turns], **more}


def _nowhere(items: Any) -> Any:
    raise ModelError("There is no model and no reward router", remedy="name a model in rrm_lm.reward_function")


class _Local:
    """Rewards of a model in this process; trainers may call it in several threads."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.lock = scorer, threading.Lock()

    def __call__(self, items: Sequence[Any]) -> list[float | RRMError]:
        found: list[Any] = []
        with self.lock:
            for item in items:
                try:
                    one = read(self.scorer.chat, asks_of(item)[0])
                    messages_of(self.scorer, one)  # what a model with criteria could not score
                    found.append(one)
                except RRMError as error:
                    found.append(error)
            rewards = iter(score(self.scorer, [one for one in found if not isinstance(one, RRMError)]))
        return [one if isinstance(one, RRMError) else float(next(rewards).reward) for one in found]


class _Server:
    """Rewards of a server (`rrm-lm serve`)."""

    def __init__(self, url: str, name: str | None, token: str, timeout: float) -> None:
        self.url, self.name, self.timeout = url.rstrip("/"), name, timeout
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self, items: Sequence[Any]) -> list[float | RRMError]:
        found: list[float | RRMError] = []
        for start in range(0, len(items), _SENT):
            answer = self.post("/v1/rewards", {"model": self.name, "items": items[start : start + _SENT]})
            for one in (item["responses"][0] for item in answer["items"]):
                found.append(DataError(**one["error"]) if "error" in one else float(one["reward"]))
        return found

    def post(self, path: str, body: Any) -> Any:
        """The server's answer; waits while it is busy. Raises ModelError if it does not answer."""
        end = time.monotonic() + self.timeout
        while True:
            try:
                answer = httpx2.post(self.url + path, json=body, headers=self._headers, timeout=self.timeout)
                if answer.status_code == 200:
                    return answer.json()
            except (httpx2.HTTPError, ValueError) as error:
                raise ModelError(f"The server does not answer: {error}", where=self.url + path) from error
            wait = float(answer.headers.get("retry-after", 0))
            if answer.status_code not in (429, 503) or not wait or time.monotonic() + wait > end:
                what = f"The server answers with status {answer.status_code}: {answer.text[:300]}"
                raise ModelError(what, where=self.url + path)
            time.sleep(wait)
