"""Sampling responses: the only caller of `.generate()`.

Prompts are padded on the left with an explicit attention mask, and what was generated is cut at the first token that
ends a turn. No mask or length is ever rebuilt by comparing ids with the pad id.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rrm_lm.errors import ConfigError, ModelError

Progress = Callable[[int, int, float], None]


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    num_return: int = 1,
    batch_tokens: int = 8192,
    independent: bool = False,
    progress: Progress | None = None,
) -> list[list[list[int]]]:
    """Sample continuations of prompts, in batches of similar length.

    The distribution is the model's own under `temperature`, `top_p` and `top_k`: defaults in the model's generation
    config (a repetition penalty, a hidden top-k) do not apply. Every batch is seeded from `seed` and its number, so
    equal calls give equal samples, and other `batch_tokens` other ones. With `independent`, every response is seeded
    from `seed`, its prompt and its number instead: then what a prompt gets does not depend on the prompts beside it,
    and equal prompts get equal responses. The global random state is left as it was.

    Args:
        model: A causal language model (plain, PEFT or sharded) with `.generate()`.
        prompts: Token ids of each prompt, none empty, ending where the response begins.
        pad_id: Fills rows on the left; it is masked, so any id will do.
        eos_ids: Tokens that end a response.
        max_new_tokens: Most tokens of a response.
        temperature: 0 for the most likely token at each step; else the temperature to sample at.
        top_p: Sample from the smallest set of tokens with at least this probability; 1 for all.
        top_k: Sample from this many most likely tokens; 0 for all.
        seed: Seed of the whole call.
        num_return: Responses per prompt.
        batch_tokens: Most tokens (prompt, response and padding) held at once; a single prompt may exceed it.
        independent: Whether each response draws its own random numbers, so that batches and order do not matter.
        progress: Called after each batch with responses done, responses in all, and tokens generated per second.

    Returns:
        For each prompt, in the order given, `num_return` lists of generated ids. A list ends with the eos token if one
        was produced, and holds `max_new_tokens` ids without eos if not.

    Raises:
        ConfigError: Settings that make no sense together.
        ModelError: A prompt that is empty or does not fit the model's context with `max_new_tokens`.
    """
    _check_settings(max_new_tokens, temperature, top_p, num_return)
    _check_prompts(model, prompts, max_new_tokens)
    shape = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature > 0 else {}
    apart = independent and bool(shape)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=bool(shape) and not apart,
        pad_token_id=pad_id,
        eos_token_id=list(eos_ids),
        num_return_sequences=1 if apart else num_return,
        use_cache=True,
        **({} if apart else shape),
    )
    results: list[list[list[int]]] = [[] for _ in prompts]
    started, generated, done = time.perf_counter(), 0, 0
    with _ready_to_sample(model):
        for number, batch in enumerate(_batches([len(p) for p in prompts], max_new_tokens, num_return, batch_tokens)):
            chosen = [prompts[i] for i in batch]
            if apart:
                rows = _generate_apart(model, chosen, pad_id, config, seed, num_return, shape)
            else:
                with _seeded(seed, number, model):
                    rows = _generate(model, chosen, pad_id, config)
            for place, index in enumerate(batch):
                mine = rows[place * num_return : (place + 1) * num_return]
                results[index] = [_cut(row, eos_ids) for row in mine]
                generated += sum(map(len, results[index]))
            done += len(batch) * num_return
            if progress is not None:
                progress(done, len(prompts) * num_return, generated / (time.perf_counter() - started))
    return results


def _generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    config: GenerationConfig,
    processors: LogitsProcessorList | None = None,
) -> list[list[int]]:
    """Generated ids, (len(prompts) * num_return) rows of equal length, the returns of one prompt side by side."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    is_real = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        is_real[row, width - len(prompt) :] = 1
    device = _device(model)
    output = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=is_real.to(device),
        generation_config=config,
        logits_processor=processors,
    )
    return output[:, width:].tolist()


def _generate_apart(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    config: GenerationConfig,
    seed: int,
    num_return: int,
    shape: Mapping[str, float],
) -> list[list[int]]:
    """As `_generate`, but each row draws its own random numbers."""
    seeds = [_own_seed(seed, prompt, number) for prompt in prompts for number in range(num_return)]
    noise = LogitsProcessorList([_OwnNoise(seeds, _device(model), **shape)])  # type: ignore[arg-type]
    return _generate(model, [prompt for prompt in prompts for _ in range(num_return)], pad_id, config, noise)


class _OwnNoise(LogitsProcessor):
    """Gumbel noise from a random stream for each row: the token of the largest noisy logit is a sample of the softmax.

    So sampling becomes greedy decoding, which other rows of the batch have no part in (Gumbel-max; Gumbel 1954).
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device, *, temperature: float, top_p: float, top_k: int
    ) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.shape = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
        if top_k > 0:
            self.shape.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self.shape.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        waiting = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, stream in zip(waiting, self.streams, strict=True):
            row.exponential_(generator=stream)  # minus its logarithm is Gumbel noise
        noisy = self.shape(input_ids, scores).float() - waiting.clamp_min(1e-30).log()  # type: ignore[arg-type]
        return noisy  # type: ignore[return-value]


def _own_seed(seed: int, prompt: Sequence[int], number: int) -> int:
    text = f"{seed} {number} {' '.join(map(str, prompt))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _cut(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    """Everything up to and with the first eos token; what `.generate()` put behind it is filling."""
    ends = set(eos_ids)
    stop = next((position + 1 for position, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def _batches(lengths: Sequence[int], max_new_tokens: int, num_return: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts, longest first (memory peaks in the first batch), each batch within the token budget."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * num_return * width > batch_tokens:
            yield batch
            batch = []
        if not batch:
            width = lengths[index] + max_new_tokens
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _ready_to_sample(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients and a neutral generation config; everything as it was afterwards."""
    # transformers fills whatever a generation config leaves open from the model's own, at every level of wrapping.
    holders = [module for module in model.modules() if getattr(module, "generation_config", None) is not None]
    own = [holder.generation_config for holder in holders]
    training = [module for module in model.modules() if module.training]
    try:
        for holder in holders:
            holder.generation_config = GenerationConfig()
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder.generation_config = config
        for module in training:
            module.training = True


@contextmanager
def _seeded(seed: int, number: int, model: Any) -> Iterator[None]:
    device = _device(model)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed((seed * 1_000_003 + number) % (1 << 63))
        yield


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _check_settings(max_new_tokens: int, temperature: float, top_p: float, num_return: int) -> None:
    for name, value, right, expected in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 (most likely token) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("num_return", num_return, num_return >= 1, "at least 1"),
    ):
        if not right:
            raise ConfigError(f"{name} is {value}", expected=expected)
    if temperature == 0 and num_return > 1:
        raise ConfigError(
            f"temperature 0 gives one response per prompt, and {num_return} were asked for",
            where="num_return",
            remedy="set a temperature above 0, or num_return to 1",
        )


def _check_prompts(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError("A prompt has no tokens", where=f"prompt {number + 1} of {len(prompts)}")
        if isinstance(limit, int) and len(prompt) + max_new_tokens > limit:
            raise ModelError(
                f"A prompt of {len(prompt)} tokens and {max_new_tokens} new tokens do not fit the context of {limit}",
                where=f"prompt {number + 1} of {len(prompts)}",
                remedy="cut the prompt's oldest turns, or generate fewer tokens",
            )
