"""How clients of other servers ask for rewards, and what they read from the answer.

Each :class:`Dialect` has both sides: `asks` and `reply` are the server's, `request` and `rewards` the client's, for
checks. The comments name the source that each follows.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rrm_lm.api.asks import Ask, Read, asks_of, query_of, size_of, text_of
from rrm_lm.errors import DataError, RRMError
from rrm_lm.models.ensemble import EnsembleReward
from rrm_lm.models.portable import Conversation, messages_of
from rrm_lm.serving.models import Served

Asked = list[Ask | DataError]
Body = dict[str, Any]


class Result(NamedTuple):
    """One response: how it was read, and its reward or why it has none."""

    read: Read | None
    reward: float | RRMError
    criteria: Mapping[str, float] = {}  # what each criterion adds to the reward

    @property
    def truncated(self) -> bool:
        return self.read is not None and self.read.truncated


class Refused(Exception):
    """A whole request that is answered with an error: its status, and for each response its reward or error."""

    def __init__(self, status: int, message: str, items: list[Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.items = status, items

    def openai(self) -> Body:
        """The body of the error, as OpenAI's API has it."""
        items = {} if self.items is None else {"items": self.items}
        return {"error": {"message": str(self), "type": "invalid_request_error", "code": self.status}} | items

    def tei(self) -> Body:
        kinds = {400: "validation", 413: "validation", 422: "tokenizer", 429: "overloaded"}
        return {"error": str(self), "error_type": kinds.get(self.status, "backend")}


class Dialect(NamedTuple):
    """One kind of client."""

    paths: tuple[str, ...]
    asks: Callable[[Body], Asked]  # the responses of a request, with an error in place of each that cannot be read
    reply: Callable[[Body, Served, Sequence[Result]], Any]  # the answer; an error stands in the place of its response
    # a client's request for conversations, with the reward model's tokenizer and its name on the server
    request: Callable[[Sequence[Conversation], Any, str], Body]
    rewards: Callable[[Any], list[float]]  # what a client reads from the answer
    # whether a conversation that is too long is cut, which the answer says; otherwise it is an error
    cuts: Callable[[Body], bool] = lambda body: False
    busy: int = 429  # status that makes a client try again later
    anything: tuple[str, ...] = ()  # names that mean the only model
    error: Callable[[Refused], Body] = Refused.openai


# -- requests -------------------------------------------------------------------------------------------------------


def _own_asks(body: Body) -> Asked:
    return [ask for place, item in enumerate(_list(body, "items")) for ask in asks_of(item, f"item {place}")]


def _vllm_asks(body: Body) -> Asked:
    if body.get("task") not in (None, "classify"):
        raise Refused(400, f"the task is {body['task']!r}; a reward model has the task classify")
    return asks_of({"messages": body["messages"]}, "messages") if body.get("messages") else _texts(body, "input")


def _tei_asks(body: Body) -> Asked:
    found: Asked = []
    for place, one in enumerate(_tei_items(body)):
        texts, where = [one] if isinstance(one, str) else one, f"inputs, item {place}"
        if not isinstance(texts, list) or len(texts) not in (1, 2):
            found.append(DataError("This is not a text or a pair", where=where, expected="[text] or [prompt, text]"))
        elif len(texts) == 1:
            found += _texts({"inputs": texts}, "inputs")
        else:
            found += asks_of({"prompt": texts[0], "responses": texts[1:]}, where)
    return found


def _tei_items(body: Body) -> list[Any]:
    """The list in a request; a text or a flat pair is one item."""
    inputs = body.get("inputs")
    return inputs if isinstance(inputs, list) and any(isinstance(one, list) for one in inputs) else [inputs]


def _openrlhf_asks(body: Body) -> Asked:
    queries = _list(body, "query")
    prompts = body.get("prompts") or [None] * len(queries)
    if len(prompts) != len(queries):
        raise Refused(400, f"there are {len(queries)} queries and {len(prompts)} prompts")
    return [query_of(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]


def _texts(body: Body, name: str, other: str = "") -> Asked:
    """The responses in a rendered text or a list of them."""
    value = body.get(name, body.get(other))
    if isinstance(value, list) and value and all(isinstance(one, int | list) for one in value):
        raise Refused(400, f"`{name}` holds token ids, which are not read; send text or messages")
    if isinstance(value, list):
        return [text_of(one, f"{name}, item {place}") for place, one in enumerate(value)]
    return [text_of(value, name)]


def _list(body: Body, name: str) -> list[Any]:
    if not isinstance(body.get(name), list):
        raise Refused(422, f"`{name}` is missing or not a list")
    return body[name]


# -- replies --------------------------------------------------------------------------------------------------------


def problem(error: Any) -> dict[str, str]:
    """An error as JSON, without empty parts."""
    parts = {name: getattr(error, name, "") for name in ("what", "where", "expected", "remedy")}
    return {name: text for name, text in parts.items() if text}


def _own_reply(body: Body, model: Served, results: Sequence[Result]) -> Any:
    found = iter(results)
    items = [{"responses": [_own(next(found)) for _ in range(size_of(item))]} for item in body["items"]]
    return {"model": model.name, "digest": model.digest, "items": items}


def _own(result: Result) -> Body:
    if result.read is None or isinstance(result.reward, RRMError):
        return {"error": problem(result.reward)}
    spread = {"spread": result.reward.std} if isinstance(result.reward, EnsembleReward) else {}
    parts = {"criteria": dict(result.criteria)} if result.criteria else {}
    about = {"tokens": result.read.tokens, "truncated": result.truncated}
    return {"reward": float(result.reward), **spread, **parts, **about}


def _in_place(results: Sequence[Result], one: Callable[[float], Any]) -> list[Any]:
    """What `one` makes of each reward, or the error in its place. Raises Refused if all responses failed."""
    errors = [result.reward for result in results if isinstance(result.reward, RRMError)]
    if len(errors) == len(results):
        raise Refused(422, str(errors[0]), [problem(error) for error in errors])
    return [
        {"error": problem(found.reward)} if isinstance(found.reward, RRMError) else one(float(found.reward))
        for found in results
    ]


def _openai(kind: str, one: Callable[[float], Body]) -> Callable[[Body, Served, Sequence[Result]], Any]:
    def reply(body: Body, model: Served, results: Sequence[Result]) -> Any:
        data = [{"index": place, **made} for place, made in enumerate(_in_place(results, one))]
        tokens = sum(result.read.tokens for result in results if result.read is not None)
        about = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model.name}
        return {**about, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    return reply


def _sglang_reply(body: Body, model: Served, results: Sequence[Result]) -> Any:
    found = _in_place(results, lambda reward: {"embedding": [reward]})
    for one, result in zip(found, results, strict=True):
        one["meta_info"] = {"id": uuid.uuid4().hex, "prompt_tokens": result.read.tokens if result.read else 0}
    return found if isinstance(body.get("text", body.get("input")), list) else found[0]


def _tei_reply(body: Body, model: Served, results: Sequence[Result]) -> Any:
    def one(reward: float) -> Any:
        score = reward if body.get("raw_scores") else 1 / (1 + math.exp(-max(-700.0, reward)))
        return [{"score": score, "label": "LABEL_0"}]

    found = _in_place(results, one)
    return found if _tei_items(body) is body.get("inputs") else found[0]


def _numbers(results: Sequence[Result]) -> list[float]:
    """The rewards, for clients that read nothing but numbers. Raises Refused if a response failed."""
    failed = [place for place, result in enumerate(results) if isinstance(result.reward, RRMError)]
    if failed:
        items = [{"error": problem(r.reward)} if isinstance(r.reward, RRMError) else r.reward for r in results]
        first = f"the first at {failed[0]}: {results[failed[0]].reward}"
        raise Refused(422, f"{len(failed)} of {len(results)} responses failed, {first}", items)
    return [float(result.reward) for result in results]  # type: ignore[arg-type]


def _openrlhf_reply(body: Body, model: Served, results: Sequence[Result]) -> Any:
    rewards, cut = _numbers(results), [float(result.truncated) for result in results]
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"truncated": cut}}


def _llamafactory_reply(body: Body, model: Served, results: Sequence[Result]) -> Any:
    about = {"id": f"scoreval-{uuid.uuid4().hex}", "object": "score.evaluation", "model": model.name}
    return {**about, "scores": _numbers(results), "truncated": [result.truncated for result in results]}


# -- clients --------------------------------------------------------------------------------------------------------


def whole(talks: Sequence[Conversation], tokenizer: Any) -> list[str]:
    """Conversations as a client renders them with the reward model's tokenizer."""
    return [tokenizer.apply_chat_template(messages_of(*talk), tokenize=False) for talk in talks]


def sampled(talks: Sequence[Conversation], tokenizer: Any) -> tuple[list[str], list[str]]:
    """Prompts as a trainer renders them, and the same with a sampled response and the token that ends it."""
    prompts, texts = [], []
    for talk, text in zip(talks, whole(talks, tokenizer), strict=True):
        end = text.rpartition(talk[1].strip())[2].strip() or tokenizer.eos_token
        prompt = messages_of(*talk)[:-1]
        prompts.append(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
        texts.append(f"{prompts[-1]}{talk[1]}{end}")
    return prompts, texts


def _own_request(talks: Sequence[Conversation], tokenizer: Any, model: str) -> Body:
    return {"model": model, "items": [{"messages": messages_of(*t)[:-1], "responses": [t[1]]} for t in talks]}


def _openrlhf_request(talks: Sequence[Conversation], tokenizer: Any, model: str) -> Body:
    prompts, texts = sampled(talks, tokenizer)
    return {"query": texts, "prompts": prompts, "labels": [""] * len(talks)}


# -- the table ------------------------------------------------------------------------------------------------------

OWN = Dialect(
    ("/v1/rewards",), _own_asks, _own_reply, _own_request,
    lambda reply: [one["reward"] for item in reply["items"] for one in item["responses"]],
    cuts=lambda body: True,
)  # fmt: skip
# vLLM at dff4cad, vllm/entrypoints/pooling/classify/protocol.py. `use_activation` has no effect: for a merged reward
# model, whose configuration has the problem_type regression, the activation is the identity in vLLM, too.
VLLM = Dialect(
    ("/vllm/classify",), _vllm_asks,
    _openai("classify", lambda reward: {"label": "LABEL_0", "probs": [reward], "num_classes": 1}),
    lambda talks, tokenizer, model: {"model": model, "input": whole(talks, tokenizer), "use_activation": False},
    lambda reply: [one["probs"][-1] for one in reply["data"]],
    cuts=lambda body: body.get("truncate_prompt_tokens") is not None,
)  # fmt: skip
# vLLM at 01cfbaf, vllm/entrypoints/pooling/pooling/protocol.py.
VLLM_POOLING = VLLM._replace(
    paths=("/vllm/pooling",),
    reply=_openai("pool", lambda reward: {"object": "pooling", "data": [reward]}),
    rewards=lambda reply: [one["data"][-1] for one in reply["data"]],
)
# SGLang 0.5.23, srt/managers/io_struct.py (EmbeddingReqInput).
SGLANG = Dialect(
    ("/sglang/classify",), lambda body: _texts(body, "text", "input"), _sglang_reply,
    lambda talks, tokenizer, model: {"model": model, "text": whole(talks, tokenizer)},
    lambda reply: [one["embedding"][-1] for one in reply],
    anything=("default",),
)  # fmt: skip
# SGLang 0.5.23, srt/entrypoints/openai/protocol.py.
SGLANG_EMBEDDINGS = Dialect(
    ("/sglang/v1/embeddings",), lambda body: _texts(body, "input"),
    _openai("embd", lambda reward: {"embedding": [reward], "object": "embedding"}),
    lambda talks, tokenizer, model: {"model": model, "input": whole(talks, tokenizer)},
    lambda reply: [one["embedding"][-1] for one in reply["data"]],
    anything=("default",),
)  # fmt: skip
# verl 0.9.1, verl/experimental/reward_loop/reward_loop.py (compute_score_disrm), with the reward_router_address
# HOST:PORT/verl. It cuts the token that begins the sequence off, and tries again only after errors of the server (5xx).
VERL_VLLM = VLLM._replace(
    paths=("/verl/classify",),
    request=lambda talks, tokenizer, model: {
        "model": model,
        "input": [text.removeprefix(tokenizer.bos_token or "") for text in whole(talks, tokenizer)],
    },
    busy=503,
)
VERL_SGLANG = SGLANG_EMBEDDINGS._replace(paths=("/verl/v1/embeddings",), request=VERL_VLLM.request, busy=503)
# Text Embeddings Inference, router/src/http/types.rs at 02506d0 and core/src/infer.rs: a text, a pair, or a list of
# [text] and [prompt, response]. Without raw_scores, scores are sigmoids of rewards.
TEI = Dialect(
    ("/tei/predict",), _tei_asks, _tei_reply,
    lambda talks, tokenizer, model: {"inputs": [[text] for text in whole(talks, tokenizer)], "raw_scores": True},
    lambda reply: [one[0]["score"] for one in reply],
    cuts=lambda body: bool(body.get("truncate")), error=Refused.tei,
)  # fmt: skip
# OpenRLHF 0.11.2, utils/agent.py (--reward.remote_url) and cli/serve_rm.py.
OPENRLHF = Dialect(
    ("/openrlhf/get_reward", "/openrlhf"), _openrlhf_asks, _openrlhf_reply, _openrlhf_request,
    lambda reply: list(reply["rewards"]), cuts=lambda body: True,
)  # fmt: skip
# LLaMA-Factory 0.9.5, api/protocol.py and train/ppo/ppo_utils.py (reward_model_type: api; it sends "model": "model").
LLAMAFACTORY = Dialect(
    ("/llamafactory/v1/score/evaluation", "/llamafactory"), lambda body: _texts(body, "messages"), _llamafactory_reply,
    lambda talks, tokenizer, model: {"model": "model", "messages": sampled(talks, tokenizer)[1]},
    lambda reply: list(reply["scores"]), cuts=lambda body: True, anything=("model",),
)  # fmt: skip
ALL: Mapping[str, tuple[Dialect, ...]] = {
    "own": (OWN,), "vllm": (VLLM, VLLM_POOLING), "sglang": (SGLANG, SGLANG_EMBEDDINGS),
    "verl": (VERL_VLLM, VERL_SGLANG), "tei": (TEI,), "openrlhf": (OPENRLHF,), "llamafactory": (LLAMAFACTORY,),
}  # fmt: skip
