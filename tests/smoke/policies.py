"""`rrm-lm policy` on tiny models: prompts, rewards, and a run with a few quick updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.smoke.commands import Result, flags, read, run, write_rows

QUESTIONS = [
    *("what is the moon made of?", "who lives in the sea?", "is the answer blue?", "what was asked?", "who is it?"),
    "why is the sea blue?",
]
HELD_OUT = ["what is the sea made of?", "who lives in the moon?", "please tell me a story", "is the moon blue?"]
CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", 2, "--max_steps", 6)
# Reward functions in a separate file, as users have them.
REWARDS = """
def counting(prompts, responses):
    assert len(prompts) == len(responses)
    return [len(text) / 10 - sum(text.count(vowel) for vowel in "aeiou") / 3 for text in responses]

def short(prompts, responses):
    return [-len(text) for text in responses]

def gold(prompts, responses):
    return [text.count("e") + len(text) / 50 for text in responses]

def falling(prompts, responses, calls=[]):
    calls.append(1)
    return [-100.0 * len(calls) + len(text) / 100 for text in responses]

# These fail after the trial call.
def raising(prompts, responses, calls=[]):
    calls.append(1)
    for text in responses:
        if len(text) > 1 and len(calls) > 1:
            raise KeyError("no such word")
    return [0.0] * len(responses)

def nothing(prompts, responses, calls=[]):
    calls.append(1)
    return [float("nan") if len(calls) > 1 else 0.0] * len(responses)

def one(prompts, responses, calls=[]):
    calls.append(1)
    return [1.0] * (1 if len(calls) > 1 else len(responses))

def scalar(prompts, completions, **kwargs):
    return 1.0

def constant(prompts, responses):
    return [2.5] * len(responses)

number = 3
"""


def write_prompts(folder: Path) -> Path:
    """Write training prompts, held-out prompts and reward functions: prompts.jsonl, heldout.jsonl and rewards.py."""
    write_rows(folder / "heldout.jsonl", [{"prompt": question} for question in HELD_OUT])
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return write_rows(folder / "prompts.jsonl", [{"prompt": question} for question in QUESTIONS])


def teach(capture: Any, model: Path, prompts: Path, output: Path, *more: object) -> Result:
    """`rrm-lm policy` with a few quick updates and the reward `counting`; `more` overrides the defaults."""
    settings: dict[str, object] = {
        "reward_function": f"{prompts.parent / 'rewards.py'}:counting",
        "response_length": 6,
        "temperature": 1,
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 2,
        "max_steps": 3,
        "learning_rate": "1e-2",
        "eval_fraction": 0,
        "save_strategy": "no",
        "dtype": "float32",
        "use_cpu": "true",
        "lora_r": 4,
    }
    if "--reward_model" in more:
        settings.pop("reward_function")
    names = ("--model_name_or_path", model, "--prompts", prompts, "--output_dir", output)
    return run(capture, "policy", *names, *flags(settings, more))


def updates(folder: Path) -> list[dict[str, Any]]:
    """The log of each update of a finished run, without times."""
    log = read(folder / "trainer_state.json")["log_history"]
    timed = ("eps", "tokens_per_second")
    return [
        {name: value for name, value in entry.items() if not name.startswith("time/") and name not in timed}
        for entry in log
        if "objective/scores" in entry
    ]


def measured(folder: Path) -> list[dict[str, Any]]:
    """The measurements of the monitor."""
    return [json.loads(line) for line in (folder / "over_optimisation.jsonl").read_text().splitlines()]


def same_values(left: Path, right: Path) -> bool:
    """Whether two folders hold the same value function, bit for bit."""
    one, other = (load_file(folder / "value.safetensors") for folder in (left, right))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
