"""`rrm-lm reward`: pass the feedback to `rrm_lm.RewardTrainer`; with `--learning_curve`, would more feedback help?"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rrm_lm.api.data.heldout import read_sources
from rrm_lm.api.output_run import OutputRun
from rrm_lm.api.reward.criteria import named_criteria
from rrm_lm.api.reward.examples import HOLD_OUT
from rrm_lm.api.reward.inputs import Settings
from rrm_lm.api.reward.trainer import RewardTrainer
from rrm_lm.errors import DataError
from rrm_lm.evaluation.reports.formats import duration
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.feedback.splits import split_by_prompt
from rrm_lm.models.pretrained import process_state
from rrm_lm.settings.data import DataArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import AUTO, FROM_CRITIQUES, NONE, RewardCommandArguments
from rrm_lm.storage import write_json
from rrm_lm.training.reward.config import RewardConfig

logger = logging.getLogger(__name__)

SHARES = (0.25, 0.5, 1.0)
_QUIET: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}


def train_reward_model(
    data: DataArguments, model: ModelArguments, config: RewardConfig, more: RewardCommandArguments
) -> None:
    """Lock the output folder, and change it only after all inputs are valid: train, save, reload and evaluate."""
    settings = (data, model, config, more)
    with OutputRun("rrm-lm reward", config, more, settings, config.resume_from_checkpoint) as run:
        train, heldout = read_sources(data)
        trainer = RewardTrainer(
            str(model.model_name_or_path),
            config,
            train_dataset=train,
            eval_dataset=HOLD_OUT if heldout is None else heldout,
            settings=Settings(data, run.on_its_date(model), more, run),
        )
        if more.learning_curve:
            check_curve(trainer)
        trainer.show_example()
        began = time.perf_counter()
        trainer.train()
    if more.learning_curve and not config.dry_run:
        seconds = (time.perf_counter() - began) * sum(SHARES[:-1])
        logger.info("learning curve: training on 50 and 25%% of the feedback takes about %s more", duration(seconds))
        draw_curve(data, model, config, more, trainer)


def check_curve(trainer: RewardTrainer) -> None:
    """Log what is to come. Raises a DataError before training if there is too little feedback for a learning curve."""
    prompts = len({record.prompt_id for record in trainer.train_feedback.records()})
    comparisons = sum(len(part.comparisons) for part in trainer.heldout_feedback.values())
    if not comparisons or prompts < 4:
        raise DataError(
            f"{prompts} prompts and {comparisons} held-out comparisons give no learning curve",
            where="learning_curve",
            expected="at least 4 prompts to train on, and held-out comparisons",
            remedy="add feedback, or leave out --learning_curve",
        )
    logger.info(
        "learning curve: training on all of the feedback, then on 50 and 25%%: %.2f times as long in all",
        sum(SHARES),
    )


def draw_curve(
    data: DataArguments,
    model: ModelArguments,
    config: RewardConfig,
    more: RewardCommandArguments,
    whole: RewardTrainer,
) -> None:
    """Train on the smaller shares after the whole, judge all on the same held-out part, and write learning_curve.json.

    The shares are nested, by prompt, and get the same number of passes.
    """
    root = Path(str(config.output_dir))
    train, heldout = whole.train_feedback, next(iter(whole.heldout_feedback.values()))
    parts, folders = {1.0: train}, {1.0: root}
    for share in SHARES[-2::-1]:
        parts[share], _ = split_by_prompt(parts[2 * share], 0.5, data.split_seed)
        folders[share] = root / "learning_curve" / f"{share:.0%}".rstrip("%")
        smaller = replace(config, output_dir=str(folders[share]), resume_from_checkpoint=None, **_QUIET)
        criteria = more.criteria
        if criteria in (AUTO, FROM_CRITIQUES):  # as for the whole, however few comparisons a share has
            criteria = FROM_CRITIQUES if whole.criteria is not None and named_criteria(parts[share]) else NONE
        arguments = replace(more, merge=False, overwrite_output_dir=True, criteria=criteria)
        settings = Settings(replace(data, max_comparisons=None), model, arguments)
        RewardTrainer(str(model.model_name_or_path), smaller, None, parts[share], heldout, settings=settings).train()
    if process_state().is_main_process:
        _report(root, {share: (len(parts[share].comparisons), folders[share]) for share in SHARES})


def _report(root: Path, shares: dict[float, tuple[int, Path]]) -> None:
    rows = {
        share: [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
        for share, (_, folder) in shares.items()
    }
    both = [place for place in range(len(rows[1.0])) if all(one[place]["correct"] is not None for one in rows.values())]
    right = {share: [one[place]["correct"] for place in both] for share, one in rows.items()}
    prompts = [rows[1.0][place]["prompt_id"] for place in both]
    points = [
        {"share": share, "comparisons": count, "accuracy": metrics.share(right[share], prompts)}
        for share, (count, _) in shares.items()
    ]
    gain = metrics.paired_difference(right[1.0], right[0.5], prompts)
    text = sentence("curve_verdict", points, gain)
    write_json(root / "learning_curve.json", {"points": points, "doubling": gain, "sentence": text})
    print(text)
