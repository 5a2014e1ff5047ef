"""Speed and memory of PPO on one shared backbone compared with TRL 1.12's PPOTrainer with LoRA, in one process.

    python scripts/bench/policy.py --rounds 2      writes scripts/bench/results/policy.json

An iteration has 16 episodes: generate 32 tokens for each prompt, score, update. TRL uses its fastest settings on a CPU:
fp32, no recomputation, a single rollout batch, and its fastest micro-batch size (`--micro_batch`).
Responses never end early, so that both sides generate the same number of tokens. All prompts start with the same
tokens, because they use the model's chat template. Our side computes these once, so it is also measured on prompts that
share nothing. Finished rounds are saved, so a stopped script resumes. Peak memory is measured in separate processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import RESULTS, machine, matrix_ceiling, peak_rss_mb, read_ceiling, save
from policy_floor import Floor
from policy_sides import MODEL, NEW_TOKENS, Case, Equivalent, Ours, Trl

from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.batching import share
from rrm_lm.text.chat import ChatFormat

DATA = Path(__file__).parents[2] / "data" / "assistant" / "train.jsonl.gz"
LONGEST = 37  # tokens of a prompt; those of the set have 35 to 45
SIDES = ("ours", "trl")
COMPARED = ("epochs_2", "epochs_4", "samples_4")

Round = dict[str, Any]


def make_cases(episodes: int) -> dict[str, Case]:
    """Prompts in the model's template, and prompts of the same lengths that share nothing."""
    tokenizer: Any = load_tokenizer(MODEL)
    chat, found = ChatFormat(tokenizer), load_prompts(str(DATA))
    alike = [ids for ids in map(chat.prompt_ids, found) if len(ids) <= LONGEST][:episodes]
    stream = iter(tokenizer(" ".join(p[-1].content for p in found), add_special_tokens=False).input_ids)
    return {
        "epochs_2": Case(alike, 2),
        "epochs_4": Case(alike, 4),
        "samples_4": Case(alike[::4], 2, samples=4),
        "nothing_shared": Case([[next(stream) for _ in ids] for ids in alike], 2),
    }  # fmt: skip


class PolicyBench:
    """Both sides: created once, run in every round."""

    def __init__(self, folder: str, cases: dict[str, Case], micro_batch: int) -> None:
        self.cases = cases
        first = cases["epochs_2"]
        self.ours = Ours(f"{folder}/ours", self.cases)
        self.trl = Trl(f"{folder}/trl", first, micro_batch)
        self.equivalent = Equivalent(f"{folder}/equivalent", first, self.trl.trainer.reward_model)

    def warm_up(self) -> None:
        """Run everything once, so that one-time work is not measured."""
        self.trl(Case(self.cases["epochs_2"].prompts, epochs=1))
        for name in self.cases:
            self.ours(name)
        self.equivalent(self.trl.responses)

    def round(self) -> Round:
        """Every case of both sides in turn, with the ceilings measured in between."""
        found: Round = {"ours": {}, "trl": {}, "matrix": [], "read": []}

        def measure(side: str, name: str, run: Callable[[], dict[str, float]]) -> None:
            found["matrix"].append(matrix_ceiling())
            found["read"].append(read_ceiling())
            found[side][name] = {part: round(seconds, 3) for part, seconds in run().items()}
            print(f"{side} {name}: {found[side][name]}", flush=True)

        for name in COMPARED:
            measure("trl", name, lambda name=name: self.trl(self.cases[name]))
            measure("ours", name, lambda name=name: self.ours(name))
            if name == "epochs_2":
                measure("ours", "nothing_shared", lambda: self.ours("nothing_shared"))
                measure("ours", "equivalent", lambda: self.equivalent(self.trl.responses))
        return found


def peak_memory(args: argparse.Namespace, folder: str) -> float:
    """Peak memory of this process after an iteration of two epochs, in megabytes; the second epoch reaches the peak."""
    case = make_cases(args.episodes)["epochs_2"]
    if args.memory == "ours":
        Ours(folder, {"epochs_2": case})("epochs_2")
    else:
        Trl(folder, case, args.micro_batch or args.episodes)(case)
    return peak_rss_mb()


def in_own_process(side: str, args: argparse.Namespace) -> float:
    """The peak memory of one side."""
    command = [sys.executable, __file__, "--memory", side]
    for name in ("episodes", "micro_batch", "threads"):
        command += [f"--{name}", str(getattr(args, name))]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(json.loads(output.strip().splitlines()[-1])["peak_rss_mb"])


def ratios(rounds: list[Round]) -> dict[str, Any]:
    """Medians over rounds, each round's two sides compared with each other."""

    def paired(ratio: Callable[[Round], float]) -> float:
        return round(median(map(ratio, rounds)), 3)

    def whole(side: str, name: str) -> Callable[[Round], float]:
        return lambda one: one[side][name]["iteration"]

    def learning(one: Round) -> float:
        return one["ours"]["equivalent"]["estimate"] + one["ours"]["equivalent"]["update"]

    def rollout(name: str) -> float:
        return paired(lambda one: one["trl"][name]["roll_out"] / one["ours"][name]["roll_out"])

    iteration = {
        name: paired(lambda one, name=name: whole("trl", name)(one) / whole("ours", name)(one)) for name in COMPARED
    }
    return {
        "iteration_ratio": iteration,
        "iteration_ratio_nothing_shared": paired(
            lambda one: whole("trl", "epochs_2")(one) / whole("ours", "nothing_shared")(one)
        ),
        # From rollouts and scores to the next policy: old values, and the update. TRL has old log-probabilities from
        # its rollouts; ours come from the first training pass.
        "update_ratio": paired(
            lambda one: (one["trl"]["epochs_2"]["values"] + one["trl"]["epochs_2"]["update"]) / learning(one)
        ),
        "update_ratio_without_trl_values": paired(lambda one: one["trl"]["epochs_2"]["update"] / learning(one)),
        "rollout_ratio": rollout("epochs_2"),
        "rollout_ratio_samples_4": rollout("samples_4"),
        "rollout_ratio_nothing_shared": paired(
            lambda one: one["trl"]["epochs_2"]["roll_out"] / one["ours"]["nothing_shared"]["roll_out"]
        ),
    }


def seconds_of(rounds: list[Round]) -> dict[str, Any]:
    """Medians over rounds, by side, case and phase."""
    return {
        side: {
            name: {part: round(median(one[side][name][part] for one in rounds), 3) for part in parts}
            for name, parts in rounds[0][side].items()
        }
        for side in SIDES
    }


def floors(bench: PolicyBench, seconds: dict[str, Any], rounds: list[Round]) -> dict[str, Any]:
    """Lower bounds for our iterations next to the measured times, and the shares of the ceilings."""
    matrix, read = (median(value for one in rounds for value in one[name]) for name in ("matrix", "read"))
    found: dict[str, Any] = {
        "ceilings": {"matrix_gflops": round(matrix / 1e9, 1), "memory_read_gb_per_second": round(read / 1e9, 1)}
    }
    for name, case in bench.cases.items():
        floor = Floor(bench.ours.trainers[name], case)
        found[name] = {
            "floor_seconds": {part: round(value, 3) for part, value in floor.seconds(matrix, read).items()},
            "ceiling_share": {
                part: round(value, 3) for part, value in floor.shares(seconds["ours"][name], matrix, read).items()
            },
            **floor.sizes(),
        }
    return found


def summary(bench: PolicyBench, rounds: list[Round]) -> dict[str, Any]:
    """The results computed from the rounds."""
    seconds = seconds_of(rounds)
    written = bench.cases["epochs_2"].episodes * NEW_TOKENS
    found = floors(bench, seconds, rounds)
    return {
        **ratios(rounds),
        "ceiling_share": found["epochs_2"]["ceiling_share"],
        "rollout_tokens_per_second": {
            side: round(written / seconds[side]["epochs_2"]["roll_out"], 1) for side in SIDES
        },
        "seconds": seconds,
        "floors": found,
    }  # fmt: skip


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Saved rounds, completed by new ones."""
    cases, path = make_cases(args.episodes), RESULTS / args.output
    prompts = [tuple(prompt) for prompt in cases["epochs_2"].prompts]
    repeated = sum(map(len, prompts)) - len(share(prompts))
    setting = {
        "model": MODEL, "episodes": args.episodes, "new_tokens": NEW_TOKENS,
        "trl_micro_batch": args.micro_batch or args.episodes,
        "prompt_tokens": sum(map(len, prompts)), "prompt_tokens_repeated": repeated, "threads": args.threads,
    }  # fmt: skip
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() and not args.fresh else {}
    if result and result["setting"] != setting:
        sys.exit(f"{path} was measured with {result['setting']}, not {setting}: start again with --fresh")
    result |= {"setting": setting, "machine": machine()}
    peaks = result.setdefault("peak_rss_mb", {})
    for side in SIDES:  # before the models are loaded, which would take the memory
        if side not in peaks:
            peaks[side] = round(in_own_process(side, args))
            print(f"{side}: {peaks[side]} MB", flush=True)
            save(args.output, result)
    result["memory_ratio"] = round(peaks["ours"] / peaks["trl"], 3)
    rounds = result.setdefault("rounds", [])
    bench = PolicyBench(folder, cases, setting["trl_micro_batch"])
    bench.warm_up()
    while len(rounds) < args.rounds:
        rounds.append(bench.round())
        save(args.output, result)
    result |= summary(bench, rounds)
    return {name: value for name, value in result.items() if name != "rounds"} | {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="rounds in all, those that are kept included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=16, help="of an iteration; fewer only to try the script")
    parser.add_argument("--micro_batch", type=int, default=0, help="TRL's episodes a forward and backward; 0 for all")
    parser.add_argument("--output", default="policy.json", help="file in scripts/bench/results")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    parser.add_argument("--memory", choices=SIDES, help="one iteration of one side, and the process's peak memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            print(json.dumps({"peak_rss_mb": peak_memory(args, folder)}))
            return
        result = measure(args, folder)
    print(json.dumps({name: value for name, value in result.items() if name != "rounds"}, indent=2))
    print(save(args.output, result))


if __name__ == "__main__":
    main()
