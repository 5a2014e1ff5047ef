"""Plans against training that was run, and what is chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rrm_lm.errors import ConfigError
from rrm_lm.models.agent import AgentModel
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.planning.planning import (
    TASKS,
    Job,
    Measured,
    choose,
    count_passes,
    measure,
    plan,
    recommended,
    remedy,
    trained_bytes,
)
from rrm_lm.planning.strategies import Passes, static_memory
from rrm_lm.training.ppo.trainer import PPOTrainer
from rrm_lm.training.reward.examples import LinePair, RewardExample
from rrm_lm.training.reward.trainer import RewardTrainer
from tests import tiny_policy, tiny_training
from tests.allocations import held, peak_allocated
from tests.published import CONFIGS
from tests.tiny import lora, tiny_config, tiny_model

LAYERS = 4
JOB = Job(prompt_length=48, response_length=32, batch=8, num_ppo_epochs=2)
ROOM = 10**12


@cache
def tiny(job: Job = JOB) -> Measured:
    """What is known of a tiny model; found out once for all tests."""
    return measure(tiny_config("llama", LAYERS), lora(), torch.float32, job)


def backbone() -> Backbone:
    return Backbone(tiny_model(layers=LAYERS), pad_id=0)


# -- against what was run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("checkpointing", "rows"), [(False, 1), (False, 8), (True, 8)])
def test_reward_training_takes_what_the_plan_says(checkpointing: bool, rows: int, tmp_path: Path) -> None:
    model = RewardModel.create(backbone(), lora(), RewardSettings("tiny"))
    args = tiny_training.config(
        tmp_path,
        per_device_train_batch_size=8,
        micro_batch_tokens=rows * JOB.pair.width,
        activation_checkpointing=checkpointing,
    )
    trainer = RewardTrainer(model, args, [pair(model, number) for number in range(8)])
    before = held(model)
    found = before + peak_allocated(trainer.train)
    measured = tiny()
    trained = trained_bytes("reward", measured.sizes, JOB)
    assert measured.sizes.weights + trained.trained == before
    expected = static_memory("single", 1, measured.sizes, trained).static + measured.peak(
        "reward", checkpointing
    ).bytes(rows)
    assert expected == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize(("checkpointing", "samples"), [(False, 1), (True, 2)])
def test_ppo_takes_what_the_plan_says(
    checkpointing: bool, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(JOB, samples_per_prompt=samples, activation_checkpointing=checkpointing)
    on = backbone()
    agent = AgentModel.create(on, lora())
    agent.add_reward(RewardModel.create(on, lora(), RewardSettings("tiny")))
    # Of uneven lengths, as prompts are: a batch without padding takes no mask.
    lengths = [job.prompt_length - number for number in range(8 // samples)]
    prompts: Any = [{"input_ids": [3 + number, *[1] * (length - 1)]} for number, length in enumerate(lengths)]
    responses = [[5 + number, *[1] * (job.response_length - 1)] for number in range(8)]
    monkeypatch.setattr(agent, "roll_out", tiny_policy.written(responses))
    rows = 4 // samples
    trainer = tiny_policy.trainer(
        tmp_path,
        agent,
        train_dataset=prompts,
        per_device_train_batch_size=8,
        samples_per_prompt=samples,
        micro_batch_tokens=rows * job.family.width,
        response_length=job.response_length,
        temperature=0.7,
        activation_checkpointing=checkpointing,
    )
    assert isinstance(trainer, PPOTrainer)
    before = held(agent)
    found = before + peak_allocated(trainer.train)
    measured = tiny(job)
    trained = trained_bytes("ppo", measured.sizes, job)
    assert measured.sizes.weights + trained.trained + trained.frozen == before
    expected = static_memory("single", 1, measured.sizes, trained).static
    expected += measured.peak("ppo", checkpointing).bytes(rows)
    assert expected == pytest.approx(found, rel=0.15)


def pair(model: RewardModel, number: int) -> RewardExample:
    """An example of exactly the shape that is planned for."""
    lines = tuple(JOB.pair.lines())
    rows = tuple(model.backbone.rows([line.ids for line in lines]))
    assert [len(row) for row in rows] == [JOB.pair.width]
    return RewardExample(rows, lines, (LinePair(0, 1),), prompt_id=str(number))


# -- what is chosen -------------------------------------------------------------------------------------------------


def test_the_largest_batch_that_fits_is_chosen() -> None:
    measured = tiny()
    everything = choose("reward", "single", 1, ROOM, measured, JOB)
    assert everything.micro_batch_tokens == 8 * JOB.pair.width and not everything.activation_checkpointing
    needs_less = choose("reward", "single", 1, everything.memory.peak - 1, measured, JOB)
    assert needs_less.fits and needs_less.activation_checkpointing  # a whole step's rows, but recomputed
    assert needs_less.micro_batch_tokens == 8 * JOB.pair.width
    smallest = needs_less.memory.static + measured.peak("reward", True).bytes(1)
    assert choose("reward", "single", 1, smallest, measured, JOB).micro_batch_tokens == JOB.pair.width
    assert not choose("reward", "single", 1, smallest - 1000, measured, JOB).fits


def test_what_is_chosen_stays_within_the_room() -> None:
    measured = tiny()
    least = min(choice.memory.peak for choice in plan(4, 0.0, measured, JOB))
    for room in range(least, 12 * least, least // 3):
        for choice in plan(4, room, measured, JOB):
            assert not choice.fits or choice.memory.peak <= room + 1


def test_a_sharded_model_is_gathered_for_rollouts_where_it_fits() -> None:
    measured = large("Llama-3.1-8B")
    roomy, tight = (choose("ppo", "fsdp2", 8, room, measured, Job()) for room in (72e9, 18e9))
    assert roomy.gather_for_generation and not tight.gather_for_generation
    assert roomy.memory.rollout > measured.sizes.weights / 2 > tight.memory.rollout
    assert roomy.traffic.rollout < measured.sizes.weights < tight.traffic.rollout
    assert not choose("ppo", "ddp", 8, 72e9, measured, Job()).gather_for_generation


def test_strategies_of_one_process_and_of_several() -> None:
    measured = tiny()
    assert {choice.strategy for choice in plan(1, ROOM, measured, JOB)} == {"single", "fsdp2_offload"}
    several = plan(2, ROOM, measured, JOB)
    assert len(several) == 2 * 6
    best = recommended(several, "ppo")
    assert best is not None and best.strategy == "ddp"
    alone = recommended(plan(1, ROOM, measured, JOB), "ppo")
    assert alone is not None and alone.strategy == "single"
    assert recommended(plan(2, 0.0, measured, JOB), "ppo") is None


def test_passes_of_a_reward_step() -> None:
    assert count_passes("reward", 3, 1, JOB) == Passes(training=3)


def test_passes_of_a_ppo_update() -> None:
    """Eight episodes in groups of three; learned from twice; responses of 32 tokens, four at once."""
    assert count_passes("ppo", 3, 4, JOB) == Passes(forward=3 * 3, training=2 * 3, decoding=2 * 32, steps=2)
    halves = replace(JOB, num_mini_batches=2)
    assert count_passes("ppo", 3, 8, halves) == Passes(forward=9, training=2 * 2 * 2, decoding=32, steps=4)
    two = replace(JOB, value_function="adapter")
    assert count_passes("ppo", 8, 8, two) == Passes(forward=4, training=4, decoding=32, steps=2)


def test_what_an_adapter_to_start_from_adds() -> None:
    sizes = tiny().sizes
    fresh, resumed = (trained_bytes("ppo", sizes, replace(JOB, reference_adapter=kept)) for kept in (False, True))
    assert resumed.frozen - fresh.frozen == sizes.adapter
    adapter = trained_bytes("ppo", sizes, replace(JOB, value_function="adapter"))
    assert adapter.trained - fresh.trained == sizes.adapter


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"prompt_length": 0}, "prompt_length"),
        ({"critique_length": -1}, "critique_length"),
        ({"samples_per_prompt": 3}, "samples_per_prompt"),
        ({"num_mini_batches": 5}, "num_mini_batches"),
        ({"value_function": "model"}, "value_function"),
    ],
)
def test_a_job_that_makes_no_sense(more: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(JOB, **more)
    assert caught.value.where == where


def test_layers_that_the_model_has_not() -> None:
    wrong: Any = lora()
    wrong.target_modules = {"none_such"}
    with pytest.raises(ConfigError, match="LoRA with these settings"):
        measure(tiny_config("llama"), wrong, torch.float32, JOB)


# -- published models -----------------------------------------------------------------------------------------------


@cache
def large(name: str) -> Measured:
    return measure(AutoConfig.for_model(**CONFIGS[name]), lora(rank=16), torch.bfloat16, Job())


def test_8b_fits_one_gpu_of_80_gb_and_70b_does_not() -> None:
    room = 72e9
    for name, fits in (("Llama-3.1-8B", True), ("Llama-3.1-70B", False)):
        for task in TASKS:
            assert choose(task, "single", 1, room, large(name), Job()).fits == fits
            assert choose(task, "fsdp2", 8, room, large(name), Job()).fits
            assert choose(task, "zero2", 8, room, large(name), Job()).fits == fits


def test_the_remedy_is_the_least_that_is_enough() -> None:
    measured, room = large("Llama-3.1-70B"), 40e9
    found = remedy("ppo", 2, room, measured, Job())
    assert found.processes is not None and found.processes > 2
    assert choose("ppo", "fsdp2", found.processes, room, measured, Job()).fits
    assert not choose("ppo", "fsdp2", found.processes // 2, room, measured, Job()).fits
    assert choose("ppo", found.strategy, 2, found.memory + 1, measured, Job()).fits
    assert remedy("ppo", 2, 1e9, measured, Job()).processes is None
