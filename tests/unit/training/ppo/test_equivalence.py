"""Our update against TRL's own, on the same rollouts: losses, gradients of every step, parameters, logged metrics.

Both have the same trainable parameters: the policy's LoRA weights and a separate value model. The optimizer is plain
gradient descent, which does not magnify rounding as Adam does where a gradient is near zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig as TrlConfig
from trl.experimental.ppo import PPOTrainer as TrlTrainer
from trl.experimental.ppo import ppo_trainer as trl_module

from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.ppo.update import STATS
from tests.deprecations import trls_arguments
from tests.tiny import VOCABULARY, lora, tiny_config, tiny_tokenizer

UPDATES, EPISODES, LONGEST, PAD, EOS = 3, 8, 7, 0, 2
CLOSE = 5e-6  # relative to the largest number of each tensor; the models are in float64, the estimates in float32


def prompts() -> list[list[list[int]]]:
    """For each update, prompts of uneven length, all different."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (UPDATES, EPISODES), generator=generator).tolist()
    return [[torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in row] for row in lengths]


def responses(uneven: bool) -> list[list[list[int]]]:
    """For each prompt a response: some end early, some fill their length with an eos token or without."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(UPDATES):
        lengths = [1, 2, LONGEST, 3, LONGEST, 5, 4, 6] if uneven else [LONGEST] * EPISODES
        rows = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
        for number, row in enumerate(rows):
            if len(row) < LONGEST or number == 2:
                row[-1] = EOS
        made.append(rows)
    return made


def model(kind: Any, seed: int) -> Any:
    """With weights of usual size: the wide ones of the other tests magnify rounding to more than is compared here. In
    float64, because the rounding of float32 depends on the CPU and adds up over 24 steps.
    """
    torch.manual_seed(seed)
    config = tiny_config("llama")
    config.num_labels, config.initializer_range = 1, 0.1
    return kind(config).eval().double()


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "total_episodes": UPDATES * EPISODES,
        "num_ppo_epochs": 2,
        "response_length": LONGEST,
        "stop_token": "eos",
        "missing_eos_penalty": 1.5,
        "temperature": 0.7,
        "kl_coef": 0.2,
        "vf_coef": 0.3,
        "cliprange": 0.001,  # so that small steps do reach it
        "cliprange_value": 0.002,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "linear",
        "num_sample_generations": 0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def arguments(args: TrlConfig, tokenizer: Any) -> dict[str, Any]:
    rows = [ids for update in prompts() for ids in update]
    return {
        "args": args,
        "processing_class": tokenizer,
        "model": model(LlamaForCausalLM, 4),
        "ref_model": None,
        "reward_model": model(LlamaForSequenceClassification, 5),
        "value_model": model(LlamaForSequenceClassification, 6),
        "train_dataset": Dataset.from_dict({"input_ids": rows}),
        "peft_config": lora(dropout=0.1, random=False),
    }


def recorded(trainer: Any) -> list[dict[str, Tensor]]:
    """The gradients of every optimizer step, filled while the trainer trains."""
    steps: list[dict[str, Tensor]] = []
    inner = trainer.accelerator.unwrap_model(trainer.model)

    def note(*_: Any) -> None:
        named = [("policy", inner.policy), ("value", inner.value_model)]
        steps.append(
            {
                f"{part}.{name}": parameter.grad.clone()
                for part, module in named
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            }
        )

    trainer.optimizer.optimizer.register_step_pre_hook(note)
    return steps


def train_trl(trainer: Any, fixed: Sequence[Sequence[list[int]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train TRL's with responses that are given: its logits are a forward pass's, not those of a cache."""
    by_prompt = dict(zip(map(tuple, chain(*prompts())), chain(*fixed), strict=True))

    def batch_generation(model: Any, queries: Tensor, size: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        found = [by_prompt[tuple(token for token in row if token != pad)] for row in queries.tolist()]
        width = max(map(len, found))
        padded = torch.tensor([[*response, *[pad] * (width - len(response))] for response in found])
        both = torch.cat([queries, padded], 1)
        with torch.no_grad():
            output: Any = trl_module.forward(model, both, pad)
            logits = output.logits[:, queries.shape[1] - 1 : -1]
        return both, logits / config.temperature

    def left_padded(rows: list[list[int]]) -> dict[str, Tensor]:
        width = max(map(len, rows))
        return {"input_ids": torch.tensor([[*[PAD] * (width - len(row)), *row] for row in rows])}

    monkeypatch.setattr(trl_module, "batch_generation", batch_generation)
    trainer.dataloader = [left_padded(rows) for rows in prompts()]
    np.random.seed(0)
    trainer.train()


def train_ours(trainer: PPOTrainer, fixed: Sequence[Sequence[list[int]]]) -> None:
    flat = iter(fixed)
    trainer.order.update = lambda number: list(range(number * EPISODES, (number + 1) * EPISODES))  # type: ignore[method-assign]
    trainer.agent.roll_out = lambda *_, **__: [[response] for response in next(flat)]  # type: ignore[method-assign]
    np.random.seed(0)
    trainer.train()


def both(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uneven: bool = True, **more: Any
) -> tuple[Any, Any, list, list]:
    """TRL's trainer and ours, trained; and the gradients of their steps."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    theirs: Any = TrlTrainer(**arguments(TrlConfig(**settings(folder / "trl", **more)), tokenizer))
    start = random_lora(theirs.model.policy)
    their_steps = recorded(theirs)
    # Before ours is made: accelerators of one process share how many micro-batches they accumulate.
    train_trl(theirs, responses(uneven), monkeypatch)
    ours = PPOTrainer(**arguments(TrlConfig(**settings(folder / "ours", **more)), tokenizer))
    assert random_lora(ours.agent.policy).keys() == start.keys()
    our_steps = recorded(ours)
    train_ours(ours, responses(uneven))
    return theirs, ours, their_steps, our_steps


def random_lora(policy: Any) -> dict[str, Tensor]:
    """Draw both factors, so that all of the adapter is felt; the same every time."""
    generator = torch.Generator().manual_seed(3)
    found = {name: parameter for name, parameter in policy.named_parameters() if "lora" in name}
    with torch.no_grad():
        for name in sorted(found):
            found[name].copy_(0.1 * torch.randn(found[name].shape, generator=generator))
    return found


def apart(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-8))


CASES = {
    "one minibatch": {},
    "k3 and whitened rewards": {"kl_estimator": "k3", "whiten_rewards": True, "gamma": 0.97, "lam": 0.9},
    "minibatches that do nothing": {"num_mini_batches": 2},
    "minibatches": {"num_mini_batches": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
}


@trls_arguments
@pytest.mark.parametrize("more", CASES.values(), ids=CASES.keys())
def test_three_updates_equal_trls(more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, their_steps, our_steps = both(tmp_path, monkeypatch, **more)
    assert len(our_steps) == len(their_steps) == UPDATES * 2 * (4 if more.get("num_mini_batches") == 4 else 1)
    for mine, other in zip(our_steps, their_steps, strict=True):
        assert mine.keys() == other.keys() and any("lora" in name for name in mine)
        for name in mine:
            assert apart(mine[name], other[name]) < CLOSE, name
    for part in ("policy", "value_model"):
        expected = dict(getattr(theirs.model, part).named_parameters())
        for name, parameter in getattr(ours.agent, part).named_parameters():
            assert apart(parameter.detach(), expected[name].detach()) < CLOSE, name
    check_logs(ours, theirs, {"policy/entropy_avg"})


def check_logs(ours: Any, theirs: Any, but: set[str]) -> None:
    """Everything that TRL logs is logged by us and the same."""
    logged = [entry for entry in theirs.state.log_history if "objective/kl" in entry]
    mine = [entry for entry in ours.state.log_history if "objective/kl" in entry]
    assert len(logged) == len(mine) == UPDATES
    assert set(STATS) < logged[0].keys()
    for one, other in zip(mine, logged, strict=True):
        assert set(other) <= set(one)
        for name in set(other) - {"eps"} - but:
            expected = float(other[name])
            assert float(one[name]) == pytest.approx(expected, rel=1e-4, abs=2e-6, nan_ok=True), name
    assert any(float(entry["policy/clipfrac_avg"]) > 0 for entry in logged)
    assert any(float(entry["val/clipfrac_avg"]) > 0 for entry in logged)


@trls_arguments
def test_with_responses_of_one_length_the_entropy_is_trls_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where responses end early, TRL averages in the entropy behind their ends, which is noise."""
    theirs, ours, _, _ = both(tmp_path, monkeypatch, uneven=False)
    check_logs(ours, theirs, set())


@trls_arguments
def test_the_pass_that_is_learned_from_is_the_one_that_estimates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, whether the first graph is kept whole, in part or not at all."""
    found = []
    for tokens in (10_000, 40, 8):
        args = TrlConfig(**settings(tmp_path / str(tokens)))
        ours = PPOTrainer(**arguments(args, tiny_tokenizer()))
        ours.args.micro_batch_tokens = tokens
        random_lora(ours.agent.policy)
        calls: list[str] = []
        forward = ours.agent.forward
        monkeypatch.setattr(ours.agent, "forward", lambda role, *a, f=forward, c=calls: c.append(role) or f(role, *a))
        steps = recorded(ours)
        train_ours(ours, responses(uneven=True))
        found.append((calls.count("policy"), steps))
    assert found[0][0] == UPDATES * 2  # one pass for each epoch, and none beside
    assert found[1][0] > found[0][0]
    for _, steps in found[1:]:
        for mine, other in zip(steps, found[0][1], strict=True):
            for name in mine:
                assert apart(mine[name], other[name]) < CLOSE, name
