"""Compares the memory that `rrm-lm plan` predicts for the embedded model with the memory that training uses.

    python scripts/bench/plan.py      writes scripts/bench/results/plan.json (twenty minutes on two busy cores)

Each case trains two steps (reward model) or two updates (PPO, with rollouts) in a separate process. The measurement is
the peak of resident memory, minus the memory before the model was loaded. All rows have the planned lengths. On a CPU,
rollouts pack all matrices for oneDNN, including the language-model head, which they do not on other devices; that copy
is added to the plan here. Weights in float32 are memory-mapped, so the parts that are never read (rows of a reward
model's embedding) are not resident. Finished cases are saved, so a stopped script resumes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import RESULTS, machine, peak_rss_mb, save
from peft import LoraConfig

from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.planning.footprint import read_config
from rrm_lm.planning.planning import Job, measure, trained_bytes
from rrm_lm.planning.strategies import static_memory
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import LinePair, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer
from rrm_lm.training.reward_sources import PythonReward

MODEL = "smollm2-135m"
# task, dtype, whether activations are recomputed, rows of a micro-batch
CASES = [
    ("reward", "float32", False, 4),
    ("reward", "float32", True, 4),
    ("reward", "bfloat16", False, 4),
    ("ppo", "float32", False, 4),
    ("ppo", "float32", True, 4),
    ("ppo", "bfloat16", False, 4),
]
Case = tuple[str, str, bool, int]


def job_of(case: Case) -> Job:
    return Job(prompt_length=96, response_length=48, batch=8, num_ppo_epochs=2, activation_checkpointing=case[2])


def lora() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules="all-linear")


def settings(folder: str, case: Case) -> dict[str, Any]:
    return {
        "output_dir": folder, "per_device_train_batch_size": job_of(case).batch, "max_steps": 2, "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "activation_checkpointing": case[2],
        "bf16": False, "logging_steps": 1,
    }  # fmt: skip


def train_reward(backbone: Backbone, case: Case, folder: str, tokenizer: Any) -> None:
    job = job_of(case)
    model = RewardModel.create(backbone, lora(), RewardSettings(MODEL))
    lines = tuple(job.pair.lines())
    rows = tuple(backbone.rows([line.ids for line in lines]))
    examples = [RewardExample(rows, lines, (LinePair(0, 1),), prompt_id=str(number)) for number in range(job.batch)]
    args = RewardConfig(**settings(folder, case), micro_batch_tokens=case[3] * job.pair.width)
    RewardTrainer(model, args, examples, processing_class=tokenizer).train()


def train_policy(backbone: Backbone, case: Case, folder: str, tokenizer: Any) -> None:
    job = job_of(case)
    agent = AgentModel.create(backbone, lora())
    agent.add_reward(RewardModel.create(backbone, lora(), RewardSettings(MODEL)))
    args = PPOConfig(
        **settings(folder, case), micro_batch_tokens=case[3] * job.family.width, num_sample_generations=0,
        rollout_batch_tokens=job.batch * job.episode.width, num_ppo_epochs=job.num_ppo_epochs, max_kl=None,
        response_length=job.response_length, temperature=0.7, learning_rate=1e-6,
    )  # fmt: skip
    lengths = [job.prompt_length - number for number in range(job.batch)]  # uneven, as prompts are
    prompts = [{"input_ids": [1000 + number, *[28] * (length - 1)]} for number, length in enumerate(lengths)]
    length = PythonReward(lambda _, responses: [float(len(response)) for response in responses], "length")
    PPOTrainer(args, tokenizer, agent, train_dataset=prompts, rewards=[length]).train()


def resident() -> int:
    """Resident bytes of this process now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def measured(case: Case, folder: str) -> int:
    """Peak bytes of training in this process."""
    tokenizer: Any = load_tokenizer(MODEL)
    torch.mm(torch.randn(512, 512), torch.randn(512, 512))  # the libraries' own buffers
    gc.collect()
    before = resident()
    backbone = Backbone(load_causal_lm(MODEL, dtype=case[1]), int(tokenizer.pad_token_id))
    (train_reward if case[0] == "reward" else train_policy)(backbone, case, folder, tokenizer)
    return round(peak_rss_mb() * 2**20) - before


def planned(case: Case) -> dict[str, int]:
    """The plan, by component."""
    task, dtype, recomputed, rows = case
    job, kind = job_of(case), getattr(torch, dtype)
    known = measure(read_config(MODEL)[0], lora(), kind, job)
    parts = asdict(static_memory("single", 1, known.sizes, trained_bytes(task, known.sizes, job)))
    parts["activations"] = known.peak(task, recomputed).bytes(rows)
    if task == "ppo":
        parts["rollout"] = known.peak("rollout").bytes(job.batch) + (known.sizes.head if kind == torch.float32 else 0)
    worst = max(parts["activations"], parts["rollout"])
    return {**parts, "peak": sum(parts.values()) - parts["activations"] - parts["rollout"] + worst}


def in_own_process(number: int, threads: int) -> int:
    """Peak memory of a case, in a process that returns freed memory at once."""
    command = [sys.executable, __file__, "--case", str(number), "--threads", str(threads)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return int(json.loads(output.strip().splitlines()[-1])["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="plan.json", help="file in scripts/bench/results")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("--case", type=int, help="run one case here, and print what it took")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"bytes": measured(CASES[args.case], folder)}))
        return
    setting = {"model": MODEL, "job": {**asdict(job_of(CASES[0])), "activation_checkpointing": None}}
    path = RESULTS / args.output
    kept = json.loads(path.read_text()) if path.is_file() and not args.fresh else {}
    found = kept["cases"] if kept.get("setting") == setting else []
    for number in range(len(found), len(CASES)):
        found.append(compared(number, args.threads))
        print(json.dumps({key: value for key, value in found[-1].items() if key != "planned"}), flush=True)
        save(args.output, {"setting": setting, "machine": machine(), "cases": found})
    print(path)


def compared(number: int, threads: int) -> dict[str, Any]:
    """Plan and measurement of a case."""
    task, dtype, recomputed, rows = CASES[number]
    on_paper, taken = planned(CASES[number]), in_own_process(number, threads)
    return {
        "task": task, "dtype": dtype, "activation_checkpointing": recomputed, "micro_batch_rows": rows,
        "measured": taken, "planned_over_measured": round(on_paper["peak"] / taken, 3), "planned": on_paper,
    }  # fmt: skip


if __name__ == "__main__":
    main()
