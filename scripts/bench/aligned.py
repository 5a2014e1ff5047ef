"""The whole pipeline on data/notes with several seeds: reward model, SFT, PPO, DPO, best of 8, and trivial policies.

    python scripts/bench/aligned.py --seeds 0                         (a pilot on the validation part)
    python scripts/bench/aligned.py --part test --seeds 1 2 3 4 5     (the final comparison)
    python scripts/bench/aligned.py --part test                       (only the summary of the seeds that were run)

Every stage is a command with an output folder; a finished stage is not run again, so a stopped script resumes. What a
finished seed measured is kept in results/aligned/, so that seeds may run on different days; the summary of all of them
is results/aligned.json (`aligned_validation.json` for the validation part). Each use of the test part is recorded in
results/aligned_ledger.jsonl with the commit and a digest of the settings, since settings must not be chosen on it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
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
from aligned_dpo import MODEL, train_dpo
from common import RESULTS, commit, machine, save

from rrm_lm.evaluation.policies.samples import drawn_text, log_probs
from rrm_lm.evaluation.statistics.metrics import Estimate, mean_estimate, over_runs
from rrm_lm.feedback.criteria.detectors import content_words
from rrm_lm.feedback.records import Message
from rrm_lm.models.saving.policies import load_policy
from rrm_lm.simulated.note_users import NoteUser
from rrm_lm.simulated.plain_user import split_sentences
from rrm_lm.storage import sha256, write_json

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "notes"
CONFIG = ROOT / "configs" / "notes.yaml"
GENERAL = (ROOT / "data" / "assistant" / "heldout.jsonl.gz", ROOT / "data" / "assistant" / "requests.jsonl")
COMPARISONS = (DATA / "train_plain.jsonl.gz", DATA / "train_plain_contrasts.jsonl.gz")
POLICIES = ("start", "sft", "ppo", "dpo")
KEPT = RESULTS / "aligned"
SAMPLES, BEST_OF = 4, 8
WORDINGS = ("plain", "task", "hard")
CONSTANT = "I hope this helps! Have a lovely day!"
START_PLUS_CLOSE = "start model at temperature 0 plus a close"
WORD_OVERLAP = "sentence with most of the question's words plus a close"

# For each policy, the values of every prompt: gold and its parts, averaged over samples.
ByPrompt = dict[str, dict[str, np.ndarray]]


def stages(seed: int, part: str, out: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The stages of one seed: a file that the finished stage leaves, and what runs it."""
    run, found = out / f"seed{seed}", out / f"seed{seed}" / part
    folders = {"sft": run / "sft", "ppo": run / "policy", "dpo": run / "dpo"}
    questions = DATA / f"{part}_questions.jsonl.gz"
    seeds = [flag for stage in ("reward_first", "reward", "sft", "policy") for flag in (f"--{stage}.seed", str(seed))]
    # Baselines depend on the set alone: one seed measures them.
    known = any(json.loads(file.read_text())["pairs"]["baselines"] for file in KEPT.glob(f"{part}_seed*.json"))
    baselines = [] if known else ["--baselines", "true", "--baselines_train", DATA / "train_plain.jsonl.gz"]
    yield run / "compare" / "results.json", command("run", "--config", CONFIG, "--output_dir", run, *seeds)
    yield (
        found / "evaluate" / "results.json",
        command(
            "evaluate", "--model", run / "reward", "--dataset", DATA / f"{part}_plain.jsonl.gz",
            "--output_dir", found / "evaluate", *baselines,
        ),
    )  # fmt: skip
    yield (
        folders["dpo"] / "config.json",
        lambda: in_own_process(train_dpo, folders["sft"], COMPARISONS, folders["dpo"], seed),
    )
    shared = ["--prompts", questions, "--gold", questions, "--max_new_tokens", "48", "--seed", str(seed)]
    policies = list(folders.values())
    for name, some, flags in (
        ("policies", policies, ["--samples", str(SAMPLES), "--temperature", "1"]),
        ("best_of", policies[:1], ["--samples", str(BEST_OF), "--proxy", run / "reward", "--greedy", "false"]),
    ):
        folder = found / name
        yield folder / "results.json", command("compare", *some, *shared, *flags, "--output_dir", folder)
    general = ["--prompts", GENERAL[0], "--gold", GENERAL[1], "--max_prompts", "50", "--temperature", "0"]
    folder = run / "general"
    flags = ["--samples", "1", "--max_new_tokens", "64", "--output_dir", folder]
    yield folder / "results.json", command("compare", *policies, *general, *flags)
    file = run / "likelihood" / "results.json"
    yield file, lambda: in_own_process(likelihoods, {"start": MODEL, **folders}, file)


def likelihoods(policies: Mapping[str, str | Path], file: Path) -> None:
    """Write the mean log-likelihood per token, in nats, that each policy gives to the answers to 50 general prompts.

    SmolLM2 wrote the answers at several settings for `data/assistant`. Of each pair, the preferred one is taken.
    """
    with gzip.open(GENERAL[0], "rt", encoding="utf-8") as stream:
        chosen = {row["prompt"][-1]["content"]: row["chosen"][-1]["content"] for row in map(json.loads, stream)}
    texts = [((Message("user", asked),), answer) for asked, answer in list(chosen.items())[:50]]
    found: dict[str, list[float]] = {}
    for name, folder in policies.items():
        backbone, chat, adapter, _ = load_policy(str(folder))
        answers = [[drawn_text(chat, asked, answer)] for asked, answer in texts]
        totals = log_probs(backbone, adapter, answers)
        sizes = [len(one.line.ids) - one.line.response_start for (one,) in answers]
        found[name] = [round(total / size, 4) for (total,), size in zip(totals, sizes, strict=True)]
    file.parent.mkdir(exist_ok=True)
    write_json(file, found)


def command(*parts: object) -> Callable[[], None]:
    """A command of rrm-lm as a function."""
    words = [sys.executable, "-m", "rrm_lm", *map(str, parts)]
    return lambda: subprocess.run(words, check=True, cwd=ROOT)  # type: ignore[return-value]


def in_own_process(work: Callable[..., None], *args: object) -> None:
    """Call a function in a process of its own, whose memory is free when it ends."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed with exit code {process.exitcode}")


def run_seed(seed: int, part: str, out: Path) -> None:
    """Run what is missing of one seed. What it measured is kept from the comparison of its policies on."""
    kept_file = KEPT / f"{part}_seed{seed}.json"
    seconds = json.loads(kept_file.read_text())["seconds"] if kept_file.is_file() else {}
    for file, work in stages(seed, part, out):
        if not file.is_file():
            name = str(file.parent.relative_to(out / f"seed{seed}"))
            print(f"seed {seed}: {name}", flush=True)
            started = time.time()
            work()
            seconds[name] = round(time.time() - started)
        if (out / f"seed{seed}" / part / "policies" / "results.json").is_file():
            write_json(kept_file, measured(seed, part, out) | {"seconds": seconds})


def measured(seed: int, part: str, out: Path) -> dict[str, Any]:
    """What one seed measured so far. A seed that was stopped early lacks best of 8, or the general prompts."""
    user = NoteUser.from_file(DATA / f"{part}_questions.jsonl.gz")
    # Policies are named by their folders here.
    run = out / f"seed{seed}"
    found, general, likelihood = run / part, run / "general" / "results.json", run / "likelihood" / "results.json"
    names = {"smollm2-135m": "start", "sft": "sft", "policy": "ppo", "dpo": "dpo"}
    files = {"sampled": found / "policies" / "samples.jsonl", "greedy": found / "policies" / "greedy.jsonl"}
    values = {
        way: {names[name]: values for name, values in by_prompt(file, user).items()} for way, file in files.items()
    }
    values["trivial"] = {START_PLUS_CLOSE: by_prompt(files["greedy"], user, close=f" {CONSTANT}")["smollm2-135m"]}
    if (found / "best_of" / "results.json").is_file():
        best = by_prompt(found / "best_of" / "samples.jsonl", user, best_by=str(run / "reward"))
        any_right = by_prompt(found / "best_of" / "samples.jsonl", user, best_by="")["sft"]
        values["best_of"] = {"best_of_8": best["sft"], "best_of_8_by_truth": any_right}
    return {
        "seed": seed, "part": part, "commit": commit(), "machine": machine(),
        "config": sha256(CONFIG),
        "pairs": pairs_judged(found / "evaluate"),
        "general": json.loads(general.read_text().replace(f"{run}/", ""))["policies"] if general.is_file() else {},
        "likelihood": json.loads(likelihood.read_text()) if likelihood.is_file() else {},
        "values": {
            way: {name: {key: v.round(4).tolist() for key, v in one.items()} for name, one in policies.items()}
            for way, policies in values.items()
        },
        "first_answers": first_answers(files["greedy"], user, names),
    }  # fmt: skip


def record_use(seeds: Sequence[int]) -> None:
    """Append a use of the test part to the ledger."""
    use = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "commit": commit(), "config": sha256(CONFIG), "seeds": [*seeds]}
    with (RESULTS / "aligned_ledger.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(use) + "\n")


def by_prompt(file: Path, user: NoteUser, best_by: str | None = None, close: str = "") -> ByPrompt:
    """Gold and its parts of each policy and prompt of a samples.jsonl, `(prompts,)`, in the order of the requests.

    Args:
        file: `samples.jsonl` or `greedy.jsonl` of a comparison.
        user: Judges the samples.
        best_by: Only the sample of each prompt with the highest such reward counts; "": that with the highest gold.
        close: What is added to each sample.
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
            each = [user.judge(request.text, row["response"] + close) for row in chosen]
            judged.append([max(each, key=lambda one: one.gold)] if best_by == "" else each)
        found[name] = {"gold": np.array([np.mean([j.gold for j in some]) for some in judged])} | {
            part: np.array([np.mean([j.parts[part] for j in some]) for some in judged]) for part in user.parts
        }
    return found


def first_answers(file: Path, user: NoteUser, names: Mapping[str, str], count: int = 3) -> list[dict[str, str]]:
    """The first questions of the part with the answer of each policy at temperature 0, to be read."""
    found: dict[str, dict[str, str]] = {}
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        asked = row["prompt"][-1]["content"]
        answers = found.setdefault(user.request(asked).text, {"prompt": asked})
        answers[names[Path(row["policy"]).name]] = row["response"]
    return [found[request.text] for request in list(user.requests.values())[:count]]


def trivial(user: NoteUser) -> ByPrompt:
    """Policies that need no model: a constant reply, the first sentence of the note, the whole note, and the sentence
    of the note that shares most content words with the question.
    """

    def overlap(request: Any) -> str:
        asked = content_words(request.question)
        return max(split_sentences(request.note), key=lambda one: len(asked & content_words(one))) + " Good luck!"

    texts: Mapping[str, Callable[[Any], str]] = {
        "constant reply": lambda _: CONSTANT,
        "first sentence of the note": lambda request: request.note.split(". ")[0] + ". " + CONSTANT,
        "whole note": lambda request: request.note,
        WORD_OVERLAP: overlap,
    }
    requests = list(user.requests.values())
    judged = {name: [user.judge(r.text, text(r)) for r in requests] for name, text in texts.items()}
    return {
        name: {"gold": np.array([j.gold for j in some])}
        | {part: np.array([j.parts[part] for j in some]) for part in user.parts}
        for name, some in judged.items()
    }


def kept_runs(part: str) -> list[dict[str, Any]]:
    """What the finished seeds measured, which must all have had the same settings."""
    runs = [json.loads(file.read_text()) for file in sorted(KEPT.glob(f"{part}_seed*.json"))]
    if len({run["config"] for run in runs}) != 1:
        raise SystemExit(f"{KEPT}: no seeds, or seeds with different settings; run them with the current configuration")
    return runs


def summary(part: str) -> dict[str, Any]:
    """The numbers of aligned.json."""
    user = NoteUser.from_file(DATA / f"{part}_questions.jsonl.gz")
    runs = kept_runs(part)
    sampled, greedy, best, plus_close = (
        [
            {name: {k: np.array(v) for k, v in one.items()} for name, one in run["values"][way].items()}
            for run in runs
            if way in run["values"]
        ]
        for way in ("sampled", "greedy", "best_of", "trivial")
    )
    rows = questions(part)
    patterns = [rows[one.text]["pattern"] for one in user.requests.values()]  # notes of one pattern are not independent

    def over(runs: Sequence[np.ndarray]) -> dict[str, Any]:
        return combined(np.array(runs), patterns).to_dict()

    def gain(runs: Sequence[np.ndarray]) -> dict[str, Any]:
        return combined(np.array(runs), patterns, -1.0).to_dict()

    def table(runs: Sequence[ByPrompt], name: str) -> dict[str, Any]:
        parts = {part: over([run[name][part] for run in runs]) for part in user.parts}
        return {"gold": over([run[name]["gold"] for run in runs]), "parts": parts}

    policies = {name: table(sampled, name) for name in POLICIES}
    if best:
        policies["best_of_8"] = table(best, "best_of_8")
    other = max(("start", "sft"), key=lambda name: policies[name]["gold"]["value"])
    at_zero = {name: table(greedy, name) for name in POLICIES}
    better = max(("start", "sft"), key=lambda name: at_zero[name]["gold"]["value"])
    right = max(("start", "sft"), key=lambda name: at_zero[name]["parts"]["answer"]["value"])
    worded = {name: [run[name] for run in greedy] for name in POLICIES}
    worded |= {name: [run[name] for run in best if name in run] for name in ("best_of_8", "best_of_8_by_truth")}
    no_model = trivial(user)
    worded[WORD_OVERLAP] = [no_model[WORD_OVERLAP]]
    return {
        "part": part, "seeds": [run["seed"] for run in runs], "commits": [run["commit"] for run in runs],
        "best_of_8_seeds": [run["seed"] for run in runs if "best_of" in run["values"]],
        "machine": machine(), "config": runs[0]["config"],
        **pair_accuracies(runs, part),
        "baselines": next((found for run in runs if (found := run["pairs"]["baselines"])), {}),
        "by_seed": [{key: run[key] for key in ("seed", "seconds", "general")} for run in runs],
        "first_answers": next((found for run in runs if (found := run.get("first_answers"))), []),
        "general_likelihood": general_likelihood(runs),
        "policies": policies,
        "policies_at_temperature_0": at_zero,
        "answers_by_wording": by_wording(part, patterns, worded),
        "better_in_gold": other,
        "better_in_answers": right,
        "ppo_minus_best_other": gain([run["ppo"]["gold"] - run[other]["gold"] for run in sampled]),
        "ppo_minus_best_other_at_temperature_0": gain([run["ppo"]["gold"] - run[better]["gold"] for run in greedy]),
        "answer_ppo_minus_best_other": gain(
            [run["ppo"]["answer"] - run[right]["answer"] for run in greedy]
        ),
        "parts_ppo_minus_sft": {
            part: gain([run["ppo"][part] - run["sft"][part] for run in sampled]) for part in user.parts
        },
        "trivial": {
            name: {key: mean_estimate(values, patterns, bounds=(0, 1)).to_dict() for key, values in found.items()}
            | {"ppo_minus": gain([run["ppo"]["gold"] - found["gold"] for run in sampled])}
            for name, found in (no_model | plus_close[0]).items()  # they do not depend on the seed
        },
    }  # fmt: skip


def questions(part: str) -> dict[str, dict[str, Any]]:
    """The rows of the questions, by their prompt, in the order of the requests."""
    with gzip.open(DATA / f"{part}_questions.jsonl.gz", "rt", encoding="utf-8") as stream:
        return {row["prompt"]: row for row in map(json.loads, stream)}


def by_wording(
    part: str, patterns: Sequence[str], policies: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Right answers by how a question is worded: "hard" ones share more words with a wrong sentence of the note."""
    wording, of = np.array([row["wording"] for row in questions(part).values()]), np.array(patterns)
    found: dict[str, Any] = {}
    for name in WORDINGS:
        asked = wording == name
        each = {key: np.array([run["answer"][asked] for run in runs]) for key, runs in policies.items() if runs}
        found[name] = {"questions": int(asked.sum())}
        found[name] |= {key: combined(values, of[asked].tolist()).to_dict() for key, values in each.items()}
    return found


def general_likelihood(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Log-likelihood per token of general answers, in nats: the start model's, and each policy's minus that."""
    each = [{name: np.array(v) for name, v in run["likelihood"].items()} for run in runs if run.get("likelihood")]
    if not each:
        return {}
    prompts = [str(number) for number in range(len(each[0]["start"]))]
    return {
        "seeds": [run["seed"] for run in runs if run.get("likelihood")],
        "start": mean_estimate(each[0]["start"], prompts, bounds=(-math.inf, 0)).to_dict(),
        "minus_start": {
            name: combined(np.array([one[name] - one["start"] for one in each]), prompts, -math.inf, math.inf).to_dict()
            for name in POLICIES[1:]
        },
    }


def combined(values: np.ndarray, notes: Sequence[str], least: float = 0.0, most: float = 1.0) -> Estimate:
    """An estimate over runs and notes; over notes alone for a single run. All values are from `least` to `most`."""
    bounds = (least, most)
    return (
        over_runs(values, notes, bounds=bounds) if len(values) > 1 else mean_estimate(values[0], notes, bounds=bounds)
    )


def pairs_judged(folder: Path) -> dict[str, Any]:
    """Which comparisons the reward model of one seed got right, and what the baselines got right."""
    rows = map(json.loads, (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines())
    (found,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["sets"].values()
    return {"correct": [row["correct"] for row in rows], "baselines": found.get("baselines") or {}}


def pair_accuracies(runs: Sequence[Mapping[str, Any]], part: str) -> dict[str, Any]:
    """Accuracy of the reward models over seeds and patterns: of all comparisons, and of those of each kind."""
    with gzip.open(DATA / f"{part}_plain.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    known = questions(part)
    asked = [known[row["prompt"][0]["content"]] for row in rows]
    patterns, wording = (np.array([one[name] for one in asked]) for name in ("pattern", "wording"))
    correct = np.array([run["pairs"]["correct"] for run in runs], dtype=float)

    def accuracy(chosen: np.ndarray) -> dict[str, Any]:
        return combined(correct[:, chosen], patterns[chosen].tolist()).to_dict()

    found = {"reward_accuracy": accuracy(np.ones(len(rows), dtype=bool))}
    for kind in ("answer", "manner", "mixed"):
        found[f"{kind}_pairs_accuracy"] = accuracy(np.array([row["source"] == f"notes, {kind} pairs" for row in rows]))
    answers = np.array([row["source"] == "notes, answer pairs" for row in rows])
    found["answer_pairs_by_wording"] = {name: accuracy(answers & (wording == name)) for name in WORDINGS}
    parts = sorted({row["decided_by"] for row in rows})
    found["accuracy_by_part"] = {
        part: accuracy(np.array([row["decided_by"] == part for row in rows])) for part in parts
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="seeds to run before the summary")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "aligned")
    args = parser.parse_args()
    KEPT.mkdir(exist_ok=True)
    if args.seeds and args.part == "test":
        record_use(args.seeds)
    for seed in args.seeds:
        run_seed(seed, args.part, args.output.resolve())
    name = "aligned.json" if args.part == "test" else "aligned_validation.json"
    print(save(name, summary(args.part)))


if __name__ == "__main__":
    main()
