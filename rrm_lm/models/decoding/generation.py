"""Sampling with `.generate()`; nothing else in the package calls it.

Prompts are padded on the left with an explicit attention mask, and responses are cut at the first token that ends a
turn. No mask or length is computed from pad ids.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.models.backbone import evaluating
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.text.batching import context_length

Progress = Callable[[int, int, float], None]


@contextmanager
def sampling_bar(description: str, unit: str, *, shown: bool = True) -> Iterator[Progress]:
    """A progress bar with the rate in tokens per second; yields what sampling calls after each batch."""
    with tqdm(desc=description, unit=unit, disable=not shown) as bar:

        def progress(done: int, total: int, tokens_per_second: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"{tokens_per_second:.0f} tokens/s", refresh=False)
            bar.update(done - bar.n)

        yield progress


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
    seed_by_prompt: bool = False,
    progress: Progress | None = None,
) -> list[list[list[int]]]:
    """Sample continuations of prompts, in batches of similar length.

    The distribution is the model's own under `temperature`, `top_p` and `top_k`: defaults in the model's generation
    config (a repetition penalty, a top-k) do not apply. Each response has its own random numbers, so batches do not
    change it. The global random state is not changed.

    Args:
        model: A causal language model (plain, PEFT or sharded) with `.generate()`.
        prompts, batch_tokens, progress: See :func:`rrm_lm.models.decoding.rollouts.roll_out`.
        pad_id: Fills rows on the left; it is masked, so any id works.
        eos_ids: Tokens that end a response.
        seed_by_prompt: Seed each response from the prompt's tokens instead of its index, so that equal prompts get
            equal responses in any order.

    Returns:
        For each prompt, in the given order, `num_return` lists of generated ids. A list ends with the first eos token
        if there is one, and has `max_new_tokens` ids otherwise.

    Raises:
        ConfigError: Invalid settings.
        ModelError: A prompt is empty or does not fit the model's context with `max_new_tokens`.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    check_prompts(prompts, sampling, num_return, getattr(model, "config", None))
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad_id, eos_token_id=list(eos_ids), use_cache=True
    )
    device = next(model.parameters()).device
    results: list[list[list[int]]] = [[] for _ in prompts]
    started, generated, done = time.perf_counter(), 0, 0
    with _ready_to_sample(model):
        for batch in _batches([len(prompt) for prompt in prompts], max_new_tokens, num_return, batch_tokens):
            places = [(index, number) for index in batch for number in range(num_return)]
            noise = LogitsProcessorList()
            if temperature > 0:
                keys = [prompts[index] if seed_by_prompt else (index,) for index, _ in places]
                seeds = [own_seed(seed, key, number) for key, (_, number) in zip(keys, places, strict=True)]
                noise.append(_OwnNoise(seeds, device, sampling))
            rows = _generate(model, [prompts[index] for index, _ in places], config, noise, device)
            for (index, _), row in zip(places, rows, strict=True):  # `.generate()` pads after the first eos token
                ends = [place + 1 for place, token in enumerate(row) if token in eos_ids]
                results[index].append(row[: ends[0]] if ends else row)
                generated += len(results[index][-1])
            done += len(places)
            if progress is not None:
                progress(done, len(prompts) * num_return, generated / (time.perf_counter() - started))
    return results


def check_prompts(prompts: Sequence[Sequence[int]], sampling: Sampling, num_return: int, config: Any) -> None:
    """Check that responses to these prompts can be sampled. Raises ConfigError: invalid number of responses;
    ModelError: a prompt is empty or does not fit the model's context.
    """
    if num_return < 1:
        raise ConfigError(f"num_return is {num_return}", expected="at least 1")
    if sampling.temperature == 0 and num_return > 1:
        what = f"temperature 0 gives one response per prompt, but num_return is {num_return}"
        raise ConfigError(what, where="num_return", remedy="set a temperature above 0, or num_return to 1")
    limit = context_length(config)
    for number, prompt in enumerate(prompts):
        where = f"prompt {number + 1} of {len(prompts)}"
        if not prompt:
            raise ModelError("A prompt has no tokens", where=where)
        if isinstance(limit, int) and len(prompt) + sampling.max_new_tokens > limit:
            raise ModelError(
                f"A prompt of {len(prompt)} tokens and {sampling.max_new_tokens} new tokens do not fit the context of "
                f"{limit}",
                where=where,
                remedy="cut the prompt's oldest turns, or generate fewer tokens",
            )


def _generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    processors: LogitsProcessorList,
    device: torch.device,
) -> list[list[int]]:
    """Generated ids: one row per prompt, all of equal length."""
    width = max(map(len, prompts))
    pad: Any = config.pad_token_id
    input_ids = torch.tensor([[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts], device=device)
    is_real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    output = model.generate(
        input_ids=input_ids, attention_mask=is_real, generation_config=config, logits_processor=processors
    )
    return output[:, width:].tolist()


class _OwnNoise(LogitsProcessor):
    """Adds Gumbel noise, with one random stream per row, so that the argmax is a sample from the softmax (Gumbel 1954).
    Greedy decoding then samples, and other rows of the batch cannot affect a row.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, sampling: Sampling) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.sampling = sampling

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        waiting = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, stream in zip(waiting, self.streams, strict=True):
            row.exponential_(generator=stream)  # minus its logarithm is Gumbel noise
        return self.sampling.shape(scores).float() - waiting.clamp_min(1e-30).log()  # type: ignore[return-value]


def own_seed(seed: int, key: Sequence[int], number: int) -> int:
    """The seed of one response, from 0 to 2^56: a hash, so that neighbours have unrelated random numbers."""
    text = f"{seed} {number} {' '.join(map(str, key))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _batches(lengths: Sequence[int], max_new_tokens: int, num_return: int, batch_tokens: int) -> Iterator[list[int]]:
    """Batches of prompt indices within the token budget, longest first so that memory peaks in the first batch."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * num_return * (lengths[batch[0]] + max_new_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _ready_to_sample(model: Any) -> Iterator[None]:
    """Evaluation mode, no gradients and a neutral generation config; everything is restored afterwards."""
    # transformers fills gaps in a generation config from the model's own, at every level of wrapping.
    holders = [module for module in model.modules() if getattr(module, "generation_config", None) is not None]
    own = [holder.generation_config for holder in holders]
    try:
        for holder in holders:
            holder.generation_config = GenerationConfig()
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder.generation_config = config
