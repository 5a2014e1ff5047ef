"""`rrm-lm reward`: read the feedback and pass it to `rrm_lm.RewardTrainer`."""

from __future__ import annotations

from rrm_lm.api.heldout import read_sources
from rrm_lm.api.output_run import OutputRun
from rrm_lm.api.reward.inputs import Settings
from rrm_lm.api.reward.trainer import HOLD_OUT, RewardTrainer
from rrm_lm.errors import ConfigError
from rrm_lm.runs.learning_curve import announce, draw_curve
from rrm_lm.settings.data import DataArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardCommandArguments
from rrm_lm.training.reward.config import RewardConfig


class RewardRun:
    """One run. It locks the output folder, and changes it only after all inputs are valid."""

    def __init__(
        self, data: DataArguments, model: ModelArguments, config: RewardConfig, more: RewardCommandArguments
    ) -> None:
        if not data.dataset_name:
            raise ConfigError(
                "There is no feedback to learn from",
                where="dataset_name",
                expected="one or more files, folders or Hub sets",
                remedy="pass --dataset_name my_feedback.jsonl, or --config configs/reward.yaml",
            )
        self.data, self.model_args, self.config, self.more = data, model, config, more

    def run(self) -> None:
        settings = (self.data, self.model_args, self.config, self.more)
        with OutputRun("rrm-lm reward", self.config, self.more, settings, self.config.resume_from_checkpoint) as run:
            train, heldout = read_sources(self.data)
            if self.more.learning_curve:
                announce(self.data, self.model_args, self.config, train, heldout)
            trainer = RewardTrainer(
                str(self.model_args.model_name_or_path),
                self.config,
                train_dataset=train,
                eval_dataset=HOLD_OUT if heldout is None else heldout,
                settings=Settings(self.data, run.on_its_date(self.model_args), self.more, run),
            )
            trainer.show_example()
            trainer.train()
        if self.more.learning_curve:
            draw_curve(self.data, self.model_args, self.config, self.more, trainer)
