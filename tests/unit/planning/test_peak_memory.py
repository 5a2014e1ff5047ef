"""What passes take, found on shapes alone, against what torch's allocator hands out when they run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rrm_lm.models.agent import AgentModel, disable_dropout
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding import decoders
from rrm_lm.models.decoding.rollouts import roll_out
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.planning.peak_memory import AllocationPeak, Peak, RowShape, Tracer
from rrm_lm.text.batching import collate
from tests.allocations import peak_allocated
from tests.tiny import lora, tiny_config, tiny_model

LAYERS, ROWS = 6, 9
PAIR = RowShape(prompt=40, response=24, responses=2)
CLOSE = 0.15


def tracer(family: str, dtype: torch.dtype = torch.float32, **more: Any) -> Tracer:
    return Tracer(tiny_config(family, LAYERS), lora(family), dtype, **more)


def backbone(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone(tiny_model(family, dtype=dtype, layers=LAYERS), pad_id=0, sharing=True)


def batch(on: Backbone, shape: RowShape, rows: int) -> tuple[Any, Any]:
    lines = shape.lines()
    laid = on.rows([line.ids for line in lines], [line.blind for line in lines])
    return collate([row for _ in range(rows) for row in laid], 0), lines * rows


def learned(module: torch.nn.Module, run: Callable[[], None]) -> int:
    """Peak of a second micro-batch, when gradients are there."""
    run()
    gc.collect()
    assert any(parameter.grad is not None for parameter in module.parameters())
    return peak_allocated(run)


@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing", "critique"),
    [
        ("llama", torch.float32, False, 0),
        ("llama", torch.bfloat16, True, 8),
        ("gemma3", torch.float32, False, 8),
        ("gpt2", torch.float32, True, 0),
    ],
)
def test_reward_model(family: str, dtype: torch.dtype, checkpointing: bool, critique: int) -> None:
    shape = RowShape(40, 24, 2, critique)
    model = RewardModel.create(backbone(family, dtype), lora(family), RewardSettings("tiny")).train()
    if checkpointing:
        model.activation_checkpointing_enable()

    def run() -> None:
        inputs, lines = batch(model.backbone, shape, ROWS)
        output = model(inputs, lines)
        (output.members.sum() + output.critique_nll.sum()).backward()

    expected = tracer(family, dtype).reward(shape, checkpointing).bytes(ROWS)
    assert expected == pytest.approx(learned(model, run), rel=CLOSE)


@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing"), [("llama", torch.float32, True), ("qwen3", torch.bfloat16, False)]
)
def test_policy(family: str, dtype: torch.dtype, checkpointing: bool) -> None:
    shape, sampling = RowShape(30, 20, 3), Sampling(20, 0.7)
    agent = AgentModel.create(backbone(family, dtype), lora(family))
    disable_dropout(agent)
    agent.train(checkpointing)
    if checkpointing:
        agent.activation_checkpointing_enable()

    def run() -> None:
        inputs, lines = batch(agent.backbone, shape, ROWS)
        output: Any = agent("policy", inputs, lines, sampling)
        with torch.no_grad():
            agent("policy", *batch(agent.backbone, shape, ROWS), sampling)
        (output.log_probs.sum() + output.values.sum()).backward()

    expected = tracer(family, dtype).policy(shape, checkpointing).bytes(ROWS)
    assert expected == pytest.approx(learned(agent, run), rel=CLOSE)


def test_a_value_adapter_has_a_pass_of_its_own() -> None:
    shape = RowShape(30, 20)
    head, adapter = (tracer("llama", value=kind).policy(shape, False) for kind in ("head", "adapter"))
    assert 1.8 < adapter.layer[-1] / head.layer[-1] < 2.1


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("gpt2", torch.float32)])
def test_rollout(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "can_pack", lambda weight: False)  # as on every device that is no CPU
    shape, rows = RowShape(60, 40), 24
    on = backbone(family, dtype)
    on.add_adapter(POLICY, lora(family))
    prompts = [[3 + number, *[1] * (59 - number % 2)] for number in range(rows)]

    def run() -> None:
        roll_out(on, POLICY, prompts, Sampling(40, 0.7), end_ids=[], batch_tokens=rows * shape.line)

    run()  # which decoder serves is found out once
    expected = tracer(family, dtype).rollout(shape).bytes(rows)
    assert expected == pytest.approx(peak_allocated(run), rel=CLOSE)


def test_rows_that_fit_are_those_that_fit() -> None:
    peak = tracer("llama").reward(PAIR, False)
    for room in (peak.bytes(1), peak.bytes(5), peak.bytes(5) + 1000, 10**9):
        rows = peak.rows_within(room)
        assert peak.bytes(rows) <= room + 1 < peak.bytes(rows + 1) + 1
    assert peak.rows_within(peak.bytes(1) - 1000) == 0
    assert peak.rows_within(0) == peak.rows_within(-1) == 0


def test_bytes_lie_on_lines_between_what_was_traced() -> None:
    peak = Peak((1, 3, 5), (1.0, 3.0, 9.0), (10.0, 10.0, 20.0), layers=2, width=7)
    assert [peak.bytes(rows) for rows in (1, 2, 3, 4, 5, 7)] == [21, 22, 23, 36, 49, 75]
    assert [peak.rows_within(room) for room in (20.9, 21, 22.5, 36, 75)] == [0, 1, 2, 4, 7]


def test_lines_that_share_nothing_take_more() -> None:
    shared, alone = (tracer("llama", share=share).reward(PAIR, False).bytes(ROWS) for share in (True, False))
    assert alone > 1.2 * shared


def test_a_row_and_its_lines() -> None:
    shape = RowShape(prompt=5, response=3, responses=2, critique=2)
    lines = shape.lines()
    assert (shape.width, shape.line) == (15, 8)
    assert [len(line.ids) for line in lines] == [10, 10]
    assert [line.reward_at for line in lines] == [7, 7]
    assert [line.critique for line in lines] == [range(8, 10)] * 2
    on = backbone("llama")
    (row,) = on.rows([line.ids for line in lines], [line.blind for line in lines])
    assert len(row) == shape.width


def test_what_is_counted() -> None:
    held = torch.zeros(100)
    with AllocationPeak([held]) as peak:
        kept = held + 1  # 400 bytes
        for _ in range(3):
            gone = torch.ones(1000)  # 4000
            del gone
        kept.view(10, 10).add_(1)  # neither a view nor what is done in place takes any
    assert (peak.now, peak.most) == (400, 4400)
    assert float(kept.sum()) == 200.0
