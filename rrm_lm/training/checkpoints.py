"""Checkpoints in a run's folder: find intact ones, choose one to resume from, delete old ones.

A checkpoint is written to a staging folder, gets a manifest with hashes last, and is renamed. So `checkpoint-40` is
either complete or absent, and a run resumes from the newest checkpoint that verifies. (transformers writes checkpoints
in place and resumes from the largest number unchecked, so an empty `checkpoint-99` hides good ones.)

`trainer.py` writes them, using `rrm_lm/storage.py`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rrm_lm.errors import CheckpointError
from rrm_lm.storage import remove_folder, verify

logger = logging.getLogger(__name__)

PROCESSES_FILE = "processes.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def newest_verified(output_dir: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the largest step in `output_dir` that matches its manifest, or None.

    Skipped checkpoints (empty, incomplete, broken) are logged as warnings with the reason.
    """
    for checkpoint in reversed(_checkpoints(Path(output_dir))):
        problems = verify(checkpoint)
        if not problems:
            return checkpoint
        logger.warning("skipped %s: %s", checkpoint, "; ".join(problems))
    return None


def checkpoint_to_resume(output_dir: str | os.PathLike[str], resume_from_checkpoint: str | bool | None) -> Path | None:
    """The verified checkpoint that `--resume_from_checkpoint` selects, or None. As in Hugging Face, the option is true
    for the newest, a path, or false or None. Pass the result to `Trainer.train`, never True, for which transformers
    takes the largest number unchecked. Raises CheckpointError if no checkpoint is intact, or the named one is broken.
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
        remedy = "name another checkpoint, or pass --resume_from_checkpoint true to use the newest complete one"
        raise CheckpointError(f"Cannot resume from this checkpoint: {'; '.join(problems)}", where=asked, remedy=remedy)
    return Path(asked)


def check_processes(checkpoint: Path, shape: Mapping[str, int], allowed: bool) -> None:
    """Raise a CheckpointError if a run resumes with another number of processes, unless it is `allowed`, or a step
    would take another number of items: the position in the data is counted in steps. `shape` holds this run's
    ``processes`` and ``items_per_step`` (over all processes).
    """
    file = checkpoint / PROCESSES_FILE
    if not file.is_file():
        return  # earlier versions did not write it
    then = json.loads(file.read_text(encoding="utf-8"))
    processes, items = int(then["processes"]), int(then["items_per_step"])
    if (processes, items) == (shape["processes"], shape["items_per_step"]):
        return
    if processes != shape["processes"] and not allowed:
        raise CheckpointError(
            f"The checkpoint was written by {processes} processes, and these are {shape['processes']}",
            where=str(checkpoint),
            expected="the same number: then the run resumes bit for bit",
            remedy=f"start {processes} processes, or pass --allow_world_size_change true to resume with the same "
            "weights at the same place in the data",
        )
    if items != shape["items_per_step"]:
        raise CheckpointError(
            f"A step took {items} items on all processes together, and would take {shape['items_per_step']}",
            where=str(checkpoint),
            expected=f"{items}: the place in the data is counted in steps",
            remedy="set per_device_train_batch_size times gradient_accumulation_steps to "
            + (f"{items // shape['processes']}" if items % shape["processes"] == 0 else f"a share of {items}")
            + f", for {shape['processes']} processes",
        )
    logger.warning(
        "resuming with %d processes from a checkpoint of %d: weights, optimizer and place in the data are the same, "
        "random numbers differ",
        shape["processes"],
        processes,
    )


def check_space(output_dir: Path, model: Any, args: Any, merge: bool) -> None:
    """Compare the free space on the disk with an estimate of what training will write. Raises CheckpointError if there
    is no space for one checkpoint, or for the final model; for less than all, a warning.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, saves = str(args.optim.value), str(args.save_strategy.value) != "no"
    state = 2 if "8bit" in optimizer else 8 if "adam" in optimizer else 0  # bytes of Adam's two moments
    weights = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    final = weights + (4 * sum(parameter.numel() for parameter in model.parameters()) if merge else 0)
    checkpoint = weights + state * sum(parameter.numel() for parameter in trained) if saves else 0
    everything = final + checkpoint * ((args.save_total_limit or 1) + 1)  # one is written before the oldest is deleted
    free, needed = shutil.disk_usage(output_dir).free, max(final, checkpoint)
    if free < needed:
        raise CheckpointError(
            f"The disk has {free / 1e6:.0f} MB free, and one checkpoint or the final model has about "
            f"{needed / 1e6:.0f} MB",
            where=str(output_dir),
            remedy="free some space, or choose an output_dir on another disk",
        )
    if free < everything:
        message = "the disk has %.0f MB free, and the checkpoints and the final model have about %.0f MB"
        logger.warning(message, free / 1e6, everything / 1e6)


def prune(output_dir: str | os.PathLike[str], save_total_limit: int | None, *, keep: Iterable[Path] = ()) -> None:
    """Delete the oldest checkpoints until `save_total_limit` are left; those in `keep` always stay. None, 0 or less
    keeps all. `keep` begins with the checkpoint just saved and may name others, such as the best one. If there are
    checkpoints with a later step than the first, the run was resumed from an earlier step: they are deleted before all
    others, or, without a limit, renamed to abandoned-checkpoint-STEP, so that no later run resumes from them.
    """
    kept = [Path(path).absolute() for path in keep]
    last = _step(kept[0]) if kept else None
    if save_total_limit is None or save_total_limit <= 0:
        for path in _checkpoints(Path(output_dir)):
            if last is not None and _step(path) > last and path.absolute() not in kept:
                _abandon(path)
        return
    checkpoints = sorted(
        (path for path in _checkpoints(Path(output_dir)) if any(path.iterdir())),
        key=lambda path: (last is None or _step(path) <= last, _step(path)),
    )
    surplus = len(checkpoints) - save_total_limit
    for checkpoint in [path for path in checkpoints if path.absolute() not in kept][: max(surplus, 0)]:
        logger.debug("deleted %s (save_total_limit is %d)", checkpoint, save_total_limit)
        remove_folder(checkpoint)


def _abandon(checkpoint: Path) -> None:
    place = checkpoint.with_name(f"abandoned-{checkpoint.name}")
    if place.exists():
        remove_folder(place)
    checkpoint.rename(place)
    message = "%s is of a later step than the run, which was resumed from an earlier one; it is now %s"
    logger.warning(message, checkpoint, place)


def has_checkpoint(output_dir: Path) -> bool:
    """Whether there is a folder with the name of a checkpoint, complete or not."""
    return bool(_checkpoints(output_dir))


def _checkpoints(output_dir: Path) -> list[Path]:
    """The folders named checkpoint-<step>, by step."""
    if not output_dir.is_dir():
        return []
    return sorted((path for path in output_dir.iterdir() if path.is_dir() and _step(path) >= 0), key=_step)


def _step(checkpoint: Path) -> int:
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1
