"""Feedback records -> training examples: lines laid into rows, and what is learned from each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import Tally
from rrm_lm.feedback.records import Comparison, Critique, Origin, Prompt, Rating, prompt_id
from rrm_lm.models.backbone import Backbone
from rrm_lm.text.batching import Row
from rrm_lm.text.chat import ChatFormat, Encoded, Line

COLUMNS = ("chosen_ids", "rejected_ids")  # TRL's names for what a pair of token sequences is in


@dataclass(frozen=True, slots=True)
class Pair:
    """Two lines of an example, the first preferred, and how strongly (``None``: not graded)."""

    chosen: int
    rejected: int
    grade: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """What one piece of feedback gives: lines of one prompt, laid into rows, and what is learned from them.

    Attributes:
        rows: One row where prefixes are shared, else a row for each line.
        lines: The lines, in the rows' order.
        pairs: Preferences between lines.
        ratings: (line, rating in [0, 1]).
        origin: File and row, for messages.
        prompt_id: Which prompts count as the same (see :func:`rrm_lm.feedback.records.prompt_id`).
    """

    rows: tuple[Row, ...]
    lines: tuple[Line, ...]
    pairs: tuple[Pair, ...] = ()
    ratings: tuple[tuple[int, float], ...] = ()
    origin: str = ""
    prompt_id: str = ""

    def __contains__(self, column: object) -> bool:
        return bool(self.pairs) and column in COLUMNS

    def __getitem__(self, column: str) -> list[int]:
        """Token ids of the first pair under TRL's column names: `chosen_ids`, `rejected_ids`."""
        if column not in self:
            raise KeyError(column)
        pair = self.pairs[0]
        return list(self.lines[pair.chosen if column == COLUMNS[0] else pair.rejected].ids)

    @property
    def critique_tokens(self) -> int:
        return sum(len(line.critique) for line in self.lines)


@dataclass(slots=True)
class FitCounts:
    """What had to be cut so that conversations fit the context, and what could not be used at all."""

    shortened: int = 0
    dropped_turns: int = 0
    cut_tokens: int = 0
    cut_responses: int = 0
    unusable: dict[str, Tally] = field(default_factory=dict)

    def add(self, encoded: Encoded) -> None:
        self.shortened += bool(encoded.dropped_turns or encoded.cut_tokens or encoded.cut_responses)
        self.dropped_turns += encoded.dropped_turns
        self.cut_tokens += encoded.cut_tokens
        self.cut_responses += encoded.cut_responses

    def drop(self, reason: str, origin: Origin) -> None:
        self.unusable.setdefault(reason, Tally()).add(origin)

    def summary(self) -> str:
        """What was cut and what was left out, for a log."""
        parts = [
            f"{self.shortened} conversations shortened ({self.dropped_turns} turns and {self.cut_tokens} tokens of "
            f"prompts left out, {self.cut_responses} responses cut)"
        ]
        return "; ".join([*(parts if self.shortened else ()), *self.left_out()])

    def left_out(self) -> list[str]:
        """For each reason, how often and in which rows first."""
        return [f"left out, {reason}: {tally}" for reason, tally in self.unusable.items()]

    def to_dict(self) -> dict[str, Any]:
        return {
            "shortened": self.shortened,
            "dropped_turns": self.dropped_turns,
            "cut_tokens": self.cut_tokens,
            "cut_responses": self.cut_responses,
            "unusable": {reason: tally.to_dict() for reason, tally in self.unusable.items()},
        }


@dataclass(frozen=True, slots=True)
class ExampleBuilder:
    """Turns records into examples.

    Args:
        chat: The chat format.
        backbone: Says whether prefixes may be shared.
        with_critiques: Learn to write the critiques.
        pair_ratings: Also regress on ratings that stand beside a pair.
        narrow: Let critiques see the response only through the token at which the reward is read. Needs a model that
            takes such a mask.
        counts: Where cuts and unusable records are counted.
    """

    chat: ChatFormat
    backbone: Backbone
    with_critiques: bool = True
    pair_ratings: bool = False
    narrow: bool = False
    counts: FitCounts = field(default_factory=FitCounts)

    def comparisons(self, records: Sequence[Comparison]) -> list[Example]:
        """One example for each comparison; its critiques come with it."""
        return [example for record in records if (example := self._comparison(record)) is not None]

    def together(self, records: Sequence[Comparison], most: int) -> list[Example]:
        """Examples of up to `most` comparisons of one prompt each: it, and what is compared twice, is computed once.

        The loss is the same as of `comparisons`, a mean over pairs; what is shared is only the computation.
        """
        groups: dict[Prompt, list[Comparison]] = {}
        for record in records:
            groups.setdefault(record.prompt, []).append(record)
        pieces = [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]
        return [example for piece in pieces for example in self._together(piece)]

    def responses(self, critiques: Sequence[Critique], ratings: Sequence[Rating]) -> list[Example]:
        """One example for each response that has critiques or a rating but no comparison."""
        found: dict[tuple[Prompt, str], tuple[list[str], list[float], Origin]] = {}
        for record in (*critiques, *ratings):
            texts, numbers, _ = found.setdefault((record.prompt, record.response), ([], [], record.origin))
            if isinstance(record, Rating):
                numbers.append(record.rating)
            elif self.with_critiques:
                texts.append(record.critique)
        examples = []
        for (prompt, response), (texts, numbers, origin) in found.items():
            encoded = self._encode(prompt, [response], [texts], origin) if texts or numbers else None
            if encoded is not None:
                mean = [(0, sum(numbers) / len(numbers))] if numbers else []
                examples.append(self._lay(encoded, (), mean, origin, prompt_id(prompt)))
        return examples

    def own_critiques(self, records: Sequence[Comparison], lines: Sequence[Sequence[Sequence[Line]]]) -> list[Example]:
        """Examples whose rewards are read after critiques that the model wrote.

        Args:
            records: The comparisons.
            lines: For each, the lines of the chosen and of the rejected response, one for each critique
                (see `rrm_lm.models.self_critique`). The n-th of one side is compared with the n-th of the other.
        """
        examples = []
        for record, (chosen, rejected) in zip(records, lines, strict=True):
            pairs = tuple(Pair(n, len(chosen) + n, record.margin) for n in range(len(chosen)))
            encoded = Encoded((tuple(chosen), tuple(rejected)))
            examples.append(self._lay(encoded, pairs, (), record.origin, record.prompt_id))
        return examples

    def lay(self, encoded: Encoded, pairs: tuple[Pair, ...], *, origin: str, prompt_id: str) -> Example:
        """An example of lines that are encoded already."""
        return self._lay(encoded, pairs, (), origin, prompt_id)

    def _comparison(self, record: Comparison) -> Example | None:
        texts = [record.chosen_critiques, record.rejected_critiques] if self.with_critiques else None
        encoded = self._encode(record.prompt, [record.chosen, record.rejected], texts, record.origin)
        if encoded is None:
            return None
        second = len(encoded.lines[0])
        if self._drop_equal(encoded.lines[0][0], encoded.lines[1][0], record):
            return None
        numbers = [(0, record.chosen_rating), (second, record.rejected_rating)] if self.pair_ratings else []
        rated = [(line, rating) for line, rating in numbers if rating is not None]
        return self._lay(encoded, (Pair(0, second, record.margin),), rated, record.origin, record.prompt_id)

    def _drop_equal(self, chosen: Line, rejected: Line, record: Comparison) -> bool:
        """Whether two lines are the same up to their rewards, so that there is nothing to learn; that is counted."""
        equal = chosen.ids[: chosen.reward_at + 1] == rejected.ids[: rejected.reward_at + 1]
        if equal:
            self.counts.drop("chosen and rejected are the same tokens", record.origin)
        return equal

    def _together(self, records: Sequence[Comparison]) -> list[Example]:
        said: dict[str, tuple[str, ...]] = {}
        for record in records:
            said |= {record.chosen: record.chosen_critiques, record.rejected: record.rejected_critiques}
        critiques = list(said.values()) if self.with_critiques else None
        try:
            encoded = self.chat.encode(records[0].prompt, list(said), critiques)
        except DataError as error:
            if len(records) > 1:  # which of them it is shows when each is by itself
                return [example for one in records for example in self._together([one])]
            self.counts.drop(error.what, records[0].origin)
            return []
        self.counts.add(encoded)
        first: dict[str, int] = {}  # the line of each response, the first of several where it has several critiques
        for response in said:
            first[response] = sum(map(len, encoded.lines[: len(first)]))
        lines = [line for group in encoded.lines for line in group]
        pairs = tuple(
            Pair(first[one.chosen], first[one.rejected], one.margin)
            for one in records
            if not self._drop_equal(lines[first[one.chosen]], lines[first[one.rejected]], one)
        )
        return [self._lay(encoded, pairs, (), records[0].origin, records[0].prompt_id)] if pairs else []

    def _encode(
        self, prompt: Prompt, responses: Sequence[str], critiques: Sequence[Sequence[str]] | None, origin: Origin
    ) -> Encoded | None:
        try:
            encoded = self.chat.encode(prompt, responses, critiques)
        except DataError as error:
            self.counts.drop(error.what, origin)
            return None
        self.counts.add(encoded)
        return encoded

    def _lay(
        self,
        encoded: Encoded,
        pairs: tuple[Pair, ...],
        ratings: Sequence[tuple[int, float]],
        origin: Origin | str,
        about: str,
    ) -> Example:
        lines = tuple(line for group in encoded.lines for line in group)
        if self.narrow:
            lines = tuple(replace(line, critique_view=line.reward_at) if line.critique else line for line in lines)
        rows = tuple(self.backbone.rows([line.ids for line in lines], [line.blind for line in lines]))
        return Example(rows, lines, pairs, tuple(ratings), str(origin), about)
