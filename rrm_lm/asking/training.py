"""A reward model that is trained again in another process after every few answers."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rrm_lm.asking.desk import Desk
from rrm_lm.feedback.store.events import FIRST, SECOND
from rrm_lm.feedback.store.transfer import export
from rrm_lm.settings.feedback import AskArguments
from rrm_lm.storage import read_object, write_json

logger = logging.getLogger(__name__)

LEAST = 10  # comparisons before the first training
FEW = 30  # held-out comparisons below which an accuracy says little
HELD_OUT = 0.25  # share of prompts, unless the settings file gives one


class Trainer(threading.Thread):
    """Watches the store and trains. `rounds` has, for each finished training, its answers, accuracy and interval."""

    def __init__(self, desk: Desk, args: AskArguments) -> None:
        super().__init__(daemon=True, name="trainer")
        self.desk, self.args, self.folder = desk, args, Path(args.train_dir)
        self.stopped, self.process = threading.Event(), None
        self.rounds: list[dict[str, Any]] = list(read_object(self.folder / "rounds.json").get("rounds", []))
        self.problem = ""

    def run(self) -> None:
        tried = self.rounds[-1]["answers"] if self.rounds else 0
        while not self.stopped.wait(0.5):
            compared, answers = self.counts()
            if compared >= LEAST and answers >= tried + (self.args.train_every if tried else 0):
                tried = answers
                self._train(answers)

    def counts(self) -> tuple[int, int]:
        """How many comparisons and how many answers there are."""
        answers = self.desk.state.answers()
        return sum(answer.verdict in (FIRST, SECOND) for _, answer in answers), len(answers)

    def _train(self, answers: int) -> None:
        folder = self.folder / f"round-{len(self.rounds) + 1}"
        export(self.desk.state, folder / "feedback", "rrm_lm")
        words = ["--dataset_name", str(folder / "feedback"), "--output_dir", str(folder / "model")]
        config = ["--config", self.args.train_config] if self.args.train_config else ["--eval_fraction", str(HELD_OUT)]
        command = [sys.executable, "-m", "rrm_lm", "reward", *config, *words, "--overwrite_output_dir", "true"]
        cores = max(1, (os.cpu_count() or 2) - 1)  # training leaves one to the page
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            options: dict[str, Any] = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "env": environment}
            self.process = subprocess.Popen(command, **options)
            code = self.process.wait()
        if self.stopped.is_set():
            return
        found = [one for one in read_object(folder / "model" / "results.json").get("sets", {}).values()]
        scored = found[0] if code == 0 and found else {}
        self.problem = "" if code == 0 else f"round {len(self.rounds) + 1} failed; see {folder / 'log.txt'}"
        accuracy = scored.get("accuracy") or {}
        one = {"answers": answers, "n": scored.get("n_scored", 0), "model": str(folder / "model")}
        self.rounds.append(one | {name: accuracy.get(name) for name in ("value", "low", "high")})
        write_json(self.folder / "rounds.json", {"rounds": self.rounds})

    def stop(self) -> None:
        self.stopped.set()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
