"""After every few answers, a reward model is trained again in another process, and the policy against it."""

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
from rrm_lm.errors import RRMError
from rrm_lm.feedback.store.events import FIRST, SECOND
from rrm_lm.feedback.store.transfer import export
from rrm_lm.settings.feedback import AskArguments
from rrm_lm.storage import read_object, write_json

logger = logging.getLogger(__name__)

LEAST = 10  # comparisons before the first training
FEW = 30  # held-out comparisons below which an accuracy says little
HELD_OUT = 0.25  # share of prompts, unless the settings file gives one
ROUNDS = "rounds.json"


def current_policy(args: AskArguments) -> str:
    """The policy that answers prompts: that of the newest round, or `model` before there is one."""
    rounds = read_object(Path(args.train_dir) / ROUNDS).get("rounds", []) if args.policy_config else []
    return next((one["policy"] for one in reversed(rounds) if one.get("policy")), str(args.model))


class Trainer(threading.Thread):
    """Watches the store and trains. `rounds` has, for each reward model, its answers, accuracy and interval, and the
    policy that was trained against it.
    """

    def __init__(self, desk: Desk, args: AskArguments) -> None:
        super().__init__(daemon=True, name="trainer")
        self.desk, self.args, self.folder = desk, args, Path(args.train_dir)
        self.stopped, self.process = threading.Event(), None
        self.rounds: list[dict[str, Any]] = list(read_object(self.folder / ROUNDS).get("rounds", []))
        self.problem = ""

    def run(self) -> None:
        tried = self.rounds[-1]["answers"] if self.rounds else 0
        while not self.stopped.wait(0.5):
            compared, answers = self.counts()
            if compared >= LEAST and answers >= tried + (self.args.train_every if tried else 0):
                tried = answers
                try:
                    self._train(answers)
                except (RRMError, OSError) as error:  # shown on the page; more answers start the next attempt
                    self.problem = str(error)

    @property
    def is_running(self) -> bool:
        """Whether something is being trained."""
        return self.process is not None and self.process.poll() is None

    def counts(self) -> tuple[int, int]:
        """How many comparisons and how many answers there are."""
        answers = self.desk.state.answers()
        return sum(answer.verdict in (FIRST, SECOND) for _, answer in answers), len(answers)

    def _train(self, answers: int) -> None:
        """Train a reward model on the answers so far, and then the policy against it."""
        number = len(self.rounds) + 1
        folder = self.folder / f"round-{number}"
        export(self.desk.state, folder / "feedback", "rrm_lm")
        config = ["--config", self.args.train_config] if self.args.train_config else ["--eval_fraction", str(HELD_OUT)]
        words = ["--dataset_name", str(folder / "feedback"), "--output_dir", str(folder / "model")]
        code = self._run("reward", *config, *words, log=folder / "log.txt")
        if self.stopped.is_set():
            return
        found = list(read_object(folder / "model" / "results.json").get("sets", {}).values())
        scored = found[0] if code == 0 and found else {}
        self.problem = "" if code == 0 else f"round {number} failed; see {folder / 'log.txt'}"
        accuracy = scored.get("accuracy") or {}
        one = {"answers": answers, "n": scored.get("n_scored", 0), "model": str(folder / "model"), "policy": ""}
        self.rounds.append(one | {name: accuracy.get(name) for name in ("value", "low", "high")})
        self._write()
        if code == 0 and self.args.policy_config:
            self._train_policy(folder)

    def _train_policy(self, folder: Path) -> None:
        output = folder / "policy"
        words = ["--config", str(self.args.policy_config), "--model_name_or_path", current_policy(self.args)]
        words += ["--reward_model", self.rounds[-1]["model"], "--output_dir", str(output)]
        if self.args.prompts:
            words += ["--prompts", *self.args.prompts]
        code = self._run("policy", *words, log=folder / "policy_log.txt")
        if code and not self.stopped.is_set():
            self.problem = f"the policy of round {len(self.rounds)} failed; see {folder / 'policy_log.txt'}"
        elif code == 0:
            self.rounds[-1]["policy"] = str(output)
            self._write()

    def _run(self, command: str, *words: str, log: Path) -> int:
        """Run a command of rrm-lm, and return its exit code."""
        cores = max(1, (os.cpu_count() or 2) - 1)  # training leaves one to the page
        environment = {"OMP_NUM_THREADS": str(cores), **os.environ}
        with log.open("w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rrm_lm", command, *words, "--overwrite_output_dir", "true"],
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
            if hasattr(os, "setpriority"):
                os.setpriority(os.PRIO_PROCESS, self.process.pid, 10)  # the page comes first
            return self.process.wait()

    def _write(self) -> None:
        write_json(self.folder / ROUNDS, {"rounds": self.rounds})

    def stop(self) -> None:
        self.stopped.set()
        if self.process is not None and self.is_running:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
