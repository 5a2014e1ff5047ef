"""Supervised fine-tuning of a policy with TRL's SFTTrainer: demonstrations, corrections and chosen responses, imitated.

TRL is given tokens and labels that `text/chat.py` made, so that a policy learns exactly the tokens that it is later
asked to write: special tokens in what people wrote stay text, over-long prompts lose their oldest turns, and the loss
is on the response and the token that ends its turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.sft_trainer import SFTTrainer as TRLTrainer

from rrm_lm.errors import DataError, TrainingError
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Comparison, Correction, Demonstration, Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import align_pad
from rrm_lm.models.saving.adapters import read_weights
from rrm_lm.models.saving.policies import Policy, PolicySettings, save_policy
from rrm_lm.text.batching import collate, length_groups, share
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.global_batches import GlobalBatches
from rrm_lm.training.portable_checkpoints import PortableCheckpoints
from rrm_lm.training.reward.examples import FitCounts
from rrm_lm.training.sft.config import SFTConfig

_IGNORED = -100  # the label of a token that is not learned, as transformers has it
_LOGIT_CHUNK = 1024  # tokens whose logits are held at once


@dataclass(frozen=True, slots=True)
class Imitation:
    """One response to be imitated, as tokens.

    Attributes:
        line: Prompt and response. What is learned is everything from ``line.response_start`` on.
        origin: File and row, for messages.
        prompt_id: Which prompts count as the same (see :func:`rrm_lm.feedback.records.prompt_id`).
    """

    line: Line
    origin: str
    prompt_id: str

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return len(self.line.ids) - self.line.response_start

    def labels(self) -> list[int]:
        """(time,) the token ids where they are learned, -100 where not."""
        start = self.line.response_start
        return [_IGNORED] * start + list(self.line.ids[start:])


# -- feedback -> examples -------------------------------------------------------------------------------------------


def to_imitate(feedback: Feedback, sources: Sequence[str]) -> list[Demonstration]:
    """What feedback shows to be good responses, each distinct one once, in the order of the sources.

    Args:
        feedback: What was read.
        sources: Some of :data:`rrm_lm.training.sft.config.SOURCES`: demonstrations as they are, corrections as the
            corrected text, chosen as the chosen response of each comparison.
    """
    made: list[Demonstration] = []
    for source in sources:
        if source == "demonstrations":
            made += feedback.demonstrations
        elif source == "corrections":
            made += [_shown(record, record.corrected) for record in feedback.corrections]
        else:
            made += [_shown(record, record.chosen) for record in feedback.comparisons]
    distinct: dict[tuple[Prompt, str], Demonstration] = {}
    for record in made:
        distinct.setdefault((record.prompt, record.response), record)
    return list(distinct.values())


def _shown(record: Correction | Comparison, response: str) -> Demonstration:
    return Demonstration(
        prompt=record.prompt, response=response, source=record.source, subset=record.subset, origin=record.origin
    )


def imitations(chat: ChatFormat, records: Sequence[Demonstration], counts: FitCounts) -> list[Imitation]:
    """Records as tokens.

    Args:
        chat: The chat format; its ``max_length`` bounds prompt plus response.
        records: What is to be imitated.
        counts: Where prompts that were shortened, and records that are left out, are counted: an empty response, or
            one so long that nothing of its prompt would be left.
    """
    made = []
    for record in records:
        try:
            encoded = chat.encode(record.prompt, [record.response])
        except DataError as error:
            counts.drop(error.what, record.origin)
            continue
        line = _ended(encoded.lines[0][0], chat)
        if line.response_start == 0:
            counts.drop(f"the response leaves no room for its prompt in {chat.max_length} tokens", record.origin)
            continue
        counts.add(encoded)
        made.append(Imitation(line, str(record.origin), record.prompt_id))
    return made


def _ended(line: Line, chat: ChatFormat) -> Line:
    """The line with the token that ends the turn behind it, where a template leaves that out of the last answer.

    A policy that never learned it would not stop. The prompt's first token makes room for it where there is none.
    """
    if line.ids[-1] == chat.end_id:
        return line
    ids, start = (*line.ids, chat.end_id), line.response_start
    if chat.max_length is not None and len(ids) > chat.max_length and start > 0:
        ids, start = ids[1:], start - 1
    return Line(ids, start, len(ids) - 1)


# -- training -------------------------------------------------------------------------------------------------------


class SFTTrainer(PortableCheckpoints, TRLTrainer):
    """TRL's trainer on examples that are tokens already, with verified checkpoints and adapter folders.

    Args:
        policy: The backbone with the adapter to be trained, and its chat format.
        args: Settings.
        train: Examples to learn from.
        heldout: Examples for the loss during training (``eval_strategy``).
        settings: Saved with every checkpoint.
        kwargs: Passed to TRL's trainer.
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
        self.backbone, self.policy_settings = policy.backbone, settings
        self.adapter = str(policy.adapter)
        tokenizer = policy.chat.tokenizer
        align_pad(policy.backbone.causal_lm, tokenizer)
        data = to_dataset(train)
        super().__init__(
            model=policy.backbone.model,
            args=args,
            data_collator=_Collator(
                pad_token_id=policy.backbone.pad_id, pad_to_multiple_of=args.pad_to_multiple_of, company=data[0]
            ),
            train_dataset=data,
            eval_dataset=to_dataset(heldout) if heldout else None,
            processing_class=tokenizer,
            **kwargs,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every example once a pass, whatever the number of processes: Accelerate would repeat some to fill a batch."""
        if getattr(self.args, "train_sampling_strategy", "random") not in ("random", "sequential"):
            return super().get_train_dataloader()
        data: Any = self.train_dataset
        # Its own generator: making an iterator must not move the random state that a resumed run starts from.
        return DataLoader(
            data,
            batch_sampler=GlobalBatches.of(self),
            collate_fn=self.data_collator,
            generator=torch.Generator(),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, and an end to training where it is no number, before anything is changed by it."""
        origins = inputs.pop("origins", ())
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and not math.isfinite(float(loss.detach())):
            raise TrainingError(
                f"The loss is {float(loss.detach())}; training stopped before the step, nothing was changed by it",
                where=f"step {self.state.global_step + 1}, responses from {', '.join(origins)}",
                remedy="lower --learning_rate, look at those responses, and go on from the last checkpoint with "
                "--resume_from_checkpoint true",
            )
        return (loss, outputs) if return_outputs else loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL would write its card into the run's folder at every checkpoint."""

    # -- saving ---------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter as PEFT reads it. PEFT itself would put one that is not named `default` a folder deeper."""
        write = bool(self.args.should_save)
        if write or self.is_fsdp_enabled:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            save_policy(self.backbone, folder, self.processing_class, self.policy_settings, self.adapter, write)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(self.backbone, self.adapter, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            read_weights(self.backbone, self.adapter, Path(best))


@dataclass
class _Collator(DataCollatorForLanguageModeling):
    """TRL's, and with each batch the files and rows it is from; a batch of none keeps the other processes company.

    Attributes:
        company: What is passed through the model then, without being learned.
    """

    company: dict[str, Any] | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        origins = [example["origin"] for example in examples]
        if not examples and self.company is not None:
            examples = [{**self.company, "labels": [_IGNORED] * len(self.company["labels"])}]
        return {**super().torch_call(examples), "origins": origins}


def to_dataset(examples: Sequence[Imitation]) -> Dataset:
    """Examples as the table that TRL's trainer takes: token ids, labels, length and origin."""
    return Dataset.from_dict(
        {
            "input_ids": [list(example.line.ids) for example in examples],
            "labels": [example.labels() for example in examples],
            "length": [len(example.line.ids) for example in examples],
            "origin": [example.origin for example in examples],
        }
    )


# -- held-out loss --------------------------------------------------------------------------------------------------


@torch.no_grad()
def response_nll(
    backbone: Backbone, adapter: str | None, lines: Sequence[Line], micro_batch_tokens: int = 2048
) -> list[Tensor]:
    """How surprising each token of each response is.

    Args:
        backbone: The model, in evaluation mode.
        adapter: The adapter to compute with; ``None`` for the bare backbone.
        lines: Prompts with responses.
        micro_batch_tokens: Most padded tokens at once; the result does not depend on it.

    Returns:
        For each line (response tokens,) negative log-likelihoods in nats, on the CPU.
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
