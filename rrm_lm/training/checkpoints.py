"""Training checkpoints.

A checkpoint is staged beside its place, gets a manifest with hashes last and is renamed: `checkpoint-40` is there whole
or not at all, and resuming takes the newest one that verifies. (transformers writes checkpoints in place and resumes
from the largest number unchecked, so an empty `checkpoint-99` hides good ones.)

The primitives live in `rrm_lm/storage.py`, where the floors below can use them too; those that the floors above need
are offered here again. Output folders are in `rrm_lm/training/output_folder.py`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import (
    commit_folder,
    remove_folder,
    replace_files,
    report_full_disk,
    staged_file,
    staged_folder,
    verify,
    write_json,
    write_jsonl,
    write_text,
)

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # a mixin: importing transformers here would cost every reader of a file name its seconds

__all__ = [
    "VerifiedCheckpoints",
    "checkpoint_to_resume",
    "has_checkpoint",
    "newest_verified",
    "prune",
    "save_checkpoint",
    "staged_file",
    "staged_folder",
    "verify",
    "write_json",
    "write_jsonl",
    "write_text",
]

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Hidden and marked as unfinished, so that nobody takes it for a checkpoint and `clear_leftovers` knows it.
_STAGING_NAME = ".checkpoint.staging-trainer"
_TRAINER_STATE = "trainer_state.json"
_MODEL_STAGING_NAME = ".model.staging-trainer"


def save_checkpoint(folder: str | os.PathLike[str], writer: Callable[[Path], object], *, replace: bool = False) -> None:
    """Make `folder` hold what `writer` writes into the folder it is given, with a manifest, whole or not at all.

    Args:
        folder: Where the checkpoint, or saved model, shall be.
        writer: Called once with an empty folder beside `folder`.
        replace: Whether a folder that is there already, and not empty, may be replaced.

    Raises:
        CheckpointError: `folder` holds something and `replace` is off, the disk is full, or it cannot be written.
    """
    with staged_folder(folder, replace=replace) as staged:
        writer(staged)


def newest_verified(output_dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the largest step in `output_dir` that agrees with its manifest, or None.

    Those passed over (empty, unfinished, broken) are named in a warning with what is wrong with them.
    """
    for checkpoint in reversed(_checkpoints(Path(output_dir))):
        problems = verify(checkpoint)
        if not problems:
            return checkpoint
        logger.warning("passed over %s: %s", checkpoint, "; ".join(problems))
    return None


def checkpoint_to_resume(output_dir: str | os.PathLike[str], resume_from_checkpoint: str | bool | None) -> Path | None:
    """The verified checkpoint that `--resume_from_checkpoint` means, or None where it asks for none.

    Args:
        output_dir: Where the run's checkpoints are.
        resume_from_checkpoint: As Hugging Face has it: true for the newest, the path of one, or false or None. Pass
            the result to `Trainer.train`, never True: transformers would take the largest number unchecked.

    Raises:
        CheckpointError: There is no whole checkpoint, or the named one is broken.
    """
    asked = str(resume_from_checkpoint or "false")
    if asked.lower() in ("false", "no", "none"):
        return None
    if asked.lower() in ("true", "yes"):
        newest = newest_verified(output_dir)
        if newest is None:
            raise CheckpointError(
                "There is no whole checkpoint to resume from",
                where=str(output_dir),
                expected="a finished folder checkpoint-<step>",
                remedy="leave out --resume_from_checkpoint to start from the beginning",
            )
        return newest
    if problems := verify(asked):
        raise CheckpointError(
            f"The checkpoint cannot be resumed from: {'; '.join(problems)}",
            where=asked,
            remedy="name another checkpoint, or pass --resume_from_checkpoint true to take the newest whole one",
        )
    return Path(asked)


def prune(output_dir: str | os.PathLike[str], save_total_limit: int | None, *, keep: Iterable[Path] = ()) -> None:
    """Delete the oldest checkpoints until `save_total_limit` are left; those in `keep` always stay.

    Args:
        output_dir: Where the checkpoints are.
        save_total_limit: How many to keep; None, 0 or less keeps all.
        keep: The one just saved, which must come first, and others such as the best one. Checkpoints with a later step
            than the first go before all others: they are of a branch that was left when the run resumed before them.
    """
    kept = [Path(path).absolute() for path in keep]
    if save_total_limit is None or save_total_limit <= 0:
        return
    last = _step(kept[0]) if kept else None
    checkpoints = sorted(
        (path for path in _checkpoints(Path(output_dir)) if any(path.iterdir())),
        key=lambda path: (last is None or _step(path) <= last, _step(path)),
    )
    surplus = len(checkpoints) - save_total_limit
    for checkpoint in [path for path in checkpoints if path.absolute() not in kept][: max(surplus, 0)]:
        logger.debug("deleted %s (save_total_limit is %d)", checkpoint, save_total_limit)
        remove_folder(checkpoint)


def has_checkpoint(output_dir: Path) -> bool:
    """Whether there is a folder that is named like a checkpoint, whole or not."""
    return bool(_checkpoints(output_dir))


def _checkpoints(output_dir: Path) -> list[Path]:
    """The folders named checkpoint-<step>, by step."""
    if not output_dir.is_dir():
        return []
    return sorted((path for path in output_dir.iterdir() if path.is_dir() and _step(path) >= 0), key=_step)


def _step(checkpoint: Path) -> int:
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


class VerifiedCheckpoints(_Trainer):
    """A mixin that makes a `transformers.Trainer` write its checkpoints through this module.

    Put it before the trainer: `class RewardTrainer(VerifiedCheckpoints, Trainer)`. While `_save_checkpoint` runs, the
    trainer's output folder is a staging folder, so that everything lands there (model, optimizer, scheduler, scaler,
    random states of every process, sharded states, trainer state); then the checkpoint is checked in: forced to disk,
    given its manifest, renamed, and older ones are pruned. Several processes write into one staging folder, so they
    must share a file system, or have one each with `save_on_each_node`.
    """

    _staging: Path | None = None
    _to_push: list[str]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, resuming only from a checkpoint that verifies. Raises what `checkpoint_to_resume` raises."""
        checkpoint = checkpoint_to_resume(str(self.args.output_dir), resume_from_checkpoint)
        return super().train(str(checkpoint) if checkpoint else None, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        staging = run_dir / _STAGING_NAME
        name = f"checkpoint-{self.state.global_step}"
        with report_full_disk(run_dir):
            try:
                self._write_checkpoint(model, trial, staging, run_dir / name)
            finally:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self._to_push:
            super()._push_from_checkpoint(str(run_dir / name))

    def _write_checkpoint(self, model: Any, trial: Any, staging: Path, place: Path) -> None:
        """Fill the staging folder, all processes together, and make what is in it the checkpoint `place`."""
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging, self._to_push = staging, []
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._name_best_checkpoint(place.parent, staging / place.name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            commit_folder(staging / place.name, place, replace=True)
            best = self.state.best_model_checkpoint
            prune(place.parent, self.args.save_total_limit, keep=[place, *([Path(best)] if best else [])])

    def save_whole(self, folder: Path) -> None:
        """`save_model`, after which each file in `folder` is the whole new one; until then, the one from before.

        Every process calls it. Raises CheckpointError where the disk is full.
        """
        staging = folder / _MODEL_STAGING_NAME
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with report_full_disk(folder):
            try:
                self.save_model(str(staging), _internal_call=True)  # which uploads nothing: it has not its place yet
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    replace_files(staging, folder)
            finally:
                if self.args.should_save:
                    shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Hugging Face's `<split>_results.json` and `all_results.json`, each in one step."""
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        write_json(folder / f"{split}_results.json", dict(sorted(metrics.items())))
        every = folder / "all_results.json"
        if combined:
            earlier = json.loads(every.read_text(encoding="utf-8")) if every.is_file() else {}
            write_json(every, dict(sorted({**earlier, **metrics}.items())))

    def save_state(self) -> None:
        """Hugging Face's `trainer_state.json`, in one step."""
        if self.is_world_process_zero():
            with staged_file(Path(str(self.args.output_dir)) / _TRAINER_STATE) as staged:
                self.state.save_to_json(str(staged))

    def _name_best_checkpoint(self, run_dir: Path, staged: Path) -> None:
        """Record the best checkpoint under the name it will have, where transformers saw the staging folder's."""
        step = self.state.best_global_step
        best = run_dir / f"checkpoint-{step}"
        if step and (best.name == staged.name or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / _TRAINER_STATE))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Put an upload off until the checkpoint has its final name: uploads read the folder in the background."""
        if self._staging is not None:
            self._to_push.append(checkpoint_folder)
        else:
            super()._push_from_checkpoint(checkpoint_folder)
