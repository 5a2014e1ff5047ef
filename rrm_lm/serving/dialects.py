"""How clients of other servers ask for rewards, and what they read from the answer.

Each class gives both sides: requests as the project's client builds them are read by `asks`, and `reply` is what its
server would answer. `request` and `rewards` are the client's side, for checks. Each names the source it follows.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rrm_lm.api.asks import Ask, Read, asks_of, size_of
from rrm_lm.errors import DataError, RRMError
from rrm_lm.models.ensemble import EnsembleReward
from rrm_lm.models.portable import messages_of
from rrm_lm.serving.models import Served

Asked = list[Ask | DataError]


class Result(NamedTuple):
    """One response: how it was read, and its reward or why it has none."""

    read: Read | None
    reward: float | RRMError


class Refused(Exception):
    """A whole request that is answered with an error: its status, and for each response its reward or error."""

    def __init__(self, status: int, message: str, items: list[Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.items = status, items


class Body(BaseModel):
    """The fields of a request that are read; clients send others, too."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None


class Dialect:
    """One kind of client."""

    path = ""
    Body: type[Body] = Body
    busy = 429  # status for clients to try again later
    anything: tuple[str, ...] = ()  # names that mean the only model

    def cuts(self, body: Any) -> bool:
        """Whether a conversation that is too long is cut, which the reply says; otherwise it is an error."""
        return False

    def asks(self, body: Any) -> Asked:
        """The responses of a request, with an error in place of each that cannot be read."""
        raise NotImplementedError

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        """The answer to a request. An error stands in the place of its response."""
        raise NotImplementedError

    def error(self, refused: Refused) -> Any:
        """The body of an error."""
        items = {} if refused.items is None else {"items": refused.items}
        return {"error": {"message": str(refused), "type": "invalid_request_error", "code": refused.status}} | items

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        """The request of this project's client for prompts and responses. `tokenizer` is the reward model's."""
        raise NotImplementedError

    def rewards(self, reply: Any) -> list[float]:
        """The rewards in a reply."""
        raise NotImplementedError


# -- this project ---------------------------------------------------------------------------------------------------


class Items(Body):
    items: list[Any]
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)  # seconds that the client waits


class Own(Dialect):
    """``{"model", "items": [{"messages" or "prompt", "responses": [...]}]}``. Text that is too long is cut."""

    path, Body = "/v1/rewards", Items

    def cuts(self, body: Any) -> bool:
        return True

    def asks(self, body: Any) -> Asked:
        return [ask for place, item in enumerate(body.items) for ask in asks_of(item, f"item {place}")]

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        found = iter(results)
        items = [{"responses": [self._one(next(found)) for _ in range(size_of(item))]} for item in body.items]
        return {"model": model.name, "digest": model.digest, "items": items}

    def _one(self, result: Result) -> dict[str, Any]:
        if result.read is None or isinstance(result.reward, RRMError):
            return {"error": problem(result.reward)}
        spread = {"spread": result.reward.std} if isinstance(result.reward, EnsembleReward) else {}
        about = {"tokens": result.read.tokens, "truncated": result.read.truncated}
        return {"reward": float(result.reward), **spread, **about}

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        items = [{"messages": messages_of(p, r)[:-1], "responses": [r]} for p, r in talks]
        return {"model": model, "items": items}

    def rewards(self, reply: Any) -> list[float]:
        return [response["reward"] for item in reply["items"] for response in item["responses"]]


# -- servers of classifiers -----------------------------------------------------------------------------------------


class Input(Body):
    input: Any = None
    text: Any = None
    messages: Any = None
    truncate_prompt_tokens: int | None = None


class VLLM(Dialect):
    """vLLM's ``/classify`` (vllm/entrypoints/pooling/classify/protocol.py at dff4cad): rendered text or messages.

    ``use_activation`` has no effect: the activation of a merged reward model is the identity there, too, because its
    configuration says ``problem_type: regression``.
    """

    path, Body = "/vllm/classify", Input

    def cuts(self, body: Any) -> bool:
        return body.truncate_prompt_tokens is not None

    def asks(self, body: Any) -> Asked:
        if body.messages is not None:
            return asks_of({"messages": body.messages}, "messages")
        return rendered(body.input if body.input is not None else body.text, "input")

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        data = in_place(results, lambda reward: {"label": "LABEL_0", "probs": [reward], "num_classes": 1})
        return _openai("classify", model, data, results)

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        return {"model": model, "input": whole(talks, tokenizer), "use_activation": False}

    def rewards(self, reply: Any) -> list[float]:
        return [one["probs"][-1] for one in reply["data"]]


class VLLMPooling(VLLM):
    """vLLM's ``/pooling`` with the task classify (vllm/entrypoints/pooling/pooling/protocol.py at 01cfbaf)."""

    path = "/vllm/pooling"

    def asks(self, body: Any) -> Asked:
        task = getattr(body, "task", None)
        if task not in (None, "classify"):
            raise Refused(400, f"the task is {task!r}; a reward model has the task classify")
        return super().asks(body)

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        data = in_place(results, lambda reward: {"object": "pooling", "data": [reward]})
        return _openai("pool", model, data, results)

    def rewards(self, reply: Any) -> list[float]:
        return [one["data"][-1] for one in reply["data"]]


class SGLang(Dialect):
    """SGLang's ``/classify`` (sglang 0.5.23, srt/managers/io_struct.py, EmbeddingReqInput): ``text``, one or a list."""

    path, Body, anything = "/sglang/classify", Input, ("default",)

    def asks(self, body: Any) -> Asked:
        return rendered(body.text if body.text is not None else body.input, "text")

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        found = in_place(
            results, lambda reward: {"embedding": [reward], "meta_info": {"id": uuid.uuid4().hex}}, index=False
        )
        for one, result in zip(found, results, strict=True):
            if "meta_info" in one and result.read is not None:
                one["meta_info"]["prompt_tokens"] = result.read.tokens
        return found if isinstance(body.text if body.text is not None else body.input, list) else found[0]

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        return {"model": model, "text": whole(talks, tokenizer)}

    def rewards(self, reply: Any) -> list[float]:
        return [one["embedding"][-1] for one in reply]


class SGLangEmbeddings(SGLang):
    """SGLang's ``/v1/embeddings`` (sglang 0.5.23, srt/entrypoints/openai/protocol.py)."""

    path = "/sglang/v1/embeddings"

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        data = in_place(results, lambda reward: {"embedding": [reward], "object": "embedding"})
        return _openai("embd", model, data, results)

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        return {"model": model, "input": whole(talks, tokenizer)}

    def rewards(self, reply: Any) -> list[float]:
        return [one["embedding"][-1] for one in reply["data"]]


class _Verl(Dialect):
    """verl's reward loop (verl 0.9.1, verl/experimental/reward_loop/reward_loop.py, compute_score_disrm) with
    ``reward_router_address`` HOST:PORT/verl. It cuts the token that begins the sequence off the text, and tries again
    only after errors of the server (5xx).
    """

    busy = 503

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        bos = tokenizer.bos_token or ""
        return {"model": model, "input": [text.removeprefix(bos) for text in whole(talks, tokenizer)]}


class VerlVLLM(_Verl, VLLM):
    path = "/verl/classify"


class VerlSGLang(_Verl, SGLangEmbeddings):
    path = "/verl/v1/embeddings"


class Inputs(Body):
    inputs: Any
    raw_scores: bool = False
    truncate: bool = False


class TEI(Dialect):
    """Text Embeddings Inference's ``/predict`` (router/src/http/types.rs at 02506d0, core/src/infer.rs).

    It takes a text, a pair, or a list of ``[text]`` and ``[prompt, response]``. Without ``raw_scores``, scores are
    sigmoids of rewards.
    """

    path, Body = "/tei/predict", Inputs

    def cuts(self, body: Any) -> bool:
        return body.truncate

    def asks(self, body: Any) -> Asked:
        return [self._one(one, f"inputs, item {place}") for place, one in enumerate(self._items(body))]

    def _items(self, body: Any) -> list[Any]:
        is_batch = isinstance(body.inputs, list) and any(isinstance(one, list) for one in body.inputs)
        return body.inputs if is_batch else [body.inputs]

    def _one(self, value: Any, where: str) -> Ask | DataError:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts) or len(texts) not in (1, 2):
            return DataError("This is not a text or a pair of texts", where=where, expected="[text] or [prompt, text]")
        return rendered(texts, where)[0] if len(texts) == 1 else asks_of({"prompt": texts[0], "response": texts[1]})[0]

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        def one(reward: float) -> Any:
            score = reward if body.raw_scores else 1 / (1 + math.exp(-max(-700.0, reward)))
            return {"score": score, "label": "LABEL_0"}

        found = in_place(results, one, index=False)
        found = [one if "error" in one else [one] for one in found]
        return found if self._items(body) is body.inputs else found[0]

    def error(self, refused: Refused) -> Any:
        kinds = {413: "validation", 422: "tokenizer", 429: "overloaded", 400: "validation"}
        return {"error": str(refused), "error_type": kinds.get(refused.status, "backend")}

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        return {"inputs": [[text] for text in whole(talks, tokenizer)], "raw_scores": True}

    def rewards(self, reply: Any) -> list[float]:
        return [one[0]["score"] for one in reply]


# -- trainers with servers of their own -----------------------------------------------------------------------------


class Queries(Body):
    query: list[Any]
    prompts: list[Any] | None = None
    labels: Any = None


class OpenRLHF(Dialect):
    """OpenRLHF's ``--reward.remote_url`` (openrlhf 0.11.2, utils/agent.py and cli/serve_rm.py)."""

    path, Body = "/openrlhf/get_reward", Queries

    def cuts(self, body: Any) -> bool:
        return True

    def asks(self, body: Any) -> Asked:
        prompts = body.prompts or [None] * len(body.query)
        if len(prompts) != len(body.query):
            raise Refused(400, f"there are {len(body.query)} queries and {len(prompts)} prompts")
        return [query_of(query, prompt) for query, prompt in zip(body.query, prompts, strict=True)]

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        rewards = numbers(results)
        cut = [float(result.read is not None and result.read.truncated) for result in results]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"truncated": cut}}

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        prompts, texts = sampled(talks, tokenizer)
        return {"query": texts, "prompts": prompts, "labels": [""] * len(talks)}

    def rewards(self, reply: Any) -> list[float]:
        return list(reply["rewards"])


class Messages(Body):
    messages: list[Any]
    max_length: int | None = None


class LlamaFactory(Dialect):
    """LLaMA-Factory's ``reward_model_type: api`` (llamafactory 0.9.5, train/ppo/ppo_utils.py) and its API server's
    ``/v1/score/evaluation`` (api/protocol.py). The trainer sends ``"model": "model"``.
    """

    path, Body, anything = "/llamafactory/v1/score/evaluation", Messages, ("model",)

    def cuts(self, body: Any) -> bool:
        return True

    def asks(self, body: Any) -> Asked:
        return rendered(list(body.messages), "messages")

    def reply(self, body: Any, model: Served, results: Sequence[Result]) -> Any:
        about = {"id": f"scoreval-{uuid.uuid4().hex}", "object": "score.evaluation", "model": model.name}
        cut = [result.read is not None and result.read.truncated for result in results]
        return {**about, "scores": numbers(results), "truncated": cut}

    def request(self, talks: Sequence[tuple[Any, str]], tokenizer: Any, model: str) -> Any:
        return {"model": "model", "messages": sampled(talks, tokenizer)[1]}

    def rewards(self, reply: Any) -> list[float]:
        return list(reply["scores"])


ALL: Mapping[str, tuple[Dialect, ...]] = {
    "own": (Own(),),
    "vllm": (VLLM(), VLLMPooling()),
    "sglang": (SGLang(), SGLangEmbeddings()),
    "verl": (VerlVLLM(), VerlSGLang()),
    "tei": (TEI(),),
    "openrlhf": (OpenRLHF(),),
    "llamafactory": (LlamaFactory(),),
}

# -- shared ---------------------------------------------------------------------------------------------------------


def rendered(value: Any, where: str) -> Asked:
    """The responses in one rendered text or a list of them."""
    if isinstance(value, list) and value and all(isinstance(one, int | list) for one in value):
        raise Refused(400, f"`{where}` holds token ids, which are not read; send text or messages")
    if not isinstance(value, list):
        return [Ask(rendered=value) if isinstance(value, str) else _not_text(value, where)]
    return [
        Ask(rendered=one) if isinstance(one, str) else _not_text(one, f"{where}, item {place}")
        for place, one in enumerate(value)
    ]


def _not_text(value: Any, where: str) -> DataError:
    return DataError(f"The text is {'null' if value is None else type(value).__name__}", where=where, expected="text")


def query_of(query: Any, prompt: Any) -> Ask | DataError:
    """OpenRLHF's query: prompt and response as text, rendered if the prompt was."""
    if not isinstance(query, str):
        return _not_text(query, "query")
    place = query.find(prompt) if isinstance(prompt, str) and prompt else -1
    if place < 0:
        return Ask(rendered=query)
    return asks_of({"prompt": prompt, "responses": [query[place + len(prompt) :]]}, "query")[0]


def whole(talks: Sequence[tuple[Any, str]], tokenizer: Any) -> list[str]:
    """Conversations as a client renders them with the reward model's tokenizer."""
    return [tokenizer.apply_chat_template(messages_of(*talk), tokenize=False) for talk in talks]


def sampled(talks: Sequence[tuple[Any, str]], tokenizer: Any) -> tuple[list[str], list[str]]:
    """Prompts as a trainer renders them, and the same with a sampled response and the token that ends it."""
    ends = [
        text.rpartition(response.strip())[2].strip() or tokenizer.eos_token
        for (_, response), text in zip(talks, whole(talks, tokenizer), strict=True)
    ]
    prompts = [
        tokenizer.apply_chat_template(messages_of(p, r)[:-1], tokenize=False, add_generation_prompt=True)
        for p, r in talks
    ]
    return prompts, [f"{prompt}{r}{end}" for prompt, (_, r), end in zip(prompts, talks, ends, strict=True)]


def problem(error: Any) -> dict[str, str]:
    """An error as JSON, without empty parts."""
    parts = {name: getattr(error, name, "") for name in ("what", "where", "expected", "remedy")}
    return {name: text for name, text in parts.items() if text}


def in_place(results: Sequence[Result], one: Callable[[float], Any], index: bool = True) -> list[dict[str, Any]]:
    """What `one` makes of each reward, or the error in its place. Raises Refused if all responses failed."""
    errors = [result.reward for result in results if isinstance(result.reward, RRMError)]
    if errors and len(errors) == len(results):
        raise Refused(422, str(errors[0]), [problem(error) for error in errors])
    return [
        ({"index": place} if index else {})
        | ({"error": problem(r.reward)} if isinstance(r.reward, RRMError) else one(float(r.reward)))
        for place, r in enumerate(results)
    ]


def numbers(results: Sequence[Result]) -> list[float]:
    """The rewards, for clients that read nothing but numbers. Raises Refused if a response failed."""
    failed = [place for place, result in enumerate(results) if isinstance(result.reward, RRMError)]
    if failed:
        items = [{"error": problem(r.reward)} if isinstance(r.reward, RRMError) else r.reward for r in results]
        first = results[failed[0]].reward
        raise Refused(422, f"{len(failed)} of {len(results)} failed, the first at {failed[0]}: {first}", items)
    return [float(result.reward) for result in results]  # type: ignore[arg-type]


def _openai(kind: str, model: Served, data: list[Any], results: Sequence[Result]) -> dict[str, Any]:
    tokens = sum(result.read.tokens for result in results if result.read is not None)
    about = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model.name}
    return {**about, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
