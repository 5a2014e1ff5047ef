"""`rrm_lm.RewardTrainer`, which `rrm-lm reward` calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PredictionOutput

from rrm_lm.api.data.heldout import check_learned, files, settle_template, without_refused
from rrm_lm.api.data.inspection import log_inspection
from rrm_lm.api.data.rows import read_rows
from rrm_lm.api.data.shown import show_example
from rrm_lm.api.judging import judge, write_judgement
from rrm_lm.api.output_run import OutputRun, changed_settings, check_evaluation, trainer_settings
from rrm_lm.api.reward.config import RewardConfig
from rrm_lm.api.reward.criteria import fitted_criteria
from rrm_lm.api.reward.critiques import make_critic, own_critiques
from rrm_lm.api.reward.examples import (
    HOLD_OUT,
    encode_ids,
    held_out_examples,
    is_encoded,
    is_pretokenized,
    job_of,
    read_feedback,
)
from rrm_lm.api.reward.inputs import Settings, check_arguments, fingerprint, settings_of
from rrm_lm.api.reward.model import is_readable, learns_critiques, load_start, make_model, narrows_critiques
from rrm_lm.api.reward.saving import check_classifier, plain_model, save_and_compare
from rrm_lm.api.reward_model import RewardModel
from rrm_lm.api.start import refuse_inside
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.preferences.criteria import save_criteria
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.reading.datasets import merge_feedback
from rrm_lm.models.pretrained import set_seed
from rrm_lm.planning.sizing import fit_sizes
from rrm_lm.settings.data import DataArguments
from rrm_lm.text.templates import date_of
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardDataset
from rrm_lm.training.reward.trainer import RewardTrainer as _RewardTrainer

logger = logging.getLogger(__name__)


class RewardTrainer(_RewardTrainer):
    """Trains a reward model on comparisons, critiques and ratings. A `transformers.Trainer`, with TRL's arguments.

    LoRA weights and a score head are trained on the frozen backbone. A share of the prompts is held out, and overlap
    with the training set is reported. :meth:`train` writes the same files to ``args.output_dir`` as `rrm-lm reward`:
    the adapter, `results.json`, `report.html` ...

    Args:
        model: A folder or Hub id of a language model, a sequence classifier, or an adapter of a policy or a reward
            model, which is trained on; ``smollm2-135m``; or a loaded causal language model, sequence classifier with
            one output (its head is trained on) or `PeftModel` of one. A loaded model is frozen. Its weights must
            be those of its name, because the saved adapter refers to that name.
        args: Settings; by default those of `rrm-lm reward`, but no criteria (``RewardConfig(criteria="auto")``).
        data_collator: Must be None: each step packs its own batches by tokens.
        train_dataset: Feedback: a `datasets` set in any supported format, a list of dicts, records of
            `rrm_lm.feedback.records`, a file, or a Hub name; or token ids in ``chosen_ids`` and ``rejected_ids``.
        eval_dataset: Held-out feedback of the same kinds, or several sets by name; None holds out nothing. By default
            ``args.eval_fraction`` of the prompts are held out.
        processing_class: The tokenizer; by default the model's.
        compute_metrics: Called in :meth:`evaluate` with predictions (pairs, 2), the rewards of the chosen and the
            rejected responses; labels are all 0.
        callbacks, optimizers, optimizer_cls_and_kwargs: As in `transformers.Trainer`.
        quantization_config: For a named model, such as a `BitsAndBytesConfig`.
        peft_config: The LoRA configuration; by default LoRA on all linear layers, with the settings in ``args``.
        settings: Settings of a command that ``args`` does not hold.

    Raises:
        ConfigError: Settings that do not fit together, or no feedback.
        DataError: Feedback that cannot be read or learned from, or that overlaps the held-out set (`fail_on_leak`).
        ModelError: No such model, or one that cannot be a reward model's backbone.

    Example:
        >>> trainer = RewardTrainer("smollm2-135m", RewardConfig(output_dir="outputs/rm"), train_dataset=rows)
        >>> trainer.train()
        >>> trainer.reward_model.score("How long does rice keep?", ["Four days."])
    """

    _tag_names = ("rrm_lm", "reward-trainer")

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: None = None,
        train_dataset: Any = None,
        eval_dataset: Any = HOLD_OUT,
        processing_class: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        name = model if isinstance(model, str) else str(getattr(model, "name_or_path", "")) or "model"
        if args is None:
            args = RewardConfig(output_dir=f"{name.rstrip('/').split('/')[-1]}-Reward")
        if settings is None:
            settings = settings_of(args, name, peft_config)
        self._settings = settings
        check_arguments(args, settings.run_arguments, train_dataset, data_collator)
        named = [getattr(settings.split, item, ()) for item in ("dataset_name", "eval_dataset_name")]
        refuse_inside(args.output_dir, [model], [train_dataset, eval_dataset, *chain(*named)])
        found = read_feedback(args, settings.split, train_dataset, eval_dataset)
        self.train_feedback, self.heldout_feedback, self.leakage = found
        start = load_start(model, settings.model, processing_class, quantization_config)
        if peft_config is not None and start.adapter is not None:
            what = "The model has an adapter, and there is a peft_config"
            remedy = "leave out peft_config, or merge the adapter first (merge_and_unload)"
            raise ConfigError(what, where="peft_config", expected="one of them", remedy=remedy)
        self._start = start
        reward_model, self.chat = make_model(start, peft_config or settings.model.lora(), settings.model, args)
        self._readable = not args.critique_first and is_readable(self.chat, name, settings.run_arguments.merge)
        if args.should_save and start.loading is not None:
            check_classifier(reward_model, self.chat.tokenizer, settings.model, settings.run_arguments.merge)
        self._builder = ExampleBuilder(
            self.chat,
            reward_model.backbone,
            with_critiques=learns_critiques(args, start.writes),
            pair_ratings=args.pair_ratings,
            narrow=narrows_critiques(args, reward_model.backbone),
        )
        examples, held_out = self._encode(args, train_dataset, eval_dataset)
        self.criteria = fitted_criteria(settings.run_arguments, args, self.train_feedback, reward_model, self.chat)
        backbone = reward_model.backbone
        adapter = backbone.model.peft_config[reward_model.adapter]
        fit_sizes(args, "reward", backbone, adapter, lambda: job_of(args, examples))
        if args.should_save and len(self.train_feedback):
            held = merge_feedback(*self.heldout_feedback.values())
            log_inspection(self.train_feedback, held, self.chat, leak=self.leakage)
        with trainer_settings("Hugging Face's Trainer"):
            super().__init__(
                reward_model,
                args,
                examples,
                held_out,
                processing_class=self.chat.tokenizer,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            )
        if args.critique_first:
            self._critic = make_critic(self)
        self.model.model_tags = list(self._tag_names)  # type: ignore[attr-defined]

    def _encode(self, args: Any, train_dataset: Any, eval_dataset: Any) -> tuple[list[RewardExample], Any]:
        """(training, held-out) examples. The held-out ones are a list, lists by set name, or None if there are none."""
        builder = self._builder
        if is_pretokenized(train_dataset):
            examples = encode_ids(train_dataset, builder, "train_dataset")
            held_out = None if eval_dataset is HOLD_OUT else held_out_examples(builder, eval_dataset)
        else:
            feedback = self.train_feedback
            examples = builder.joined(
                builder.together(feedback.comparisons, args.comparisons_together), args.prompts_together
            )
            ratings = feedback.ratings if args.rating_weight > 0 else ()
            examples += builder.responses(feedback.critiques, ratings)
            sets = {name: held_out_examples(builder, part) for name, part in self.heldout_feedback.items()}
            held_out = sets if isinstance(eval_dataset, Mapping) else next(iter(sets.values()), None)
            template = builder.counts.template
            settle_template(template, getattr(self._settings.split, "skip_bad_rows", None))
            self.train_feedback = without_refused(feedback, template)
            self.heldout_feedback = {n: without_refused(part, template) for n, part in self.heldout_feedback.items()}
        check_learned(examples, builder.counts, self.chat, files(self.train_feedback))
        check_evaluation(args, held_out, "comparisons")
        return examples, held_out

    def show_example(self) -> None:
        """Print the first example to stderr as the model sees it, with the trained parts marked."""
        if self.args.should_save:
            critic = self._critic is not None
            examples = self._critic.train_dataset if self._critic is not None else self.train_dataset
            show_example(self.chat, examples[0], rewarded=not critic)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, save to ``args.output_dir``, check that the model reloads, and evaluate on the held-out comparisons.

        Args:
            resume_from_checkpoint: True for the newest complete checkpoint in the output folder, or a path.
            args, kwargs: As in `transformers.Trainer.train`.

        Returns:
            Hugging Face's `TrainOutput`: steps, loss and metrics.

        Raises:
            CheckpointError: The output folder is in use or holds another run, the checkpoint is broken, or the saved
                model gives different rewards than the trained one.
            TrainingError: A loss is not a number.
        """
        run = self._settings.run or OutputRun(
            "rrm-lm reward",
            self.args,
            self._settings.run_arguments,
            [self.args],
            resume_from_checkpoint,
            {
                "train_dataset": fingerprint(self.train_feedback, self.train_dataset),
                "chat_date": date_of(self.chat.tokenizer),
            },
        )
        with run:
            run.begin(leakage=None if self.leakage is None else self.leakage.to_dict())
            set_seed(self.args.seed)
            if self._critic is not None:
                self._learn_own_critiques(self._critic)
            whole = super().train
            result = run.train(self, lambda resume_from_checkpoint: whole(resume_from_checkpoint, *args, **kwargs))
            if self.args.dry_run:
                return result
            self.save_metrics("train", result.metrics)
            self.save_state()
            talked = next(iter(self.heldout_feedback.values()), self.train_feedback).comparisons
            arguments, code = self._settings.run_arguments, self._settings.model.trust_remote_code
            save_and_compare(
                self,
                run,
                self.chat,
                talked if self._readable else None,
                self._start.loading,
                merge={"trust_remote_code": code} if arguments.merge else None,
            )
            self._judge(run)
            self.upload()
        return result

    _critic: _RewardTrainer | None = None  # of the first phase, in which the model learns to write critiques

    def _learn_own_critiques(self, critic: _RewardTrainer) -> None:
        """Learn to write people's critiques, then replace them by the model's own, which precede the reward."""
        logger.info("learning to write critiques from %d examples", len(critic.train_dataset))
        critic.train()
        model, builder = plain_model(critic), self._builder
        parts = [feedback.comparisons for feedback in (self.train_feedback, *self.heldout_feedback.values())]
        if self.args.dry_run:  # the longest are enough
            step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.processes.count
            parts = [sorted(part, key=lambda one: -len(one.chosen) - len(one.rejected))[:step] for part in parts]
        self.train_dataset, *held_out = (
            RewardDataset(own_critiques(model, builder, part, self.args)) for part in parts
        )
        if self.eval_dataset is not None:
            several = isinstance(self.eval_dataset, Mapping)
            self.eval_dataset = dict(zip(self.heldout_feedback, held_out, strict=True)) if several else held_out[0]
        self._critic = None
        self.show_example()
        set_seed(self.args.seed)

    @property
    def reward_model(self) -> RewardModel:
        """The current model, ready to score."""
        args, name = self.args, str(self.args.output_dir).rstrip("/").split("/")[-1]
        return RewardModel(
            RewardScorer(
                plain_model(self),
                self.chat,
                name,
                micro_batch_tokens=2 * args.micro_batch_tokens,
                critique_samples=args.critique_samples,
                temperature=args.critique_temperature,
                seed=args.seed,
                criteria=self.criteria,
            )
        )

    def save_weights(self, folder: Path, write: bool) -> None:
        super().save_weights(folder, write)
        if write:
            save_criteria(self.criteria, folder)

    def save_whole(self, folder: Path) -> None:
        super().save_whole(folder)
        if self.args.should_save and self.criteria is None:  # a resumed run may have had some
            save_criteria(None, folder)

    def _judge(self, run: OutputRun) -> None:
        sets = {name: part for name, part in self.heldout_feedback.items() if part.comparisons}
        if not sets:
            logger.info("no comparisons are held out, so nothing is judged")
            return
        scorer: Any = self.reward_model.scorer
        scorer.name = run.folder.resolve().name
        evaluation = judge(scorer, sets, {"fit": self._builder.counts.to_dict()})
        if not run.main:
            return
        split, model, _, _ = self._settings
        source = {item.name: getattr(split, item.name) for item in fields(DataArguments) if hasattr(split, item.name)}
        write_judgement(
            evaluation,
            sets,
            run.folder,
            chat=self.chat,
            location=str(run.folder),
            train=self.train_feedback,
            leak=self.leakage,
            log_history=self.state.log_history,
            configuration={**source, **changed_settings(model, self.args)},
            base_model=self._start.name,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out loss (nats), accuracy and margin of the pairs; `rrm_lm.evaluate` gives intervals and more.

        Args:
            eval_dataset: Feedback as in the constructor, or several sets by name; by default the held-out set.
            ignore_keys: Unused.
            metric_key_prefix: Prefix of each name; with several sets, followed by the set's name.

        Returns:
            ``{"eval_loss": ..., "eval_accuracy": ..., "eval_margin": ...}``; empty without pairs.
        """
        if eval_dataset is not None:
            eval_dataset = self._encoded(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Rewards of pairs: predictions (pairs, 2), of the chosen and the rejected responses; labels are all 0.

        Args:
            test_dataset: Feedback as in the constructor.
            ignore_keys: Unused.
            metric_key_prefix: Prefix of the names of the metrics, which are those of :meth:`evaluate`.

        Raises:
            DataError: There are no pairs in it.
        """
        examples = self._encoded(test_dataset)
        if isinstance(examples, Mapping) or not any(example.pairs for example in examples):
            raise DataError("There are no pairs to predict the rewards of", where="test_dataset", expected="one set")
        return super().predict(examples, ignore_keys, metric_key_prefix)

    def _encoded(self, rows: Any) -> Any:
        """Held-out feedback as examples; with the model's own critiques, if it reads the reward after them."""
        if is_encoded(rows):
            return rows
        if not self.args.critique_first or self._critic is not None or is_pretokenized(rows):
            return held_out_examples(self._builder, rows)
        if isinstance(rows, Mapping):
            return {name: self._encoded(part) for name, part in rows.items()}
        comparisons = read_rows(rows, split="test", name="eval_dataset").comparisons
        return own_critiques(plain_model(self), self._builder, comparisons, self.args)
