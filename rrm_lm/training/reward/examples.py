"""From feedback records to training examples: lines arranged in rows, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Any

from rrm_lm.errors import DataError, TemplateError
from rrm_lm.feedback.counts import Tally
from rrm_lm.feedback.records import Comparison, Critique, Origin, Prompt, Rating, prompt_id
from rrm_lm.models.backbone import Backbone
from rrm_lm.text.batching import Row, alike
from rrm_lm.text.chat import ChatFormat, Encoded, Line
from rrm_lm.text.template_checks import TemplateChecks

COLUMNS = ("chosen_ids", "rejected_ids")  # TRL's names of the columns of a pair of token sequences


@dataclass(frozen=True, slots=True)
class LinePair:
    """A preference between two lines of an example, by index, and its strength (``None``: not graded)."""

    chosen: int
    rejected: int
    grade: float | None = None


@dataclass(frozen=True, slots=True)
class RewardExample:
    """One or more pieces of feedback on one prompt: the lines and their labels."""

    rows: tuple[Row, ...]  # one row if prefixes are shared, else one per line
    lines: tuple[Line, ...]  # the lines, in the rows' order
    pairs: tuple[LinePair, ...] = ()  # preferences between lines
    ratings: tuple[tuple[int, float], ...] = ()  # (line, rating in [0, 1])
    origin: str = ""  # file and row, for error messages
    prompt_id: str = ""  # identifies prompts that count as the same (see :func:`rrm_lm.feedback.records.prompt_id`)

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

    @property
    def chosen_tokens(self) -> int:
        """Tokens of the chosen responses, up to the one at which the reward is read. The first token of a line has no
        token before it that predicts it; a response begins there if its prompt was cut off.
        """
        chosen = [self.lines[number] for number in {pair.chosen for pair in self.pairs}]
        return sum(line.reward_at + 1 - max(1, line.response_start) for line in chosen)


@dataclass(slots=True)
class FitCounts:
    """Counts of conversations cut to fit the context, and of unusable records."""

    shortened: int = 0
    dropped_turns: int = 0
    cut_tokens: int = 0
    cut_responses: int = 0
    unusable: dict[str, Tally] = field(default_factory=dict)
    template: TemplateChecks = field(default_factory=TemplateChecks)

    def add(self, encoded: Encoded, origin: Origin) -> None:
        self.template.add(encoded.lost, origin)
        self.shortened += bool(encoded.dropped_turns or encoded.cut_tokens or encoded.cut_responses)
        self.dropped_turns += encoded.dropped_turns
        self.cut_tokens += encoded.cut_tokens
        self.cut_responses += encoded.cut_responses

    def drop(self, reason: DataError | str, origin: Origin) -> None:
        if isinstance(reason, TemplateError):
            self.template.refuse(reason, origin)
        else:
            self.unusable.setdefault(getattr(reason, "what", str(reason)), Tally()).add(origin)

    def summary(self) -> str:
        """What was cut or left out, for the log."""
        parts = [
            f"{self.shortened} conversations shortened ({self.dropped_turns} turns and {self.cut_tokens} tokens of "
            f"prompts left out, {self.cut_responses} responses cut)"
        ]
        return "; ".join([*(parts if self.shortened else ()), *self.left_out()])

    def left_out(self) -> list[str]:
        """Each reason with its count and the first rows."""
        return [f"left out, {reason}: {tally}" for reason, tally in self.unusable.items()]

    def to_dict(self) -> dict[str, Any]:
        unusable = {reason: tally.to_dict() for reason, tally in self.unusable.items()}
        return asdict(self) | {"unusable": unusable, "template": self.template.to_dict()}


@dataclass(frozen=True, slots=True)
class ExampleBuilder:
    """Turns records into examples. `pair_ratings` also trains on the ratings of compared responses. With `narrow`,
    critiques attend to the response only through the token at which the reward is read; the model must accept such a
    mask. `counts` counts cuts and unusable records.
    """

    chat: ChatFormat
    backbone: Backbone
    with_critiques: bool = True
    pair_ratings: bool = False
    narrow: bool = False
    counts: FitCounts = field(default_factory=FitCounts)

    def comparisons(self, records: Sequence[Comparison]) -> list[RewardExample]:
        """One example per comparison, with its critiques."""
        return [example for record in records for example in self._compared([record])]

    def together(self, records: Sequence[Comparison], most: int) -> list[RewardExample]:
        """Examples with up to `most` comparisons of one prompt. The prompt and repeated responses are computed once.

        The loss of the pairs is the same as with :meth:`comparisons`, which this is for `most` 1. A response and each
        of its critiques count once in an example, however many comparisons it is in.
        """
        if most == 1:
            return self.comparisons(records)
        groups: dict[Prompt, list[Comparison]] = {}
        for record in records:
            groups.setdefault(record.prompt, []).append(record)
        pieces = [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]
        return [example for piece in pieces for example in self._compared(piece)]

    def joined(self, examples: Sequence[RewardExample], most: int) -> list[RewardExample]:
        """Join up to `most` examples whose prompts begin alike (see :func:`rrm_lm.text.batching.alike`), so that the
        beginning is computed once. The losses are the same.
        """
        if most == 1:
            return list(examples)
        groups = alike(examples, most, lambda one: one.lines[0].ids[: one.lines[0].response_start])
        return [self._join(group) for group in groups]

    def _join(self, examples: Sequence[RewardExample]) -> RewardExample:
        lines = [line for example in examples for line in example.lines]
        starts = [0, *accumulate(len(example.lines) for example in examples)]
        numbered = list(zip(starts, examples, strict=False))
        pairs = [
            LinePair(start + pair.chosen, start + pair.rejected, pair.grade)
            for start, example in numbered
            for pair in example.pairs
        ]
        return replace(
            examples[0],
            rows=self._rows(lines),
            lines=tuple(lines),
            pairs=tuple(pairs),
            ratings=tuple((start + line, rating) for start, example in numbered for line, rating in example.ratings),
            origin="; ".join(example.origin for example in examples),
        )

    def responses(self, critiques: Sequence[Critique], ratings: Sequence[Rating]) -> list[RewardExample]:
        """One example per response that has critiques or a rating but no comparison."""
        found: dict[tuple[Prompt, str], tuple[list[str], list[float], Origin]] = {}
        for record in (*critiques, *ratings):
            texts, numbers, _ = found.setdefault((record.prompt, record.response), ([], [], record.origin))
            if isinstance(record, Rating):
                numbers.append(record.rating)
            elif self.with_critiques:
                texts.append(record.critique)
        examples = []
        for (prompt, response), (texts, numbers, origin) in found.items():
            if not (texts or numbers):
                continue
            try:
                encoded = self.chat.encode(prompt, [response], [texts]).whole()
            except DataError as error:
                self.counts.drop(error, origin)
                continue
            self.counts.add(encoded, origin)
            mean = [(0, sum(numbers) / len(numbers))] if numbers else []
            examples.append(self.lay(encoded, (), mean, origin, prompt_id(prompt)))
        return examples

    def own_critiques(
        self, records: Sequence[Comparison], lines: Sequence[Sequence[Sequence[Line]]]
    ) -> list[RewardExample]:
        """Examples whose rewards are read after the model's own critiques. For each comparison, `lines` holds the lines
        of the chosen and of the rejected response, one per critique (see `rrm_lm.models.self_critique`). The n-th of
        one side is compared with the n-th of the other.
        """
        examples = []
        for record, (chosen, rejected) in zip(records, lines, strict=True):
            pairs = tuple(LinePair(n, len(chosen) + n, record.margin) for n in range(len(chosen)))
            encoded = Encoded((tuple(chosen), tuple(rejected)))
            examples.append(self.lay(encoded, pairs, (), record.origin, record.prompt_id))
        return examples

    def _compared(self, records: Sequence[Comparison]) -> list[RewardExample]:
        """One example from comparisons of one prompt; none if they are not usable."""
        critiques: dict[str, tuple[str, ...]] = {}  # of each response
        for record in records:
            for text, said in ((record.chosen, record.chosen_critiques), (record.rejected, record.rejected_critiques)):
                critiques[text] = tuple(dict.fromkeys((*critiques.get(text, ()), *said)))
        try:
            encoded = self.chat.encode(
                records[0].prompt, list(critiques), list(critiques.values()) if self.with_critiques else None
            ).whole()
        except DataError as error:
            if len(records) > 1:  # try each alone to find the unusable one
                return [example for one in records for example in self._compared([one])]
            self.counts.drop(error, records[0].origin)
            return []
        self.counts.add(encoded, records[0].origin)
        lines = [line for group in encoded.lines for line in group]
        first: dict[str, int] = {}  # first line of each response, which has one line per critique
        for response in critiques:
            first[response] = sum(map(len, encoded.lines[: len(first)]))
        pairs: list[LinePair] = []
        ratings: list[tuple[int, float]] = []
        for record in records:
            pair = LinePair(first[record.chosen], first[record.rejected], record.margin)
            chosen, rejected = lines[pair.chosen], lines[pair.rejected]
            if chosen.ids[: chosen.reward_at + 1] == rejected.ids[: rejected.reward_at + 1]:
                self.counts.drop("chosen and rejected are the same tokens", record.origin)
                continue
            pairs.append(pair)
            if self.pair_ratings:
                rated = ((pair.chosen, record.chosen_rating), (pair.rejected, record.rejected_rating))
                ratings += [(line, rating) for line, rating in rated if rating is not None]
        laid = self.lay(encoded, tuple(pairs), ratings, records[0].origin, records[0].prompt_id)
        return [laid] if pairs else []

    def lay(
        self,
        encoded: Encoded,
        pairs: tuple[LinePair, ...],
        ratings: Sequence[tuple[int, float]],
        origin: Origin | str,
        prompt_id: str,
    ) -> RewardExample:
        """Make an example from encoded lines; its arguments are the fields of :class:`RewardExample`."""
        lines = tuple(line for group in encoded.lines for line in group)
        if self.narrow:
            lines = tuple(replace(line, critique_view=line.reward_at) if line.critique else line for line in lines)
        return RewardExample(self._rows(lines), lines, pairs, tuple(ratings), str(origin), prompt_id)

    def _rows(self, lines: Sequence[Line]) -> tuple[Row, ...]:
        return tuple(self.backbone.rows([line.ids for line in lines], [line.blind for line in lines]))
