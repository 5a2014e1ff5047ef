"""Do other programs read the rewards that `rrm-lm score` gives? Run by `make test-clients`.

Trains a small reward model for each chat-template family and one on the embedded SmolLM2, saves adapter and merged
checkpoint, and scores the same pairs with each client, unmodified, in a separate environment:

- RewardBench 0.1.4 with transformers 4.51.0, the oldest that a client pins (`with_rewardbench.py`);
- PEFT with the same transformers, on the adapter (`with_peft.py`);
- TRL 1.16's GRPO for one step, with `reward_funcs=FOLDER` (`with_grpo.py`);
- `pipeline("text-classification")` of the newest transformers (`with_pipeline.py`);
- the reward clients of verl 0.9.1, OpenRLHF 0.11.2 and LLaMA-Factory 0.9.5 against `rrm-lm serve` (`with_servers.py`).

Writes `scripts/bench/results/clients.json`, and fails if a reward differs by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from rrm_lm.evaluation.preferences.scorers import load_scorer
from rrm_lm.feedback.records import Message
from rrm_lm.storage import write_json
from scripts.bench.common import RESULTS, commit, machine
from tests.templates import TEMPLATES, family_tokenizer
from tests.tiny import save_tiny_model

HERE = Path(__file__).parent
ALLOWED = 1e-4
TORCH = "torch==2.13.0"
# RewardBench pins only transformers; these versions are from the same time.
OLD = (
    "transformers==4.51.0", "peft==0.15.2", "trl<0.18", "accelerate<1.9", "datasets<4", "pandas", "fschat", "tabulate",
    "sentencepiece", "tiktoken", "wandb", "setuptools<81",
)  # fmt: skip
ENVIRONMENTS = {
    "old": [[TORCH], [*OLD], ["--no-deps", "rewardbench==0.1.4"]],
    "new": [
        [TORCH],
        ["trl==1.16.0", "peft", "aiohttp", "requests"],
        ["--no-deps", "verl==0.9.1", "openrlhf==0.11.2", "llamafactory==0.9.5"],
    ],
}
CLIENTS = {
    "RewardBench 0.1.4": ("old", "with_rewardbench.py", "merged"),
    "PEFT 0.15.2, transformers 4.51.0": ("old", "with_peft.py", "adapter"),
    "TRL 1.16.0 GRPO, one step": ("new", "with_grpo.py", "merged"),
    "pipeline": ("new", "with_pipeline.py", "merged"),
    "PEFT, newest": ("new", "with_peft.py", "adapter"),
}
PAIRS = [
    ([("user", "How long does cooked rice keep?")], "Four days in the fridge. Enjoy!", "Sure! Rice is a grain."),
    ([("user", "Two and two?")], "Four", "I think that it is five, or maybe six.\n\nDo you need more help?"),
    ([("user", "Hello"), ("assistant", "Hi!"), ("user", "Name a color.")], "Blue.", "Certainly! Colors are many"),
    ([("user", "Write a list.")], "1. one\n2. two", " - one "),
    ([("user", "Is the sea blue?\n")], "yes", "no"),
    ([("user", "café 漢字?")], "é 漢字 🌊", "No idea."),
    ([("user", "Why?")], "Because.", "Why not? " * 12),
    ([("user", "A story, please. " * 10)], "Once there was a moon over the sea. The end.", "No"),
]


def main() -> None:
    """Run all models, or only those in `--models`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*TEMPLATES, "smollm2-135m"])
    parser.add_argument("--work", type=Path, default=Path("outputs/clients"), help="environments and models")
    parser.add_argument("--results", type=Path, default=RESULTS / "clients.json")
    args = parser.parse_args()
    work = args.work.absolute()
    pythons = {name: environment(work / name, name) for name in ENVIRONMENTS}
    found: dict[str, Any] = {}
    for name in args.models:
        folder = reward_model(work / "models" / name, name)
        found[name] = {client: compare(client, folder, pythons) for client in CLIENTS} | served(folder, pythons["new"])
        for client, result in found[name].items():
            print(f"{name:14} {client:44} largest difference {result['largest_difference']:.1e}", flush=True)
    largest = max(result["largest_difference"] for of_model in found.values() for result in of_model.values())
    versions = {name: packages(python) for name, python in pythons.items()}
    about = {"machine": machine(), "commit": commit(), "environments": versions, "allowed": ALLOWED}
    write_json(args.results, {**about, "largest_difference": largest, "models": found})
    sys.exit(f"error: rewards differ by up to {largest:.2g}" if not largest <= ALLOWED else 0)


def environment(folder: Path, name: str) -> Path:
    """The Python of a client's environment, which is created if missing."""
    python, made = folder / "bin" / "python", folder / ".made"
    if not made.is_file():
        print(f"making the environment {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for packages in ENVIRONMENTS[name]:
            pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
            subprocess.run([*pip, *packages], check=True)
        made.touch()
    return python


def packages(python: Path) -> dict[str, str]:
    """The relevant package versions in an environment."""
    names = ("rewardbench", "transformers", "tokenizers", "peft", "trl", "accelerate", "torch")
    code = f"""
import importlib.metadata as m, json
there = {{d.name.lower() for d in m.distributions()}}
print(json.dumps({{n: m.version(n) for n in {names} if n in there}}))
"""
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def reward_model(folder: Path, name: str) -> Path:
    """A reward model, trained for a few steps so that its adapter and head change."""
    if (folder / "merged" / "config.json").is_file():
        return folder
    base = name
    if name in TEMPLATES:
        tokenizer = family_tokenizer(name)
        base = str(save_tiny_model(folder.with_name(f"{name}-base"), TEMPLATES[name].architecture, tokenizer=tokenizer))
    data = folder.with_name("pairs.jsonl")
    rows = [{"chosen": talk(prompt, good), "rejected": talk(prompt, bad)} for prompt, good, bad in PAIRS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "model_name_or_path": base, "dataset_name": data, "output_dir": folder, "max_steps": 3, "merge": "true",
        "learning_rate": 1e-3, "warmup_steps": 0, "eval_fraction": 0, "dtype": "float32", "use_cpu": "true",
        "report_to": "none", "save_strategy": "no", "disable_tqdm": "true",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    subprocess.run([sys.executable, "-m", "rrm_lm", "reward", *words], check=True)
    return folder


def compare(client: str, folder: Path, pythons: dict[str, Path]) -> dict[str, Any]:
    """The rewards of a client and of `rrm-lm score`, and the largest difference."""
    where, script, kind = CLIENTS[client]
    path = folder / "merged" if kind == "merged" else folder
    return difference(ask(pythons[where], script, path, base=base_of(folder)), folder)


def served(folder: Path, python: Path) -> dict[str, Any]:
    """The same for the clients of servers: the server runs while they ask."""
    words = [sys.executable, "-m", "rrm_lm", "serve", "--model", str(folder), "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        log = ""
        while "serving" not in log:
            line = server.stderr.readline()
            if not line:
                sys.exit(f"error: the server did not start on {folder}:\n{log}")
            log += line
        url = "http://" + log.partition("on http://")[2].split(";")[0]
        try:
            found = ask(python, "with_servers.py", folder, url=url, model=folder.name)
        finally:
            server.terminate()
    return {f"{client}, against rrm-lm serve": difference(read, folder) for client, read in found.items()}


def ask(python: Path, script: str, path: Path, **more: str) -> Any:
    """What a client's script reads from the model in a folder."""
    asked = {"folder": str(path), "pairs": [(p, good, bad) for p, good, bad in PAIRS], **more}
    # Their own threads and no network; nothing of this repository is imported there.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(python), str(HERE / script)],
        input=json.dumps(asked), capture_output=True, text=True, env=env, cwd=path, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"error: {script} failed on {path}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(read: list[float], folder: Path) -> dict[str, Any]:
    """The rewards of a client, and their largest difference from those of `rrm-lm score`."""
    scorer = load_scorer(str(folder), dtype="float32")
    prompts = [tuple(Message(role, text) for role, text in prompt) for prompt, _, _ in PAIRS]
    pairs = [scorer.score([prompt], [[good, bad]])[0] for prompt, (_, good, bad) in zip(prompts, PAIRS, strict=True)]
    scored = [reward for pair in pairs for reward in pair]
    gap = (torch.tensor(read, dtype=torch.float64) - torch.tensor(scored, dtype=torch.float64)).abs().max()
    agree = sum((a > b) == (c > d) for a, b, c, d in zip(read[::2], read[1::2], scored[::2], scored[1::2], strict=True))
    return {"largest_difference": float(gap), "same_order": agree, "pairs": len(PAIRS), "read": read}


def base_of(folder: Path) -> str:
    """The folder of the backbone: that of the embedded model is found by its name."""
    from rrm_lm.models.pretrained import resolve
    from rrm_lm.models.reward_files import read_settings

    settings = read_settings(folder)
    assert settings is not None
    return resolve(settings.base_model)


def talk(prompt: list[tuple[str, str]], response: str) -> list[dict[str, str]]:
    """A conversation as messages."""
    return [{"role": role, "content": text} for role, text in (*prompt, ("assistant", response))]


if __name__ == "__main__":
    main()
