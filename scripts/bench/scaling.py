"""Cost of a second process: two processes with one thread each against one with two threads, the same global batch.

    python scripts/bench/scaling.py           writes scripts/bench/results/scaling.json (ten minutes on two cores)

Reward training and PPO on SmolLM2, in alternating rounds. Measured per step: seconds, bytes that a process passes to
collectives (gradients and sums), and the fraction of time it waits in them, from the last computed gradient to the end
of the exchange. Processes communicate through gloo on the CPU. If there is a GPU, `gpu.py` runs afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import machine, save
from peft import LoraConfig
from policy_sides import MODEL, TARGETS, Case, rows, settings
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, TrainerCallback

from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.launch.signals import exit_process
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer

DATA = Path(__file__).parents[2] / "data" / "assistant" / "train.jsonl.gz"
TASKS = ("reward", "ppo")
LAYOUTS = {"one_process": (1, 2), "two_processes": (2, 1)}  # processes, and threads of each
BATCH, EPISODES, LONGEST = 8, 16, 37  # pairs of a step, episodes of an update, tokens of their prompts


class Wire:
    """Counts the bytes that one trainer sends, and the seconds it waits for them."""

    def __init__(self) -> None:
        self.bytes, self.seconds, self._ready = 0, 0.0, 0.0

    def watch(self, trainer: Any) -> None:
        """Observe gradients, and everything that the accelerator reduces or gathers."""
        accelerator, model = trainer.accelerator, trainer.model_wrapped
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(model.process_group, self._bucket)
        accelerator.backward = self._timed(accelerator.backward, counted=False, ready=True)
        for name in ("reduce", "gather"):
            setattr(accelerator, name, self._timed(getattr(accelerator, name)))

    def take(self) -> tuple[int, float]:
        """The counts since the last call."""
        found = self.bytes, self.seconds
        self.bytes, self.seconds = 0, 0.0
        return found

    def _bucket(self, group, bucket):  # DDP does not accept string annotations
        self.bytes += bucket.buffer().nbytes
        self._ready = time.perf_counter()
        return allreduce_hook(group, bucket)

    def _timed(self, function: Callable[..., Any], counted: bool = True, ready: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            started, self._ready = time.perf_counter(), 0.0
            found = function(*args, **options)
            began = self._ready if ready else started
            self.seconds += time.perf_counter() - began if began else 0.0
            self.bytes += args[0].nbytes if counted and isinstance(args[0], torch.Tensor) else 0
            return found

        return call


class Steps(TrainerCallback):
    """Seconds of each step, and the bytes sent in it."""

    def __init__(self) -> None:
        self.wire, self.trainer = Wire(), None
        self.steps: list[dict[str, float]] = []
        self._started = 0.0

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        if torch.distributed.is_initialized():
            self.wire.watch(self.trainer)

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        self.wire.take()
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        sent, waited = self.wire.take()
        self.steps.append({"seconds": time.perf_counter() - self._started, "bytes": sent, "waited": waited})


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=TARGETS)


def fresh() -> tuple[Any, Backbone]:
    tokenizer: Any = load_tokenizer(MODEL)
    return tokenizer, Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))


def reward_trainer(folder: str, processes: int, steps: int, watch: Steps) -> Any:
    """Pairs of data/assistant without critiques, of similar length in every step."""
    tokenizer, backbone = fresh()
    model = RewardModel.create(backbone, lora(), RewardSettings(MODEL, max_length=384))
    builder = ExampleBuilder(ChatFormat(tokenizer, 384), backbone, with_critiques=False)
    examples = builder.comparisons(load_feedback(str(DATA)).comparisons[: BATCH * steps])
    config = RewardConfig(
        output_dir=folder, per_device_train_batch_size=BATCH // processes, max_steps=steps, critique_weight=0.0,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, report_to="none",
    )  # fmt: skip
    return RewardTrainer(model, config, examples, processing_class=tokenizer, callbacks=[watch])


def ppo_trainer(folder: str, processes: int, steps: int, watch: Steps) -> Any:
    """Sixteen episodes per update; policy, value head, reference and reward on one backbone."""
    tokenizer, backbone = fresh()
    chat = ChatFormat(tokenizer)
    prompts = [ids for ids in map(chat.prompt_ids, load_prompts(str(DATA))) if len(ids) <= LONGEST][:EPISODES]
    case = Case(prompts, 2)
    agent = AgentModel.create(backbone, lora())
    agent.add_reward(RewardModel.create(backbone, lora(), RewardSettings(MODEL)))
    given = settings(folder, case) | {
        "per_device_train_batch_size": EPISODES // processes, "total_episodes": EPISODES * steps, "use_cpu": False,
    }  # fmt: skip
    trainer = PPOTrainer(PPOConfig(**given), tokenizer, agent, train_dataset=rows(case), callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    return trainer


def work(task: str, steps: int) -> None:
    """One process of a launch: train; the first process prints the result."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        watch = Steps()
        make = reward_trainer if task == "reward" else ppo_trainer
        trainer = watch.trainer = make(folder, processes, steps + 1, watch)
        assert trainer.accelerator.num_processes == processes
        trainer.train()
        if trainer.is_world_process_zero():
            print(json.dumps(watch.steps[1:]))  # the first one also checks whether the model can share prefixes


def launch(task: str, layout: str, steps: int) -> list[dict[str, float]]:
    """The steps of one launch."""
    processes, threads = LAYOUTS[layout]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), __file__, "--work", task, "--steps", str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("[{")))


def measure(task: str, rounds: int, steps: int) -> dict[str, Any]:
    """Both layouts of a task in turn."""
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in LAYOUTS}
    for _ in range(rounds):
        for layout in LAYOUTS:
            found[layout].append(launch(task, layout, steps))
            print(task, layout, [round(step["seconds"], 2) for step in found[layout][-1]], flush=True)
    totals = {name: [sum(step["seconds"] for step in one) for one in many] for name, many in found.items()}
    ratios = [one / two for one, two in zip(totals["one_process"], totals["two_processes"], strict=True)]
    two = [step for one in found["two_processes"] for step in one]
    return {
        "throughput_ratio": round(statistics.median(ratios), 3),
        "throughput_ratio_rounds": [round(ratio, 3) for ratio in ratios],
        "seconds_per_step": {name: round(statistics.median(many) / steps, 2) for name, many in totals.items()},
        "bytes_per_step": round(statistics.median(step["bytes"] for step in two)),
        "share_waited": round(statistics.median(step["waited"] / step["seconds"] for step in two), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps that are measured in each launch")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--output", default="scaling.json", help="file in scripts/bench/results")
    parser.add_argument("--work", choices=TASKS, help="be one process of a launch")
    args = parser.parse_args()
    if args.work:
        return work(args.work, args.steps)
    result: dict[str, Any] = {
        "machine": machine(), "model": MODEL, "rounds": args.rounds, "steps": args.steps,
        "layouts": {name: {"processes": p, "threads_each": t} for name, (p, t) in LAYOUTS.items()},
        **{task: measure(task, args.rounds, args.steps) for task in args.tasks},
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    print(save(args.output, result))
    if torch.cuda.is_available():
        subprocess.run([sys.executable, str(Path(__file__).with_name("gpu.py"))], check=True)


if __name__ == "__main__":
    main()
    exit_process(0)
