"""What each fast path is worth: every workload with the path on and off, interleaved in one process.

    python scripts/bench/ablation.py            writes scripts/bench/results/ablation.json

A ratio is time without the path over time with it, so 1.25 means that the path makes the workload 25% faster. Times are
CPU seconds of one thread, which other programs on the machine disturb less than wall-clock time. Memory is the peak of
all tensors that a run allocates, weights excluded, counted tensor by tensor; its ratio is peak without over peak with.
`off_in_bf16` marks the paths that switch themselves off for a bfloat16 model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from common import RESULTS, commit, machine, save
from peft.tuners.lora.layer import Linear as PeftLinear
from policy import DATA
from policy_sides import MODEL, Case, lora, rows, settings
from reward import BATCH, MAX_LENGTH, fitting_pairs

from rrm_lm.evaluation.preferences.scorers import RewardScorer
from rrm_lm.feedback.reading.prompts import load_prompts
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders, rollouts, sampling, token_probs
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import load_causal_lm, load_tokenizer
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.planning.peak_memory import AllocationPeak
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.ppo import rollouts as ppo_rollouts
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer

NEW_TOKENS = 24
CLOSE = 1.15
Switch = Callable[[], AbstractContextManager[Any]]  # switches a fast path off inside


@dataclass(frozen=True)
class Workload:
    """Something to run, and what it gets through.

    Attributes:
        run: Runs it once, and returns how many `unit` it did.
        unit: pairs, responses or tokens.
        models: The modules whose parameters are not counted as memory.
        off: The fast paths that matter here, by name.
    """

    run: Callable[[], float]
    unit: str
    models: tuple[torch.nn.Module, ...]
    off: dict[str, Switch]


OFF_IN_BF16 = ("fused_lora", "fused_norm", "fused_mlp", "lean_decoder", "packed_weights", "merged_adapter")


# -- switches ---------------------------------------------------------------------------------------------------------


@contextmanager
def own_forwards(model: torch.nn.Module, wanted: Callable[[Any], bool]) -> Iterator[None]:
    """Give fused modules their own forward methods back."""
    fused = {m: m.__dict__.pop("forward") for m in model.modules() if "forward" in m.__dict__ and wanted(m)}
    if not fused:
        raise RuntimeError("nothing is fused here")
    try:
        yield
    finally:
        for module, forward in fused.items():
            module.forward = forward


def fused(model: torch.nn.Module) -> dict[str, Switch]:
    """The fused layers of a model, kind by kind."""

    def named(name: str) -> Callable[[Any], bool]:
        return lambda module: module.__dict__["forward"].__name__ == name

    return {
        "fused_lora": lambda: own_forwards(model, lambda module: isinstance(module, PeftLinear)),
        "fused_norm": lambda: own_forwards(model, named("_norm_forward")),
        "fused_mlp": lambda: own_forwards(model, named("_mlp_forward")),
    }


@contextmanager
def unshared(backbone: Backbone) -> Iterator[None]:
    """Lines get a row each."""
    backbone.can_share = False
    try:
        yield
    finally:
        backbone.can_share = True


@contextmanager
def without_decoders(backbone: Backbone, *names: str) -> Iterator[None]:
    """Rollouts that may not use some of the decoders."""
    known = decoders._agreeing.setdefault(backbone, {})
    before = dict(known)
    known.update(dict.fromkeys(names, False), said=True)
    try:
        yield
    finally:
        known.clear()
        known.update(before)


@contextmanager
def several(*parts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part)
        yield


def in_given_order(lengths: list[int], max_tokens: int, overhead: int = 48, sizes: Any = None) -> list[list[int]]:
    """What batching would be without looking at lengths: items as they come, within the same token budget."""
    groups: list[list[int]] = []
    width = count = 0
    for index, length in enumerate(lengths):
        width, count = max(width, length), count + (1 if sizes is None else sizes[index])
        if groups and width * count <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            width, count = length, 1 if sizes is None else sizes[index]
    return groups


class Apart(tuple):
    """A prompt that is equal to no other, so that its computation is not shared with its other samples."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


# -- workloads --------------------------------------------------------------------------------------------------------


def reward_workloads(count: int, folder: str) -> tuple[dict[str, Workload], str]:
    """A training step and scoring, with a reward model of its own."""
    pairs, source = fitting_pairs(count)
    tokenizer: Any = load_tokenizer(MODEL)
    backbone = Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))
    model = RewardModel.create(backbone, lora(), RewardSettings(MODEL, max_length=MAX_LENGTH))
    chat = ChatFormat(tokenizer, MAX_LENGTH)
    config = RewardConfig(
        output_dir=f"{folder}/reward", per_device_train_batch_size=BATCH, critique_weight=0.0, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    made: dict[bool, Any] = {}
    for shares in (True, False):
        backbone.can_share = shares
        made[shares] = ExampleBuilder(chat, backbone, with_critiques=False).comparisons(pairs)
    backbone.can_share = True
    trainer = RewardTrainer(model, config, made[True], processing_class=tokenizer)
    scorer = RewardScorer(model, chat)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    prompts = [pair.prompt for pair in pairs]
    responses = [[texts[(2 * i + j) % len(texts)] for j in range(4)] for i in range(len(pairs))]

    def train() -> float:
        trainer.training_step(model, made[backbone.can_share])
        model.zero_grad()
        return len(pairs)

    def score() -> float:
        return sum(map(len, scorer.score(prompts, responses)))

    @contextmanager
    def ungrouped() -> Iterator[None]:
        import rrm_lm.text.batching
        import rrm_lm.training.reward.trainer

        modules = (rrm_lm.text.batching, rrm_lm.training.reward.trainer)
        with several(*(patch.object(module, "length_groups", in_given_order) for module in modules)):
            yield

    @contextmanager
    def recomputed() -> Iterator[None]:
        model.activation_checkpointing_enable()
        try:
            yield
        finally:
            backbone.causal_lm.activation_checkpointing_disable()

    paths: dict[str, Switch] = {
        "prefix_sharing": lambda: unshared(backbone), "length_grouping": ungrouped, **fused(backbone),
    }  # fmt: skip
    return {
        "reward_training": Workload(train, "pairs", (model,), paths | {"keeping_activations": recomputed}),
        "scoring": Workload(score, "responses", (model,), paths),
    }, source


def policy_workloads(folder: str, prompts_count: int) -> dict[str, Workload]:
    """Rollouts and updates, on one agent."""
    tokenizer: Any = load_tokenizer(MODEL)
    chat = ChatFormat(tokenizer)
    prompts = [ids for ids in map(chat.prompt_ids, load_prompts(str(DATA))) if len(ids) <= 45][:prompts_count]
    backbone = Backbone(load_causal_lm(MODEL, dtype="float32"), int(tokenizer.pad_token_id))
    agent = AgentModel.create(backbone, lora())
    agent.add_reward(RewardModel.create(backbone, lora(), RewardSettings(MODEL)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.002, generator=generator)

    def responses(
        prompts: list[list[int]], samples: int = 1, ends: tuple[int, ...] = (), tokens: int = NEW_TOKENS, p: float = 1.0
    ) -> list[list[list[int]]]:
        return roll_out(
            backbone, agent.policy_adapter, prompts, Sampling(tokens, 0.7, p), end_ids=ends, num_return=samples, seed=1
        )  # fmt: skip

    def written(**options: Any) -> Callable[[], float]:
        return lambda: sum(len(ids) for samples in responses(**options) for ids in samples)

    real_ends, longest = (chat.end_id,), 4 * NEW_TOKENS
    useful = sum(len(ids) for samples in responses(prompts, ends=real_ends, tokens=longest) for ids in samples)
    staying = [True]

    def ending() -> float:
        responses(prompts, ends=real_ends if staying[0] else (), tokens=longest)
        return useful

    @contextmanager
    def until_the_longest_ends() -> Iterator[None]:
        staying[0] = False
        try:
            yield
        finally:
            staying[0] = True

    def row(prompt: tuple[int, ...], number: int, sample: int) -> Any:
        return made_row(Apart(prompt), number, sample)

    made_row = rollouts._Row
    models = (agent,)
    no_products = patch.object(decoders, "products_of", lambda *_: {})
    found = {
        "rollout": Workload(
            written(prompts=prompts),
            "tokens",
            models,
            {
                "lean_decoder": lambda: without_decoders(backbone, "lean"),
                "any_decoder": lambda: without_decoders(backbone, "lean", "whole"),
                "packed_weights": lambda: patch.object(decoders, "can_pack", lambda _: False),
                "shared_beginning": lambda: patch.object(rollouts, "_common", lambda _: 0),
                "block_sums": lambda: patch.object(sampling, "_BLOCK", 49152),
            },
        ),
        "rollout_by_model_code": Workload(
            _always(lambda: without_decoders(backbone, "lean"), written(prompts=prompts)),
            "tokens",
            models,
            {
                "merged_adapter": lambda: no_products,
                "packed_weights": lambda: patch.object(decoders, "can_pack", lambda _: False),
            },
        ),
        "rollout_samples_4": Workload(
            written(prompts=prompts[: len(prompts) // 4], samples=4),
            "tokens",
            models,
            {"shared_prompts": lambda: patch.object(rollouts, "_Row", row)},
        ),
        "rollout_top_p": Workload(
            written(prompts=prompts, p=0.9),
            "tokens",
            models,
            {"nucleus_candidates": lambda: patch.object(sampling, "_CANDIDATES", ())},
        ),
        "rollout_with_ends": Workload(ending, "tokens", models, {"ended_rows_leave": until_the_longest_ends}),
    }  # fmt: skip
    return found | update_workload(agent, tokenizer, prompts, responses, folder)


def _always(context: Switch, run: Callable[[], float]) -> Callable[[], float]:
    def inside() -> float:
        with context():
            return run()

    return inside


def update_workload(
    agent: AgentModel, tokenizer: Any, prompts: list[list[int]], responses: Callable[..., Any], folder: str
) -> dict[str, Workload]:
    """Estimates and one PPO update from given responses, four to a prompt."""
    case = Case(prompts[: len(prompts) // 4], 2, samples=4)
    config = PPOConfig(**settings(folder, case), samples_per_prompt=4)
    trainer = PPOTrainer(config, tokenizer, agent, train_dataset=rows(case))
    backbone = agent.backbone
    drawn = [ids for samples in responses(case.prompts, samples=4) for ids in samples]
    items = [item for item in trainer.prompts for _ in range(4)]
    made = Rollouts.of(items, drawn, tokenizer, [], agent.device)

    class Scored:
        used = torch.linspace(-1, 1, case.episodes)
        reference = torch.zeros(case.episodes, NEW_TOKENS)

    def update() -> float:
        estimates, first = trainer.estimate(made, Scored)  # type: ignore[arg-type]
        trainer.update(made, estimates, first)
        return sum(map(len, drawn))

    def slopes_by_autograd() -> AbstractContextManager[Any]:
        return patch.object(token_probs._Head, "_plain", _autograd_slopes)

    def without_frozen_head() -> AbstractContextManager[Any]:
        class Trained(token_probs._Head):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.is_trained = True

        return patch.object(token_probs, "_Head", Trained)

    paths: dict[str, Switch] = {
        "prefix_sharing": lambda: unshared(backbone),
        "bundles": lambda: patch.object(ppo_rollouts, "_rows_for", lambda _, own, __: len(own)),
        "kept_graph": lambda: patch.object(trainer, "_graph_tokens", lambda _: 0),
        "slopes_in_hidden_states": without_frozen_head,
        "slopes_written_down": slopes_by_autograd,
        **fused(backbone),
    }
    return {"ppo_update": Workload(update, "tokens", (agent,), paths)}


def _autograd_slopes(head: Any, hidden: Any, tokens: Any) -> Any:
    with torch.enable_grad():
        states = hidden.detach().requires_grad_()
        log_probs, entropy = head(states, tokens)
        (slopes,) = torch.autograd.grad(log_probs.sum(), states)
    return log_probs.detach(), entropy, slopes


# -- measuring --------------------------------------------------------------------------------------------------------


def cpu_seconds(run: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds of a run, and how many units it did."""
    started = time.process_time()
    count = run()
    return time.process_time() - started, count


def peak_mb(work: Workload) -> float:
    """Peak of what a run allocates."""
    held = [p for m in work.models for p in (*m.parameters(), *m.buffers())]
    with AllocationPeak(held) as peak:
        work.run()
    return peak.most / 2**20


def paired_ratio(work: Workload, off: Switch, on_first: bool) -> tuple[float, float]:
    """CPU time without the path over CPU time with it, one run each; and units per CPU second with it."""
    seconds: dict[bool, float] = {}
    count = 0.0
    for on in (on_first, not on_first):
        with nullcontext() if on else off():
            seconds[on], count = cpu_seconds(work.run)
    return seconds[False] / seconds[True], count / seconds[True]


def measure(work: Workload, rounds: int, close_rounds: int, kept: dict[str, Any]) -> None:
    """Each fast path of a workload, on and off in turn; paths worth less than `CLOSE` get `close_rounds` rounds."""
    work.run()  # what is found out about a model once is not counted
    peak = peak_mb(work)
    for name, off in work.off.items():
        with off():
            peak_without = peak_mb(work)
        found: list[tuple[float, float]] = []
        while len(found) < rounds or (len(found) < close_rounds and median(r for r, _ in found) < CLOSE):
            found.append(paired_ratio(work, off, len(found) % 2 == 0))
        ratios, speeds = zip(*found, strict=True)
        kept[name] = {
            "n": len(found),
            "time_ratio": {f.__name__: round(f(ratios), 3) for f in (min, median, max)},
            f"{work.unit}_per_cpu_second": round(median(speeds), 2),
            "peak_mb": round(peak, 1),
            "peak_mb_without": round(peak_without, 1),
            "memory_ratio": round(peak_without / peak, 3),
            "off_in_bf16": name in OFF_IN_BF16,
        }
        print(name, json.dumps(kept[name]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--close_rounds", type=int, default=7, help="rounds of a path that makes little difference")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="some of the workloads; the others are kept as the file has them")
    parser.add_argument("--shared_machine", action="store_true", help="note that other programs ran meanwhile")
    parser.add_argument("--output", default="ablation.json", help="file in scripts/bench/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = RESULTS / args.output
    before: dict[str, Any] = json.loads(path.read_text())["workloads"] if path.is_file() and args.only else {}
    with tempfile.TemporaryDirectory() as folder:
        found, source = reward_workloads(args.pairs, folder)
        found |= policy_workloads(folder, args.prompts)
        result: dict[str, Any] = {
            "machine": machine(), "shared_machine": args.shared_machine, "commit": commit(),
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate")},
            "setting": {"model": MODEL, "dtype": "float32", "threads": 1, "pairs": args.pairs,
                        "pair_data": source, "prompts": args.prompts, "new_tokens": NEW_TOKENS},
            "workloads": before,
        }  # fmt: skip
        for name, work in found.items():
            if args.only and name not in args.only:
                continue
            print(f"-- {name}", flush=True)
            result["workloads"][name] = {}
            measure(work, args.rounds, args.close_rounds, result["workloads"][name])
            save(args.output, result)
    print(path)


if __name__ == "__main__":
    main()
