"""How servers are asked for samples of an adapter: vLLM's completions, and SGLang's own ``/generate``.

Both take token ids, load LoRA folders while they run, and report the log-probability of each sampled token. They keep a
prefix cache by an adapter's name (vLLM, https://github.com/vllm-project/vllm/issues/42125) or by an id that each load
gets (SGLang), so a name must never be used again. ``transformers serve`` does neither: in 5.24 its completions take
text, not token ids, and it loads no adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rrm_lm.errors import ConfigError
from rrm_lm.models.decoding.sampling import Sampling

Read = list[tuple[list[Any], list[Any]]]  # token ids and log-probabilities of each response, not yet checked


@dataclass(frozen=True)
class Dialect:
    """What differs between servers. Paths are relative to the address with its version, or start with `..`."""

    name: str
    start: str  # how to start such a server
    early: str  # what to do if a response ends before it should
    load: str
    unload: str
    complete: str
    request: Callable[[str, Sequence[int], Sampling, Sequence[int], int, int], dict[str, Any]]
    # The adapter that answered, None if the answer does not say, and the responses. Raises ValueError, KeyError,
    # TypeError or IndexError if the answer is not one.
    read: Callable[[Any], tuple[str | None, Read]]


def speaks(models: Any) -> Dialect:
    """The dialect of a server that answers a request for its models with this."""
    data = models.get("data") if isinstance(models, dict) else None
    owners = {one.get("owned_by") for one in data if isinstance(one, dict)} if isinstance(data, list) else set()
    return SGLANG if "sglang" in owners else VLLM


def _vllm_request(
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


def _read_vllm(answer: Any) -> tuple[str | None, Read]:
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    return answer["model"], [
        (_list(choice, "token_ids"), _list(choice, "logprobs", "token_logprobs")) for choice in choices
    ]


def _sglang_request(
    name: str, prompt: Sequence[int], sampling: Sampling, end_ids: Sequence[int], count: int, seed: int
) -> dict[str, Any]:
    """The body of a request, as in `sglang/srt/managers/io_struct.py` (GenerateReqInput, 0.5.23).

    The prompt is repeated, because `n` responses of one request would share its seed. SGLang uses seeds only with
    ``--enable-deterministic-inference``. It has no way to turn off the model's own end tokens but one that also turns
    off ours, so they end a response, too; one that ends with another end token than ours is an error.

    Raises ConfigError: the samples are truncated, because SGLang reports log-probabilities before truncation
    (`sglang/srt/layers/sampler.py`).
    """
    if sampling.truncates:
        raise ConfigError(
            f"temperature is {sampling.temperature}, top_p {sampling.top_p} and top_k {sampling.top_k}",
            where="rollouts: server",
            expected="with SGLang a temperature above 0 and no truncation: it reports log-probabilities of all tokens",
            remedy="leave out --top_p and --top_k, or sample with vLLM",
        )
    settings = {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        # The model's generation_config.json sets what a request leaves out.
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(end_ids),
    }
    return {
        "input_ids": [list(prompt)] * count,
        "lora_path": [name] * count,
        "sampling_params": [settings | {"sampling_seed": seed + number} for number in range(count)],
        "return_logprob": True,
    }


def _read_sglang(answer: Any) -> tuple[str | None, Read]:
    """Its answers do not name an adapter, but it refuses a name that was never loaded (`tokenizer_manager.py`)."""
    for one in answer:
        reason = one["meta_info"].get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") == "abort":
            raise ValueError(f"aborted: {reason.get('message')}")
    found = [one["meta_info"]["output_token_logprobs"] for one in answer]
    return None, [([triple[1] for triple in one], [triple[0] for triple in one]) for one in found]


def _list(value: Any, *names: str) -> list[Any]:
    """The list under these names in an answer; empty if it is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, list) else []


VLLM = Dialect(
    name="vLLM",
    start="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank 64 "
    "--logprobs-mode processed_logprobs --generation-config vllm",
    early="give the server a --max-model-len for prompt and response",
    load="/load_lora_adapter",
    unload="/unload_lora_adapter",
    complete="/completions",
    request=_vllm_request,
    read=_read_vllm,
)
SGLANG = Dialect(
    name="SGLang",
    start="python -m sglang.launch_server --model-path MODEL --enable-lora --max-lora-rank 64 "
    "--lora-target-modules all --enable-deterministic-inference",
    early="give the server a --context-length for prompt and response; or, if the last token is another of the model's "
    "end tokens, which SGLang always obeys, sample with vLLM",
    load="../load_lora_adapter",
    unload="../unload_lora_adapter",
    complete="../generate",
    request=_sglang_request,
    read=_read_sglang,
)
