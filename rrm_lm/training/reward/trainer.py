"""Reward-model training on `transformers.Trainer`: comparisons, ratings and critiques in one step.

A step's batch is a number of pieces of feedback, as in every Hugging Face trainer. They are grouped by length into
micro-batches under a token budget. Losses are summed and divided by the number of items in the global batch, so neither
the budget, nor gradient accumulation, nor the number of processes changes the gradient.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import PredictionOutput

from rrm_lm.models.reward import RewardModel, RewardOutput
from rrm_lm.text.batching import Batch, collate, row_groups
from rrm_lm.training.arguments import TOKENS, set_sizes
from rrm_lm.training.processes import accumulate, check_finite
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import COLUMNS, RewardExample
from rrm_lm.training.reward.losses import (
    chosen_lines,
    pair_losses,
    pair_margins,
    pair_rewards,
    rating_losses,
)
from rrm_lm.training.speed import TRAINED, utilization
from rrm_lm.training.trainer import ResumableTrainer

# Losses are averaged over pairs, ratings, critique tokens, and tokens of chosen responses.
_ITEMS = ("pairs", "ratings", "critiques", "responses")
_SUMS = (
    *_ITEMS,
    *(f"loss_{item}" for item in _ITEMS),
    "accuracy",
    "margin",
    "disagreement",
    "lines",
    "tokens",
    "seconds",
)


class RewardDataset(list[RewardExample]):
    """Examples, with the columns that TRL's datasets have."""

    column_names = COLUMNS


def _held_out(examples: Sequence[RewardExample] | Mapping[str, Sequence[RewardExample]] | None) -> Any:
    if isinstance(examples, Mapping):
        return {name: RewardDataset(part) for name, part in examples.items()}
    return RewardDataset(examples) if examples else None


class RewardTrainer(ResumableTrainer, Trainer):
    """Trains a :class:`RewardModel` on examples, with the held-out loss and accuracy of `eval_dataset`: examples with
    pairs, or several sets of them by name. The tokenizer (`processing_class`) is saved with the model.
    """

    model: RewardModel
    args: RewardConfig
    train_dataset: RewardDataset
    eval_dataset: RewardDataset | dict[str, RewardDataset] | None  # type: ignore[assignment]

    def __init__(
        self,
        model: RewardModel,
        args: RewardConfig,
        train_dataset: Sequence[RewardExample],
        eval_dataset: Sequence[RewardExample] | Mapping[str, Sequence[RewardExample]] | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        set_sizes(args, TOKENS)
        if args.compile_layers:
            model.backbone.compile_layers()
        # Trainer's own label smoothing is for class labels, and needs a configuration that this model lacks.
        smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # type: ignore[arg-type]  # examples become tensors in each micro-batch
            train_dataset=RewardDataset(train_dataset),  # type: ignore[arg-type]  # a list is enough for a DataLoader
            eval_dataset=_held_out(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        self.args.label_smoothing_factor = smoothing
        self.model_accepts_loss_kwargs = True  # Trainer passes global item counts as num_items_in_batch
        self._sums: dict[str, float] = defaultdict(float)
        self._measured: dict[str, Tensor] = {}  # sums that are on the device until they are logged

    @property
    def unwrapped_model(self) -> RewardModel:
        return self.accelerator.unwrap_model(self.model)

    def get_train_dataloader(self) -> DataLoader[RewardExample]:
        return self.global_dataloader()

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        _ = self.unwrapped_model.backbone.can_mask  # test it before the model is sharded
        return super()._prepare_for_training(*args, **kwargs)

    # -- one step -----------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Forward and backward pass of one batch, in micro-batches; return its share of the step's loss."""
        model.train()
        started = time.perf_counter()
        counts = self._count([inputs]) if num_items_in_batch is None else num_items_in_batch
        micro_batches = self._groups(inputs)
        # Equally many in all processes, because sharded models communicate in every forward pass.
        micro_batches += [[] for _ in range(self.processes.max(len(micro_batches)) - len(micro_batches))]
        parts: list[Tensor] = []
        for number, members in enumerate(micro_batches):

            def loss(members: list[RewardExample] = members) -> Tensor:
                # Gradients are averaged over processes, and each process has only its part of the global sum.
                found = self._loss(model, members, counts) * self.processes.count
                if self.is_deepspeed_enabled:  # whose backward pass ends with the optimizer's step
                    self._check(found, members)
                return found

            parts.append(accumulate(self.accelerator, model, loss, number == len(micro_batches) - 1))
        # Read once for all micro-batches, because each reading waits for the GPU.
        for members, value in zip(micro_batches, torch.stack(parts).tolist(), strict=True):
            self._check(value, members)
        self._sums["seconds"] += time.perf_counter() - started
        return torch.stack(parts).sum()

    def _check(self, loss: Tensor | float, members: Sequence[RewardExample]) -> None:
        origins = ", ".join(example.origin for example in members)
        check_finite(loss, f"step {self.state.global_step + 1}, feedback from {origins}", "that feedback")

    def _groups(self, examples: Sequence[RewardExample]) -> list[list[RewardExample]]:
        """Group examples of similar length under the token budget."""
        groups = row_groups([one.rows for one in examples], self.args.micro_batch_tokens)
        return [[examples[index] for index in group] for group in groups]

    def _loss(self, model: nn.Module, examples: Sequence[RewardExample], counts: Tensor) -> Tensor:
        """The sum of this micro-batch's losses, divided by the number of items in the step. `counts` is (4,), as
        :meth:`_count` returns it. Without examples, a dummy pass with zero loss runs for the sake of the other
        processes.
        """
        is_dummy = not examples
        examples = examples or [self.train_dataset[0]]
        batch, lines = self._collate(examples)
        written = chosen_lines(examples) if self.args.sft_weight else ()
        output = model(batch, lines, with_critiques=self.critique_weight > 0, written=written)
        parts = {
            "pairs": pair_losses(output, examples, self.args).sum(),
            "ratings": rating_losses(output, examples, self.args.seed).sum(),
            "critiques": output.critique_nll.sum(),
            "responses": output.response_nll.sum(),
        }
        weights = {
            "pairs": 1.0, "ratings": self.args.rating_weight, "critiques": self.critique_weight,
            "responses": self.args.sft_weight,
        }  # fmt: skip
        # DDP waits for the gradient of every parameter, so every pass must use all of them.
        loss = output.members.sum() * 0.0
        for number, name in enumerate(_ITEMS):
            loss = loss + weights[name] * parts[name] / counts[number]
        if is_dummy:
            return loss * 0.0
        self._add_to_sums(output, examples, parts)
        return loss

    def _collate(self, examples: Sequence[RewardExample]) -> tuple[Batch, list[Any]]:
        rows = [row for example in examples for row in example.rows]
        lines = [line for example in examples for line in example.lines]
        return collate(rows, self.unwrapped_model.backbone.pad_id).to(self.args.device), lines

    @property
    def critique_weight(self) -> float:
        start, end = self.args.critique_weight, self.args.critique_weight_end
        if end is None or not self.state.max_steps:
            return start
        return start + (end - start) * min(1.0, self.state.global_step / self.state.max_steps)

    def _count(self, batches: Sequence[Sequence[RewardExample]]) -> Tensor:
        """(4,) the number of each of `_ITEMS` in all processes; at least 1 each, since they are divisors."""
        examples = [example for batch in batches for example in batch]
        counts = [
            sum(len(example.pairs) for example in examples),
            sum(len(example.ratings) for example in examples),
            sum(example.critique_tokens for example in examples),
            sum(example.chosen_tokens for example in examples) if self.args.sft_weight else 0,
        ]
        return self.processes.total(torch.tensor(counts, dtype=torch.float32, device=self.args.device)).clamp_min(1.0)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return self._count(batch_samples)

    # -- logging ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _add_to_sums(self, output: RewardOutput, examples: Sequence[RewardExample], parts: dict[str, Tensor]) -> None:
        margins = pair_margins(output.rewards, examples)
        measured = {f"loss_{name}": part for name, part in parts.items()} | {
            "accuracy": (margins > 0).sum() + 0.5 * (margins == 0).sum(),
            "margin": margins.sum(),
            "disagreement": output.members.std(-1, correction=0).sum(),
        }
        for name, value in measured.items():
            self._measured[name] = self._measured.get(name, 0.0) + value.float()
        self._sums["pairs"] += len(margins)
        self._sums["ratings"] += sum(len(example.ratings) for example in examples)
        self._sums["critiques"] += len(output.critique_nll)
        self._sums["responses"] += len(output.response_nll)
        self._sums["lines"] += len(output.members)
        self._sums["tokens"] += sum(len(row) for example in examples for row in example.rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the components of the loss, over all processes, to Trainer's logs."""
        if "loss" in logs:
            for name, value in self._measured.items():
                self._sums[name] = float(value)
            values = self.processes.total(torch.tensor([self._sums[name] for name in _SUMS], dtype=torch.float64))
            sums = dict(zip(_SUMS, values.tolist(), strict=True))
            for item in _ITEMS:
                if sums[item]:
                    logs[f"loss_{item}"] = round(sums[f"loss_{item}"] / sums[item], 4)
            if sums["pairs"]:
                logs["accuracy"] = round(sums["accuracy"] / sums["pairs"], 4)
                logs["margin"] = round(sums["margin"] / sums["pairs"], 4)
            if self.args.ensemble_heads > 1 and sums["lines"]:
                logs["disagreement"] = round(sums["disagreement"] / sums["lines"], 4)
            logs["tokens"] = int(sums["tokens"])
            # Of all processes, without evaluation and saving; the seconds are summed over processes too.
            seconds = sums["seconds"] / self.processes.count
            logs["tokens_per_second"] = round(sums["tokens"] / max(seconds, 1e-9), 1)
            each = TRAINED * sums["tokens"] / self.processes.count
            logs |= utilization(self.unwrapped_model.backbone.decoder, each, seconds, self.args.device)
            self._sums.clear()
            self._measured.clear()
        super().log(logs, start_time)

    # -- held-out loss ------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Held-out loss and accuracy of the pairs. `rrm-lm evaluate` measures more.

        ``compute_metrics`` gets predictions (pairs, 2), the rewards of the chosen and the rejected response, and labels
        that are all 0.
        """
        chosen_set: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen_set, Mapping):
            found: dict[str, float] = {}
            for name, part in chosen_set.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        if not any(example.pairs for example in chosen_set or ()):
            return {}
        metrics = self._predict(list(chosen_set), metric_key_prefix).metrics
        assert metrics is not None
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predictions (pairs, 2), the rewards of the chosen and the rejected response of each pair, labels that are all
        0, and the metrics of :meth:`evaluate`.
        """
        return self._predict(list(test_dataset), metric_key_prefix)

    def _predict(self, examples: list[RewardExample], prefix: str) -> PredictionOutput:
        """Rewards and metrics of examples with at least one pair, in their order."""
        model = self.model_wrapped if self.model_wrapped is not None else self.model
        model.eval()
        losses, rewards = [], []
        paired = [example for example in examples if example.pairs]
        groups = row_groups([one.rows for one in paired], self.args.micro_batch_tokens)
        with torch.no_grad():
            for group in groups:
                members = [paired[index] for index in group]
                batch, lines = self._collate(members)
                output = model(batch, lines, with_critiques=False)
                # Members are combined as in inference, and every pair counts once.
                combined = output._replace(members=output.rewards.unsqueeze(-1))
                losses.append(pair_losses(combined, members, self.args))
                rewards.append(pair_rewards(output.rewards, members))
        # Groups are sorted by length; predictions have the order of the examples.
        order = [index for group in groups for index in group]
        parts = torch.cat(rewards).split([len(paired[index].pairs) for index in order])
        loss, pairs = torch.cat(losses).float(), torch.cat([parts[place] for place in np.argsort(order)])
        margin = pairs[:, 0] - pairs[:, 1]
        metrics = {
            f"{prefix}_loss": float(loss.mean()),
            f"{prefix}_accuracy": float((margin > 0).float().mean() + 0.5 * (margin == 0).float().mean()),
            f"{prefix}_margin": float(margin.mean()),
        }
        predictions, labels = pairs.float().cpu().numpy(), np.zeros(len(pairs), dtype=np.int64)
        if self.compute_metrics is not None:
            more = self.compute_metrics(EvalPrediction(predictions, labels))
            metrics |= {f"{prefix}_{name}": value for name, value in more.items()}
        return PredictionOutput(predictions, labels, metrics)

    # -- saving -------------------------------------------------------------------------------------------------------

    def save_weights(self, folder: Path, write: bool) -> None:
        self.unwrapped_model.save(folder, self.processing_class, write)

    def load_weights(self, folder: Path) -> None:
        self.unwrapped_model.load_adapter_state(folder)
