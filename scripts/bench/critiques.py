"""Do written critiques help? Trains on comparisons with and without what people wrote about the responses.

    python scripts/bench/critiques.py --set assistant --seeds 0 1 2
    python scripts/bench/critiques.py --set feedbackqa --seeds 0        (files in shared/data next to the checkout)
    python scripts/bench/critiques.py --summarise                       (writes results/critiques.json from the runs)

All arms of one seed and budget train on the same comparisons in the same order, for the same number of epochs and from
the same initial weights. They are evaluated on the same held-out pairs: the held-out file, and all pairs of some
prompts of the training file that no arm trains on. Finished runs are appended to results/critiques_runs.jsonl, so a
stopped script resumes, and several scripts can run in parallel on different seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from common import RESULTS, SHARED, machine, save
from critique_reader import CritiqueReader

from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.evaluation.statistics.metrics import paired_difference
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Comparison, Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.self_critique import with_own_critiques
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.settings.models import ModelArguments
from rrm_lm.storage import json_text
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer

MODEL = "smollm2-135m"
BATCH = 2  # small budgets need many small steps
RUNS = RESULTS / "critiques_runs.jsonl"
DATA = Path(__file__).parents[2] / "data" / "assistant"


@dataclass(frozen=True)
class Arm:
    """One way to use critiques.

    With `weight` 0 the model does not learn to write them. `read` regresses on ratings that a reader extracts from
    them, `stars` on the person's own ratings. A rating is a single number; a critique names the part that is wrong.
    """

    weight: float = 0.0
    weight_end: float | None = None
    view: str = "reward"
    critique_first: bool = False
    critic_epochs: float = 2.0
    samples: int = 1
    stars: bool = False
    read: bool = False


ARMS = {
    "pairs": Arm(),
    "all": Arm(weight=1.0, view="all"),
    "reward": Arm(weight=1.0, view="reward"),
    "reward_low": Arm(weight=0.3, view="reward"),
    "reward_fading": Arm(weight=1.0, weight_end=0.0, view="reward"),
    "read": Arm(read=True),
    "read_all": Arm(read=True, weight=1.0, view="all"),
    "stars": Arm(stars=True),
    "critique_first": Arm(weight=0.3, view="all", critique_first=True, samples=2),
}


@dataclass(frozen=True)
class FeedbackFiles:
    """The files of a set, and the maximum lengths of its texts."""

    train: Path
    heldout: Path
    max_length: int
    max_critique_length: int
    spare_prompts: int


SETS = {
    "assistant": FeedbackFiles(DATA / "train.jsonl.gz", DATA / "heldout.jsonl.gz", 320, 48, 70),
    "feedbackqa": FeedbackFiles(SHARED / "feedbackqa/train.jsonl.gz", SHARED / "feedbackqa/dev.jsonl.gz", 384, 64, 30),
}


def run(name: str, arm: Arm, budget: int, seed: int, epochs: float, learning_rate: float) -> dict[str, Any]:
    """Train and evaluate one arm; returns the margin of each held-out pair, and the seconds of training."""
    files = SETS[name]
    pool, heldout = split(files)
    train = random.Random(seed).sample(pool, budget)
    tokenizer: Any = load_tokenizer(MODEL)
    backbone = Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))
    settings = RewardSettings(MODEL, arm.critique_first, files.max_length, files.max_critique_length)
    if arm.read:
        train = with_read_ratings(CritiqueReader(backbone, tokenizer), train)
    set_seed(seed)
    model = RewardModel.create(backbone, ModelArguments().lora(), settings)
    chat = ChatFormat(tokenizer, files.max_length, files.max_critique_length)
    builder = ExampleBuilder(
        chat, backbone, with_critiques=arm.weight > 0, pair_ratings=arm.stars or arm.read,
        narrow=arm.view == "reward" and not arm.critique_first,
    )  # fmt: skip
    examples = builder.comparisons(train)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=learning_rate,
            critique_weight=arm.weight, critique_weight_end=arm.weight_end, save_strategy="no", seed=seed,
            logging_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        if arm.critique_first:
            examples = _own_critiques(model, chat, builder, config, arm, train, examples)
        RewardTrainer(model, config, examples, processing_class=tokenizer).train()
    seconds = time.perf_counter() - started
    scorer = RewardScorer(model, chat, critique_samples=arm.samples, seed=seed)
    rewards = scores(scorer, heldout)
    margins = [rewards[pair.prompt, pair.chosen] - rewards[pair.prompt, pair.rejected] for pair in heldout]
    return {
        "set": name, "budget": budget, "seed": seed, "epochs": epochs, "learning_rate": learning_rate,
        "seconds": round(seconds, 1), "margins": [round(margin, 5) for margin in margins],
        "prompts": [pair.prompt_id for pair in heldout],
    }  # fmt: skip


def with_read_ratings(reader: CritiqueReader, pairs: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with ratings extracted from their critiques instead of the person's."""
    reader.fit(pairs)
    ratings = iter(reader.ratings([texts for p in pairs for texts in (p.chosen_critiques, p.rejected_critiques)]))
    return [replace(pair, chosen_rating=next(ratings), rejected_rating=next(ratings)) for pair in pairs]


def split(files: FeedbackFiles) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons to sample from, and held-out ones: the held-out file, and all comparisons of some other prompts."""
    train, heldout = (list(load_feedback(str(path)).comparisons) for path in (files.train, files.heldout))
    prompts = sorted({pair.prompt_id for pair in train})
    random.Random(123).shuffle(prompts)
    spare = set(prompts[: files.spare_prompts])
    heldout += [pair for pair in train if pair.prompt_id in spare]
    return [pair for pair in train if pair.prompt_id not in spare], heldout


def scores(scorer: RewardScorer, pairs: Sequence[Comparison]) -> dict[tuple[Prompt, str], float]:
    """The reward of every distinct response."""
    groups: dict[Prompt, list[str]] = {}
    for pair in pairs:
        groups.setdefault(pair.prompt, []).extend((pair.chosen, pair.rejected))
    responses = [list(dict.fromkeys(texts)) for texts in groups.values()]
    rewards = scorer.score(list(groups), responses)
    return {
        (prompt, text): reward
        for prompt, texts, found in zip(groups, responses, rewards, strict=True)
        for text, reward in zip(texts, found, strict=True)
    }


def _own_critiques(
    model: RewardModel,
    chat: ChatFormat,
    builder: ExampleBuilder,
    config: RewardConfig,
    arm: Arm,
    train: Sequence[Comparison],
    examples: list[RewardExample],
) -> list[RewardExample]:
    critic = replace(config, num_train_epochs=arm.critic_epochs, critique_weight=1.0)
    written = [RewardExample(e.rows, e.lines, origin=e.origin) for e in examples]
    RewardTrainer(model, critic, written, processing_class=chat.tokenizer).train()
    lines = with_own_critiques(
        model, chat, [c.prompt for c in train], [[c.chosen, c.rejected] for c in train],
        samples=arm.samples, seed=config.seed,
    )  # fmt: skip
    return builder.own_critiques(train, lines)


def read_runs() -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.is_file() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """The settings that identify a run."""
    return (row["set"], row["arm"], row["budget"], row["seed"], row["epochs"], row["learning_rate"])


def summarise() -> dict[str, Any]:
    """Accuracy of each arm, and its difference from comparisons alone, paired by held-out pair and seed."""
    rows = {key(row): row for row in read_runs()}
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for row in rows.values():
        place = (row["set"], row["budget"], row["epochs"], row["learning_rate"])
        groups.setdefault(place, {}).setdefault(row["arm"], []).append(row)
    table = []
    for (name, budget, epochs, learning_rate), arms in sorted(groups.items()):
        base = {row["seed"]: row for row in arms.get("pairs", [])}
        for arm, found in sorted(arms.items()):
            right = [_right(row["margins"]) for row in found]
            entry: dict[str, Any] = {
                "set": name, "budget": budget, "arm": arm, "epochs": epochs, "learning_rate": learning_rate,
                "seeds": sorted(row["seed"] for row in found),
                "accuracy": round(sum(map(sum, right)) / sum(map(len, right)), 4),
                "seconds": round(sum(row["seconds"] for row in found) / len(found), 1),
            }  # fmt: skip
            shared = [row for row in found if row["seed"] in base and arm != "pairs"]
            if shared:
                entry["gain"] = _gain(shared, base)
            table.append(entry)
    return {"machine": machine(), "model": MODEL, "arms": {n: vars(a) for n, a in ARMS.items()}, "results": table}


def _right(margins: Sequence[float]) -> list[float]:
    return [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]


def _gain(rows: Sequence[dict[str, Any]], base: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Difference in accuracy with its interval over prompts and seeds. Runs of a seed share held-out pairs."""
    first = [_right(row["margins"]) for row in rows]
    second = [_right(base[row["seed"]]["margins"]) for row in rows]
    one = len(rows) == 1
    estimate = paired_difference(first[0] if one else first, second[0] if one else second, rows[0]["prompts"])
    by_seed = {
        row["seed"]: round(sum(_right(row["margins"])) / len(row["margins"])
                           - sum(_right(base[row["seed"]]["margins"])) / len(row["margins"]), 4)
        for row in rows
    }  # fmt: skip
    return {"value": round(estimate.value, 4), "low": round(estimate.low, 4), "high": round(estimate.high, 4),
            "kind": getattr(estimate, "kind", "95% interval over prompts"), "by_seed": by_seed}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="assistant")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["pairs", "all", "reward", "stars"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--summarise", action="store_true", help="only write the summary of the finished runs")
    args = parser.parse_args()
    done = {key(row) for row in read_runs()}
    for seed in () if args.summarise else args.seeds:
        for budget in args.budgets:
            for name in args.arms:
                place = (args.set, name, budget, seed, args.epochs, args.learning_rate)
                if place in done:
                    continue
                row = {"arm": name, **run(args.set, ARMS[name], budget, seed, args.epochs, args.learning_rate)}
                RUNS.parent.mkdir(parents=True, exist_ok=True)
                with RUNS.open("a", encoding="utf-8") as file:
                    file.write(json_text(row, indent=None) + "\n")
                right = _right(row["margins"])
                print(f"{place}: accuracy {sum(right) / len(right):.3f} in {row['seconds']} s", flush=True)
    result = summarise()
    print(json.dumps(result["results"], indent=1))
    print(save("critiques.json", result))


if __name__ == "__main__":
    main()
