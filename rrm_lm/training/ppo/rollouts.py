"""Sampled responses, and the groups in which they pass through the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rrm_lm.models.agent import AgentModel, find_responses
from rrm_lm.text.batching import Batch, Row, collate, common_beginning, length_groups
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.estimates import is_before
from rrm_lm.training.ppo.prompts import PromptItem


def end_id(args: PPOConfig, tokenizer: Any, chat: ChatFormat | None) -> int | None:
    """The token that ends a response: the configured one, else the end of a turn; None without a chat format."""
    if args.stop_token == "eos":
        return int(tokenizer.eos_token_id)
    return chat.end_id if args.stop_token_id is None and chat is not None else args.stop_token_id


@dataclass(slots=True)
class Rollouts:
    """The episodes of one update on one process."""

    items: list[PromptItem]  # (episodes) the prompts
    responses: list[tuple[int, ...]]  # (episodes) sampled token ids
    texts: list[str]  # (episodes) the responses as text, without the end-of-turn token
    finished: list[bool]  # (episodes) whether the response ended before the limit
    lines: list[Line]  # (episodes) prompt and response
    lengths: Tensor  # (episodes,) tokens of each response
    # (episodes, width) log-probabilities of the tokens as a server computed them, zero after the end
    served: Tensor | None = None

    @classmethod
    def of(
        cls,
        items: Sequence[PromptItem],
        responses: Sequence[Sequence[int]],
        tokenizer: Any,
        end_ids: Sequence[int],
        device: torch.device,
        log_probs: Sequence[Sequence[float]] | None = None,
    ) -> Rollouts:
        ends = set(end_ids)
        finished = [ids[-1] in ends for ids in responses]
        texts = [
            tokenizer.decode(list(ids[:-1] if done else ids), skip_special_tokens=True)
            for ids, done in zip(responses, finished, strict=True)
        ]
        lines = [ChatFormat.sampled_line(item.ids, ids) for item, ids in zip(items, responses, strict=True)]
        lengths = torch.tensor([len(ids) for ids in responses], device=device)
        rollouts = cls(list(items), [tuple(ids) for ids in responses], texts, finished, lines, lengths)
        if log_probs is not None:
            flat = torch.tensor([number for numbers in log_probs for number in numbers], device=device)
            rollouts.served = spread(flat, rollouts.is_response)
        return rollouts

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def width(self) -> int:
        return max(map(len, self.responses))

    @property
    def is_response(self) -> Tensor:
        return is_before(self.lengths, self.width)


@dataclass(slots=True)
class Group:
    """Episodes that pass through the model together."""

    # their indices, in the order of the batch's lines; empty in a dummy group, whose results are ignored
    episodes: list[int]
    index: Tensor  # the same, on the device
    batch: Batch  # the rows
    lines: list[Line]
    tokens: int  # padded tokens of the batch


class Grouping:
    """Arranges lines in rows, and rows in groups under a token budget. The grouping does not change any result.

    The samples of one prompt share its computation. If all prompts have a common prefix (system message, template
    text), a row has a few families that share it.

    A group has at most `max_tokens` padded tokens. `max_over_processes` gives the maximum of a number over all
    processes: sharded models communicate in every pass, so all processes must run the same number of passes. It is
    called for every mini-batch, because one process may have the same episodes again when another one has not.
    """

    def __init__(
        self,
        agent: AgentModel,
        lines: Sequence[Line],
        max_tokens: int,
        max_over_processes: Callable[[int], int],
        share: bool = True,
    ) -> None:
        self.lines = lines
        self._agent, self._max_tokens, self._max_over_processes = agent, max_tokens, max_over_processes
        self._share = share and agent.can_share
        self._made: dict[tuple[int, ...], list[Group]] = {}
        self._whole: list[Group] | None = None

    def __call__(self, episodes: Sequence[int] | None = None) -> list[Group]:
        """Group these episodes (by default all), longest first so that memory peaks in the first group."""
        if episodes is not None:
            return self._padded(self._own(episodes))
        if self._whole is None:
            self._whole = self._padded(self._own(range(len(self.lines))))
        return self._whole

    def _own(self, episodes: Sequence[int]) -> list[Group]:
        members = tuple(sorted(episodes))
        if members not in self._made:
            self._made[members] = self._groups(members)
        return self._made[members]

    def _padded(self, groups: list[Group]) -> list[Group]:
        """The groups, and as many dummy groups as other processes have more."""
        missing = self._max_over_processes(len(groups)) - len(groups)
        if not missing:
            return groups
        dummy = self._group([[0]], [self._row([0])])
        return groups + [replace(dummy, episodes=[], index=dummy.index[:0])] * missing

    def _groups(self, members: tuple[int, ...]) -> list[Group]:
        by_row = self._episodes_of_rows(members) if members else []
        rows = [self._row(episodes) for episodes in by_row]
        return [
            self._group([by_row[i] for i in indices], [rows[i] for i in indices])
            for indices in length_groups([len(row) for row in rows], self._max_tokens)
        ]

    def _episodes_of_rows(self, members: tuple[int, ...]) -> list[list[int]]:
        """The episodes of each row: one family, or several if all prompts have a common prefix."""
        if not self._share:
            return [[number] for number in members]
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for number in members:
            line = self.lines[number]
            by_prompt.setdefault(line.ids[: line.response_start], []).append(number)
        families = list(by_prompt.values())
        sizes = [len(self._row(family)) for family in families]
        common = common_beginning(list(by_prompt))
        count = _rows_for(common, [size - common for size in sizes], self._agent.backbone.hidden_size)
        found: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for family in sorted(range(len(families)), key=lambda i: (-sizes[i], i)):  # longest first, into the emptiest
            row = filled.index(min(filled))
            found[row] += families[family]
            filled[row] += sizes[family] - common
        return found

    def _row(self, episodes: Sequence[int]) -> Row:
        (row,) = self._agent.rows([self.lines[number] for number in episodes])
        return row

    def _group(self, by_row: Sequence[list[int]], rows: Sequence[Row]) -> Group:
        episodes = [number for members in by_row for number in members]
        device = self._agent.device
        batch = collate(rows, self._agent.backbone.pad_id).to(device)
        lines = [self.lines[number] for number in episodes]
        find_responses(batch, lines)  # now, so that no pass has to wait for a copy from the host
        index = torch.tensor(episodes, dtype=torch.long, device=device)
        return Group(episodes, index, batch, lines, batch.input_ids.numel())


def _rows_for(common: int, own: Sequence[int], hidden_size: int) -> int:
    """The number of rows for families with a common prefix.

    A token costs 1 in the layers' matrix products, and ``1 / (2 hidden)`` in attention for each token that it attends
    to (a layer has about 12 hidden^2 weights; attention runs at about a third of the products' speed). With g families
    of s own tokens in a row, ``(c + g s + (c + g s)^2 / (2 hidden)) / g`` is least where ``(g s)^2 = 2 hidden c +
    c^2``. `common` is c, `own` the s of each family.
    """
    best = (2 * hidden_size * common + common**2) ** 0.5
    return min(len(own), max(1, round(sum(own) / best))) if best else len(own)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Place (tokens,) values, in episode order, at the True positions of an (episodes, width) mask; zero elsewhere."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
