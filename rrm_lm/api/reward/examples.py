"""The feedback of reward training: read, held out, encoded; or pairs of token ids, as TRL prepares them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rrm_lm.api.data.heldout import check_leaks, files, hold_out, sizes
from rrm_lm.api.data.rows import read_rows
from rrm_lm.api.reward.inputs import refuse_useless
from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback, merge_feedback
from rrm_lm.feedback.splits import LeakageReport
from rrm_lm.models.pretrained import process_state
from rrm_lm.planning.planning import Job
from rrm_lm.settings.data import FeedbackSplit
from rrm_lm.text.chat import Encoded, Line
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import COLUMNS, ExampleBuilder, LinePair, RewardExample
from rrm_lm.training.reward.trainer import RewardDataset

logger = logging.getLogger(__name__)

HOLD_OUT: Any = "hold out"  # hold out the share `eval_fraction` of the training prompts


def read_feedback(
    args: Any, split: FeedbackSplit, train_dataset: Any, eval_dataset: Any
) -> tuple[Feedback, dict[str, Feedback], LeakageReport | None]:
    """Read and split the feedback, and check for overlap: (training, held out by set name, overlap). Both are
    empty for token ids, which are not feedback.
    """
    if is_pretokenized(train_dataset):
        return Feedback(), {}, None
    most = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * process_state().num_processes
    train = read_rows(train_dataset, most=None if hasattr(train_dataset, "__len__") or most <= 0 else most)
    refuse_useless(train, args)
    sets: dict[str, Feedback] | None = None
    if eval_dataset is None:
        sets = {}
    elif isinstance(eval_dataset, Mapping):
        sets = {str(name): read_rows(rows, split="test", name=str(name)) for name, rows in eval_dataset.items()}
    elif eval_dataset is not HOLD_OUT:
        sets = {"held out": read_rows(eval_dataset, split="test", name="eval_dataset")}
    train, heldout = hold_out(split, train, None if sets is None else merge_feedback(*sets.values()))
    refuse_useless(train, args)
    logger.info("to learn from: %s; held out: %s", sizes(train), sizes(heldout))
    leak = check_leaks(split, train, heldout, files(heldout, train))
    return train, sets or ({"held out": heldout} if len(heldout) else {}), leak


def held_out_examples(builder: ExampleBuilder, rows: Any) -> Any:
    """Encode held-out rows or feedback without critiques; by name if there are several sets; None without rows."""
    if rows is None:
        return None
    if isinstance(rows, Mapping):
        return {name: held_out_examples(builder, part) for name, part in rows.items()}
    if is_pretokenized(rows):
        return encode_ids(rows, builder, "eval_dataset")
    plain = replace(builder, with_critiques=False, pair_ratings=False, narrow=False)
    return plain.comparisons(read_rows(rows, split="test", name="eval_dataset").comparisons)


def is_encoded(data: Any) -> bool:
    """Whether examples, or all sets of them, need no encoding."""
    if isinstance(data, Mapping):
        return all(map(is_encoded, data.values()))
    return isinstance(data, RewardDataset) or (
        isinstance(data, Sequence) and all(isinstance(e, RewardExample) for e in data)
    )


def is_pretokenized(rows: Any) -> bool:
    """Whether rows hold token ids in ``chosen_ids`` and ``rejected_ids``."""
    columns = getattr(rows, "column_names", None)
    if columns is None and isinstance(rows, list | tuple) and rows and isinstance(rows[0], dict):
        columns = rows[0]
    return columns is not None and set(columns) >= set(COLUMNS)


def encode_ids(rows: Any, builder: ExampleBuilder, name: str) -> list[RewardExample]:
    """One example per pair; the shared beginning of both sequences is the prompt. Raises DataError for ids that are not
    whole numbers, or an empty sequence.
    """
    examples = []
    for number, row in enumerate(rows, 1):
        sides = [list(row[column]) for column in COLUMNS]
        where = f"{name}, row {number}"
        if not all(sides) or not all(isinstance(i, int) and i >= 0 for side in sides for i in side):
            raise DataError("a row has no token ids", where=where, expected="lists of whole numbers, none empty")
        if sides[0] == sides[1]:
            raise DataError("chosen_ids and rejected_ids are the same", where=where, remedy="remove the row")
        longest = builder.chat.max_length
        lines = [_line(side, _shared(*sides), longest) for side in sides]
        margin = row.get("margin")
        pairs = (LinePair(0, 1, None if margin is None else float(margin)),)
        encoded = Encoded(tuple((line,) for line in lines))
        examples.append(builder.lay(encoded, pairs, (), where, prompt_id=str(sides[0][: _shared(*sides)])))
    return examples


def _shared(chosen: list[int], rejected: list[int]) -> int:
    """The length of the shared beginning; at least one id remains as the response."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _line(ids: list[int], start: int, longest: int | None) -> Line:
    cut = 0 if longest is None else max(0, len(ids) - longest)
    return Line(tuple(ids[cut:]), max(0, start - cut), len(ids) - cut - 1)


def job_of(args: RewardConfig, examples: Sequence[RewardExample]) -> Job:
    """What a step takes, for :func:`rrm_lm.planning.sizing.fit_sizes`: rows as wide as the widest one."""
    width = max((len(row) for example in examples for row in example.rows), default=2)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return Job(prompt_length=max(1, width // 3), response_length=max(1, -(-width // 3)), batch=batch)
