"""The whole pipeline on data/notes with several seeds: reward model, SFT, PPO, DPO, best of 8, and trivial policies.

    python scripts/bench/aligned.py --seeds 0                         (a pilot on the validation part)
    python scripts/bench/aligned.py --part test --seeds 1 2 3 4 5     (the final comparison)
    python scripts/bench/aligned.py --part test --seeds 1 2 3 4 5 --summarise

Every stage is a command with an output folder; a finished stage is not run again, so a stopped script resumes. Writes
results/aligned.json (`aligned_validation.json` for the validation part). Each use of the test part is recorded in
results/aligned_ledger.jsonl with the commit and a digest of the settings, since settings must not be chosen on it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from aligned_dpo import train_dpo
from common import RESULTS, commit, machine, save

from rrm_lm.evaluation.statistics.metrics import Estimate, mean_estimate, over_runs
from rrm_lm.simulated.note_users import NoteUser
from rrm_lm.storage import sha256

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "notes"
CONFIG = ROOT / "configs" / "notes.yaml"
GENERAL = (ROOT / "data" / "assistant" / "heldout.jsonl.gz", ROOT / "data" / "assistant" / "requests.jsonl")
TRAINED = ("sft", "ppo", "dpo")
SAMPLES, BEST_OF = 4, 8
CONSTANT = "I hope this helps! Have a lovely day!"

# For each policy, the values of every prompt: gold and its parts, averaged over samples.
ByPrompt = dict[str, dict[str, np.ndarray]]


def stages(seed: int, part: str, out: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The stages of one seed: a file that the finished stage leaves, and what runs it."""
    run, found = out / f"seed{seed}", out / f"seed{seed}" / part
    folders = {"sft": run / "sft", "ppo": run / "policy", "dpo": run / "dpo"}
    questions = DATA / f"{part}_questions.jsonl.gz"
    seeds = [flag for stage in ("reward", "sft", "policy") for flag in (f"--{stage}.seed", str(seed))]
    yield run / "compare" / "results.json", command("run", "--config", CONFIG, "--output_dir", run, *seeds)
    yield (
        found / "evaluate" / "results.json",
        command(
            "evaluate", "--model", run / "reward", "--dataset", DATA / f"{part}_plain.jsonl.gz",
            "--output_dir", found / "evaluate", "--baselines", "true",
            "--baselines_train", DATA / "train_plain.jsonl.gz",
        ),
    )  # fmt: skip
    yield (
        folders["dpo"] / "config.json",
        lambda: train_dpo(folders["sft"], DATA / "train_plain.jsonl.gz", folders["dpo"], seed),
    )
    shared = ["--prompts", questions, "--gold", questions, "--max_new_tokens", "48", "--seed", str(seed)]
    policies = list(folders.values())
    for name, some, flags in (
        ("sampled", policies, ["--samples", str(SAMPLES), "--temperature", "1"]),
        ("greedy", policies, ["--samples", "1", "--temperature", "0"]),
        ("best_of", policies[:1], ["--samples", str(BEST_OF), "--proxy", run / "reward"]),
    ):
        folder = found / name
        yield folder / "results.json", command("compare", *some, *shared, *flags, "--output_dir", folder)
    general = ["--prompts", GENERAL[0], "--gold", GENERAL[1], "--max_prompts", "50", "--temperature", "0"]
    folder = run / "general"
    flags = ["--samples", "1", "--max_new_tokens", "64", "--output_dir", folder]
    yield folder / "results.json", command("compare", *policies, *general, *flags)


def command(*parts: object) -> Callable[[], None]:
    """A command of rrm-lm as a function."""
    words = [sys.executable, "-m", "rrm_lm", *map(str, parts)]
    return lambda: subprocess.run(words, check=True, cwd=ROOT)  # type: ignore[return-value]


def run_seed(seed: int, part: str, out: Path) -> None:
    """Run what is missing of one seed."""
    for file, work in stages(seed, part, out):
        if not file.is_file():
            print(f"seed {seed}: {file.parent.relative_to(out)}", flush=True)
            work()


def record_use(seeds: Sequence[int]) -> None:
    """Append a use of the test part to the ledger."""
    use = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": commit(), "config": sha256(CONFIG), "seeds": [*seeds]}
    with (RESULTS / "aligned_ledger.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(use) + "\n")


def by_prompt(file: Path, user: NoteUser, best_by: str | None = None) -> ByPrompt:
    """Gold and its parts of each policy and prompt of a samples.jsonl, `(prompts,)`, in the order of the requests.

    Args:
        file: `samples.jsonl` of a comparison.
        user: Judges the samples.
        best_by: Only the sample of each prompt with the highest such reward counts.
    """
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        asked = user.request(row["prompt"][-1]["content"]).text
        groups.setdefault(Path(row["policy"]).name, {}).setdefault(asked, []).append(row)
    found: ByPrompt = {}
    for name, prompts in groups.items():
        judged = []
        for request in user.requests.values():
            rows = prompts[request.text]
            chosen = [max(rows, key=lambda row: row["rewards"][best_by])] if best_by else rows
            judged.append([user.judge(request.text, row["response"]) for row in chosen])
        found[name] = {"gold": np.array([np.mean([j.gold for j in some]) for some in judged])} | {
            part: np.array([np.mean([j.parts[part] for j in some]) for some in judged]) for part in user.parts
        }
    return found


def trivial(user: NoteUser) -> ByPrompt:
    """Policies that need no model: a constant reply, the first sentence of the note, and the whole note."""
    texts: Mapping[str, Callable[[str], str]] = {
        "constant reply": lambda _: CONSTANT,
        "first sentence of the note": lambda note: note.split(". ")[0] + ". " + CONSTANT,
        "whole note": lambda note: note,
    }
    requests = list(user.requests.values())
    judged = {name: [user.judge(r.text, text(r.note)) for r in requests] for name, text in texts.items()}
    return {
        name: {"gold": np.array([j.gold for j in some])}
        | {part: np.array([j.parts[part] for j in some]) for part in user.parts}
        for name, some in judged.items()
    }


def summary(part: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """The numbers of aligned.json."""
    user = NoteUser.from_file(DATA / f"{part}_questions.jsonl.gz")
    sampled, greedy, best = [], [], []
    for seed in seeds:
        folder = out / f"seed{seed}" / part
        sampled.append(by_prompt(folder / "sampled" / "samples.jsonl", user))
        greedy.append(by_prompt(folder / "greedy" / "samples.jsonl", user))
        proxy = str(out / f"seed{seed}" / "reward")
        best.append(by_prompt(folder / "best_of" / "samples.jsonl", user, proxy)["sft"])
    names = {"start": "smollm2-135m", "sft": "sft", "ppo": "policy", "dpo": "dpo"}
    notes = [request.note for request in user.requests.values()]  # questions about one note are not independent

    def over(runs: Sequence[np.ndarray]) -> dict[str, Any]:
        return combined(np.array(runs), notes).to_dict()

    def table(runs: Sequence[ByPrompt], name: str) -> dict[str, Any]:
        parts = {part: over([run[name][part] for run in runs]) for part in user.parts}
        return {"gold": over([run[name]["gold"] for run in runs]), "parts": parts}

    policies = {name: table(sampled, there) for name, there in names.items()}
    policies["best_of_8"] = {
        "gold": over([run["gold"] for run in best]),
        "parts": {part: over([run[part] for run in best]) for part in user.parts},
    }
    other = max(("start", "sft"), key=lambda name: policies[name]["gold"]["value"])
    at_zero = {name: table(greedy, there) for name, there in names.items()}
    right = max(("start", "sft"), key=lambda name: at_zero[name]["parts"]["answer"]["value"])
    return {
        "part": part, "seeds": [*seeds], "commit": commit(), "machine": machine(), "config": sha256(CONFIG),
        "reward": [reward_accuracy(out / f"seed{seed}" / part / "evaluate" / "results.json") for seed in seeds],
        "policies": policies,
        "policies_at_temperature_0": at_zero,
        "better_in_gold": other,
        "better_in_answers": right,
        "ppo_minus_best_other": over([run["policy"]["gold"] - run[names[other]]["gold"] for run in sampled]),
        "answer_ppo_minus_best_other": over(
            [run["policy"]["answer"] - run[names[right]]["answer"] for run in greedy]
        ),
        "parts_ppo_minus_sft": {
            part: over([run["policy"][part] - run["sft"][part] for run in sampled]) for part in user.parts
        },
        "trivial": {
            name: {key: mean_estimate(values, notes, bounds=(0, 1)).to_dict() for key, values in found.items()}
            | {"ppo_minus": over([run["policy"]["gold"] - found["gold"] for run in sampled])}
            for name, found in trivial(user).items()
        },
    }  # fmt: skip


def combined(values: np.ndarray, notes: Sequence[str]) -> Estimate:
    """An estimate over runs and notes; over notes alone for a single run."""
    return over_runs(values, notes) if len(values) > 1 else mean_estimate(values[0], notes, bounds=(-1, 1))


def reward_accuracy(file: Path) -> dict[str, Any]:
    """What the reward model and the baselines get right, of one seed."""
    (found,) = json.loads(file.read_text(encoding="utf-8"))["sets"].values()
    return {key: found[key] for key in ("accuracy", "by_source", "baselines") if key in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "aligned")
    parser.add_argument("--summarise", action="store_true", help="only write the results of finished seeds")
    args = parser.parse_args()
    out = args.output.resolve()
    if not args.summarise:
        if args.part == "test":
            record_use(args.seeds)
        for seed in args.seeds:
            run_seed(seed, args.part, out)
    name = "aligned.json" if args.part == "test" else "aligned_validation.json"
    print(save(name, summary(args.part, args.seeds, out)))


if __name__ == "__main__":
    main()
