"""Tables for the trackers of `report_to`; Hugging Face's trainers send them numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def log_table(trainer: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> None:
    """Send a table at the current step to TensorBoard (as Markdown), Trackio and Weights & Biases, if they are used and
    their run is open. `rows` is (rows, columns). Only the main process sends it.
    """
    if not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        if (writer := getattr(callback, "tb_writer", None)) is not None:
            writer.add_text(name, _markdown(columns, rows), trainer.state.global_step)
        for tracker in (getattr(callback, "_trackio", None), getattr(callback, "_wandb", None)):
            if tracker is not None and callback._initialized:
                table = tracker.Table(columns=list(columns), data=[list(row) for row in rows])
                tracker.log({name: table, "train/global_step": trainer.state.global_step})


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    cells = [columns, ["---"] * len(columns)]
    cells += [[one if isinstance(one, str) else f"{one:.3f}" for one in row] for row in rows]
    return "\n".join(
        "| " + " | ".join(" ".join(one.replace("|", r"\|").split()) for one in row) + " |" for row in cells
    )
