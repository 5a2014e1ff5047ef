"""Results, speed and memory on a GPU: scoring, reward training and PPO on models of three sizes in bfloat16, compared
with TRL 1.12 (scoring: with plain transformers).

    python scripts/bench/gpu.py --quick              at most 12 minutes on one H200
    python scripts/bench/gpu.py                      all settings and three rounds: hours; results are kept
    python scripts/bench/gpu.py --device cpu         a tiny model on the CPU: tests the script, saves nothing

Both write scripts/bench/results/scaling_gpu.json. First come checks (gpu_checks.py): bfloat16 against float32, shared
prompts against padded ones, rollouts against the uncached model, and where the host waits for the GPU in a PPO update.
The quick form tries one setting of each side for two steps, ours first, and begins nothing after its time is over; it
runs a part at a time if given --models. `profile` has the kernels of one step of each task that took the longest, and
the share of the step in which no kernel ran. `goals` compares with what this project set itself for one H200.

Two tasks have one side. `server` is our PPO with rollouts by vLLM's server (gpu_server.py), which is started for it on
the same GPU and ended after it, or by the server that --server names, which must serve the model of --embedded with
LoRA. If there is no vllm command, the result says so. Only what the trainer holds counts as its memory. `grpo` is TRL's
GRPOTrainer, which samples with transformers here. With --quick both are measured on the last of the models only, after
the other tasks and without repeating a run; `--quick --models 8b --tasks server grpo` has 12 minutes for them alone.

Models: the embedded one, and two that are randomly initialized on the device (1B, 8B). LoRA of rank 16 on all linear
layers, bfloat16 weights and autocasting. A step of reward training has 32 pairs; a PPO update has 64 episodes of 128
new tokens and four epochs; an iteration of GRPO has as many samples, two of each prompt, and as many epochs. Every run
is a separate process. The settings of each side are tried in order, from the fastest expected to the smallest memory,
until one that fits is slower than an earlier one. The fastest setting then runs in rounds that alternate between both
sides. If a side runs out of memory, fails or takes too long, this is recorded and the others continue. Finished runs
are saved, so a stopped script resumes.

For each side: `tokens_per_second`, the tokens of a step's conversations (each counted once, whatever the number of
epochs, without padding) per second of a full step, including rollouts and optimizer; `mfu`, the operations that the
side's models need for a step (see gpu_flops.py) per second, relative to those of a large bfloat16 matrix product in
the same process; `peak_memory_gib`, the peak memory of tensors on the device. Where responses are sampled,
`rollout_share` is the share of a step that this takes; with a server, the share that waits for it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import RESULTS, machine, save
from gpu_job import (
    ALONE,
    CHECKS,
    EMBEDDED,
    MARK,
    MODELS,
    PROFILE,
    RANK,
    SAVE,
    SERVER,
    SETTINGS,
    SIDES,
    SMALL,
    TASKS,
    BenchJob,
    Load,
)
from gpu_server import MEMORY_SHARE, ServerError, find_vllm, served

Result = dict[str, Any]
Measure = Callable[[BenchJob, str], Result]  # the result of a job with a number
SERVER_SECONDS = 300.0  # longest wait until vLLM has loaded a model and is ready
OVER = "not started, since the time was over"
SIDES_FILE = Path(__file__).with_name("gpu_sides.py")


class Runs:
    """The results, saved after every run.

    Args:
        path: The results file; ``None`` to save nothing.
        about: Describes the measurement; results of another measurement are not continued.
        seconds: Time limit of a process.
        fresh: Discard saved results.
        all_seconds: Time after which no process is started.
    """

    def __init__(
        self, path: Path | None, about: Result, seconds: float, fresh: bool, all_seconds: float = math.inf
    ) -> None:
        self.path, self.about, self.seconds = path, about, seconds
        self.end = time.monotonic() + all_seconds
        kept = json.loads(path.read_text()) if path is not None and path.is_file() and not fresh else {}
        if kept and {name: kept.get(name) for name in about} != about:
            sys.exit(f"{path} was measured with something else than {about}: start again with --fresh")
        self.found: dict[str, Result] = kept.get("runs", {})
        self.summary: Result = {name: kept[name] for name in ("checks", "models", "profile", "goals") if name in kept}

    def __call__(self, job: BenchJob, number: str) -> Result:
        """The result of a job with this number: a saved one, or that of a new run."""
        key = _key(job, number)
        if key not in self.found:
            left = self.left()
            if left <= 0:  # not saved: another call measures it
                return {"setting": job.setting, "error": OVER}
            made = {"setting": job.setting, **launch(job, min(left, self.seconds))}
            print(key, _told(made), flush=True)
            if "error" in made and (left < self.seconds or _is_of_server(job, made)):  # not saved either
                return made
            self.found[key] = made
            self.save({})
        return self.found[key]

    def left(self) -> float:
        """Seconds until no process is started any more."""
        return self.end - time.monotonic()

    def kept(self, job: BenchJob, number: str) -> Result:
        """The saved result of a job. Raises KeyError if it has not run."""
        return self.found[_key(job, number)]

    def save(self, summary: Result) -> None:
        """Save the runs, and what this call found besides what earlier calls did, for each task of a model."""
        for name, found in summary.items():
            self.summary[name] = _joined(self.summary.get(name, {}), found, 2 if name in ("models", "profile") else 1)
        if self.path is not None:
            save(str(self.path), {**self.about, "machine": machine(), **self.summary, "runs": self.found})


def _key(job: BenchJob, number: str) -> str:
    return f"{job.model} {job.task} {job.side} {number}"


def _is_of_server(job: BenchJob, made: Result) -> bool:
    """Whether the server may have failed, not the trainer."""
    return job.task == SERVER and made["error"] != "out of memory"


def _joined(old: Result, new: Result, levels: int) -> Result:
    """The old entries with the new ones, which replace old ones of the same names so many levels down."""
    if levels == 0:
        return new
    return {**old, **{name: _joined(old.get(name, {}), found, levels - 1) for name, found in new.items()}}


def launch(job: BenchJob, seconds: float) -> Result:
    """Run a job in a separate process; a failure becomes its result."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if job.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    else:  # Trainer would use all visible GPUs
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = [sys.executable, str(SIDES_FILE), job.dumps()]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {seconds:g} seconds"}
    line = next((line for line in reversed(done.stdout.splitlines()) if line.startswith(MARK)), None)
    if line is None or "error" in json.loads(line.removeprefix(MARK)):
        print("\n".join(done.stderr.splitlines()[-30:]), file=sys.stderr, flush=True)
    if line is not None:
        return json.loads(line.removeprefix(MARK))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"error": f"killed by signal {-done.returncode}" if done.returncode < 0 else last}


def _told(result: Result) -> str:
    """A result as one line."""
    if "error" in result:
        return f"{result['setting']}: {result['error']}"
    names = ("tokens_per_second", "mfu", "peak_memory_gib", "rollout_tokens_per_second")
    return f"{result['setting']}: " + ", ".join(f"{name} {result[name]}" for name in names if name in result)


def choose(runs: Measure, job: BenchJob, most: int) -> tuple[dict[str, Any] | None, list[Result]]:
    """The fastest setting of a side, and the results of all that were tried.

    Args:
        runs: Runs the jobs.
        job: With any setting.
        most: Maximum number of settings to try.
    """
    tried: list[Result] = []
    best: Result | None = None
    for number, setting in enumerate(SETTINGS[job.task, job.side][:most]):
        found = runs(replace(job, setting=setting), f"setting {number}")
        tried.append(found)
        if "error" in found:
            continue
        if best is not None and found["tokens_per_second"] < best["tokens_per_second"]:
            break
        best = found
    return None if best is None else best["setting"], tried


def compare(runs: Runs, job: BenchJob, sides: Sequence[str], rounds: int, most: int) -> Result:
    """Compare both sides of a task on a model."""
    jobs, result = [], {}
    for side in sides:
        setting, tried = choose(runs, replace(job, side=side), most)
        result[side] = {"tried": [{"setting": one["setting"], "outcome": _outcome(one)} for one in tried]}
        if setting is None:
            result[side]["error"] = tried[-1]["error"]
        else:
            jobs.append(replace(job, side=side, setting=setting))
    found: dict[str, list[Result]] = {job.side: [] for job in jobs}
    for number in range(rounds):
        for one in jobs if number % 2 == 0 else reversed(jobs):
            found[one.side].append(runs(one, f"round {number}"))
    for side, many in found.items():
        result[side] |= summary(many)
    both = [pair for pair in zip(*found.values(), strict=True) if not any("error" in one for one in pair)]
    if set(found) == set(SIDES) and both:
        first, second = (list(found).index(side) for side in SIDES)
        ratios = [pair[first]["tokens_per_second"] / pair[second]["tokens_per_second"] for pair in both]
        result["speed_ratio"] = round(median(ratios), 3)
        result["speed_ratio_rounds"] = [round(ratio, 3) for ratio in ratios]
        result["memory_ratio"] = round(result["ours"]["peak_memory_gib"] / result["trl"]["peak_memory_gib"], 3)
    return result


def alone(runs: Measure, job: BenchJob, rounds: int, most: int) -> Result:
    """The fastest setting of a task that has one side. The run that found it is the first round."""
    setting, tried = choose(runs, job, most)
    result = {"tried": [{"setting": one["setting"], "outcome": _outcome(one)} for one in tried]}
    if setting is None:
        return {job.side: {**result, "error": tried[-1]["error"]}}
    many = [one for one in tried if one["setting"] == setting]
    many += [runs(replace(job, setting=setting), f"round {number}") for number in range(1, rounds)]
    return {job.side: result | summary(many)}


def with_server(runs: Runs, job: BenchJob, rounds: int, most: int) -> Result:
    """PPO with rollouts by the server that the job names, or else by vLLM, started for it if not all is saved."""
    if job.server and job.model != EMBEDDED:
        return {job.side: {"error": "the server of --server has the model of --embedded only"}}
    try:
        return alone(runs.kept, job, rounds, most)
    except KeyError:
        return alone(runs, job, rounds, most) if job.server else _with_vllm(runs, job, rounds, most)


def _with_vllm(runs: Runs, job: BenchJob, rounds: int, most: int) -> Result:
    """Save the model, serve it with vLLM, and measure."""
    vllm, side = find_vllm(), job.side
    if vllm is None:
        return {side: {"error": "vllm is not installed"}}
    with tempfile.TemporaryDirectory(prefix="rrm-gpu-") as folder:
        if runs.left() <= 0:
            return {side: {"error": OVER}}
        saved = launch(replace(job, task=SAVE, setting={"folder": folder}), min(runs.left(), runs.seconds))
        if "error" in saved:
            return {side: {"error": f"the model was not saved for the server: {saved['error']}"}}
        try:
            with served(vllm, folder, job.load, RANK, min(runs.left(), SERVER_SECONDS)) as url:
                return alone(runs, replace(job, server=url, server_share=MEMORY_SHARE), rounds, most)
        except ServerError as error:
            return {side: {"error": str(error)}}


def summary(many: Sequence[Result]) -> Result:
    """Medians over the rounds of a side; the maximum for memory."""
    whole = [one for one in many if "error" not in one]
    failed = {"failed_rounds": [one["error"] for one in many if "error" in one]}
    if not whole:
        return {"error": many[-1]["error"], **failed}
    names = ("tokens_per_second", "mfu", "tflops_per_second", "peak_tflops_per_second", "rollout_tokens_per_second")
    names += ("iteration_over_rollout", "rollout_share", "adapter_seconds", "rollout_kl", "server_memory_share")
    return {
        "setting": whole[0]["setting"],
        **{name: median(one[name] for one in whole) for name in names if name in whole[0]},
        "peak_memory_gib": max(one["peak_memory_gib"] for one in whole),
        **(failed if len(whole) < len(many) else {}),
    }


def _outcome(result: Result) -> Any:
    return result.get("error") or result["tokens_per_second"]


def profile(runs: Runs, job: BenchJob, compared: Result) -> Result:
    """A step of the task in our best setting."""
    setting = compared["ours"].get("setting")
    if setting is None:
        return {"error": compared["ours"]["error"]}
    found = runs(replace(job, task=PROFILE, setting={"task": job.task, "setting": setting}), f"of {job.task}")
    names = ("waiting_share", "busy_seconds", "longest", "error")
    return {name: found[name] for name in names if name in found}


GOALS = {  # what this project set itself for 8B on one H200: where the value is, the goal, and whether it is a maximum
    "mfu of reward training": (("reward", "ours", "mfu"), 0.45, False),
    "mfu of scoring": (("score", "ours", "mfu"), 0.5, False),
    "ppo iteration over its rollout": (("ppo", "ours", "iteration_over_rollout"), 1.5, True),
    "ppo iteration with vllm over its rollout": (("server", "ours", "iteration_over_rollout"), 1.5, True),
    "speed of ppo over TRL": (("ppo", "speed_ratio"), 3.0, False),
    "memory of ppo over TRL": (("ppo", "memory_ratio"), 1 / 3, True),
}


def judged(result: Result) -> Result:
    """The goals that these results decide: value, goal, and whether it is met."""
    found = {}
    for name, (place, goal, is_maximum) in GOALS.items():
        value: Any = result.get("8b", {})
        for key in place:
            value = value.get(key, {})
        if value != {}:
            found[name] = {"value": value, "goal": goal, "met": value <= goal if is_maximum else value >= goal}
    return found


def device_of(name: str) -> Result:
    """A description of the device."""
    if name != "cuda":
        return {"name": str(machine()["cpu"])}
    about = torch.cuda.get_device_properties(0)
    return {"name": about.name, "memory_gib": round(about.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def measured(runs: Runs, job: BenchJob, args: argparse.Namespace, rounds: int, tried: int) -> Result:
    """A task on a model: both sides, or the one that it has."""
    if job.task in TASKS:
        return compare(runs, job, args.sides, rounds, tried)
    job = replace(job, side=ALONE[job.task])
    if job.task == SERVER:
        return with_server(runs, replace(job, server=args.server), rounds, tried)
    return alone(runs, job, rounds, tried)


def main(words: Sequence[str] | None = None) -> None:
    here = "cuda" if torch.cuda.is_available() else "none"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: embedded 1b 8b; on the CPU tiny")
    parser.add_argument("--tasks", nargs="+", choices=(*TASKS, *ALONE), default=[*TASKS, *ALONE])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, help="default: 3; on the CPU 1")
    parser.add_argument("--steps", type=int, help="measured in each run, after a first one; default: 4; on the CPU 1")
    parser.add_argument("--settings", type=int, help="of each side that are tried; default: all; on the CPU 1")
    parser.add_argument("--quick", action="store_true", help="one setting, one round of two steps, 12 minutes in all")
    parser.add_argument("--minutes", type=float, help="most of a run; default: 10; with --quick 2")
    parser.add_argument("--embedded", default="smollm2-135m", help="the embedded model, whose tokenizer all take")
    parser.add_argument(
        "--server", default="", help="address of a running vLLM server of --embedded, for the task server"
    )
    parser.add_argument("--output", help="file in scripts/bench/results; default: scaling_gpu.json; on the CPU none")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept")
    args = parser.parse_args(words)
    if args.device != "cpu" and here != args.device:
        sys.exit("torch finds no GPU; use --device cpu to test the script on the CPU")
    small = args.device == "cpu"
    load = SMALL if small else Load()
    steps = args.steps or (1 if small else 2 if args.quick else 4)
    once = small or args.quick
    rounds, tried = args.rounds or (1 if once else 3), args.settings or (1 if once else 99)
    name = args.output or (None if small else "scaling_gpu.json")
    about: Result = {
        "device": device_of(args.device), "load": asdict(load), "steps": steps, "lora_rank": RANK, "dtype": "bfloat16",
        "embedded": args.embedded,
    }  # fmt: skip
    seconds = 60 * (args.minutes or (2 if args.quick else 10))
    path = None if name is None else RESULTS / name
    runs = Runs(path, about, seconds, args.fresh, 12 * 60 - 10 if args.quick else math.inf)
    job = BenchJob("embedded", CHECKS, "ours", SETTINGS["ppo", "ours"][0], load, args.device, 1, args.embedded)
    checks = {name: found for name, found in runs(job, "once").items() if name != "setting"}
    result: Result = {"checks": checks, "models": {}, "profile": {}}
    models = args.models or (["tiny"] if small else ["embedded", "1b", "8b"])
    for model in models:
        for task in [task for task in (*TASKS, *ALONE) if task in args.tasks]:
            if task in ALONE and (ALONE[task] not in args.sides or (args.quick and model != models[-1])):
                continue
            job = BenchJob(model, task, "ours", {}, load, args.device, steps, args.embedded)
            result["models"].setdefault(model, {})[task] = found = measured(runs, job, args, rounds, tried)
            if task in TASKS and "ours" in args.sides:
                result["profile"].setdefault(model, {})[task] = profile(runs, job, found)
            runs.save(result | {"goals": judged(result["models"])})
    print(json.dumps(result | {"goals": judged(result["models"])}, indent=2))
    if runs.path is not None:
        print(runs.path)


if __name__ == "__main__":
    main()
