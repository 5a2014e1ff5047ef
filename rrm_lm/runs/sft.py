"""`rrm-lm sft`: supervised fine-tuning on responses, saving, and the held-out loss."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from rrm_lm.api.data.heldout import check_leaks, check_learned, hold_out, read_sources, settle_template, sizes
from rrm_lm.api.data.inspection import log_inspection
from rrm_lm.api.data.shown import show_learned
from rrm_lm.api.output_run import OutputRun, check_evaluation, trainer_settings
from rrm_lm.api.policy.saving import check_before_training, save_and_compare
from rrm_lm.api.start import fitted, log_sizes, put_fresh_adapter, refuse_inside
from rrm_lm.errors import DataError
from rrm_lm.evaluation.statistics.metrics import mean_estimate
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.records import Demonstration
from rrm_lm.feedback.splits import LeakageReport
from rrm_lm.models.backbone import check_logits
from rrm_lm.models.pretrained import set_seed
from rrm_lm.models.saving.policies import POLICY, Policy, PolicySettings, load_policy
from rrm_lm.models.sharding import run_as_forward
from rrm_lm.models.together import loading_together
from rrm_lm.settings.data import DataArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import SFTRunArguments
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.examples import FitCounts
from rrm_lm.training.sft.config import SFTConfig
from rrm_lm.training.sft.trainer import Imitation, SFTTrainer, imitations, response_nll, to_imitate

logger = logging.getLogger(__name__)

_CHECKED = 4  # responses whose logits must be identical after a reload


def fine_tune(data: DataArguments, model: ModelArguments, config: SFTConfig, more: SFTRunArguments) -> None:
    """Train, save, reload and check a policy, and measure its held-out loss."""
    SFTRun(data, model, config, more).run()


class SFTRun:
    """One run. It locks the output folder, and changes it only after all inputs are valid."""

    def __init__(self, data: DataArguments, model: ModelArguments, config: SFTConfig, more: SFTRunArguments) -> None:
        self.data, self.model_args, self.config, self.more = data, model, config, more

    def run(self) -> None:
        data, settings = self.data, (self.data, self.model_args, self.config, self.more)
        named = [*data.dataset_name, *(data.eval_dataset_name or ())]
        refuse_inside(self.config.output_dir, [self.model_args.model_name_or_path], named)
        with OutputRun("rrm-lm sft", self.config, self.more, settings, self.config.resume_from_checkpoint) as run:
            train, heldout, leak = self._feedback()
            self.model_args = run.on_its_date(self.model_args)
            policy = self._policy()
            counts = FitCounts()
            checked = imitations(policy.chat, heldout, FitCounts(template=counts.template))
            examples = self._examples(policy.chat, train, counts)
            check_evaluation(self.config, checked, "responses")
            if run.main:
                log_inspection(Feedback.of(train), Feedback.of(heldout), policy.chat, leak=leak)
                show_learned(policy.chat, examples[0].line, examples[0].origin)
            trainer = self._trainer(policy, examples, checked)
            run.begin(examples=_counted(examples, checked, counts), leakage=None if leak is None else leak.to_dict())
            result = run.train(trainer, trainer.train)
            if self.config.dry_run:
                return
            trainer.save_metrics("train", result.metrics)
            trainer.save_state()
            sample = [example.line for example in (checked or examples)[:_CHECKED]]
            save_and_compare(trainer, policy, run.folder, sample, self.model_args, merge=self.more.merge)
            self._measure(trainer, policy, checked)
            trainer.upload()

    def _feedback(self) -> tuple[list[Demonstration], list[Demonstration], LeakageReport | None]:
        """Training responses, held-out responses, and the leakage check between them."""
        read, evaluation = read_sources(self.data)
        self._refuse_useless(read)
        train, heldout = (to_imitate(part, self.config.sft_on) for part in hold_out(self.data, read, evaluation))
        if not train:
            self._refuse_useless(Feedback())
        logger.info("to learn from: %d responses; held out: %d", len(train), len(heldout))
        where = ", ".join(self.data.eval_dataset_name or self.data.dataset_name)
        leak = check_leaks(self.data, Feedback.of(train), Feedback.of(heldout), where)
        return train, heldout, leak

    def _refuse_useless(self, feedback: Feedback) -> None:
        if to_imitate(feedback, self.config.sft_on):
            return
        others = "; --sft_on chosen imitates the chosen responses of comparisons" if feedback.comparisons else ""
        raise DataError(
            f"There is nothing to imitate with sft_on {' '.join(self.config.sft_on)}, only {sizes(feedback)}",
            where=", ".join(self.data.dataset_name),
            expected=" or ".join(self.config.sft_on),
            remedy="add some, or say with --sft_on what else is imitated" + others,
        )

    def _examples(self, chat: ChatFormat, records: list[Demonstration], counts: FitCounts) -> list[Imitation]:
        examples = imitations(chat, records, counts)
        settle_template(counts.template, self.data.skip_bad_rows)
        check_learned(examples, counts, chat, ", ".join(self.data.dataset_name))
        return examples

    @loading_together()
    def _policy(self) -> Policy:
        """The named adapter, or a fresh adapter on the named model."""
        args, name = self.model_args, str(self.model_args.model_name_or_path)
        policy = load_policy(name, trainable=True, **args.tokenizing(), **args.loading())
        if policy.adapter is None:
            set_seed(self.config.seed)  # initial weights must not depend on what was loaded before
            put_fresh_adapter(policy.backbone, args)
            policy = policy._replace(adapter=POLICY)
        else:
            logger.info("%s is an adapter, which is trained on: its own LoRA settings hold", name)
        check_logits(policy.backbone)
        check_before_training(policy, self.config, args)
        policy.chat.max_length = fitted(self.config.max_length, policy.backbone)
        log_sizes(name, policy.backbone)
        return policy

    def _trainer(self, policy: Policy, examples: list[Imitation], checked: list[Imitation]) -> SFTTrainer:
        base = policy.settings or PolicySettings(str(self.model_args.model_name_or_path))
        settings = replace(base, max_length=policy.chat.max_length, method="sft")
        with trainer_settings("Hugging Face's Trainer and TRL's SFTTrainer"):
            return SFTTrainer(policy, self.config, examples, checked, settings=settings)

    def _measure(self, trainer: SFTTrainer, policy: Policy, checked: list[Imitation]) -> None:
        """Measure the held-out loss of the policy and of the bare backbone, and their difference."""
        if not checked:
            logger.info("no responses are held out, so nothing is measured")
            return
        policy.backbone.eval()
        lines, root = [example.line for example in checked], trainer.accelerator.unwrap_model(trainer.model)

        def losses(adapter: str | None) -> list[float]:
            most = self.config.micro_batch_tokens
            return [float(x.mean()) for x in run_as_forward(root, response_nll, policy.backbone, adapter, lines, most)]

        after, before = losses(policy.adapter), losses(None)
        prompts = [example.prompt_id for example in checked]
        difference = [a - b for a, b in zip(after, before, strict=True)]
        estimates = {
            "eval_loss": mean_estimate(after, prompts, bounds=(0.0, math.inf)),
            "eval_loss_of_backbone": mean_estimate(before, prompts, bounds=(0.0, math.inf)),
            "eval_loss_difference": mean_estimate(difference, prompts, bounds=(-math.inf, math.inf)),
        }
        metrics: dict[str, Any] = {
            "eval_responses": len(lines),
            "eval_prompts": len(set(prompts)),
            "eval_tokens": sum(example.learned for example in checked),
        }
        for name, estimate in estimates.items():
            metrics |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        trainer.save_metrics("eval", finite)
        logger.info(
            "held out: %d responses to %d prompts, %.3f nats a token, %.3f of the backbone; difference %.3f "
            "(95%% interval %.3f to %.3f)",
            *(len(lines), len(set(prompts)), metrics["eval_loss"], metrics["eval_loss_of_backbone"]),
            *(metrics[f"eval_loss_difference{end}"] for end in ("", "_low", "_high")),
        )


def _counted(examples: list[Imitation], checked: list[Imitation], counts: FitCounts) -> dict[str, Any]:
    """Counts of training and held-out responses, and of those that were truncated or left out."""
    sides = {"learned": examples, "held_out": checked}
    sizes = {f"{name}_responses": len(side) for name, side in sides.items()}
    tokens = {f"{name}_tokens": sum(example.learned for example in side) for name, side in sides.items()}
    return {**sizes, **tokens, **counts.to_dict()}
