"""What the policy wrote, and how it goes through the model: in groups of similar length that share their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rrm_lm.models.agent import AgentModel
from rrm_lm.text.batching import Batch, Row, collate, common_beginning, length_groups
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.ppo.losses import is_before
from rrm_lm.training.ppo.prompts import PromptItem


@dataclass(slots=True)
class Rollouts:
    """The episodes of one update on one process.

    Attributes:
        items: (episodes) the prompts.
        responses: (episodes) token ids as sampled.
        texts: (episodes) the same as text, without the token that ends a turn.
        finished: (episodes) whether the response ended by itself.
        lines: (episodes) prompt and response.
        lengths: (episodes,) tokens of each response.
    """

    items: list[PromptItem]
    responses: list[tuple[int, ...]]
    texts: list[str]
    finished: list[bool]
    lines: list[Line]
    lengths: Tensor

    @classmethod
    def of(
        cls,
        items: Sequence[PromptItem],
        responses: Sequence[Sequence[int]],
        tokenizer: Any,
        end_ids: Sequence[int],
        device: torch.device,
    ) -> Rollouts:
        """Rollouts of prompts and the token ids of their responses."""
        ends = set(end_ids)
        finished = [ids[-1] in ends for ids in responses]
        texts = [
            tokenizer.decode(list(ids[:-1] if done else ids), skip_special_tokens=True)
            for ids, done in zip(responses, finished, strict=True)
        ]
        return cls(
            list(items),
            [tuple(ids) for ids in responses],
            texts,
            finished,
            [ChatFormat.sampled_line(item.ids, ids) for item, ids in zip(items, responses, strict=True)],
            torch.tensor([len(ids) for ids in responses], device=device),
        )

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def width(self) -> int:
        """Tokens of the longest response."""
        return max(map(len, self.responses))

    @property
    def is_response(self) -> Tensor:
        """(episodes, width) True at the tokens of each response."""
        return is_before(self.lengths, self.width)


@dataclass(slots=True)
class Group:
    """Episodes that go through the model together.

    Attributes:
        episodes: Their numbers, in the order of the batch's lines; empty for a pass that only keeps other processes
            company.
        batch: Their lines laid into rows.
        lines: The lines.
        tokens: Padded tokens of the batch.
    """

    episodes: list[int]
    batch: Batch
    lines: list[Line]
    tokens: int


class Grouping:
    """Lays lines into groups under a token budget. How they are grouped changes nothing in what is computed.

    The samples of one prompt share its computation, and prompts that all begin alike (the system message, the
    template's own words) share that beginning, a few in a row.

    Args:
        agent: Lays lines into rows.
        lines: The episodes.
        max_tokens: Most padded tokens of a group.
        most: The greatest of a number over all processes: sharded models meet in every pass, so that all processes
            must make the same number of them.
        share: Let lines share what they have in common.
    """

    def __init__(
        self, agent: AgentModel, lines: Sequence[Line], max_tokens: int, most: Callable[[int], int], share: bool = True
    ) -> None:
        self.lines = lines
        self._agent, self._max_tokens, self._most = agent, max_tokens, most
        self._share = share and agent.can_share
        self._made: dict[tuple[int, ...], list[Group]] = {}

    def __call__(self, episodes: Sequence[int] | None = None) -> list[Group]:
        """Groups of these episodes (by default of all), longest first, so that memory peaks in the first one."""
        members = tuple(sorted(range(len(self.lines)) if episodes is None else episodes))
        if members not in self._made:
            self._made[members] = self._groups(members)
        return self._made[members]

    def _groups(self, members: tuple[int, ...]) -> list[Group]:
        bundles = self._bundles(members) if members else []
        rows = [self._rows(bundle) for bundle in bundles]
        found = length_groups(
            [max(map(len, per_bundle)) for per_bundle in rows], self._max_tokens, sizes=[len(r) for r in rows]
        )
        groups = [self._group([bundles[i] for i in group], [rows[i] for i in group]) for group in found]
        missing = self._most(len(groups)) - len(groups)
        if missing:
            company = self._group([[0]], [self._rows([0])])
            groups += [Group([], company.batch, company.lines, company.tokens)] * missing
        return groups

    def _bundles(self, members: tuple[int, ...]) -> list[list[int]]:
        """Episodes that share a row: the samples of a prompt, and of some more where all prompts begin alike."""
        if not self._share:
            return [[number] for number in members]
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for number in members:
            line = self.lines[number]
            by_prompt.setdefault(line.ids[: line.response_start], []).append(number)
        families = list(by_prompt.values())
        own = [sum(map(len, self._rows(family))) for family in families]
        common = common_beginning(list(by_prompt))
        count = _rows_for(common, [size - common for size in own], self._agent.backbone.hidden_size)
        bundles: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for family in sorted(range(len(families)), key=lambda i: (-own[i], i)):  # the longest first, where least is
            least = filled.index(min(filled))
            bundles[least] += families[family]
            filled[least] += own[family] - common
        return bundles

    def _rows(self, family: Sequence[int]) -> list[Row]:
        return self._agent.rows([self.lines[number] for number in family])

    def _group(self, bundles: Sequence[list[int]], rows: Sequence[list[Row]]) -> Group:
        episodes = [number for bundle in bundles for number in bundle]
        batch = collate([row for bundle in rows for row in bundle], self._agent.backbone.pad_id)
        lines = [self.lines[number] for number in episodes]
        return Group(episodes, batch.to(self._agent.device), lines, batch.input_ids.numel())


def _rows_for(common: int, own: Sequence[int], hidden_size: int) -> int:
    """Into how many rows to lay families that share a beginning.

    A token costs 1 in the layers' products and each token that it might look at ``1 / (2 hidden)`` in attention (a
    layer has about 12 hidden^2 weights; attention runs at about a third of the products' speed). With g families of s
    own tokens in a row, ``(c + g s + (c + g s)^2 / (2 hidden)) / g`` is least where ``(g s)^2 = 2 hidden c + c^2``.

    Args:
        common: Tokens that all begin with.
        own: Tokens of each family behind them.
        hidden_size: Of the model.
    """
    best = (2 * hidden_size * common + common**2) ** 0.5
    return min(len(own), max(1, round(sum(own) / best))) if best else len(own)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(tokens,) -> (episodes, width): the tokens of episodes one behind the other to the True places of their rows."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
