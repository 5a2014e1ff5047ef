"""The steps of `rrm-lm reward`, in the order in which feedback flows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rrm_lm.api.judging import judge, write_judgement
from rrm_lm.errors import ConfigError, DataError, ModelError
from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.splits import LeakageReport
from rrm_lm.launch.signals import steps_are_finished
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.decoding.generation import Progress
from rrm_lm.models.portable import unreadable
from rrm_lm.models.pretrained import load_causal_lm, load_tokenizer, process_state, set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.self_critique import with_own_critiques
from rrm_lm.models.sharding import with_full_params
from rrm_lm.runs.heldout import read_feedback
from rrm_lm.runs.resuming import identity, is_asked, origin
from rrm_lm.runs.reward.saving import (
    check_plain,
    check_saved,
    conversations,
    members_by_template,
    members_of,
    plain_model,
    write_merged,
)
from rrm_lm.runs.shown import show_example
from rrm_lm.settings.data import DataArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.parser import write_resolved
from rrm_lm.settings.training import RewardRunArguments
from rrm_lm.storage import write_json
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.checkpoints import checkpoint_to_resume
from rrm_lm.training.output_folder import OutputFolder
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import Example, ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer

logger = logging.getLogger(__name__)

_CHECKED = 4  # examples whose rewards must be the same after a reload
_FRAME = 16  # tokens kept for what the chat template puts around a critique


class RewardRun:
    """One run: load, split, check, encode, train, save, reload, judge."""

    def __init__(
        self, data: DataArguments, model: ModelArguments, config: RewardConfig, more: RewardRunArguments
    ) -> None:
        if not data.dataset_name:
            raise ConfigError(
                "There is no feedback to learn from",
                where="dataset_name",
                expected="one or more files, folders or Hub sets",
                remedy="pass --dataset_name my_feedback.jsonl, or --config configs/reward.yaml",
            )
        if more.merge and config.critique_first:
            raise ConfigError(
                "A merged checkpoint cannot write the critiques that its rewards are read after",
                where="merge and critique_first",
                remedy="leave out --merge; rrm-lm score and rrm-lm evaluate read the adapter as it is",
            )
        self.data, self.model_args, self.config, self.more = data, model, config, more
        self.folder = Path(str(config.output_dir))
        self.main = bool(config.should_save)

    def run(self) -> None:
        """Everything; the output folder is locked while it lasts, and changed only once all inputs are good."""
        processes = process_state().num_processes
        folder = OutputFolder(
            self.folder,
            command="rrm-lm reward",
            identity=identity(self.data, self.model_args, self.config, self.more, processes=processes),
            allow_change=self.more.allow_config_change,
            resume=is_asked(self.config.resume_from_checkpoint),
            origin=origin(self.config.resume_from_checkpoint),
            overwrite=self.more.overwrite_output_dir,
            active=self.main,
            deferred=True,
        )
        with folder:
            process_state().wait_for_everyone()
            checkpoint_to_resume(self.folder, self.config.resume_from_checkpoint)  # a broken one is told at once
            set_seed(self.config.seed)
            train, heldout, leak = read_feedback(self.data, self.config)
            model, chat = self._model()
            builder = ExampleBuilder(
                chat,
                model.backbone,
                with_critiques=self.config.learns_critiques,
                pair_ratings=self.config.pair_ratings,
                narrow=self._narrow(model.backbone),
            )
            examples, checked = self._examples(builder, train, heldout)
            if self.main:
                show_example(chat, examples[0], rewarded=not self.config.critique_first)
            trainer = self._first_trainer(model, chat, examples, checked)
            folder.begin()
            if self.main:
                write_resolved(self.folder / "config.yaml", self.data, self.model_args, self.config, self.more)
                if leak is not None:
                    write_json(self.folder / "leakage.json", leak.to_dict())
            process_state().wait_for_everyone()
            if self.config.critique_first:
                examples, checked = self._with_own_critiques(trainer, chat, builder, train, heldout)
                if self.main:
                    show_example(chat, examples[0])
                trainer = make_trainer(model, self.config, examples, chat, checked)
            self._train(trainer)
            self._save(trainer, chat, checked or examples, heldout if checked else train)
            self._judge(trainer, chat, train, heldout, leak, builder)

    def _narrow(self, backbone: Backbone) -> bool:
        """Whether critiques are learned through the reward's token alone. A model that is to write them sees all."""
        config = self.config
        if not config.learns_critiques or config.critique_view == "all" or config.critique_first:
            return False
        if not backbone.can_mask:
            logger.warning("critique_view is all: this model takes no mask that would let critiques see less")
        return backbone.can_mask

    # -- model and examples ---------------------------------------------------------------------------------------

    def _model(self) -> tuple[RewardModel, ChatFormat]:
        args, config = self.model_args, self.config
        name = str(args.model_name_or_path)
        tokenizer: Any = load_tokenizer(
            name,
            trust_remote_code=args.trust_remote_code,
            revision=args.model_revision,
            **args.tokenizing(),
        )
        lm = load_causal_lm(name, **args.loading())
        backbone = Backbone(lm, int(tokenizer.pad_token_id), None if config.share_prefixes else False)
        if config.learns_critiques:
            check_logits(backbone)
        length, critique_length = self._fitted(backbone), config.max_critique_length
        settings = RewardSettings(
            name,
            config.critique_first,
            length,
            critique_length,
            args.model_revision,
            config.ensemble_heads,
            config.ensemble,
            config.ensemble_k,
        )
        set_seed(config.seed)  # the adapter's and the head's first weights do not depend on what was loaded before
        try:
            model = RewardModel.create(backbone, args.lora(), settings)
        except ValueError as error:
            raise ConfigError(
                f"LoRA with these settings cannot be put on this model: {error}",
                where="lora_r, lora_alpha, lora_dropout, lora_target_modules",
                remedy="leave out --lora_target_modules to adapt all linear layers",
            ) from error
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(
            "%s: %.1f M parameters, %.2f M trained; prefix sharing %s",
            name,
            sum(p.numel() for p in model.parameters()) / 1e6,
            trained / 1e6,
            "on" if backbone.can_share else "off",
        )
        chat = ChatFormat(tokenizer, length, critique_length)
        self._readable = not config.critique_first and self._is_readable(chat)
        return model, chat

    def _is_readable(self, chat: ChatFormat) -> bool:
        """Whether other programs read the reward at the token where it is trained, with the template that is saved.

        Raises:
            ModelError: They do not, and a merged checkpoint is for them.
        """
        reason = unreadable(chat)
        if reason and self.more.merge:
            raise ModelError(
                "With this tokenizer and chat template, other programs would read the reward at another token than the "
                f"one it is trained at: {reason}",
                where=str(self.model_args.model_name_or_path),
                remedy="leave out --merge (rrm-lm score and rrm-lm evaluate read the adapter), or pass a template that "
                "ends at the end of the turn with --chat_template_path",
            )
        if reason:
            logger.warning("only rrm_lm will read these rewards right: for other programs, %s", reason)
        return not reason

    def _fitted(self, backbone: Backbone) -> int | None:
        """`max_length`, or less where the model has not as many positions for it and a critique."""
        asked, context = self.config.max_length, getattr(backbone.config, "max_position_embeddings", None)
        if context is None:
            return asked
        room = int(context) - (self.config.max_critique_length + _FRAME if self.config.learns_critiques else 0)
        if room < 1:
            raise ConfigError(
                f"max_critique_length is {self.config.max_critique_length}, and the model has {context} positions",
                where="max_critique_length",
                expected="room for a prompt and a response beside the critique",
            )
        if asked is not None and asked <= room:
            return asked
        if asked is not None:
            logger.warning("max_length is %d, not %d: the model has %d positions for everything", room, asked, context)
        return room

    def _examples(
        self, builder: ExampleBuilder, train: Feedback, heldout: Feedback
    ) -> tuple[list[Example], list[Example]]:
        examples = builder.comparisons(train.comparisons)
        ratings = train.ratings if self.config.rating_weight > 0 else ()
        examples += builder.responses(train.critiques, ratings)
        plain = ExampleBuilder(builder.chat, builder.backbone, with_critiques=False, counts=builder.counts)
        checked = plain.comparisons(heldout.comparisons)
        if not examples:
            raise DataError(
                f"No feedback is left to train on ({'; '.join(builder.counts.left_out())})",
                where=", ".join(self.data.dataset_name),
                remedy="look at those rows; if the responses are cut away, raise --max_length; if the chat template "
                "leaves them out, pass another with --chat_template_path",
            )
        if builder.counts.shortened or builder.counts.unusable:
            logger.warning("to fit max_length %s: %s", builder.chat.max_length, builder.counts.summary())
        if not checked and str(getattr(self.config.eval_strategy, "value", self.config.eval_strategy)) != "no":
            raise ConfigError(
                "eval_strategy asks for evaluation during training, and there are no held-out comparisons",
                where="eval_strategy",
                remedy="pass --eval_dataset_name or --eval_fraction, or leave out --eval_strategy",
            )
        return examples, checked

    def _first_trainer(
        self, model: RewardModel, chat: ChatFormat, examples: list[Example], checked: list[Example]
    ) -> RewardTrainer:
        """The reward's trainer; the critic's, where critiques are to be written before the reward is read."""
        if not self.config.critique_first:
            return make_trainer(model, self.config, examples, chat, checked)
        written = [Example(e.rows, e.lines, origin=e.origin) for e in examples if e.critique_tokens]
        return make_trainer(model, critic_config(self.config), written, chat)

    def _with_own_critiques(
        self, critic: RewardTrainer, chat: ChatFormat, builder: ExampleBuilder, train: Feedback, heldout: Feedback
    ) -> tuple[list[Example], list[Example]]:
        """Learn to write people's critiques, then replace them by the model's own, read before the reward."""
        logger.info("learning to write critiques from %d examples", len(critic.train_dataset))
        critic.train()
        model = plain_model(critic)
        sides = []
        for comparisons in (train.comparisons, heldout.comparisons):
            logger.info("writing own critiques of %d pairs", len(comparisons))
            with _bar(self.main) as progress:
                lines = with_full_params(
                    model,
                    with_own_critiques,
                    model,
                    chat,
                    [c.prompt for c in comparisons],
                    [[c.chosen, c.rejected] for c in comparisons],
                    samples=self.config.critique_samples,
                    temperature=self.config.critique_temperature,
                    seed=self.config.seed,
                    progress=progress,
                )
            sides.append(builder.own_critiques(comparisons, lines))
        return sides[0], sides[1]

    # -- training and saving --------------------------------------------------------------------------------------

    def _train(self, trainer: RewardTrainer) -> None:
        with steps_are_finished(trainer):
            result = trainer.train(resume_from_checkpoint=self.config.resume_from_checkpoint)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()

    def _save(self, trainer: RewardTrainer, chat: ChatFormat, examples: list[Example], feedback: Feedback) -> None:
        trainer.save_whole(self.folder)
        model, sample = plain_model(trainer), examples[:_CHECKED]
        rewards = members_of(model, sample)
        talks = conversations(chat, feedback.comparisons) if self._readable else []
        read = members_by_template(model, chat, talks) if talks else None
        if not self.main:
            return
        check_saved(rewards, model, self.folder, sample, **self.model_args.loading())
        if read is not None:
            check_plain(read, model, self.folder, chat, talks, **self.model_args.loading())
        if read is not None and self.more.merge:
            code, merged = self.model_args.trust_remote_code, self.folder / "merged"
            write_merged(read, model, self.folder, merged, chat, talks, trust_remote_code=code)

    def _judge(
        self,
        trainer: RewardTrainer,
        chat: ChatFormat,
        train: Feedback,
        heldout: Feedback,
        leak: LeakageReport | None,
        builder: ExampleBuilder,
    ) -> None:
        if not heldout.comparisons:
            logger.info("no comparisons are held out, so nothing is judged")
            return
        scorer = RewardScorer(
            plain_model(trainer),
            chat,
            self.folder.resolve().name,
            micro_batch_tokens=2 * self.config.micro_batch_tokens,
            critique_samples=self.config.critique_samples,
            temperature=self.config.critique_temperature,
            seed=self.config.seed,
        )
        sets = {"held out": heldout}
        evaluation = judge(scorer, sets, {"fit": builder.counts.to_dict()})
        if not self.main:
            return
        write_judgement(
            evaluation,
            sets,
            self.folder,
            chat=chat,
            location=str(self.folder),
            train=train,
            leak=leak,
            log_history=trainer.state.log_history,
            configuration={**asdict(self.data), **_told(self.model_args), **_told(self.config)},
            base_model=str(self.model_args.model_name_or_path),
        )


def make_trainer(
    model: RewardModel,
    config: RewardConfig,
    examples: list[Example],
    chat: ChatFormat,
    checked: list[Example] | None = None,
) -> RewardTrainer:
    """A trainer.

    Raises:
        ConfigError: Settings of Hugging Face's that do not fit this machine, with their words.
    """
    try:
        return RewardTrainer(model, config, examples, checked, processing_class=chat.tokenizer)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"No trainer can be made with these settings: {' '.join(str(error).split())}",
            where="the settings of Hugging Face's Trainer",
            remedy="leave the setting out, or install what it needs",
        ) from error


def critic_config(config: RewardConfig) -> RewardConfig:
    """Settings for learning to write critiques, before the reward is read after them. Nothing is saved then."""
    return replace(
        config,
        num_train_epochs=config.critic_epochs,
        max_steps=-1,
        critique_weight=config.critique_weight if config.critique_weight > 0 else 1.0,
        critique_weight_end=None,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
    )


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    """A progress bar for sampling."""
    with tqdm(desc="sampling", unit="critique", disable=not shown) as bar:

        def tell(done: int, total: int, tokens_per_second: float) -> None:
            bar.total = total
            bar.set_postfix_str(f"{tokens_per_second:.0f} tokens/s", refresh=False)
            bar.update(done - bar.n)

        yield tell


def _told(config: Any) -> dict[str, object]:
    """The settings of a dataclass that differ from its defaults, or that everybody asks for."""
    asked = {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "seed", "lora_r", "critique_weight"}
    told = {}
    for item in fields(config):
        value = getattr(config, item.name)
        default = item.default if item.default is not MISSING else None
        if item.name in asked or (value != default and isinstance(value, str | int | float | list) and value != []):
            told[item.name] = value
    return {name: value for name, value in told.items() if "token" not in name or name.endswith("tokens")}
