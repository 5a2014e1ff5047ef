"""`rrm_lm.RewardTrainer`, which `rrm-lm reward` calls."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rrm_lm.api.heldout import check_leaks, files, hold_out, settle_template, sizes, without_refused
from rrm_lm.api.inspection import log_inspection
from rrm_lm.api.judging import judge, write_judgement
from rrm_lm.api.output_run import OutputRun, check_evaluation, trainer_settings
from rrm_lm.api.reward.config import RewardConfig
from rrm_lm.api.reward.criteria import fitted_criteria
from rrm_lm.api.reward.critiques import critic_config, own_critiques
from rrm_lm.api.reward.inputs import (
    Settings,
    changed_settings,
    check_arguments,
    fingerprint,
    refuse_useless,
    settings_of,
)
from rrm_lm.api.reward.model import is_readable, load_start, make_model, narrows_critiques
from rrm_lm.api.reward.pretokenized import encode_ids, is_pretokenized
from rrm_lm.api.reward.saving import (
    check_classifier,
    check_plain,
    check_saved,
    conversations,
    members_by_template,
    members_of,
    plain_model,
    record_rewards,
    write_merged,
)
from rrm_lm.api.reward_model import RewardModel
from rrm_lm.api.rows import read_rows
from rrm_lm.api.shown import show_example
from rrm_lm.errors import ConfigError, DataError
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.reading.datasets import Feedback, merge_feedback
from rrm_lm.models.pretrained import process_state, set_seed
from rrm_lm.settings.data import DataArguments
from rrm_lm.text.templates import date_of
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardDataset
from rrm_lm.training.reward.trainer import RewardTrainer as _RewardTrainer

logger = logging.getLogger(__name__)

HOLD_OUT: Any = "hold out"  # hold out the share `eval_fraction` of the training prompts
_CHECKED = 4  # examples whose rewards must be identical after a reload


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
        args: Settings; by default those of `rrm-lm reward`.
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
        self._read(args, train_dataset, eval_dataset)
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
            with_critiques=args.learns_critiques and self._knows_head(args),
            pair_ratings=args.pair_ratings,
            narrow=narrows_critiques(args, reward_model.backbone),
        )
        self.criteria = fitted_criteria(settings.run_arguments, self.train_feedback, reward_model, self.chat)
        if self.criteria is not None:
            self._builder = replace(self._builder, known=self.criteria.of_responses)
        examples, held_out = self._encode(args, train_dataset, eval_dataset)
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
            self._make_critic()
        self.model.model_tags = list(self._tag_names)  # type: ignore[attr-defined]

    # -- feedback -------------------------------------------------------------------------------------------------

    def _read(self, args: Any, train_dataset: Any, eval_dataset: Any) -> None:
        """Read and split the feedback, and check for overlap."""
        self.train_feedback, self.heldout_feedback, self.leakage = Feedback(), {}, None
        if is_pretokenized(train_dataset):
            return
        most = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * process_state().num_processes
        train = read_rows(train_dataset, most=None if hasattr(train_dataset, "__len__") or most <= 0 else most)
        refuse_useless(train, args)
        sets: dict[str, Feedback] | None = None
        if eval_dataset is None:
            sets = {}
        elif isinstance(eval_dataset, Mapping):
            sets = {str(name): read_rows(rows, name=str(name)) for name, rows in eval_dataset.items()}
        elif eval_dataset is not HOLD_OUT:
            sets = {"held out": read_rows(eval_dataset, split="test", name="eval_dataset")}
        split, given = self._settings.split, None if sets is None else merge_feedback(*sets.values())
        train, heldout = hold_out(split, train, given)
        refuse_useless(train, args)
        logger.info("to learn from: %s; held out: %s", sizes(train), sizes(heldout))
        self.leakage = check_leaks(split, train, heldout, files(heldout, train))
        self.train_feedback = train
        self.heldout_feedback = sets or ({"held out": heldout} if len(heldout) else {})

    def _knows_head(self, args: Any) -> bool:
        if self._start.writes or not args.learns_critiques:
            return True
        if args.critique_first:
            raise ConfigError("A sequence classifier cannot write critiques", where="critique_first")
        logger.warning("critiques are not learned: the classifier has no language-model head")
        return False

    def _encode(self, args: Any, train_dataset: Any, eval_dataset: Any) -> tuple[list[RewardExample], Any]:
        """(training, held-out) examples. The held-out ones are a list, lists by set name, or None if there are none."""
        builder = self._builder
        if is_pretokenized(train_dataset):
            examples = encode_ids(train_dataset, builder, "train_dataset")
            given = None if eval_dataset is HOLD_OUT else eval_dataset
            held_out: Any = None if given is None else self._held_out_examples(given)
        else:
            feedback = self.train_feedback
            examples = builder.together(feedback.comparisons, args.comparisons_together)
            ratings = feedback.ratings if args.rating_weight > 0 else ()
            examples += builder.responses(feedback.critiques, ratings)
            sets = {name: self._pairs(part) for name, part in self.heldout_feedback.items()}
            held_out = sets if isinstance(eval_dataset, Mapping) else next(iter(sets.values()), None)
            template = builder.counts.template
            settle_template(template, getattr(self._settings.split, "skip_bad_rows", None))
            self.train_feedback = without_refused(feedback, template)
            self.heldout_feedback = {n: without_refused(part, template) for n, part in self.heldout_feedback.items()}
        if not examples:
            raise DataError(
                f"No feedback is left to train on ({'; '.join(builder.counts.left_out())})",
                where=files(self.train_feedback),
                remedy="look at those rows; if the responses are cut away, raise --max_length",
            )
        if builder.counts.shortened or builder.counts.unusable:
            logger.warning("to fit max_length %s: %s", builder.chat.max_length, builder.counts.summary())
        check_evaluation(args, held_out, "comparisons")
        return examples, held_out

    def _pairs(self, feedback: Feedback) -> list[RewardExample]:
        builder = self._builder
        plain = replace(builder, with_critiques=False, pair_ratings=False, narrow=False)
        return plain.comparisons(feedback.comparisons)

    def _held_out_examples(self, rows: Any) -> Any:
        """Encode rows that are not encoded yet; by name if there are several sets."""
        if isinstance(rows, Mapping):
            return {name: self._held_out_examples(part) for name, part in rows.items()}
        if is_pretokenized(rows):
            return encode_ids(rows, self._builder, "eval_dataset")
        return self._pairs(read_rows(rows, split="test", name="eval_dataset"))

    def show_example(self) -> None:
        """Print the first example to stderr as the model sees it, with the trained parts marked."""
        if self.args.should_save:
            critic = self._critic is not None
            examples = self._critic.train_dataset if self._critic is not None else self.train_dataset
            show_example(self.chat, examples[0], rewarded=not critic)

    # -- training -------------------------------------------------------------------------------------------------

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
            self.save_metrics("train", result.metrics)
            self.save_state()
            self._save_and_compare(run)
            self._judge(run)
        return result

    _critic: _RewardTrainer | None = None

    def _make_critic(self) -> None:
        """Make the trainer of the first phase, in which the model learns to write critiques."""
        written = [RewardExample(e.rows, e.lines, origin=e.origin) for e in self.train_dataset if e.critique_tokens]
        config = critic_config(self.args)
        self._critic = _RewardTrainer(self.model, config, written, processing_class=self.processing_class)

    def _learn_own_critiques(self, critic: _RewardTrainer) -> None:
        """Learn to write people's critiques, then replace them by the model's own, which precede the reward."""
        logger.info("learning to write critiques from %d examples", len(critic.train_dataset))
        critic.train()
        model, builder = plain_model(critic), self._builder
        self.train_dataset, *held_out = (
            RewardDataset(own_critiques(model, builder, feedback.comparisons, self.args))
            for feedback in (self.train_feedback, *self.heldout_feedback.values())
        )
        if self.eval_dataset is not None:
            several = isinstance(self.eval_dataset, Mapping)
            self.eval_dataset = dict(zip(self.heldout_feedback, held_out, strict=True)) if several else held_out[0]
        self._critic = None
        self.show_example()
        set_seed(self.args.seed)

    def _save_and_compare(self, run: OutputRun) -> None:
        """Save, reload and compare the rewards; write the merged checkpoint if `merge` is set."""
        self.save_whole(run.folder)
        held_out: Any = self.eval_dataset
        if isinstance(held_out, Mapping):
            held_out = next(iter(held_out.values()), None)
        model, sample = plain_model(self), list(held_out or self.train_dataset)[:_CHECKED]
        rewards = members_of(model, sample)
        feedback = next(iter(self.heldout_feedback.values()), self.train_feedback)
        talks = conversations(self.chat, feedback.comparisons) if self._readable else []
        read = members_by_template(model, self.chat, talks) if talks else None
        if not run.main:
            return
        loading = self._start.loading
        if loading is None:
            logger.warning("saved to %s; not reloaded: the base model is not in a folder, save it as well", run.folder)
            return
        check_saved(rewards, model, run.folder, sample, **loading)
        if read is None:
            return
        record_rewards(read, model, run.folder, self.chat, talks)
        check_plain(read, model, run.folder, self.chat, talks, **loading)
        if self._settings.run_arguments.merge:
            code, merged = self._settings.model.trust_remote_code, run.folder / "merged"
            write_merged(read, model, run.folder, merged, self.chat, talks, trust_remote_code=code)

    # -- judging --------------------------------------------------------------------------------------------------

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
        if write and self.criteria is not None:
            self.criteria.save(folder)

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
            configuration={**source, **changed_settings(model), **changed_settings(self.args)},
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
        if eval_dataset is not None and not _is_encoded(eval_dataset):
            eval_dataset = self._held_out_examples(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)


def _is_encoded(data: Any) -> bool:
    if isinstance(data, Mapping):
        return all(map(_is_encoded, data.values()))
    return isinstance(data, RewardDataset) or (
        isinstance(data, Sequence) and all(isinstance(e, RewardExample) for e in data)
    )
