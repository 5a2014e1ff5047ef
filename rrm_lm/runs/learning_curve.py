"""`rrm-lm reward --learning_curve`: what a quarter and a half of the feedback give, and whether more would help."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rrm_lm.api.heldout import hold_out
from rrm_lm.api.reward.inputs import Settings
from rrm_lm.api.reward.trainer import RewardTrainer
from rrm_lm.errors import DataError
from rrm_lm.evaluation.reports.formats import duration
from rrm_lm.evaluation.reports.page import sentence
from rrm_lm.evaluation.statistics import metrics
from rrm_lm.feedback.reading.datasets import Feedback
from rrm_lm.feedback.splits import split_by_prompt
from rrm_lm.models.pretrained import process_state
from rrm_lm.settings.data import DataArguments
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.training import RewardCommandArguments, RewardRunArguments
from rrm_lm.storage import write_json
from rrm_lm.training.reward.config import RewardConfig

logger = logging.getLogger(__name__)

SHARES = (0.25, 0.5, 1.0)
_TIMED = 2  # steps of the trial that the estimate of the time is made from
_QUIET: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}


def announce(
    data: DataArguments, model: ModelArguments, config: RewardConfig, train: Feedback, heldout: Feedback | None
) -> None:
    """Log how long all three trainings will take, by a trial of a few steps. Raises DataError: too few prompts."""
    train, heldout = hold_out(data, train, heldout)
    prompts = len({record.prompt_id for record in train.records()})
    if not heldout.comparisons or prompts < 4:
        raise DataError(
            f"{prompts} prompts and {len(heldout.comparisons)} held-out comparisons give no learning curve",
            where="learning_curve",
            expected="at least 4 prompts to train on, and held-out comparisons",
            remedy="add feedback, or leave out --learning_curve",
        )
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(config, output_dir=folder, max_steps=_TIMED, report_to="none", disable_tqdm=True, **_QUIET)
        settings = Settings(data, model, RewardRunArguments())
        trainer = RewardTrainer(str(model.model_name_or_path), trial, None, train, None, settings=settings)
        start = time.perf_counter()
        super(RewardTrainer, trainer).train()  # nothing is saved or judged
        seconds = (time.perf_counter() - start) / _TIMED
    batch = config.train_batch_size * config.gradient_accumulation_steps * process_state().num_processes
    sizes = [share * len(trainer.train_dataset) / batch for share in SHARES]
    steps = [config.max_steps if config.max_steps > 0 else math.ceil(n) * config.num_train_epochs for n in sizes]
    logger.info(
        "learning curve: %s steps on %s of the feedback, about %s of training in total",
        " + ".join(f"{n:.0f}" for n in steps),
        ", ".join(f"{share:.0%}" for share in SHARES),
        duration(seconds * sum(steps)),
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
        arguments = replace(more, merge=False, overwrite_output_dir=True)
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
