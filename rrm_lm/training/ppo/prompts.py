"""Prompts of policy training: encoded once, checked before training, visited in a resumable order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from rrm_lm.errors import ConfigError, DataError
from rrm_lm.feedback.records import Message, Origin, Prompt, check_prompt
from rrm_lm.text.chat import ChatFormat


@dataclass(frozen=True, slots=True)
class PromptItem:
    ids: tuple[int, ...]  # token ids up to the start of the response
    prompt: Prompt  # the messages, for reward sources that read text


def encode_prompts(
    dataset: Sequence[Any],
    chat: ChatFormat | None,
    tokenizer: Any,
    collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
) -> list[PromptItem]:
    """Encode every prompt of a dataset.

    Args:
        dataset: Prompts as messages, or rows with ``input_ids`` as in TRL.
        chat: The chat format, for messages.
        tokenizer: Decodes rows, for reward sources that read text.
        collator: Makes ``input_ids`` and ``attention_mask`` for rows that lack them.

    Raises:
        DataError: There are no prompts, or one is invalid or has no user turn or no tokens.
    """
    if not len(dataset):
        raise DataError("There is no prompt to respond to", expected="at least one prompt")
    items = []
    for number in range(len(dataset)):
        row, origin = dataset[number], Origin("the prompts", number + 1)
        if isinstance(row, Mapping):
            ids = _row_ids(row, collator, origin)
            item = PromptItem(ids, (Message("user", tokenizer.decode(list(ids), skip_special_tokens=True)),))
        elif chat is not None and row and isinstance(row[0], Message):
            check_prompt(row, origin)
            item = PromptItem(tuple(chat.prompt_ids(row)), row)
        else:
            check_prompt(row if isinstance(row, tuple) else (), origin)  # raises its own error for an empty prompt
            raise DataError("This is not a prompt", where=str(origin), expected="messages, or a row with input_ids")
        if not item.ids:
            raise DataError("The prompt has no tokens", where=str(origin), remedy="drop this row")
        items.append(item)
    return items


def _row_ids(row: Mapping[str, Any], collator: Any, origin: Origin) -> tuple[int, ...]:
    mask = row.get("attention_mask") if "input_ids" in row else None
    if "input_ids" not in row and collator is not None:
        padded = collator([row])
        row, mask = {"input_ids": padded["input_ids"][0]}, padded.get("attention_mask", [None])[0]
    if "input_ids" not in row:
        what = f"The row has no input_ids (it has {', '.join(map(str, row))})"
        raise DataError(what, where=str(origin), expected="prompts as messages, or tokenized as TRL has them")
    ids = [int(token) for token in row["input_ids"]]
    return tuple(ids if mask is None else [token for token, real in zip(ids, mask, strict=True) if int(real)])


def check_lengths(items: Sequence[PromptItem], new_tokens: int, positions: int | None) -> None:
    """Raise a ConfigError if a prompt and a response of `new_tokens` exceed the model's positions (None: unknown)."""
    row, longest = max(enumerate(items, start=1), key=lambda numbered: len(numbered[1].ids))
    if positions is not None and len(longest.ids) + new_tokens > positions:
        text = longest.prompt[-1].content if longest.prompt else ""
        raise ConfigError(
            f"A prompt of {len(longest.ids)} tokens and a response of {new_tokens} do not fit the model's "
            f"{positions} positions",
            where=f"the prompts, row {row}: {text if len(text) <= 60 else text[:60] + '...'!r}",
            remedy="shorten prompts with max_length, or set a smaller response_length",
        )


class PromptOrder(Sampler[list[int]]):
    """The prompts of each update, `size` per process: endless passes over all prompts, in random order.

    The order is a function of the seed and the update's number, so a resumed run continues where it stopped. Each
    process takes its share of every update. (TRL drops the last incomplete batch of each epoch, so a dataset smaller
    than a batch gives no batches.)
    """

    def __init__(self, count: int, size: int, seed: int, process: int = 0, processes: int = 1) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.process, self.processes = process, processes
        self.start = 0  # first update
        self._epochs: dict[int, list[int]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        update = self.start
        while True:
            yield self.update(update)
            update += 1

    def update(self, number: int) -> list[int]:
        """Indices of the prompts of this process in one update, counted from 0."""
        first = (number * self.processes + self.process) * self.size
        return [self._at(place) for place in range(first, first + self.size)]

    def _at(self, place: int) -> int:
        epoch, number = divmod(place, self.count)
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epochs = {key: order for key, order in self._epochs.items() if key >= epoch - 1}
            self._epochs[epoch] = torch.randperm(self.count, generator=generator).tolist()
        return self._epochs[epoch][number]
