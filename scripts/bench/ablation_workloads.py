"""The workloads of `ablation.py`, and how each fast path in them is switched off."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
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
from rrm_lm.models.pretrained import load_causal_lm
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.ppo import rollouts as ppo_rollouts
from rrm_lm.training.ppo.config import PPOConfig
from rrm_lm.training.ppo.rollouts import Rollouts
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.config import RewardConfig
from rrm_lm.training.reward.examples import ExampleBuilder
from rrm_lm.training.reward.trainer import RewardTrainer

NEW_TOKENS = 24
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


# -- switches ---------------------------------------------------------------------------------------------------------


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
    known.update(dict.fromkeys(names, False), logged=True)
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
        "prefix_sharing": lambda: unshared(backbone), "length_grouping": ungrouped,
    }  # fmt: skip
    return {
        "reward_training": Workload(train, "pairs", (model,), paths | {"keeping_activations": recomputed}),
        "scoring": Workload(score, "responses", (model,), paths),
    }, source


def policy_workloads(folder: str, prompts_count: int) -> dict[str, Workload]:
    """Rollouts and updates of one agent."""
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

    updates = update_workload(agent, tokenizer, prompts, responses, folder)
    return rollout_workloads(agent, prompts, responses, chat.end_id) | updates


def rollout_workloads(agent: AgentModel, prompts: list[list[int]], responses: Any, end_id: int) -> dict[str, Workload]:
    """Rollouts of prompts, with each decoder and each way of sampling."""
    backbone = agent.backbone

    def work(off: dict[str, Switch], **options: Any) -> Workload:
        def run() -> float:
            return sum(len(ids) for samples in responses(**({"prompts": prompts} | options)) for ids in samples)

        return Workload(run, "tokens", (agent,), off)

    longest, made_row = 4 * NEW_TOKENS, rollouts._Row
    ended = {"prompts": prompts, "ends": (end_id,), "tokens": longest}
    useful = sum(len(ids) for samples in responses(**ended) for ids in samples)

    def ending() -> float:
        responses(**ended)
        return useful

    def unpacked() -> AbstractContextManager[Any]:
        return patch.object(decoders, "can_pack", lambda _: False)

    def apart(prompt: tuple[int, ...], number: int, sample: int) -> Any:
        return made_row(Apart(prompt), number, sample)

    by_model_code = work(
        {"merged_adapter": lambda: patch.object(decoders, "products_of", lambda *_: {}), "packed_weights": unpacked}
    )
    return {
        "rollout": work(
            {
                "lean_decoder": lambda: without_decoders(backbone, "lean"),
                "any_decoder": lambda: without_decoders(backbone, "lean", "whole"),
                "packed_weights": unpacked,
                "shared_beginning": lambda: patch.object(rollouts, "_common", lambda _: 0),
                "block_sums": lambda: patch.object(sampling, "_BLOCK", 49152),
            }
        ),
        "rollout_by_model_code": replace(
            by_model_code, run=_always(lambda: without_decoders(backbone, "lean"), by_model_code.run)
        ),
        "rollout_samples_4": work(
            {"shared_prompts": lambda: patch.object(rollouts, "_Row", apart)},
            prompts=prompts[: len(prompts) // 4],
            samples=4,
        ),
        "rollout_top_p": work({"nucleus_candidates": lambda: patch.object(sampling, "_CANDIDATES", ())}, p=0.9),
        # Without end tokens, all rows stay as long as the longest one.
        "rollout_with_ends": Workload(
            ending, "tokens", (agent,), {"ended_rows_leave": lambda: patch.dict(ended, {"ends": ()})}
        ),
    }


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
        trainer._grouping = None  # else the grouping of an earlier run is kept
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
    }
    return {"ppo_update": Workload(update, "tokens", (agent,), paths)}


def _autograd_slopes(head: Any, hidden: Any, tokens: Any) -> Any:
    with torch.enable_grad():
        states = hidden.detach().requires_grad_()
        log_probs, entropy = head(states, tokens)
        (slopes,) = torch.autograd.grad(log_probs.sum(), states)
    return log_probs.detach(), entropy, slopes
