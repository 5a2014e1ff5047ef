"""Sampling on a server that speaks vLLM's HTTP API, from LoRA adapters that are loaded while it runs.

Start vLLM so that it accepts adapters, reports the log-probabilities of the distribution that tokens are drawn from,
and takes no defaults from the model's ``generation_config.json`` (which may limit the tokens of a response)::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 \\
        --logprobs-mode processed_logprobs --generation-config vllm

SGLang does not work. Its paths for adapters differ (``/load_lora_adapter``), its completions have no token ids, and
its answers repeat the name that was asked for, so that a stale adapter would go unnoticed
(``python/sglang/srt/entrypoints/openai/serving_completions.py``: ``model=request.model``). ``transformers serve`` does
not work either: in 5.24 its completions take text, not token ids, and it loads no adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from rrm_lm.errors import TrainingError
from rrm_lm.feedback.asking.llm_judge import checked_address, server_key
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.options import is_loopback

AT_ONCE = 256  # requests in flight: the server batches those that it has (vLLM runs at most 256 sequences by default)
_SECONDS = 1800.0  # to wait for responses; a server that has died closes the connection at once
_SHORT = 120.0  # to wait for any other answer
_START = (
    "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 "
    "--logprobs-mode processed_logprobs --generation-config vllm"
)
_RESUME = "start it again and resume with --resume_from_checkpoint true, or resume with --rollouts own"


class Sample(NamedTuple):
    """A response that the server sampled."""

    ids: list[int]  # ends with an end token, or has the maximum number of tokens
    log_probs: list[float]  # log-probability of each token, as the server reports it


class CompletionServer:
    """The client of one server; thread-safe. Nothing is sent anywhere else, and redirects are not followed.

    Args:
        url: The server's address up to its version, such as http://127.0.0.1:8000/v1.
        key_variable: The environment variable with the server's API key; "" sends none.
        vocabulary: Number of token ids that the policy has.

    Raises:
        ConfigError: The address is invalid, or the key is not set or not a valid header.
    """

    def __init__(self, url: str, key_variable: str, vocabulary: int) -> None:
        address = httpx2.URL(checked_address(url, "rollout_url"))
        self.url, self._vocabulary = url.rstrip("/"), vocabulary
        self._key = server_key(key_variable, address, "rollout_key_env")
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=AT_ONCE),
            trust_env=not is_loopback(address.host),  # a proxy cannot reach this machine's own addresses
        )

    def check(self) -> None:
        """Raise a TrainingError if the server cannot be reached, or rejects the key."""
        self._ask("GET", "/models")

    # vLLM's `vllm/entrypoints/openai/models/serving.py` has both of these. It keeps a prefix cache by an adapter's
    # name, so a name must never be used again (https://github.com/vllm-project/vllm/issues/42125).

    def load(self, name: str, folder: Path) -> None:
        """Load a LoRA folder, which the server must see under the same path, under a new name. Raises TrainingError."""
        remedy = f"{_START}; and train where the server sees the output folder under the same path"
        self._ask("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, remedy)

    def unload(self, name: str) -> None:
        """Unload an adapter. Raises TrainingError."""
        self._ask("POST", "/unload_lora_adapter", {"lora_name": name})

    def complete(
        self, name: str, prompt: Sequence[int], sampling: Sampling, *, end_ids: Sequence[int], count: int, seed: int
    ) -> list[Sample]:
        """Sample `count` responses to a prompt from the adapter called `name`.

        Raises TrainingError: the server does not answer, answers from another adapter or with other responses than
        asked for, or its answer cannot be read.
        """
        body = _request(name, prompt, sampling, end_ids, count, seed)
        answer = self._ask("POST", "/completions", body)
        try:
            found = answer.json()
            model, choices = found["model"], sorted(found["choices"], key=lambda choice: choice["index"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"The server's answer cannot be read ({type(error).__name__}: {error}): {answer.text[:200]!r}"
            raise self._error(what, "/completions", "vLLM's completions: model, and choices with an index") from error
        if model != name:
            what = f"The server answered from {model!r}, not from the current policy"
            raise self._error(what, "/completions", f"the adapter {name!r}, which was just loaded", _RESUME)
        if len(choices) != count:
            what = f"The server answered with {len(choices)} responses to a prompt"
            raise self._error(what, "/completions", f"{count}, as asked for in `n`")
        return [self._sample(choice, sampling.max_new_tokens, set(end_ids)) for choice in choices]

    def _sample(self, choice: Any, most: int, ends: set[int]) -> Sample:
        """A response in an answer. Raises TrainingError if it is not one that was asked for."""
        shown, path, ids = str(choice)[:200], "/completions", _list(choice, "token_ids")
        log_probs = _list(choice, "logprobs", "token_logprobs")
        if not ids or len(ids) != len(log_probs) or not all(type(token) is int for token in ids):
            what = f"A response of the server has {len(ids)} token ids and {len(log_probs)} log-probabilities: {shown}"
            raise self._error(what, path, "`token_ids` and `logprobs.token_logprobs`, as many numbers in each")
        foreign = next((token for token in ids if not 0 <= token < self._vocabulary), None)
        if foreign is not None:
            what, expected = f"A response of the server has the token id {foreign}", f"ids below {self._vocabulary}"
            raise self._error(what, path, expected, f"serve the model that is trained: {_START}")
        if ends.intersection(ids[:-1]) or len(ids) > most or (len(ids) < most and ids[-1] not in ends):
            what = f"A response of the server has {len(ids)} tokens and does not end as asked for: {shown}"
            remedy = f"give the server a --max-model-len for prompt and response; {_START}"
            raise self._error(what, path, f"{most} tokens, or fewer up to the first of {sorted(ends)}", remedy)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in log_probs):
            raise self._error(f"A response of the server has log-probabilities that are not numbers: {shown}", path)
        return Sample(ids, [float(number) for number in log_probs])

    def _ask(
        self, method: str, path: str, body: Any = None, remedy: str = "", *, is_again: bool = False
    ) -> httpx2.Response:
        is_long = path == "/completions"
        timeout = httpx2.Timeout(_SECONDS if is_long else _SHORT, connect=10.0)
        try:
            answer = self._client.request(method, path, json=body, timeout=timeout)
        except httpx2.HTTPError as error:
            # A lost connection: with its seed, a request for responses can be repeated.
            if is_long and not is_again and not isinstance(error, httpx2.TimeoutException):
                return self._ask(method, path, body, remedy, is_again=True)
            what = f"The server for rollouts does not answer ({type(error).__name__}: {error})"
            raise self._error(what, path, remedy=f"{_START}. If it has died: see its log, {_RESUME}") from error
        if answer.status_code == 200:
            return answer
        if answer.status_code in (401, 403):
            remedy = "put the server's key into an environment variable, and name it with --rollout_key_env"
        what = (
            f"The server for rollouts answers with status {answer.status_code}: {' '.join(answer.text[:300].split())}"
        )
        raise self._error(what, path, "status 200", remedy)

    def _error(self, what: str, path: str, expected: str = "", remedy: str = "") -> TrainingError:
        what = what.replace(self._key, "[key]") if self._key else what  # some servers repeat it
        expected = expected or "a server that speaks vLLM's HTTP API"
        return TrainingError(
            what, where=f"{self.url}{path}", expected=expected, remedy=remedy or f"{_START}; {_RESUME}"
        )


def _request(
    name: str, prompt: Sequence[int], sampling: Sampling, end_ids: Sequence[int], count: int, seed: int
) -> dict[str, Any]:
    """The body of a request, as in `vllm/entrypoints/openai/completion/protocol.py`.

    One prompt per request: `seed` counts for each prompt of a request, so equal ones would have related samples. vLLM
    draws the k-th response to a prompt with ``seed + k`` (`vllm/v1/engine/parallel_sampling.py`).
    """
    return {
        "model": name,
        "prompt": list(prompt),
        "n": count,
        "seed": seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,  # all tokens, in every version; 0 is an error in old ones
        # The model's generation_config.json sets what a request leaves out.
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        # Only our end tokens end a response, not the model's others. It includes them (`vllm/v1/engine/detokenizer.py`
        # leaves them out of the text, but not of `token_ids`).
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,
        "logprobs": 0,  # of the sampled tokens alone
        "return_token_ids": True,
    }


def _list(value: Any, *names: str) -> list[Any]:
    """The list under these names in an answer; empty if it is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, list) else []
