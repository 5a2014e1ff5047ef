"""What `gpu.py` measures: a few steps of one task, ours or TRL's, on one model, in a separate process.

All steps use the same conversations; the first step is not counted. Tokens are random, because their content does not
affect the time. The checks are in gpu_checks.py; PPO with a server and TRL's GRPO are in gpu_samplers.py.
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import peak_rss_mb
from datasets import Dataset
from gpu_flops import Text, WeightCounts
from gpu_job import ALONE, CHECKS, EMBEDDED, MARK, PROFILE, RANK, SAVE, BenchJob, Load
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
)

from rrm_lm.evaluation.preferences.scorers import ClassifierScorer, RewardScorer
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders
from rrm_lm.models.pretrained import load_causal_lm, load_sequence_classifier, set_seed
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.chat import ChatFormat, Line
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import LinePair, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer

DTYPE = torch.bfloat16
# Listed, because "all-linear" would include TRL's classification heads.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# -- measuring ------------------------------------------------------------------------------------------------------


class DeviceClock(TrainerCallback):
    """End times of steps and durations of rollouts, after synchronizing the device. A `profiler` records the second
    step.
    """

    def __init__(self, device: torch.device, profiler: Any = None) -> None:
        self.device, self.profiler = device, profiler
        self.ends: list[float] = []
        self.rollouts: list[float] = []

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        if self.profiler is not None and self.ends:  # not the first step
            self.now()
            self.profiler.start()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self.ends.append(self.now())
        if self.profiler is not None and len(self.ends) > 1:
            self.profiler.stop()

    def rollout(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls timed as rollouts."""

        def call(*args: Any, **options: Any) -> Any:
            started = self.now()
            found = function(*args, **options)
            self.rollouts.append(self.now() - started)
            return found

        return call


def matrix_peak(device: torch.device) -> float:
    """Operations per second of a large bfloat16 matrix product (the best of several): the peak for MFU."""
    size, repeats = (8192, 20) if device.type == "cuda" else (256, 4)
    left, right = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    clock, best = DeviceClock(device), 0.0
    for _ in range(4):  # the first one warms up
        started = clock.now()
        for _ in range(repeats):
            torch.mm(left, right)
        best = max(best, 2.0 * size**3 * repeats / (clock.now() - started))
    return best


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of tensors on the device so far; on a CPU, peak memory of the process."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else peak_rss_mb() / 1024


# -- data ----------------------------------------------------------------------------------------------------------


def lengths(count: int, load: Load, seed: int) -> list[int]:
    """Evenly spaced lengths in random order."""
    step = (load.longest - load.shortest) / max(1, count - 1)
    spread = [round(load.shortest + number * step) for number in range(count)]
    random.Random(seed).shuffle(spread)
    return spread


def texts(count: int, load: Load, seed: int, vocabulary: int) -> Iterator[tuple[int, ...]]:
    """Token ids that are not special; the special ones come first in these vocabularies."""
    rng = random.Random(seed)
    for length in lengths(count, load, seed):
        yield tuple(rng.randrange(64, vocabulary) for _ in range(length))


def pairs(job: BenchJob, vocabulary: int) -> list[tuple[tuple[int, ...], ...]]:
    """Prompt, chosen and rejected response of each pair."""
    parts = (texts(job.load.pairs, job.load, seed, vocabulary) for seed in range(3))
    return list(zip(*parts, strict=True))


def prompts(job: BenchJob, vocabulary: int) -> list[list[int]]:
    return [list(ids) for ids in texts(job.load.episodes, job.load, 3, vocabulary)]


# -- models ---------------------------------------------------------------------------------------------------------


def made(job: BenchJob, classifier: bool = False) -> Any:
    """A model in bfloat16 on the device. Random weights are created there, never on the host."""
    if job.model == EMBEDDED:
        loaded: Any = (
            load_sequence_classifier(job.embedded, dtype=DTYPE, num_labels=1)
            if classifier
            else load_causal_lm(job.embedded, dtype=DTYPE)
        )
        return loaded.to(job.device)
    config: Any = copy.deepcopy(job.config())
    config.num_labels = 1
    family: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    with torch.device(job.device):
        return family.from_config(config, dtype=DTYPE).eval()


def lora(task_type: str = "CAUSAL_LM") -> LoraConfig:
    head = ["score"] if task_type == "SEQ_CLS" else None
    return LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, task_type=task_type, target_modules=TARGETS, modules_to_save=head
    )


# -- trainers -------------------------------------------------------------------------------------------------------


@dataclass
class TrainerSide:
    """A trainer and the size of its steps.

    Attributes:
        trainer: Ready to train.
        tokens: Of the conversations of a step, prompts and responses, each counted once, without padding.
        flops: Operations of a step, by part.
        more: Returns additional results after training.
        updates: The trainer's own steps in one of ours.
    """

    trainer: Any
    tokens: int
    flops: dict[str, float]
    more: Callable[[], dict[str, Any]] = dict
    updates: int = 1


def shared(job: BenchJob, folder: str) -> dict[str, Any]:
    """Settings that all trainers share."""
    return {
        "output_dir": folder, "learning_rate": 1e-5, "lr_scheduler_type": "constant", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": job.device == "cpu", "bf16": True,
    }  # fmt: skip


def our_reward(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    backbone = Backbone(made(job), int(tokenizer.pad_token_id))
    model = RewardModel.create(backbone, lora(), RewardSettings(job.model))
    examples = []
    for number, (prompt, *responses) in enumerate(pairs(job, vocabulary)):
        lines = tuple(
            Line(prompt + ids, len(prompt), len(prompt + ids) - 1) for ids in responses
        )  # the reward is read at the last token
        rows = tuple(backbone.rows([line.ids for line in lines]))
        examples.append(RewardExample(rows, lines, (LinePair(0, 1),), prompt_id=str(number)))
    args = RewardConfig(
        **shared(job, folder), **job.setting, per_device_train_batch_size=job.load.pairs, max_steps=job.steps + 1,
        critique_weight=0.0, logging_strategy="no",
    )  # fmt: skip
    trainer = RewardTrainer(model, args, examples, processing_class=tokenizer, callbacks=[clock])
    rows = [row for example in examples for row in example.rows]
    computed = Text(sum(map(len, rows)), sum(place + 1 for row in rows for place in row.positions))
    return TrainerSide(
        trainer,
        sum(len(line.ids) for example in examples for line in example.lines),
        {"reward": WeightCounts.of(backbone.config, RANK).reward(computed)},
        lambda: {"shares_prompts": backbone.can_share, "tokens_computed_per_step": computed.tokens},
    )


def trl_reward(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    from trl.trainer.reward_config import RewardConfig as TrlConfig
    from trl.trainer.reward_trainer import RewardTrainer as TrlTrainer

    rows = [
        {"chosen_ids": list(prompt + chosen), "rejected_ids": list(prompt + rejected)}
        for prompt, chosen, rejected in pairs(job, vocabulary)
    ]
    micro_batch = min(job.setting["micro_batch"], job.load.pairs)
    args = TrlConfig(
        **shared(job, folder), per_device_train_batch_size=micro_batch, max_steps=job.steps + 1, max_length=None,
        gradient_accumulation_steps=job.load.pairs // micro_batch, logging_strategy="no",
        gradient_checkpointing=job.setting["gradient_checkpointing"],
    )  # fmt: skip
    model = made(job, classifier=True)
    trainer = TrlTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=lora("SEQ_CLS"), callbacks=[clock],
    )  # fmt: skip
    computed = Text.of([len(ids) for row in rows for ids in row.values()])
    return TrainerSide(trainer, computed.tokens, {"reward": WeightCounts.of(model.config, RANK).reward(computed)})


class Scoring:
    """Scores the same conversations in every step, with the interface of a trainer."""

    def __init__(self, scorer: Any, lines: Any, steps: int, clock: DeviceClock) -> None:
        self.scorer, self.lines, self.steps, self.clock = scorer, lines, steps, clock
        self.model = scorer.model

    def train(self) -> None:
        for _ in range(self.steps):
            self.clock.on_step_begin()
            self.scorer.score_lines(self.lines)
            self.clock.on_step_end()


def _scoring(
    job: BenchJob, scorer: Any, backbone: Any, vocabulary: int, clock: DeviceClock, shares: bool
) -> TrainerSide:
    lines = [
        [[Line(prompt + ids, len(prompt), len(prompt + ids) - 1)] for ids in responses]
        for prompt, *responses in pairs(job, vocabulary)
    ]
    each = [line.ids for group in lines for (line,) in group]
    rows = [row for group in lines for row in backbone.rows([line.ids for (line,) in group])] if shares else []
    computed = Text.of([len(ids) for ids in each])
    if rows:
        computed = Text(sum(map(len, rows)), sum(place + 1 for row in rows for place in row.positions))
    flops = {"score": WeightCounts.of(scorer.model.config if not shares else backbone.config, RANK).score(computed)}
    return TrainerSide(Scoring(scorer, lines, job.steps + 1, clock), sum(map(len, each)), flops)


def our_scoring(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    backbone = Backbone(made(job), int(tokenizer.pad_token_id))
    model = RewardModel.create(backbone, lora(), RewardSettings(job.model)).requires_grad_(False).eval()
    scorer = RewardScorer(model, ChatFormat(tokenizer), **job.setting)
    return _scoring(job, scorer, backbone, vocabulary, clock, backbone.can_share)


def plain_scoring(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    adapted = get_peft_model(made(job, classifier=True), lora("SEQ_CLS"))
    adapted.config.pad_token_id = tokenizer.pad_token_id
    scorer = ClassifierScorer(adapted, ChatFormat(tokenizer), job.model, **job.setting)
    return _scoring(job, scorer, None, vocabulary, clock, False)


def ppo_settings(job: BenchJob, folder: str, micro_batch: int) -> dict[str, Any]:
    return {
        **shared(job, folder), "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": job.load.episodes // micro_batch, "num_ppo_epochs": job.load.epochs,
        "total_episodes": job.load.episodes * (job.steps + 1), "response_length": job.load.new_tokens,
        "temperature": 0.7, "num_sample_generations": 0,
    }  # fmt: skip


def our_ppo_trainer(
    job: BenchJob, tokenizer: Any, asked: Sequence[Sequence[int]], clock: DeviceClock, folder: str, **more: Any
) -> Any:
    """Our PPO trainer on these prompts; `more` has settings."""
    backbone = Backbone(made(job), int(tokenizer.pad_token_id))
    agent = AgentModel.create(backbone, lora())
    agent.add_reward(RewardModel.create(backbone, lora(), RewardSettings(job.model)))
    args = PPOConfig(**ppo_settings(job, folder, job.load.episodes), **job.setting, max_kl=None, **more)
    return PPOTrainer(args, tokenizer, agent, train_dataset=[{"input_ids": ids} for ids in asked], callbacks=[clock])


def our_ppo(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    asked = prompts(job, vocabulary)
    trainer = our_ppo_trainer(job, tokenizer, asked, clock, folder, rollout_batch_tokens=65536)
    trainer.roll_out = clock.rollout(trainer.roll_out)
    agent = trainer.agent
    return ppo_side(
        job, trainer, asked, agent.backbone.config, None,
        lambda: {"shares_prompts": agent.can_share, "decoders": decoders._agreeing.get(agent.backbone, {})},
    )  # fmt: skip


def trl_ppo(job: BenchJob, tokenizer: Any, vocabulary: int, clock: DeviceClock, folder: str) -> TrainerSide:
    from trl.experimental.ppo import PPOConfig as TrlConfig
    from trl.experimental.ppo import PPOTrainer as TrlTrainer
    from trl.experimental.ppo import ppo_trainer as trl_module

    tokenizer.padding_side = "left"
    policy, reward = made(job), made(job, classifier=True)
    value: Any = made(job, classifier=True)
    for classifier in (reward, value):
        classifier.config.pad_token_id = tokenizer.pad_token_id
    if job.setting["value_model"] == "lora":
        value = get_peft_model(value, lora("SEQ_CLS"))
    asked = prompts(job, vocabulary)
    args = TrlConfig(
        **ppo_settings(job, folder, min(job.setting["micro_batch"], job.load.episodes)), gradient_checkpointing=False,
        local_rollout_forward_batch_size=min(job.setting["rollout_batch"], job.load.episodes),
    )  # fmt: skip
    trainer: Any = TrlTrainer(
        args, tokenizer, model=policy, ref_model=None, reward_model=reward, value_model=value, peft_config=lora(),
        train_dataset=Dataset.from_dict({"input_ids": asked}), callbacks=[clock],
    )  # fmt: skip
    trl_module.batch_generation = clock.rollout(trl_module.batch_generation)
    return ppo_side(job, trainer, asked, policy.config, job.setting["value_model"])


def ppo_side(
    job: BenchJob,
    trainer: Any,
    asked: Sequence[Sequence[int]],
    config: Any,
    value_model: str | None,
    more: Callable[[], dict[str, Any]] = dict,
) -> TrainerSide:
    trainer.remove_callback(PrinterCallback)
    whole = [len(ids) + job.load.new_tokens for ids in asked]
    flops = WeightCounts.of(config, RANK).ppo(whole, job.load.new_tokens, job.load.epochs, value_model)
    return TrainerSide(trainer, sum(whole), flops, more)


TRAINERS = {
    ("score", "ours"): our_scoring,
    ("score", "trl"): plain_scoring,
    ("reward", "ours"): our_reward,
    ("reward", "trl"): trl_reward,
    ("ppo", "ours"): our_ppo,
    ("ppo", "trl"): trl_ppo,
}


# -- one process ----------------------------------------------------------------------------------------------------


def maker(job: BenchJob) -> Callable[..., TrainerSide]:
    """What makes the job's trainer."""
    if job.task in ALONE:
        from gpu_samplers import SAMPLERS

        return SAMPLERS[job.task]
    return TRAINERS[job.task, job.side]


def save_model(job: BenchJob) -> dict[str, Any]:
    """Write the job's model, with the weights that its trainers have, for a server to read."""
    from gpu_samplers import covering_tokenizer

    set_seed(0)
    model = made(job)
    model.save_pretrained(job.setting["folder"])
    tokenizer = load_tokenizer(job.embedded) if job.model == EMBEDDED else covering_tokenizer(model.config.vocab_size)
    tokenizer.save_pretrained(job.setting["folder"])
    return {}


def run(job: BenchJob) -> dict[str, Any]:
    """Train, and return speed and memory."""
    device = torch.device(job.device)
    if job.task == CHECKS:
        from gpu_checks import checks

        return checks(job)
    if job.task == SAVE:
        return save_model(job)
    profiler = None
    if job.task == PROFILE:
        job = replace(job, task=job.setting["task"], setting=job.setting["setting"], steps=1)
        profiler = step_profiler(device)
    peak, clock = matrix_peak(device), DeviceClock(device, profiler)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    set_seed(0)
    tokenizer: Any = load_tokenizer(job.embedded)
    vocabulary = min(len(tokenizer), int(job.config().vocab_size))
    with tempfile.TemporaryDirectory() as folder:
        side = maker(job)(job, tokenizer, vocabulary, clock, folder)
        _check_place(side.trainer, device)
        side.trainer.train()
    each = [end - start for start, end in pairwise(clock.ends[side.updates - 1 :: side.updates])]
    if len(each) != job.steps:
        raise RuntimeError(f"{len(each)} steps were counted, not {job.steps}")
    seconds, needed = statistics.median(each), sum(side.flops.values())
    found = {
        "seconds": [round(value, 4) for value in each],
        "tokens_per_step": side.tokens,
        "tokens_per_second": round(side.tokens / seconds, 1),
        "flops_per_step": {part: float(f"{count:.4g}") for part, count in side.flops.items()},
        "tflops_per_second": round(needed / seconds / 1e12, 4),
        "peak_tflops_per_second": round(peak / 1e12, 4),
        "mfu": round(needed / seconds / peak, 4),
        "peak_memory_gib": round(peak_memory_gib(device), 3),
    }
    if profiler is not None:
        found |= profiled(profiler, seconds, device)
    if clock.rollouts:
        written = job.load.episodes * job.load.new_tokens
        spent = statistics.median(clock.rollouts[1:])
        found |= {
            "rollout_seconds": round(spent, 4),
            "rollout_tokens_per_second": round(written / spent, 1),
            "rollout_share": round(spent / seconds, 4),
            "iteration_over_rollout": round(seconds / spent, 3),
        }
    return {**found, **side.more()}


def step_profiler(device: torch.device) -> Any:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=kinds)


def profiled(profiler: Any, seconds: float, device: torch.device) -> dict[str, Any]:
    """The kernels (on a CPU, operators) that took the longest in a step, and the share of the step in which none ran.

    Profiling itself takes time, which counts as waiting.
    """
    on = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # Operators on the host repeat the times of their kernels.
    events = [e for e in profiler.key_averages() if device.type != "cuda" or "cuda" in str(e.device_type).lower()]
    events.sort(key=lambda event: -getattr(event, on))
    busy = sum(getattr(event, on) for event in events) / 1e6
    return {
        "busy_seconds": round(busy, 4),
        "waiting_share": round(max(0.0, 1 - busy / seconds), 4),
        "longest": [
            {"kernel": e.key[:100], "calls": e.count, "share": round(getattr(e, on) / 1e6 / max(busy, 1e-9), 4)}
            for e in events[:12]
        ],
    }


def _check_place(trainer: Any, device: torch.device) -> None:
    places = {parameter.device.type for parameter in trainer.model.parameters()}
    if places != {device.type}:
        raise RuntimeError(f"the model is on {', '.join(sorted(places))}, not on {device.type}")


def is_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is an out-of-memory error."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "alloc_failed" in said:
            return True
        error = error.__cause__ or error.__context__
    return False


def main() -> None:
    job = BenchJob.loads(sys.argv[1])
    try:
        found = run(job)
    except Exception as error:  # any error is reported to the parent process, which continues with the other sides
        traceback.print_exc()
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        found = {"error": "out of memory" if is_memory(error) else last}
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
