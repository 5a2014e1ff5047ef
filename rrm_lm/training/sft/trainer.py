"""Supervised fine-tuning of a policy with TRL's SFTTrainer, on demonstrations, corrections or chosen responses.

TRL gets tokens and labels from `text/chat.py`, so training uses the same tokens as sampling: special tokens in messages
stay text, over-long prompts lose their oldest turns, and the loss covers the response and its end-of-turn token.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.sft_trainer import SFTTrainer as TRLTrainer

from rrm_lm.errors import DataError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Comparison, Correction, Demonstration, Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.saving.policies import Policy, PolicySettings
from rrm_lm.models.saving.quantization import keeping_weights
from rrm_lm.models.tokenizers import align_pad
from rrm_lm.text.batching import Batch, Row, alike, collate, length_groups, share
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.processes import check_finite
from rrm_lm.training.reward.examples import FitCounts
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.speed import TRAINED, utilization
from rrm_lm.training.trainer import AdapterTrainer

logger = logging.getLogger(__name__)

_IGNORED = -100  # transformers' label of tokens without loss
_LOGIT_CHUNK = 1024  # tokens whose logits are held at once


@dataclass(frozen=True, slots=True)
class Imitation:
    """One training response, as tokens."""

    line: Line  # Prompt and response. The loss starts at `line.response_start`.
    origin: str  # file and row, for error messages
    prompt_id: str  # identifies prompts that count as the same (see :func:`rrm_lm.feedback.records.prompt_id`)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.line.ids[: self.line.response_start]

    @property
    def learned(self) -> int:
        """Number of tokens with loss."""
        return len(self.line.ids) - self.line.response_start

    def labels(self) -> list[int]:
        """(time,) token ids where there is a loss, -100 elsewhere."""
        start = self.line.response_start
        return [_IGNORED] * start + list(self.line.ids[start:])


# -- feedback -> examples ---------------------------------------------------------------------------------------------


def to_imitate(feedback: Feedback, sources: Sequence[str]) -> list[Demonstration]:
    """The distinct responses to train on, in the order of the sources (:data:`rrm_lm.training.sft.config.SOURCES`):
    demonstrations, corrections (the corrected text), chosen (the chosen response of each comparison).
    """
    made: list[Demonstration] = []
    for source in sources:
        if source == "demonstrations":
            made += feedback.demonstrations
        elif source == "corrections":
            made += [_demonstration(record, record.corrected) for record in feedback.corrections]
        else:
            made += [_demonstration(record, record.chosen) for record in feedback.comparisons]
    distinct: dict[tuple[Prompt, str], Demonstration] = {}
    for record in made:
        distinct.setdefault((record.prompt, record.response), record)
    return list(distinct.values())


def _demonstration(record: Correction | Comparison, response: str) -> Demonstration:
    return Demonstration(
        prompt=record.prompt, response=response, source=record.source, subset=record.subset, origin=record.origin
    )


def imitations(chat: ChatFormat, records: Sequence[Demonstration], counts: FitCounts) -> list[Imitation]:
    """Encode records. The chat format's ``max_length`` bounds prompt plus response. `counts` counts shortened prompts
    and skipped records (an empty response, or one that leaves no tokens for its prompt).
    """
    made = []
    for record in records:
        try:
            encoded = chat.encode(record.prompt, [record.response]).whole()
        except DataError as error:
            counts.drop(error, record.origin)
            continue
        line = _with_end(encoded.lines[0][0], chat)
        if line.response_start == 0:
            counts.drop(f"the response leaves no room for its prompt in {chat.max_length} tokens", record.origin)
            continue
        counts.add(encoded, record.origin)
        made.append(Imitation(line, str(record.origin), record.prompt_id))
    return made


def _with_end(line: Line, chat: ChatFormat) -> Line:
    """Append the end-of-turn token, which some templates omit after the last answer.

    A policy trained without it would not stop. A line of maximum length loses the prompt's first token.
    """
    if line.ids[-1] == chat.end_id:
        return line
    ids, start = (*line.ids, chat.end_id), line.response_start
    if chat.max_length is not None and len(ids) > chat.max_length and start > 0:
        ids, start = ids[1:], start - 1
    return Line(ids, start, len(ids) - 1)


# -- training ---------------------------------------------------------------------------------------------------------


class SFTTrainer(AdapterTrainer, TRLTrainer):
    """TRL's trainer on tokenized examples, with verified checkpoints and adapter folders. The `heldout` examples are
    for the loss during training (``eval_strategy``), and `settings` are saved with every checkpoint. Further keyword
    arguments are passed to TRL's trainer.
    """

    args: SFTConfig

    def __init__(
        self,
        policy: Policy,
        args: SFTConfig,
        train: Sequence[Imitation],
        heldout: Sequence[Imitation] | None = None,
        *,
        settings: PolicySettings,
        **kwargs: Any,
    ) -> None:
        tokenizer = policy.chat.tokenizer
        self.keep_for_saving(policy, tokenizer, settings)
        align_pad(policy.backbone.causal_lm, tokenizer)
        if getattr(policy.backbone.config, "logits_scaling", None) and args.loss_type == "chunked_nll":
            args.loss_type = "nll"  # TRL's chunked loss leaves out this factor of Granite's logits
        if args.compile_layers:
            policy.backbone.compile_layers()
        rows = in_rows(train, args.prompts_together, policy.backbone)
        data = to_dataset(train) if rows is None else rows_to_dataset(rows)
        self._seconds, self._logged_tokens = 0.0, 0.0  # of training steps since the last log; up to it
        with keeping_weights(policy.backbone.model):
            super().__init__(
                model=policy.backbone.model,
                args=args,
                data_collator=_Collator(
                    pad_token_id=policy.backbone.pad_id,
                    pad_to_multiple_of=args.pad_to_multiple_of,
                    dummy=data[0],
                    rows=[] if rows is None else [row for row, _ in rows],
                ),
                train_dataset=data,
                eval_dataset=to_dataset(heldout) if heldout else None,
                processing_class=tokenizer,
                **kwargs,
            )

    def get_train_dataloader(self) -> DataLoader[Any]:
        if getattr(self.args, "train_sampling_strategy", "random") in ("random", "sequential"):
            return self.global_dataloader()
        return super().get_train_dataloader()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        started = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._seconds += time.perf_counter() - started
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tokens per second of all processes to TRL's logs, without evaluation and saving."""
        if "loss" in logs:
            total = float(self._total_train_tokens)
            tokens = total - self._logged_tokens
            logs["tokens_per_second"] = round(tokens / max(self._seconds, 1e-9), 1)
            each = TRAINED * tokens / self.accelerator.num_processes
            logs |= utilization(self.backbone.decoder, each, self._seconds, self.args.device)
            self._seconds, self._logged_tokens = 0.0, total
        super().log(logs, start_time)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss. Raises if it is not finite."""
        origins, batch = inputs.pop("origins", ()), inputs.pop("batch", None)
        with self._seeing(batch):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            where = f"step {self.state.global_step + 1}, responses from {', '.join(origins)}"
            check_finite(loss, where, "those responses")
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _seeing(self, batch: Batch | None) -> Iterator[None]:
        """Mask tokens of other branches of a row inside. TRL only has masks of padding, by which it counts tokens."""
        if batch is None:
            yield
            return
        mask = self.backbone.mask(batch.to(self.args.device))
        hook = self.backbone.decoder.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()


@dataclass
class _Collator(DataCollatorForLanguageModeling):
    """TRL's collator. It also adds the origins, and makes a dummy batch if a process has no examples."""

    dummy: dict[str, Any] | None = None  # the example of a dummy batch, without loss on any token
    rows: list[Row] = field(default_factory=list)  # of examples that name theirs

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        origins = [example["origin"] for example in examples]
        if not examples and self.dummy is not None:
            examples = [{**self.dummy, "labels": [_IGNORED] * len(self.dummy["labels"])}]
        made = {**super().torch_call(examples), "origins": origins}
        if not examples or "row" not in examples[0]:
            return made
        batch = collate([self.rows[example["row"]] for example in examples], self.pad_token_id)
        return {**made, "position_ids": batch.position_ids, "batch": batch}


def to_dataset(examples: Sequence[Imitation]) -> Dataset:
    """Convert examples to the dataset that TRL's trainer takes: token ids, labels, length and origin."""
    return Dataset.from_dict(
        {
            "input_ids": [list(example.line.ids) for example in examples],
            "labels": [example.labels() for example in examples],
            "length": [len(example.line.ids) for example in examples],
            "origin": [example.origin for example in examples],
        }
    )


def in_rows(examples: Sequence[Imitation], most: int, backbone: Backbone) -> list[tuple[Row, list[Imitation]]] | None:
    """Arrange examples in rows: up to `most` whose prompts begin alike share one, if the model can share prefixes. None
    if every example has a row of its own.
    """
    if most == 1 or not backbone.can_share:
        if most > 1:
            logger.warning(
                "this model cannot share prefixes: prompts_together has no effect, and steps have fewer responses"
            )
        return None
    layers: dict[int, list[Imitation]] = defaultdict(list)  # in each, a prompt is once
    times: Counter[tuple[int, ...]] = Counter()
    for one in examples:
        layers[times[one.prompt_ids]].append(one)
        times[one.prompt_ids] += 1
    groups = [group for layer in layers.values() for group in alike(layer, most, lambda one: one.prompt_ids)]
    found = []
    for group in groups:
        row = share([one.line.ids for one in group])
        together = _learns_apart(row, group)
        found += [(row, group)] if together else [(share([one.line.ids]), [one]) for one in group]
    return found


def _learns_apart(row: Row, group: Sequence[Imitation]) -> bool:
    """Whether each learned token of a row belongs to one response and directly follows the token that predicts it. If a
    prompt is another prompt with the beginning of its response, that is not so.
    """
    learned = [indices[one.line.response_start - 1 :] for one, indices in zip(group, row.where, strict=True)]
    places = [place for indices in learned for place in indices[1:]]
    in_order = all(b == a + 1 for indices in learned for a, b in pairwise(indices))
    return in_order and len(set(places)) == len(places)


def rows_to_dataset(rows: Sequence[tuple[Row, Sequence[Imitation]]]) -> Dataset:
    """Like :func:`to_dataset`, for rows of several examples; `row` is the number of each."""
    labels = [[_IGNORED] * len(row) for row, _ in rows]
    for own, (row, group) in zip(labels, rows, strict=True):
        for one, indices in zip(group, row.where, strict=True):
            for at in range(one.line.response_start, len(one.line.ids)):
                own[indices[at]] = one.line.ids[at]
    return Dataset.from_dict(
        {
            "input_ids": [list(row.ids) for row, _ in rows],
            "labels": labels,
            "length": [len(row) for row, _ in rows],
            "origin": ["; ".join(one.origin for one in group) for _, group in rows],
            "row": list(range(len(rows))),
        }
    )


# -- held-out loss ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def response_nll(
    backbone: Backbone, adapter: str | None, lines: Sequence[Line], micro_batch_tokens: int = 2048
) -> list[Tensor]:
    """The negative log-likelihood of each token of each response. The model must be in evaluation mode; without an
    `adapter`, the bare backbone is used. `micro_batch_tokens` is the maximum of padded tokens at once, and the result
    does not depend on it. Returns for each line (response tokens,) in nats, on the CPU.
    """
    found: dict[int, Tensor] = {}
    for group in length_groups([len(line.ids) for line in lines], micro_batch_tokens):
        members = [lines[index] for index in group]
        batch = collate([share([line.ids]) for line in members], backbone.pad_id).to(backbone.device)
        hidden = backbone(batch, adapter)
        for row, (index, line) in enumerate(zip(group, members, strict=True)):
            states = hidden[row, line.response_start - 1 : len(line.ids) - 1]
            tokens = torch.tensor(line.ids[line.response_start :], device=hidden.device)
            pieces = zip(states.split(_LOGIT_CHUNK), tokens.split(_LOGIT_CHUNK), strict=True)
            nll = [nn.functional.cross_entropy(backbone.logits(s, adapter), t, reduction="none") for s, t in pieces]
            found[index] = torch.cat(nll).cpu()
    return [found[index] for index in range(len(lines))]
