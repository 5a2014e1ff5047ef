"""Speed and memory of reward-model training and scoring compared with TRL 1.12, interleaved in one process.

    python scripts/bench/reward.py            writes scripts/bench/results/reward.json

Training: the same LoRA on the same HH pairs. TRL's `RewardTrainer` uses its fastest settings on a CPU (fp32, no
gradient checkpointing), once with the usual batches of 8 and once with single pairs accumulated to 8, which need less
padding. Scoring: four responses per prompt, `RewardScorer` against TRL's `get_reward` on the merged model in padded
batches. Peak memory is measured in a separate process for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import hh_pairs, machine, matrix_ceiling, peak_rss_mb, save
from peft import LoraConfig
from transformers import TrainerCallback

from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.records import Comparison
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, load_sequence_classifier
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.reward_files import merge_reward_model
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer

MODEL, MAX_LENGTH, BATCH = "smollm2-135m", 512, 8
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
# Listed, because "all-linear" would include TRL's classification head.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class StepClock(TrainerCallback):
    """Seconds spent in training steps, excluding setup and teardown of the trainer."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter() - self.started


def ours(
    pairs: list[Comparison], folder: str
) -> tuple[Callable[[], float], list[RewardExample], RewardModel, ChatFormat]:
    """A function that trains one round and returns its seconds."""
    tokenizer: Any = load_tokenizer(MODEL)
    backbone = Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))
    settings = RewardSettings(MODEL, max_length=MAX_LENGTH)
    model = RewardModel.create(backbone, LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, **LORA), settings)
    chat = ChatFormat(tokenizer, MAX_LENGTH)
    examples = ExampleBuilder(chat, backbone, with_critiques=False).comparisons(pairs)
    config = RewardConfig(
        output_dir=f"{folder}/ours", per_device_train_batch_size=BATCH, num_train_epochs=1, critique_weight=0.0,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, center_rewards_coefficient=None,
    )  # fmt: skip

    def train() -> float:
        clock = StepClock()
        RewardTrainer(model, config, examples, processing_class=tokenizer, callbacks=[clock]).train()
        return clock.seconds

    return train, examples, model, chat


def trl(pairs: list[Comparison], folder: str, micro_batch: int) -> Callable[[], float]:
    """The same with TRL's RewardTrainer."""
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig as TrlConfig
    from trl.trainer.reward_trainer import RewardTrainer as TrlTrainer

    tokenizer: Any = load_tokenizer(MODEL)
    model = load_sequence_classifier(MODEL, dtype="float32", num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS, **LORA)

    def turns(pair: Comparison, response: str) -> list[dict[str, str]]:
        asked = [{"role": message.role, "content": message.content} for message in pair.prompt]
        return [*asked, {"role": "assistant", "content": response}]

    rows = [{"chosen": turns(p, p.chosen), "rejected": turns(p, p.rejected)} for p in pairs]
    config = TrlConfig(
        output_dir=f"{folder}/trl", per_device_train_batch_size=micro_batch, num_train_epochs=1,
        gradient_accumulation_steps=BATCH // micro_batch, max_length=MAX_LENGTH, bf16=False,
        gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, report_to="none",
    )  # fmt: skip
    clock = StepClock()
    trainer = TrlTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                         peft_config=lora, callbacks=[clock])  # fmt: skip
    assert len(trainer.train_dataset) == len(pairs), "TRL dropped pairs that were chosen to fit"  # type: ignore[arg-type]

    def train() -> float:
        clock.seconds = 0.0
        trainer.train()
        return clock.seconds

    return train


def fitting_pairs(count: int) -> tuple[list[Comparison], str]:
    """Pairs whose conversations fit MAX_LENGTH: TRL drops longer ones, and then our side would do more work."""
    chat = ChatFormat(load_tokenizer(MODEL))
    candidates, source = hh_pairs(3 * count)
    fits = [
        pair for pair in candidates
        if max(len(group[0].ids) for group in chat.encode(pair.prompt, [pair.chosen, pair.rejected]).lines) < MAX_LENGTH
    ]  # fmt: skip
    return fits[:count], source


def operations(examples: list[RewardExample], model: RewardModel) -> float:
    """Operations of training on these rows: frozen layers forward and backward to their inputs, LoRA layers also
    backward to their weights, and attention over the tokens that each token sees."""
    config = model.backbone.config
    frozen = sum(m.weight.numel() for n, m in model.backbone.decoder.named_modules() if n.endswith("base_layer"))
    lora = sum(p.numel() for p in model.backbone.decoder.parameters() if p.requires_grad)
    width = config.num_attention_heads * config.head_dim
    total = 0.0
    for example in examples:
        for row in example.rows:
            seen = sum(position + 1 for position in row.positions)
            total += len(row) * (4 * frozen + 6 * lora) + seen * 12 * width * config.num_hidden_layers
    return total


def measure_training(pairs: list[Comparison], rounds: int, folder: str) -> dict[str, Any]:
    """Rounds of the three trainers in turn, with the ceiling measured in each round."""
    train, examples, model, _ = ours(pairs, folder)
    runs = {"ours": train, "trl": trl(pairs, folder, BATCH), "trl_accumulated": trl(pairs, folder, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    ceilings = []
    for number in range(rounds):
        for name, run in runs.items():
            ceilings.append(matrix_ceiling())
            seconds[name].append(run())
            print(f"round {number + 1}: {name} {len(pairs) / seconds[name][-1]:.3f} pairs/s", flush=True)
        ceilings.append(matrix_ceiling())
    speeds = {name: len(pairs) / statistics.median(values) for name, values in seconds.items()}
    ceiling = statistics.median(ceilings)
    needed = operations(examples, model)
    tokens = sum(len(row) for example in examples for row in example.rows)
    return {
        **{name: {"pairs_per_second": round(speed, 4), "seconds": [round(s, 2) for s in seconds[name]]}
           for name, speed in speeds.items()},
        "ratio": round(speeds["ours"] / speeds["trl"], 3),
        "ratio_rounds": [round(t / o, 3) for o, t in zip(seconds["ours"], seconds["trl"], strict=True)],
        "ratio_accumulated": round(speeds["ours"] / speeds["trl_accumulated"], 3),
        "ceiling_gflops": round(ceiling / 1e9, 1),
        "ceiling_gflops_all": [round(value / 1e9, 1) for value in ceilings],
        "ceiling_share": round(needed / statistics.median(seconds["ours"]) / ceiling, 3),
        "tokens_per_second": round(tokens / statistics.median(seconds["ours"]), 1),
        "tokens_per_pair": round(tokens / len(pairs), 1),
    }  # fmt: skip


def measure_scoring(pairs: list[Comparison], rounds: int, folder: str, per_prompt: int = 4) -> dict[str, Any]:
    """Responses per second, four to a prompt: this project's scorer against TRL's get_reward in batches of 8."""
    from trl.experimental.utils import get_reward

    _, _, model, chat = ours(pairs[:2], folder)
    model.save(Path(folder) / "adapter", chat.tokenizer)
    merge_reward_model(Path(folder) / "adapter", Path(folder) / "merged", chat.tokenizer)
    merged = load_sequence_classifier(str(Path(folder) / "merged"), dtype="float32")
    scorer = RewardScorer(model, chat)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    prompts = [pair.prompt for pair in pairs]
    responses = [[texts[(2 * i + j) % len(texts)] for j in range(per_prompt)] for i in range(len(pairs))]
    pad = int(chat.tokenizer.pad_token_id)

    def score_trl() -> list[float]:
        lines = [line for p, r in zip(prompts, responses, strict=True) for (line,) in chat.encode(p, r).lines]
        rewards: list[float] = []
        for start in range(0, len(lines), 8):
            chunk = [list(line.ids) for line in lines[start : start + 8]]
            width = max(map(len, chunk))
            ids = torch.tensor([row + [pad] * (width - len(row)) for row in chunk])
            with torch.inference_mode():
                rewards += get_reward(merged, ids, pad, 0)[1].tolist()
        return rewards

    def score_ours() -> list[float]:
        return [reward for group in scorer.score(prompts, responses) for reward in group]

    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    rewards: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, run in (("ours", score_ours), ("trl", score_trl)):
            started = time.perf_counter()
            rewards[name] = run()
            seconds[name].append(time.perf_counter() - started)
    error = max(abs(a - b) for a, b in zip(rewards["ours"], rewards["trl"], strict=True))
    count = len(rewards["ours"])
    speeds = {name: count / statistics.median(values) for name, values in seconds.items()}
    return {
        "responses_per_prompt": per_prompt,
        **{name: {"responses_per_second": round(speed, 3)} for name, speed in speeds.items()},
        "ratio": round(speeds["ours"] / speeds["trl"], 3),
        "ratio_rounds": [round(t / o, 3) for o, t in zip(seconds["ours"], seconds["trl"], strict=True)],
        "largest_difference_of_rewards": error,
    }


def memory_of(name: str, count: int) -> float:
    """Peak memory of one round in a separate process."""
    command = [sys.executable, __file__, "--memory", name, "--pairs", str(count)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.strip().splitlines()[-1])["peak_rss_mb"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 for torch's default")
    parser.add_argument("--output", default="reward.json", help="file in scripts/bench/results")
    parser.add_argument(
        "--memory", choices=("ours", "trl"), help="only measure the peak memory of one round of this trainer"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    pairs, source = fitting_pairs(args.pairs)
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            (ours(pairs, folder)[0] if args.memory == "ours" else trl(pairs, folder, BATCH))()
            print(json.dumps({"peak_rss_mb": peak_rss_mb()}))
            return
        result: dict[str, Any] = {
            "machine": machine(), "model": MODEL, "data": source, "pairs": len(pairs), "rounds": args.rounds,
            "batch": BATCH, "max_length": MAX_LENGTH, **measure_training(pairs, args.rounds, folder),
        }  # fmt: skip
        result["score"] = measure_scoring(pairs, args.rounds, folder)
    for name in ("ours", "trl"):
        result[name]["peak_rss_mb"] = round(memory_of(name, BATCH))
    print(json.dumps(result, indent=2))
    print(save(args.output, result))


if __name__ == "__main__":
    main()
