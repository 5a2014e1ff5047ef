"""Training leaves no tensor to the garbage collector, which may run too late for them to fit in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.tiny import some_comparisons
from tests.tiny_policy import tiny_agent, trainer
from tests.tiny_training import config, examples, trained

torch.set_num_threads(1)


class Tensors(TrainerCallback):
    """Counts the tensors that exist after each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counts.append(sum(isinstance(one, torch.Tensor) for one in gc.get_objects()))


@pytest.fixture
def tensors() -> Iterator[Tensors]:
    gc.collect()
    gc.disable()
    yield Tensors()
    gc.enable()


@pytest.mark.parametrize("samples", [1, 2])
def test_an_update_of_the_policy(samples: int, tensors: Tensors, tmp_path: Path) -> None:
    trainer(tmp_path, tiny_agent(), samples_per_prompt=samples, max_steps=5, callbacks=[tensors]).train()
    assert len(tensors.counts) == 5 and len(set(tensors.counts[1:])) == 1


def test_a_step_of_the_reward_model(tensors: Tensors, tmp_path: Path) -> None:
    trained(config(tmp_path, max_steps=5), lambda model: examples(model, some_comparisons(8)), callbacks=[tensors])
    assert len(tensors.counts) == 5 and len(set(tensors.counts[1:])) == 1


def test_a_cycle_would_be_counted(tensors: Tensors, tmp_path: Path) -> None:
    class Cyclic(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            cycle: list[Any] = [torch.zeros(1)]
            cycle.append(cycle)

    trainer(tmp_path, tiny_agent(), max_steps=4, callbacks=[Cyclic(), tensors]).train()
    assert tensors.counts[3] - tensors.counts[2] == tensors.counts[2] - tensors.counts[1] == 1
