"""Reward-model training on `transformers.Trainer`: comparisons, ratings and critiques in one step.

A step's batch is a number of pieces of feedback, as in every Hugging Face trainer. How many go through the model at
once is another matter: they are grouped by length into micro-batches under a token budget. Losses are summed and
divided by the number of items in the whole global batch, so neither the budget, nor gradient accumulation, nor the
number of processes changes the gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Trainer

from rrm_lm.errors import TrainingError
from rrm_lm.models.reward import RewardModel, RewardOutput
from rrm_lm.text.batching import Batch, collate, length_groups
from rrm_lm.training.global_batches import GlobalBatches
from rrm_lm.training.gradients import accumulate
from rrm_lm.training.portable_checkpoints import PortableCheckpoints
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import COLUMNS, Example
from rrm_lm.training.reward.losses import bradley_terry, centering, graded_target, rating_regression
from rrm_lm.training.reward.member_weights import member_weights

_ITEMS = ("pairs", "ratings", "critiques")  # what losses are averaged over: pairs, ratings, critique tokens


class Examples(Dataset[Example]):
    """A list of examples as the data set that Trainer wants."""

    column_names = COLUMNS

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)


def _held_out(examples: Sequence[Example] | Mapping[str, Sequence[Example]] | None) -> Any:
    if isinstance(examples, Mapping):
        return {name: Examples(part) for name, part in examples.items()}
    return Examples(examples) if examples else None


def _as_they_are(examples: list[Any]) -> Any:
    """Examples become tensors micro-batch by micro-batch, so the data loader leaves them alone."""
    return examples


class RewardTrainer(PortableCheckpoints, Trainer):
    """Trains a :class:`RewardModel` on examples.

    Args:
        model: The reward model.
        args: Settings.
        train_dataset: Examples to learn from.
        eval_dataset: Examples with pairs, for the held-out loss and accuracy during training; or several such sets by
            name.
        processing_class: The tokenizer; saved with the model.
    """

    model: RewardModel
    args: RewardConfig
    train_dataset: Examples
    eval_dataset: Examples | dict[str, Examples] | None  # type: ignore[assignment]

    def __init__(
        self,
        model: RewardModel,
        args: RewardConfig,
        train_dataset: Sequence[Example],
        eval_dataset: Sequence[Example] | Mapping[str, Sequence[Example]] | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        # Trainer's own label smoothing is for class labels, and looks for a configuration that this model has not.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
        super().__init__(
            model=model,
            args=args,
            data_collator=_as_they_are,
            train_dataset=Examples(train_dataset),
            eval_dataset=_held_out(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        self.args.label_smoothing_factor = smoothing
        self.model_accepts_loss_kwargs = True  # item counts of the whole global batch come as num_items_in_batch
        self._sums: dict[str, float] = defaultdict(float)

    # -- processes ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Example]:
        """Every example once a pass, whatever the number of processes."""
        # Its own generator: making an iterator must not move the random state that a resumed run starts from.
        batches = GlobalBatches.of(self)
        return DataLoader(
            self.train_dataset, batch_sampler=batches, collate_fn=_as_they_are, generator=torch.Generator()
        )

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        _ = self.accelerator.unwrap_model(self.model).backbone.can_mask  # found out while the model is whole
        return super()._prepare_for_training(*args, **kwargs)

    # -- one step -------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Forward and backward of one batch, micro-batch by micro-batch; returns its share of the step's loss."""
        model.train()
        totals = self._count([inputs]) if num_items_in_batch is None else num_items_in_batch
        micro_batches = self._micro_batches(inputs)
        total = torch.zeros((), device=self.args.device)
        for number, members in enumerate(micro_batches):

            def loss(members: list[Example] = members) -> Tensor:
                found = self._loss(model, members, totals)
                self._refuse_nan(found, members)
                # Processes average their gradients, and each holds only its part of the global sum.
                return found * self.accelerator.num_processes

            total += accumulate(self.accelerator, model, loss, number == len(micro_batches) - 1)
        return total

    def _micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        groups = length_groups(
            [max(map(len, example.rows)) for example in examples],
            self.args.micro_batch_tokens,
            sizes=[len(example.rows) for example in examples],
        )
        batches = [[examples[index] for index in group] for group in groups]
        if self.accelerator.num_processes > 1:
            # Sharded models meet in every forward pass, so all processes must make the same number of them.
            counts: Any = self.accelerator.gather(torch.tensor([len(batches)], device=self.args.device))
            batches += [[] for _ in range(int(counts.max()) - len(batches))]
        return batches

    def _loss(self, model: nn.Module, examples: Sequence[Example], totals: Tensor) -> Tensor:
        """The sum of this micro-batch's losses over the number of items in the whole step."""
        weighted = bool(examples)
        examples = examples or [self.train_dataset[0]]  # a pass that only keeps the other processes company
        batch, lines = self._collate(examples)
        output = model(batch, lines, with_critiques=self.critique_weight > 0)
        parts = {
            "pairs": pair_losses(output, examples, self.args).sum(),
            "ratings": rating_losses(output, examples, self.args.seed).sum(),
            "critiques": output.critique_nll.sum(),
        }
        weights = {"pairs": 1.0, "ratings": self.args.rating_weight, "critiques": self.critique_weight}
        # Every parameter takes part in every pass, also where nothing is learned from it: DDP waits for them all.
        loss = output.members.sum() * 0.0
        for number, name in enumerate(_ITEMS):
            loss = loss + weights[name] * parts[name] / totals[number]
        if weighted:
            self._note(output, examples, parts)
        return loss if weighted else loss * 0.0

    def _collate(self, examples: Sequence[Example]) -> tuple[Batch, list[Any]]:
        rows = [row for example in examples for row in example.rows]
        lines = [line for example in examples for line in example.lines]
        pad_id = self.accelerator.unwrap_model(self.model).backbone.pad_id
        return collate(rows, pad_id).to(self.args.device), lines

    @property
    def critique_weight(self) -> float:
        """The weight of the critique loss at this point of training."""
        start, end = self.args.critique_weight, self.args.critique_weight_end
        if end is None or not self.state.max_steps:
            return start
        return start + (end - start) * min(1.0, self.state.global_step / self.state.max_steps)

    def _refuse_nan(self, loss: Tensor, examples: Sequence[Example]) -> None:
        if not math.isfinite(float(loss.detach())):
            names = ", ".join(example.origin for example in examples)
            raise TrainingError(
                f"The loss is {float(loss.detach())}; training stopped before the step, nothing was changed by it",
                where=f"step {self.state.global_step + 1}, feedback from {names}",
                remedy="lower --learning_rate, look at that feedback, and go on from the last checkpoint with "
                "--resume_from_checkpoint true",
            )

    # -- counting items -------------------------------------------------------------------------------------------

    def _count(self, batches: Sequence[Sequence[Example]]) -> Tensor:
        """(3,) pairs, ratings and critique tokens in some batches; at least 1 each, so they can be divided by."""
        examples = [example for batch in batches for example in batch]
        counts = [
            sum(len(example.pairs) for example in examples),
            sum(len(example.ratings) for example in examples),
            sum(example.critique_tokens for example in examples),
        ]
        total: Any = torch.tensor(counts, dtype=torch.float32, device=self.args.device)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, reduction="sum")
        return total.clamp_min(1.0)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return self._count(batch_samples)

    # -- logging --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _note(self, output: RewardOutput, examples: Sequence[Example], parts: dict[str, Tensor]) -> None:
        margins = pair_margins(output.rewards, examples)
        measured = {
            "loss_pairs": parts["pairs"],
            "loss_ratings": parts["ratings"],
            "loss_critiques": parts["critiques"],
            "accuracy": (margins > 0).sum() + 0.5 * (margins == 0).sum(),
            "margin": margins.sum(),
            "disagreement": output.members.std(-1, correction=0).sum(),
        }
        # Fetched together: a GPU stands still for each number that is waited for.
        for name, value in zip(measured, torch.stack(list(measured.values())).tolist(), strict=True):
            self._sums[name] += value
        self._sums["pairs"] += len(margins)
        self._sums["ratings"] += sum(len(example.ratings) for example in examples)
        self._sums["critiques"] += len(output.critique_nll)
        self._sums["lines"] += len(output.members)
        self._sums["tokens"] += sum(len(row) for example in examples for row in example.rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss to what Trainer logs. Sums are of all processes."""
        if "loss" in logs:
            names = sorted({*self._sums, "pairs", "ratings", "critiques", "tokens", "accuracy", "margin",
                            "loss_pairs", "loss_ratings", "loss_critiques", "lines", "disagreement"})  # fmt: skip
            values: Any = torch.tensor([self._sums[name] for name in names], dtype=torch.float64)
            if self.accelerator.num_processes > 1:
                values = self.accelerator.reduce(values.float().to(self.args.device), reduction="sum")
            sums = dict(zip(names, values.tolist(), strict=True))
            for item in _ITEMS:
                if sums[item]:
                    logs[f"loss_{item}"] = round(sums[f"loss_{item}"] / sums[item], 4)
            if sums["pairs"]:
                logs["accuracy"] = round(sums["accuracy"] / sums["pairs"], 4)
                logs["margin"] = round(sums["margin"] / sums["pairs"], 4)
            if self.args.ensemble_heads > 1 and sums["lines"]:
                logs["disagreement"] = round(sums["disagreement"] / sums["lines"], 4)
            logs["tokens"] = int(sums["tokens"])
            self._sums.clear()
        super().log(logs, start_time)

    # -- held-out loss --------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Held-out loss and accuracy of the pairs. The full account of a model is `rrm-lm evaluate`.

        ``compute_metrics`` gets predictions of shape (pairs, 2), the rewards of the chosen and the rejected responses,
        and labels that are all 0.
        """
        chosen_set: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen_set, Mapping):
            found: dict[str, float] = {}
            for name, part in chosen_set.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        examples: list[Example] = list(chosen_set or ())
        with_pairs = [example for example in examples if example.pairs]
        model = self.model_wrapped if self.model_wrapped is not None else self.model
        model.eval()
        losses, rewards = [], []
        with torch.no_grad():
            for group in length_groups(
                [max(map(len, e.rows)) for e in with_pairs], self.args.micro_batch_tokens,
                sizes=[len(e.rows) for e in with_pairs],
            ):  # fmt: skip
                members = [with_pairs[index] for index in group]
                batch, lines = self._collate(members)
                output = model(batch, lines, with_critiques=False)
                # As it is used, every pair counted once.
                combined = RewardOutput.of_one(output.rewards, output.critique_nll)
                losses.append(pair_losses(combined, members, self.args))
                rewards.append(pair_rewards(output.rewards, members))
        if not losses:
            return {}
        loss, pairs = torch.cat(losses).float(), torch.cat(rewards)
        margin = pairs[:, 0] - pairs[:, 1]
        metrics = {
            f"{metric_key_prefix}_loss": float(loss.mean()),
            f"{metric_key_prefix}_accuracy": float((margin > 0).float().mean() + 0.5 * (margin == 0).float().mean()),
            f"{metric_key_prefix}_margin": float(margin.mean()),
        }
        if self.compute_metrics is not None:
            predictions = EvalPrediction(pairs.float().cpu().numpy(), np.zeros(len(pairs), dtype=np.int64))
            more = self.compute_metrics(predictions)
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in more.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- saving ---------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the adapter and the head as PEFT reads them."""
        write = bool(self.args.should_save)
        if write or self.is_fsdp_enabled:
            folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
            self.accelerator.unwrap_model(self.model).save(folder, self.processing_class, write)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(self.model).load_adapter_state(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            self.accelerator.unwrap_model(self.model).load_adapter_state(Path(best))


def _pair_places(examples: Sequence[Example]) -> tuple[list[int], list[int], list[float | None]]:
    """Line numbers (over all examples) of chosen and rejected, and grades."""
    chosen, rejected, grades, offset = [], [], [], 0
    for example in examples:
        for pair in example.pairs:
            chosen.append(offset + pair.chosen)
            rejected.append(offset + pair.rejected)
            grades.append(pair.grade)
        offset += len(example.lines)
    return chosen, rejected, grades


def pair_rewards(rewards: Tensor, examples: Sequence[Example]) -> Tensor:
    """(pairs, 2) rewards of the chosen and the rejected response."""
    chosen, rejected, _ = _pair_places(examples)
    return torch.stack([rewards[chosen], rewards[rejected]], dim=-1)


def pair_margins(rewards: Tensor, examples: Sequence[Example]) -> Tensor:
    """(pairs,) reward(chosen) - reward(rejected)."""
    pairs = pair_rewards(rewards, examples)
    return pairs[:, 0] - pairs[:, 1]


def pair_losses(output: RewardOutput, examples: Sequence[Example], args: RewardConfig) -> Tensor:
    """(pairs,) Bradley-Terry losses with grades, smoothing and centring as configured.

    Of an ensemble: the mean over members, each with its own weight for the pair.
    """
    chosen, rejected, grades = _pair_places(examples)
    if not chosen:
        return output.rewards.new_zeros(0)
    left, right = output.members[chosen], output.members[rejected]
    known = [grade / args.grade_scale if grade is not None else None for grade in grades]
    shift = target = weight = None
    if args.grades == "margin":
        shift = left.new_tensor([grade or 0.0 for grade in known])[:, None]
    elif args.grades == "target":
        certain = [math.inf if grade is None else grade for grade in known]
        target = graded_target(left.new_tensor(certain))[:, None]
    elif args.grades == "weight":
        weight = left.new_tensor([1.0 if grade is None else grade for grade in known])[:, None]
    losses = bradley_terry(
        left,
        right,
        shift=0.0 if shift is None else shift,
        target=1.0 if target is None else target,
        label_smoothing=args.label_smoothing_factor,
    )
    if weight is not None:
        losses = losses * weight
    if args.center_rewards_coefficient:
        losses = losses + args.center_rewards_coefficient * centering(left, right)
    return _over_members(losses, [example for example in examples for _ in example.pairs], args.seed)


def rating_losses(output: RewardOutput, examples: Sequence[Example], seed: int = 0) -> Tensor:
    """(ratings,) rating-regression losses; of an ensemble as for pairs."""
    places, ratings, offset = [], [], 0
    for example in examples:
        places += [offset + line for line, _ in example.ratings]
        ratings += [rating for _, rating in example.ratings]
        offset += len(example.lines)
    if not places:
        return output.rewards.new_zeros(0)
    rewards = output.members[places]
    losses = rating_regression(rewards, rewards.new_tensor(ratings)[:, None].expand_as(rewards))
    return _over_members(losses, [example for example in examples for _ in example.ratings], seed)


def _over_members(losses: Tensor, examples: Sequence[Example], seed: int) -> Tensor:
    """(items, heads) losses -> (items,), each member's weighted by how often it is shown the item's prompt."""
    heads = losses.shape[-1]
    if heads == 1:
        return losses.squeeze(-1)
    weights = [member_weights(seed, heads, example.prompt_id) for example in examples]
    return (losses * losses.new_tensor(weights)).mean(-1)
