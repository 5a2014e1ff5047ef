"""Does a server give the rewards that were recorded when the model was saved?

The fixed conversations of a saved model are sent as each dialect's client sends them. A difference means that the
server reads other tokens (another template, a second beginning token), applies an activation, or holds other weights.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from fastapi import FastAPI
from transformers import AutoTokenizer

from rrm_lm.api.asks import read
from rrm_lm.errors import ModelError, RRMError
from rrm_lm.feedback.criteria.records import CRITERIA_FILE
from rrm_lm.models.portable import RECORDED, Conversation, first_difference
from rrm_lm.models.pretrained import model_file, resolve, rounding
from rrm_lm.models.reward_files import read_examples
from rrm_lm.serving.dialects import ALL, OWN, Dialect
from rrm_lm.serving.models import Served
from rrm_lm.settings.serving import CheckServerArguments

logger = logging.getLogger(__name__)

ALLOWED = 1e-3  # largest difference of rewards, in float32
_SECONDS = 120.0

Post = Callable[[str, Any], Awaitable[Any]]  # sends JSON to a path and gives the answer


async def check_app(app: FastAPI, models: Mapping[str, Served], token: str) -> None:
    """Check every dialect of every model through the application. Raises ModelError if a reward differs."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://self", headers=headers, timeout=_SECONDS) as client,
    ):
        for model in models.values():
            recorded = _with_criteria(model, _recorded(model.location)) or _scored(model)
            _check_tokens(model, recorded)
            tokenizer: Any = AutoTokenizer.from_pretrained(resolve(model.location))
            dtype = getattr(model.scorer.model, "dtype", None) or model.scorer.model.backbone.causal_lm.dtype
            allowed = max(ALLOWED, rounding(dtype, model.scorer.model.device))
            largest = 0.0
            for dialect in (one for group in ALL.values() for one in group):
                path = f"{dialect.paths[0]}?model={quote(model.name, safe='')}"
                why = _why(model, dialect, tokenizer, recorded)
                # Equal tokens have equal rewards, so that two of the other dialects' show the rest of the path.
                asked = recorded if dialect is OWN else recorded[:2]
                try:
                    gap = await _gap(_post(client), dialect, path, tokenizer, model.name, asked)
                except RRMError as error:
                    raise ModelError(f"{error.what}{why}", where=path, remedy=error.remedy) from error
                if why or not gap <= allowed:
                    raise ModelError(
                        f"The served rewards differ from the recorded ones by up to {gap:.2g}{why}",
                        where=f"{path} of {model.location}",
                        expected=f"the same tokens, and the same rewards to {allowed:g}",
                        remedy="save the model again with these versions, or pass --self_check false",
                    )
                largest = max(largest, gap)
            kind = "recorded at saving" if _recorded(model.location) else "of rrm-lm score (none were recorded)"
            logger.info("%s: all dialects give the rewards %s, within %.1g", model.name, kind, largest)


def check_server(args: CheckServerArguments) -> int:
    """Ask a server for the rewards recorded in a model's folder, and print the largest difference; returns the exit
    code. Raises ModelError if they differ, the server cannot be asked, or no rewards are recorded.
    """
    location, url = str(args.model), str(args.url).rstrip("/")
    if model_file(resolve(location), CRITERIA_FILE) is not None:
        raise ModelError(
            "This reward model has criteria, which other servers do not add",
            where=location,
            remedy="serve it with rrm-lm serve, which checks its rewards when it starts",
        )
    recorded = _recorded(location)
    if not recorded:
        raise ModelError(
            "No rewards are recorded in the model's folder",
            where=location,
            expected="a folder that rrm-lm reward wrote (its last line names it), or its merged checkpoint",
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(resolve(location))
    dialect = ALL[args.dialect][0]
    path = dialect.paths[0] if args.dialect == "own" else "/" + dialect.paths[0].split("/", 2)[2]
    headers = {"Authorization": f"Bearer {token}"} if (token := args.token()) else {}

    async def ask() -> float:
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=_SECONDS) as client:
            return await _gap(_post(client), dialect, path, tokenizer, args.served_name or location, recorded)

    gap = asyncio.run(ask())
    if not gap <= ALLOWED:
        raise ModelError(
            f"The server's rewards differ from the recorded ones by up to {gap:.2g}",
            where=f"{url}{path}",
            expected=f"the same rewards to {ALLOWED:g}",
            remedy="check that it serves this model in float32 or bfloat16, with the tokenizer of its folder",
        )
    print(f"{url}{path} gives the recorded rewards of {location}, within {gap:.1g}")
    return 0


Recorded = Sequence[tuple[Conversation, Sequence[int], float]]


def _recorded(location: str) -> Recorded:
    return read_examples(Path(resolve(location)))


def _with_criteria(model: Served, recorded: Recorded) -> Recorded:
    """The recorded rewards, which are the network's, plus those of the model's criteria."""
    criteria = getattr(model.scorer, "criteria", None)
    if criteria is None:
        return recorded
    added = criteria.rewards([prompt for (prompt, _), _, _ in recorded], [[text] for (_, text), _, _ in recorded])
    return [(talk, ids, reward + more) for (talk, ids, reward), (more,) in zip(recorded, added, strict=True)]


def _scored(model: Served) -> Recorded:
    """The rewards of `rrm-lm score`, for models without recorded ones."""
    talks = [talk for talk in RECORDED if model.chat.is_as_rendered(*talk)]
    rewards = model.scorer.score([prompt for prompt, _ in talks], [[response] for _, response in talks])
    ids = [model.chat.encode(prompt, [response]).lines[0][0].ids for prompt, response in talks]
    return [(talk, one, reward) for talk, one, (reward,) in zip(talks, ids, rewards, strict=True)]


def _post(client: httpx2.AsyncClient) -> Post:
    async def post(path: str, body: Any) -> Any:
        try:
            answer = await client.post(path, json=body)
            if answer.status_code == 200:
                return answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise ModelError(f"The server does not answer: {error}", where=f"{client.base_url}{path}") from error
        what = f"The server answers with status {answer.status_code}: {answer.text[:300]}"
        raise ModelError(what, where=f"{client.base_url}{path}")

    return post


async def _gap(post: Post, dialect: Dialect, path: str, tokenizer: Any, name: str, recorded: Recorded) -> float:
    """The largest difference of the rewards. Raises ModelError if the answer has others than one per conversation."""
    reply = await post(path, dialect.request([talk for talk, _, _ in recorded], tokenizer, name))
    try:
        found = [float(reward) for reward in dialect.rewards(reply)]
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(f"The answer cannot be read ({error!r}): {str(reply)[:200]}", where=path) from error
    expected = [reward for _, _, reward in recorded]
    if len(found) != len(expected):
        raise ModelError(f"There are {len(found)} rewards for {len(expected)} conversations", where=path)
    squashed = [1 / (1 + math.exp(-reward)) for reward in expected]
    if all(abs(a - b) < ALLOWED for a, b in zip(found, squashed, strict=True)):
        what = "The rewards went through a sigmoid"
        raise ModelError(what, where=path, remedy="serve the merged checkpoint, whose problem_type is regression")
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def _check_tokens(model: Served, recorded: Recorded) -> None:
    """Raise a ModelError if the conversations have other tokens than at saving."""
    for (prompt, response), ids, _ in recorded:
        now = model.chat.encode(prompt, [response]).lines[0][0].ids
        if list(now) != list(ids):
            where = first_difference(model.chat.tokenizer, now, ids)
            what = f"The conversation has other tokens than when the model was saved: {where}"
            raise ModelError(what, where=model.location, remedy="use the tokenizer and template of the model's folder")


def _why(model: Served, dialect: Dialect, tokenizer: Any, recorded: Recorded) -> str:
    """The first token that a dialect reads and the model was not trained with; "" without one."""
    asks = dialect.asks(dialect.request([talk for talk, _, _ in recorded], tokenizer, model.name))
    for ask, (_, ids, _) in zip(asks, recorded, strict=True):
        try:
            served = read(model.chat, ask).encoded.lines[0][0].ids
        except RRMError as error:
            return f": {error.what}"
        if list(served) != list(ids):
            return f": {first_difference(model.chat.tokenizer, served, ids)}"
    return ""
