"""Sampling on a server that speaks vLLM's or SGLang's HTTP API, from LoRA adapters that are loaded while it runs.

``server_dialects`` says how to start each: vLLM such that it accepts adapters, reports the log-probabilities of the
distribution that tokens are drawn from, and takes no defaults from the model's ``generation_config.json`` (which may
limit the tokens of a response); SGLang such that it accepts adapters and uses seeds.
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
from rrm_lm.models.decoding.server_dialects import SGLANG, VLLM, Dialect, speaks
from rrm_lm.options import is_loopback

AT_ONCE = 256  # requests in flight: the server batches those that it has (vLLM runs at most 256 sequences by default)
_SECONDS = 1800.0  # to wait for responses; a server that has died closes the connection at once
_SHORT = 120.0  # to wait for any other answer
_RESUME = "start it again and resume with --resume_from_checkpoint true, or resume with --rollouts own"


class Sample(NamedTuple):
    """A response that the server sampled."""

    ids: list[int]  # ends with an end token, or has the maximum number of tokens
    log_probs: list[float]  # log-probability of each token, as the server reports it


class CompletionServer:
    """The client of one server; thread-safe. Nothing is sent anywhere else, and redirects are not followed.

    Args:
        url: The server's address up to its version, such as http://127.0.0.1:8000/v1 (SGLang's, too).
        key_variable: The environment variable with the server's API key; "" sends none.
        vocabulary: Number of token ids that the policy has.

    Raises:
        ConfigError: The address is invalid, or the key is not set or not a valid header.
    """

    def __init__(self, url: str, key_variable: str, vocabulary: int) -> None:
        address = httpx2.URL(checked_address(url, "rollout_url"))
        self.url, self._vocabulary = url.rstrip("/"), vocabulary
        self.dialect: Dialect = VLLM
        self._is_known = False  # `check` has asked what the server speaks
        self._key = server_key(key_variable, address, "rollout_key_env")
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx2.Limits(max_connections=AT_ONCE),
            trust_env=not is_loopback(address.host),  # a proxy cannot reach this machine's own addresses
        )

    def check(self) -> None:
        """Find out what the server speaks. Raises TrainingError: it cannot be reached, or rejects the key."""
        answer = self._ask("GET", "/models")
        try:
            self.dialect, self._is_known = speaks(answer.json()), True
        except ValueError as error:
            raise self._error(f"The server's answer is not JSON: {answer.text[:200]!r}", "/models") from error

    def load(self, name: str, folder: Path) -> None:
        """Load a LoRA folder, which the server must see under the same path, under a new name. Raises TrainingError."""
        remedy = f"{self._start}; and train where the server sees the output folder under the same path"
        self._ask("POST", self.dialect.load, {"lora_name": name, "lora_path": str(folder)}, remedy)

    def unload(self, name: str) -> None:
        """Unload an adapter. Raises TrainingError."""
        self._ask("POST", self.dialect.unload, {"lora_name": name})

    def complete(
        self, name: str, prompt: Sequence[int], sampling: Sampling, *, end_ids: Sequence[int], count: int, seed: int
    ) -> list[Sample]:
        """Sample `count` responses to a prompt from the adapter called `name`.

        Raises TrainingError: the server does not answer, answers from another adapter or with other responses than
        asked for, or its answer cannot be read; ConfigError: it cannot sample like this.
        """
        path = self.dialect.complete
        body = self.dialect.request(name, prompt, sampling, end_ids, count, seed)
        answer = self._ask("POST", path, body)
        try:
            model, responses = self.dialect.read(answer.json())
        except (ValueError, KeyError, TypeError, IndexError) as error:
            what = f"The server's answer cannot be read ({type(error).__name__}: {error}): {answer.text[:200]!r}"
            raise self._error(what, path, f"an answer of {self.dialect.name}") from error
        if model not in (None, name):
            what = f"The server answered from {model!r}, not from the current policy"
            raise self._error(what, path, f"the adapter {name!r}, which was just loaded", _RESUME)
        if len(responses) != count:
            what = f"The server answered with {len(responses)} responses to a prompt"
            raise self._error(what, path, f"{count}, as asked for")
        return [self._sample(*one, sampling.max_new_tokens, set(end_ids)) for one in responses]

    def _sample(self, ids: list[Any], log_probs: list[Any], most: int, ends: set[int]) -> Sample:
        """A response in an answer. Raises TrainingError if it is not one that was asked for."""
        path, shown = self.dialect.complete, f"{ids} {log_probs}"[:200]
        if not ids or len(ids) != len(log_probs) or not all(type(token) is int for token in ids):
            what = f"A response of the server has {len(ids)} token ids and {len(log_probs)} log-probabilities: {shown}"
            raise self._error(what, path, "token ids and as many log-probabilities")
        foreign = next((token for token in ids if not 0 <= token < self._vocabulary), None)
        if foreign is not None:
            what, expected = f"A response of the server has the token id {foreign}", f"ids below {self._vocabulary}"
            raise self._error(what, path, expected, f"serve the model that is trained: {self._start}")
        if ends.intersection(ids[:-1]) or len(ids) > most or (len(ids) < most and ids[-1] not in ends):
            what = f"A response of the server has {len(ids)} tokens and does not end as asked for: {shown}"
            remedy = f"{self.dialect.early}; {self._start}"
            raise self._error(what, path, f"{most} tokens, or fewer up to the first of {sorted(ends)}", remedy)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in log_probs):
            raise self._error(f"A response of the server has log-probabilities that are not numbers: {shown}", path)
        return Sample(ids, [float(number) for number in log_probs])

    def _ask(
        self, method: str, path: str, body: Any = None, remedy: str = "", *, is_again: bool = False
    ) -> httpx2.Response:
        is_long = path == self.dialect.complete
        timeout = httpx2.Timeout(_SECONDS if is_long else _SHORT, connect=10.0)
        try:
            answer = self._client.request(method, self._address(path), json=body, timeout=timeout)
        except httpx2.HTTPError as error:
            # A lost connection: with its seed, a request for responses can be repeated.
            if is_long and not is_again and not isinstance(error, httpx2.TimeoutException):
                return self._ask(method, path, body, remedy, is_again=True)
            what = f"The server for rollouts does not answer ({type(error).__name__}: {error})"
            raise self._error(what, path, remedy=f"{self._start}. If it has died: see its log, {_RESUME}") from error
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
        expected = expected or "a server that speaks vLLM's or SGLang's HTTP API"
        return TrainingError(
            what, where=self._address(path), expected=expected, remedy=remedy or f"{self._start}; {_RESUME}"
        )

    def _address(self, path: str) -> str:
        return f"{self.url.removesuffix('/v1')}{path[2:]}" if path.startswith("../") else f"{self.url}{path}"

    @property
    def _start(self) -> str:
        if self._is_known:
            return f"start it with {self.dialect.start}"
        return f"check the address, which usually ends with /v1; start it with {VLLM.start}; or {SGLANG.start}"
