"""Rollouts: many responses to many prompts.

Each prompt is computed once for all its responses, and the common prefix of a batch's prompts once per batch. Finished
rows leave the batch. Keys and values are written in place, logits exist for one token of each row, and the adapter is
merged into copies of the weights (:mod:`rrm_lm.models.decoding.products`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rrm_lm.models.backbone import Backbone, evaluating
from rrm_lm.models.decoding.decoders import Decoder, decoding
from rrm_lm.models.decoding.generation import Progress, check_prompts, sample
from rrm_lm.models.decoding.key_values import KeyValues
from rrm_lm.models.decoding.sampling import Sampling, stalls
from rrm_lm.text.batching import common_beginning, length_groups

PREFILL_TOKENS = 2048  # prompt tokens per forward pass
_PASS = 32  # cost of another pass over the weights, in tokens
# Where the host would stall the device, it looks only after this many tokens which rows have ended. These rows go on
# until then, and what they draw is dropped.
_TOKENS_PER_LOOK = 16
_WORTH_PACKING = 12  # decoded tokens of a row, over all batches, that pay for packing the weights


@dataclass(frozen=True, slots=True)
class _Row:
    """A response to sample: its prompt, the prompt's index in the call, and the response's index for its prompt."""

    prompt: tuple[int, ...]
    number: int
    sample: int


def roll_out(
    backbone: Backbone,
    adapter: str | None,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    num_return: int = 1,
    seed: int = 0,
    first: int = 0,
    batch_tokens: int = 16384,
    progress: Progress | None = None,
) -> list[list[list[int]]]:
    """Sample responses to prompts with one adapter, exactly from the distribution of `sampling`.

    The random numbers of a response depend only on `seed`, its prompt's index and its own index. Other batches, or
    several calls that split the prompts, give the same responses up to rounding of the logits. Autocast is off, so
    everything is computed in the model's own dtype. The model's mode and the global random state are not changed.

    Families without a decoder (:mod:`rrm_lm.models.decoding.decoders`) use `generation.sample`, which has the same
    distribution but other random numbers.

    If a sharded model is not gathered (see :func:`rrm_lm.models.sharding.with_full_params`), all processes call this,
    with any prompts.

    Args:
        adapter: The adapter that responds; ``None`` for the backbone without adapters.
        prompts: Token ids of each prompt, ending where the response begins; none empty.
        first: Index of the first prompt, if the prompts are split among calls.
        batch_tokens: Maximum tokens (prompts, responses and padding) held at once; a single row may exceed it.
        progress: Called after each batch with the responses done, the total, and tokens decoded per second.

    Returns:
        For each prompt, in the given order, `num_return` lists of token ids. A list ends with an end token if one was
        sampled, else it has `max_new_tokens` ids.

    Raises:
        ConfigError: Invalid number of responses.
        ModelError: A prompt is empty or does not fit the model's context, or the adapter does not exist.
    """
    check_prompts(prompts, sampling, num_return, backbone.config)
    rows = [_Row(tuple(prompt), n, k) for n, prompt in enumerate(prompts) for k in range(num_return)]
    results: list[list[list[int]]] = [[[] for _ in range(num_return)] for _ in prompts]
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    shape = (first + len(prompts), num_return, 0 if sampling.temperature == 0 else sampling.max_new_tokens)
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)[first:]
    batches = list(_batches(rows, sampling.max_new_tokens, batch_tokens))
    started, decoded, done = time.perf_counter(), 0, 0
    no_autocast = torch.autocast(backbone.device.type, enabled=False)
    with evaluating(backbone), torch.no_grad(), no_autocast, backbone.using(adapter), backbone.uncompiled():
        worth_packing = len(batches) * sampling.max_new_tokens >= _WORTH_PACKING
        with decoding(backbone, adapter, worth_packing) as decoder:
            if decoder is None:
                return sample(
                    backbone.model, prompts, pad_id=backbone.pad_id, eos_ids=end_ids,
                    max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
                    top_k=sampling.top_k, seed=seed + first, num_return=num_return, batch_tokens=batch_tokens,
                    progress=progress,
                )  # fmt: skip
            for batch in batches:
                numbers = torch.stack([uniform[row.number, row.sample] for row in batch])
                responses = _respond(backbone, adapter, decoder, batch, sampling, set(end_ids), numbers)
                for row, ids in zip(batch, responses, strict=True):
                    results[row.number][row.sample] = ids
                    decoded += len(ids)
                done += len(batch)
                if progress is not None:
                    progress(done, len(rows), decoded / (time.perf_counter() - started))
    return results


def _respond(
    backbone: Backbone,
    adapter: str | None,
    decoder: Decoder,
    batch: Sequence[_Row],
    sampling: Sampling,
    ends: set[int],
    uniform: Tensor,
) -> list[list[int]]:
    """Sample one batch in the order of :func:`_batches`; `uniform` is (rows, max_new_tokens) in [0, 1)."""
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(row.prompt for row in batch))}
    prompts = [row.prompt for row in batch[: len(number)]]
    width = len(prompts[-1])
    cache = KeyValues(int(backbone.config.num_hidden_layers), len(batch), width + sampling.max_new_tokens)
    hidden = _prefill(backbone, decoder, cache, prompts)
    starts = [width - len(row.prompt) for row in batch]
    cache.place(width, starts)
    sources = torch.tensor([number[row.prompt] for row in batch], device=backbone.device)
    if len(batch) > len(prompts):
        cache.copy(sources[len(prompts) :], torch.arange(len(prompts), len(batch), device=backbone.device), width)
    responses: list[list[int]] = [[] for _ in batch]
    going = list(range(len(batch)))  # unfinished responses, in the order of the cache's rows
    hidden, places = hidden[sources], torch.tensor(starts, device=backbone.device)
    every = _TOKENS_PER_LOOK if stalls(backbone.device) else 1
    for done in range(0, sampling.max_new_tokens, every):
        stop = min(done + every, sampling.max_new_tokens)
        numbers = uniform[going, done:stop]
        numbers = (numbers.float() if backbone.device.type == "mps" else numbers).to(backbone.device)
        drawn: list[Tensor] = []
        for step in range(done, stop):
            if drawn:
                hidden = _next(decoder, cache, drawn[-1], places, width + step - 1, [starts[one] for one in going])
            number = numbers[:, step - done] if uniform.shape[1] else numbers
            drawn.append(sampling.draw(backbone.logits(hidden, adapter), number))
        kept = []
        for row, (response, tokens) in enumerate(zip(going, torch.stack(drawn, 1).tolist(), strict=True)):
            end = next((place for place, token in enumerate(tokens) if token in ends), None)
            responses[response] += tokens if end is None else tokens[: end + 1]
            kept += [row] if end is None else []
        if not kept or stop == sampling.max_new_tokens:
            break
        last = drawn[-1]
        if len(kept) < len(going):
            kept = _close_ranks(cache, kept, width + stop - 1, backbone.device)
            going, last, places = [going[row] for row in kept], last[kept], places[kept]
        hidden = _next(decoder, cache, last, places, width + stop - 1, [starts[one] for one in going])
    return responses


def _next(
    decoder: Decoder, cache: KeyValues, tokens: Tensor, places: Tensor, column: int, starts: Sequence[int]
) -> Tensor:
    """(rows, hidden) after one more token of each row."""
    cache.place(column, starts)
    return decoder(tokens[:, None], places, cache)[:, 0]


def _close_ranks(cache: KeyValues, kept: Sequence[int], end: int, device: torch.device) -> list[int]:
    """Move the last rows of a cache into the slots of finished ones; return the new order of rows."""
    stay = [row for row in kept if row < len(kept)]
    move = kept[len(stay) :]
    free = sorted(set(range(len(kept))) - set(stay))
    if move:
        cache.copy(torch.tensor(move, device=device), torch.tensor(free, device=device), end)
    moved = dict(zip(free, move, strict=True))
    return [moved.get(row, row) for row in range(len(kept))]


def _prefill(backbone: Backbone, decoder: Decoder, cache: KeyValues, prompts: Sequence[tuple[int, ...]]) -> Tensor:
    """Compute prompts, shortest first, into the first rows of an empty cache, where all end at the same column. Their
    common prefix is computed once. Returns (prompts, hidden) at the last token of each.
    """
    device = backbone.device
    width = len(prompts[-1])
    starts = [width - len(prompt) for prompt in prompts]
    places = torch.tensor(starts, device=device)
    common = min(common_beginning(prompts), min(map(len, prompts)) - 1)  # without a prompt's last token
    if common * (len(prompts) - 1) <= _PASS:  # sharing it does not pay off
        common = 0
    if common:
        cache.place(0, [0])
        decoder(torch.tensor([list(prompts[0][:common])], device=device), places.new_zeros(1), cache)
        cache.spread(common, places)
    lengths = [len(prompt) - common for prompt in prompts]
    ends: list[Tensor] = []
    for group in reversed(length_groups(lengths, PREFILL_TOKENS, _PASS)):
        rows, count = slice(group[0], group[-1] + 1), lengths[group[-1]]
        # Shorter prompts recompute some tokens of the common prefix.
        ids = [[*[backbone.pad_id] * (count - len(prompt)), *prompt[-count:]] for prompt in prompts[rows]]
        cache.place(width - count, starts[rows], group[0])
        ends.append(decoder(torch.tensor(ids, device=device), places[rows], cache)[:, -1])
    return torch.cat(ends)


def _batches(rows: Sequence[_Row], max_new_tokens: int, batch_tokens: int) -> Iterator[list[_Row]]:
    """Batches of rows within the token budget, longest prompts first so that memory peaks in the first batch.

    A batch begins with one row of each prompt, shortest prompt first; the other rows follow.
    """

    def ordered(batch: list[_Row]) -> list[_Row]:
        ones = {row.prompt: row for row in reversed(batch)}
        return [*ones.values(), *(row for row in batch if ones[row.prompt] is not row)]

    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (-len(row.prompt), row.prompt)):
        width = len(batch[0].prompt if batch else row.prompt) + max_new_tokens
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield ordered(batch)
            batch = []
        batch.append(row)
    if batch:
        yield ordered(batch)
