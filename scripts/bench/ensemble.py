"""Cost of scoring with an ensemble: several reward heads on one adapter against a single head, interleaved.

    python scripts/bench/ensemble.py          writes scripts/bench/results/ensemble.json (two minutes)

The same adapter on SmolLM2 scores the same responses, four per prompt, with one head and with four.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import machine, save
from peft import LoraConfig

from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.reading.datasets import load_feedback
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.chat import ChatFormat

MODEL, PER_PROMPT = "smollm2-135m", 4
DATA = Path(__file__).parents[2] / "data" / "assistant" / "heldout.jsonl.gz"


def scorer(heads: int) -> RewardScorer:
    """A new reward model; its weights do not affect the cost."""
    tokenizer: Any = load_tokenizer(MODEL)
    backbone = Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
    model = RewardModel.create(backbone, lora, RewardSettings(MODEL, ensemble_heads=heads))
    return RewardScorer(model, ChatFormat(tokenizer))


def groups(prompts: int) -> tuple[list[Prompt], list[list[str]]]:
    """Prompts, each with four responses taken from any prompt of the set."""
    pairs = load_feedback(str(DATA)).comparisons
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    chosen = list(dict.fromkeys(pair.prompt for pair in pairs))[:prompts]
    return chosen, [texts[PER_PROMPT * i : PER_PROMPT * (i + 1)] for i in range(len(chosen))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    prompts, responses = groups(args.prompts)
    scorers = {"one": scorer(1), "ensemble": scorer(args.heads)}
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for number in range(args.rounds + 1):
        for name, one in scorers.items():
            started = time.perf_counter()
            one.score(prompts, responses)
            if number:  # the first round also checks whether the model can share prefixes
                seconds[name].append(time.perf_counter() - started)
    ratios = [many / one for one, many in zip(seconds["one"], seconds["ensemble"], strict=True)]
    result: dict[str, object] = {
        "machine": machine(), "model": MODEL, "heads": args.heads, "responses": PER_PROMPT * len(prompts),
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3), "ratio_rounds": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip
    print(result)
    print(save("ensemble.json", result))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
