"""What to look at before training: what was read, how long it is, what repeats, and what the model will see.

`rrm-lm inspect` prints all of it; `reward`, `sft` and `policy` log `Inspection.lines`.
"""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rrm_lm.api.data.heldout import hold_out, load
from rrm_lm.api.data.rows import Rows, read_rows
from rrm_lm.api.data.shown import READ, marked
from rrm_lm.errors import DataError
from rrm_lm.feedback.counts import FileCounts, ReadCounts
from rrm_lm.feedback.reading.datasets import REPEATED, Feedback
from rrm_lm.feedback.reading.prompts import as_feedback, prompt_sources
from rrm_lm.feedback.records import Comparison, Critique, Prompt, Rating, Record
from rrm_lm.feedback.splits import LeakageReport, composition, composition_text, leakage, responses_of
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.planning.footprint import read_config
from rrm_lm.settings.feedback import InspectArguments
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.template_checks import TemplateChecks, check_template
from rrm_lm.text.templates import align_responses

logger = logging.getLogger(__name__)

SAMPLE = 1000  # conversations that are tokenized at most
# What trains on each kind of record; every kind has prompts for `rrm-lm policy`.
_COMMANDS = {
    "rrm-lm reward": {"comparisons", "ratings", "critiques"},
    "rrm-lm sft": {"demonstrations", "corrections"},
    "rrm-lm sft --sft_on chosen": {"comparisons"},
}


@dataclass(frozen=True)
class TokenCounts:
    """Lengths of conversations: a prompt with one response, or a prompt alone."""

    measured: int
    of: int
    lengths: dict[str, tuple[int, ...]]  # median, 95% and longest, of "prompt" and "response"
    max_length: int | None
    cut: int  # conversations longer than `max_length`

    def limit(self) -> str:
        """How many are too long."""
        sample = f"a sample of {self.measured:,}" if self.measured < self.of else f"{self.measured:,}"
        most = f"longer than {self.max_length:,} tokens (max_length)"
        if not self.cut:
            return f"none of {sample} conversations is {most}"
        return f"{self.cut:,} of {sample} conversations are {most} and will be cut"


@dataclass(frozen=True)
class ShownRow:
    """One row as the model sees it, or as it was read if there is no model."""

    origin: str
    prompt: str
    responses: dict[str, str]  # by role, such as "chosen"; with the marks of `api.shown`


@dataclass(frozen=True)
class Inspection:
    """The findings about training and held-out feedback."""

    read: ReadCounts  # of the training data
    counts: dict[str, dict[str, Counter[str]]]  # by "train" or "held out", kind, and "source / topic / label"
    sizes: dict[str, dict[str, int]]  # by what is counted, and by "train" or "held out"
    repeated: int  # rows that give the same records as an earlier row
    contradictory: int  # comparisons with the opposite preference of another one
    leakage: LeakageReport | None
    template: TemplateChecks | None
    tokens: TokenCounts | None
    rows: tuple[ShownRow, ...]
    problem: str  # why it cannot be trained on; "" if it can

    @property
    def commands(self) -> list[str]:
        """The commands that can train on it."""
        kinds = self.counts["train"].keys()
        return [*(name for name, needed in _COMMANDS.items() if needed & kinds), "rrm-lm policy"]

    def repeats(self) -> str:
        """What repeats or contradicts itself, or ""."""
        found = {"repeat an earlier row": self.repeated, "contradict another comparison": self.contradictory}
        return "; ".join(f"{count:,} {what}" for what, count in found.items() if count)

    def lines(self) -> list[str]:
        """The short form, for the log of a training run."""
        lines = {"composition": composition_text(self.counts["train"]) or "nothing", "repeats": self.repeats()}
        if self.tokens is not None:
            of = (f"{name} {'/'.join(map(str, found))}" for name, found in self.tokens.lengths.items())
            limit = [self.tokens.limit()] if self.tokens.max_length is not None else []
            lines["tokens (median/95%/longest)"] = "; ".join([*of, *limit])
        return [f"{name}: {text}" for name, text in lines.items() if text]

    def to_dict(self) -> dict[str, Any]:
        """All findings, for JSON."""
        names = ("problem", "commands", "counts", "sizes", "repeated", "contradictory")
        parts = {"read": self.read, "leakage": self.leakage, "template": self.template}
        return {
            **{name: getattr(self, name) for name in names},
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
            "tokens": None if self.tokens is None else asdict(self.tokens),
            "rows": [asdict(row) for row in self.rows],
        }


def inspect(data: Rows, model: str | None = None, **settings: Any) -> Inspection:
    """Inspect feedback or prompts before training, as `rrm-lm inspect` does.

    Args:
        data: As for :func:`rrm_lm.evaluate`.
        model: The model that will be trained: a folder, a Hub id or ``smollm2-135m``.
        settings: Other settings of `rrm-lm inspect`, such as ``columns`` or ``max_length``.

    Raises:
        DataError: It cannot be read, even without the rows that are bad.
        ModelError: There is no such model.

    Example:
        >>> rrm_lm.inspect("my_feedback.jsonl", "smollm2-135m").problem
        ''
    """
    names = [data] if isinstance(data, str | os.PathLike) else data
    if isinstance(names, list) and all(isinstance(name, str | os.PathLike) for name in names):
        return inspect_sources(InspectArguments(dataset=[str(name) for name in names], model=model, **settings))
    args = InspectArguments(dataset=["the rows"], model=model, **settings)
    columns = args.reading("")["columns"]
    return inspect_sources(args, read_rows(data, split=args.dataset_train_split, columns=columns))


def inspect_sources(args: InspectArguments, given: Feedback | None = None) -> Inspection:
    """Read and inspect the data that the settings name; `given` replaces the training data. Raises as `inspect`."""
    train, only_prompts, problem = given or Feedback(), False, ""
    if given is None:
        train, only_prompts, problem = _read(args, args.dataset, args.dataset_train_split)
    heldout = None
    if args.eval_dataset:
        heldout, _, other = _read(args, args.eval_dataset, args.dataset_test_split)
        problem = problem or other
    try:
        train, heldout = hold_out(args, train, heldout)
    except DataError as error:
        problem = problem or error.sentence()
    chat = None
    if args.model is not None:
        loading = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
        positions = context_length(read_config(args.model, **loading)[0])
        tokenizer = load_tokenizer(args.model, **args.tokenizing(), **loading)
        align_responses(tokenizer)
        chat = ChatFormat(tokenizer, min(filter(None, (args.max_length, positions)), default=None))
    found = inspect_feedback(train, heldout or Feedback(), chat, only_prompts=only_prompts, rows=args.rows)
    if found.template is not None and not problem and not args.skip_bad_rows:
        problem = "; ".join(found.template.problems())
    return replace(found, problem=problem)


def _read(args: InspectArguments, names: Sequence[str], split: str) -> tuple[Feedback, bool, str]:
    """Feedback or prompts, without bad rows; whether there are only prompts; and the error that training would raise.
    Raises DataError: something other than single rows is wrong.
    """

    def read(args: InspectArguments) -> tuple[Feedback, bool]:
        try:
            return load(args, names, split), False
        except DataError:
            counts: list[FileCounts] = []
            return as_feedback(prompt_sources(names, **args.reading(split), counts=counts), counts), True

    try:
        return *read(args), ""
    except DataError as error:
        if args.skip_bad_rows:
            raise
        return *read(replace(args, skip_bad_rows=True)), f"{error.sentence()}, or pass --skip_bad_rows true"


def inspect_feedback(
    train: Feedback,
    heldout: Feedback,
    chat: ChatFormat | None = None,
    *,
    only_prompts: bool = False,
    leak: LeakageReport | None = None,
    checks: TemplateChecks | None = None,
    rows: int = 0,
) -> Inspection:
    """Inspect training and held-out feedback.

    Args:
        train, heldout: The feedback; of prompts only, as `reading.prompts.as_feedback` returns it.
        chat: The chat format with the limit that training will use; None measures and renders nothing.
        only_prompts: The responses are stand-ins.
        leak, checks: The overlap, and the checks of the template, if they are already known.
        rows: How many rows to show.
    """
    sides = {"train": train, "held out": heldout}
    counts = {name: composition(side) for name, side in sides.items()}
    if only_prompts:
        counts = {name: dict(zip(["prompts"], found.values(), strict=False)) for name, found in counts.items()}
    records = [*train.records(), *heldout.records()]
    comparisons = [*train.comparisons, *heldout.comparisons]
    pairs = {(one.prompt, one.chosen, one.rejected) for one in comparisons}
    critiqued = {
        name: sum(bool(one.chosen_critiques or one.rejected_critiques) for one in side.comparisons)
        for name, side in sides.items()
    }
    prompts = {name: len({record.prompt for record in side.records() if record.prompt}) for name, side in sides.items()}
    return Inspection(
        read=train.counts,
        counts=counts,
        sizes={"comparisons with critiques": critiqued, "different prompts": prompts},
        repeated=sum(file.notes[REPEATED].count for file in train.counts.files if REPEATED in file.notes),
        contradictory=sum((one.prompt, one.rejected, one.chosen) in pairs for one in comparisons),
        leakage=leakage(train, heldout) if leak is None and len(heldout) else leak,
        template=check_template(chat, records) if checks is None and chat is not None else checks,
        tokens=None if chat is None else count_tokens(chat, records, only_prompts),
        rows=tuple(_shown(train, chat, only_prompts, rows)),
        problem="",
    )


def log_inspection(
    train: Feedback,
    heldout: Feedback,
    chat: ChatFormat,
    *,
    only_prompts: bool = False,
    leak: LeakageReport | None = None,
) -> None:
    """Log the short form before training. Trainers check the template themselves, when they encode the feedback."""
    found = inspect_feedback(train, heldout, chat, only_prompts=only_prompts, leak=leak, checks=TemplateChecks())
    overlap = [found.leakage.summary()] if leak is None and found.leakage is not None else []
    for line in [*found.lines(), *overlap]:
        logger.info("%s", line)


def count_tokens(chat: ChatFormat, records: Sequence[Record], only_prompts: bool = False) -> TokenCounts:
    """Measure the distinct conversations of records, or their prompts alone; at most `SAMPLE`, drawn at random."""
    found: dict[tuple[Prompt, str], None] = {
        (record.prompt, response): None
        for record in records
        for response in (("",) if only_prompts else responses_of(record))
        if record.prompt
    }
    sizes: list[tuple[int, ...]] = []
    sample = random.Random(0).sample(list(found), min(SAMPLE, len(found)))
    for prompt, response in sample:
        try:
            if only_prompts:
                sizes.append((len(chat.uncut.prompt_ids(prompt)),))
            else:
                line = chat.uncut.encode(prompt, [response]).lines[0][0]
                sizes.append((line.response_start, len(line.ids) - line.response_start))
        except DataError:  # the checks of the template count it
            continue
    columns = zip(("prompt", "response"), zip(*sizes, strict=True), strict=False)
    lengths = {
        name: tuple(map(int, np.percentile(column, [50, 95, 100], method="nearest"))) for name, column in columns
    }
    cut = sum(chat.max_length is not None and sum(size) > chat.max_length for size in sizes)
    return TokenCounts(len(sample), len(found), lengths, chat.max_length, cut)


def _shown(feedback: Feedback, chat: ChatFormat | None, only_prompts: bool, count: int) -> Iterator[ShownRow]:
    """Rows from the first to the last one, evenly spaced, as far as the template renders them."""
    records = [record for record in feedback.records() if record.prompt]
    for place in sorted({round(number * (len(records) - 1) / max(1, count - 1)) for number in range(count)}):
        with suppress(DataError):
            yield show_row(chat, records[place], only_prompts)


def show_row(chat: ChatFormat | None, record: Record, only_prompts: bool = False) -> ShownRow:
    """A record as the model sees it, or as it was read without a chat format. Raises DataError: the template does not
    render it.
    """
    answers = {} if only_prompts else _answers(record)
    if chat is None:
        turns = "\n".join(f"{turn.role}: {turn.content}{turn.extra}" for turn in record.prompt)
        return ShownRow(str(record.origin), turns, {role: text for role, (text, _) in answers.items()})
    if only_prompts:
        return ShownRow(str(record.origin), chat.tokenizer.decode(chat.prompt_ids(record.prompt)), {})
    encoded = chat.encode(record.prompt, [text for text, _ in answers.values()], [c[:1] for _, c in answers.values()])
    mark = READ if isinstance(record, Comparison | Critique | Rating) else ""
    prompt, seen = "", {}
    for role, (line, *_) in zip(answers, encoded.lines, strict=True):
        prompt = chat.tokenizer.decode(list(line.ids[: line.response_start]))
        seen[role] = marked(chat, line, mark).plain.removeprefix(prompt)
    is_cut = encoded.dropped_turns or encoded.cut_tokens or encoded.cut_responses
    return ShownRow(f"{record.origin}{' (cut to max_length)' if is_cut else ''}", prompt, seen)


def _answers(record: Record) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The responses by role, each with its critiques."""
    if isinstance(record, Comparison):
        chosen, rejected = (record.chosen, record.chosen_critiques), (record.rejected, record.rejected_critiques)
        return {"chosen": chosen, "rejected": rejected}
    if isinstance(record, Critique):
        return {"critiqued": (record.response, (record.critique,))}
    if isinstance(record, Rating):
        return {f"rated {record.rating:.2f}": (record.response, ())}
    return {"imitated": (responses_of(record)[-1], ())}  # the response, or its corrected version
