"""Kills a process at every write of a save, and checks each time what a resumed run finds.

A separate program, because it forks: `python -m tests.killed_saves FOLDER reward 1 10` kills at every write of a reward
model's checkpoint and at ten random moments, and prints the findings as JSON. Training runs up to the save and forks
there for every kill: one child saves and is killed, another resumes. This way the libraries are imported only once.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import TrainerCallback

from rrm_lm.models import agent_files
from rrm_lm.models.saving import adapters as adapter_files
from rrm_lm.training.checkpoints import newest_verified
from rrm_lm.training.output_folder import OutputFolder
from rrm_lm.training.ppo import control as ppo_control
from tests import tiny_policy, tiny_training

BEFORE, SAVED, LAST = 2, 3, 4  # the existing checkpoint, the one that is being saved, the last step
SETTINGS: dict[str, Any] = {"max_steps": LAST, "save_steps": 1, "save_total_limit": 1, "logging_strategy": "no"}
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}


def make_reward(folder: Path, **more: Any) -> Any:
    model = tiny_training.tiny_reward_model(dropout=0.3)
    args = tiny_training.config(folder, **SETTINGS, **more)
    data = tiny_training.mixed(model)
    return tiny_training.RewardTrainer(model, args, data, processing_class=tiny_training.CHAT.tokenizer)


def make_policy(folder: Path, **more: Any) -> Any:
    agent = tiny_policy.tiny_agent(value="adapter")
    return tiny_policy.trainer(folder, agent, **SETTINGS, kl_control="adaptive", **more)


MAKERS: dict[str, Callable[..., Any]] = {"reward": make_reward, "policy": make_policy}


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


# -- a child that is killed in the save -----------------------------------------------------------------------------


class Writes:
    """Counts writes from now on, and kills this process at the one with a given number; 0 for none."""

    def __init__(self, fatal: int) -> None:
        self.count, self.fatal = 0, fatal
        sys.addaudithook(self._audit)
        sync = os.fsync
        os.fsync = lambda descriptor: (self(), sync(descriptor))[1]
        # These write from compiled code, which the hook does not see: killed before, with half of the file, and after.
        modules: list[Any] = [agent_files, adapter_files, ppo_control]
        for module in modules:
            module.save_file = self._in_parts(module.save_file)
        torch.save = self._in_parts(torch.save)

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            kill_this()

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in WRITES or (event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            self()

    def _in_parts(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def written(what: Any, file: Any, *more: Any, **options: Any) -> None:
            self()
            write(what, file, *more, **options)
            if self.count + 1 == self.fatal:
                os.truncate(file, os.path.getsize(file) // 2)
            self()

        return written


def kill_this() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


# -- what is done at the save ---------------------------------------------------------------------------------------


class Kills(TrainerCallback):
    """At the end of the saved step, kills and resumes runs in child processes."""

    def __init__(self, kind: str, folder: Path, expected: dict[str, Tensor], every: int, randomly: int) -> None:
        self.kind, self.folder, self.expected = kind, folder, expected
        self.every, self.randomly = every, randomly
        self.spare = folder.with_name("spare")
        self.found: list[dict[str, Any]] = []
        self.writes: Writes | None = None
        self.ready = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != SAVED:
            return
        shutil.copytree(self.folder, self.spare)
        gc.freeze()  # otherwise every child spends half a second collecting the libraries' garbage
        reader, writer = os.pipe()
        child = self._saving(0, writer)
        if child is None:
            return
        os.close(writer)
        answer = json.loads(os.read(reader, 1000))
        assert os.waitpid(child, 0)[1] == 0
        self._resume("whole")
        moments: list[int | float] = list(range(1, answer["writes"] + 1, self.every))
        chance = random.Random(7)
        moments += [chance.uniform(0, answer["seconds"]) for _ in range(self.randomly)]
        for moment in moments:
            shutil.rmtree(self.folder)
            shutil.copytree(self.spare, self.folder)
            child = self._saving(moment if isinstance(moment, int) else 0, -1)
            if child is None:
                return
            if isinstance(moment, float):
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) or isinstance(moment, float), moment
            self._resume(moment)
        print(json.dumps({"writes": answer["writes"], "kills": self.found}), flush=True)
        os._exit(0)

    def _saving(self, fatal: int, pipe: int) -> int | None:
        """Fork; the child, which gets None, continues into the save."""
        child = os.fork()
        if child:
            return child
        self.writes, self.ready, self._began = Writes(fatal), pipe, time.perf_counter()
        return None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.writes is None:
            return
        if self.ready >= 0:
            answer = {"writes": self.writes.count, "seconds": time.perf_counter() - self._began}
            os.write(self.ready, json.dumps(answer).encode())
        os._exit(0)

    def _resume(self, moment: object) -> None:
        """Resume in a child process, from the newest complete checkpoint, to the end of the run."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, json.dumps(self._resumed()).encode())
            os._exit(0)
        os.close(writer)
        answer = os.read(reader, 10000)
        os.close(reader)
        assert os.waitpid(child, 0)[1] == 0 and answer, moment
        self.found.append({"moment": moment, **json.loads(answer)})

    def _resumed(self) -> dict[str, Any]:
        first: list[int] = []

        class First(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                first.append(state.global_step)

        with OutputFolder(self.folder, command="test", resume=True):
            left = sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".lock"))
            newest = newest_verified(self.folder)
            trainer = MAKERS[self.kind](self.folder)
            with torch.no_grad():  # the result must not depend on the initial weights
                for parameter in trainer.model.parameters():
                    parameter.add_(0.1 * parameter.requires_grad)
            trainer.add_callback(First())
            trainer.train(resume_from_checkpoint=True)
        now = weights(trainer)
        same = all(torch.equal(now[name], value) for name, value in self.expected.items())
        return {"newest": newest.name if newest else "", "from": first[0], "same": same, "left": left}


def main(root: Path, kind: str, every: int, randomly: int) -> None:
    torch.set_num_threads(1)
    straight = MAKERS[kind](root / "straight")
    straight.train()
    with OutputFolder(root / "run", command="test") as folder:
        pass
    trainer = MAKERS[kind](folder, save_strategy="steps")
    trainer.add_callback(Kills(kind, folder, weights(straight), every, randomly))
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
