"""What a process holds and receives under each strategy."""

from __future__ import annotations

import pytest

from rrm_lm.planning.footprint import Footprint
from rrm_lm.planning.strategies import (
    _BUCKET,
    STRATEGIES,
    Memory,
    Passes,
    Trained,
    gathered_model,
    static_memory,
    traffic,
)

# Weights of 1000 bytes in half precision: four blocks of 200 and the rest.
SIZES = Footprint(
    parameters=500, weights=1000, layers=4, block=200, rest=200, head=100,
    adapter_parameters=10, adapter=40, cache_token=8, hidden_size=4,
)  # fmt: skip
TRAINED = Trained(trained=40, frozen=24, copied=40)
PASSES = Passes(forward=3, training=8, decoding=20, steps=4)


def received(strategy: str, processes: int = 4, **more: bool) -> dict[str, int]:
    return traffic(strategy, processes, SIZES, TRAINED.trained, PASSES, **more).to_dict()


def test_one_process_holds_everything() -> None:
    memory = static_memory("single", 1, SIZES, TRAINED)
    assert memory == Memory(weights=1000, adapters=104, gradients=40, optimizer=80)
    assert memory.static == 1224


def test_ddp_adds_the_buckets_that_gradients_travel_in() -> None:
    assert static_memory("ddp", 4, SIZES, TRAINED).static == static_memory("single", 1, SIZES, TRAINED).static + 40


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_sharded_weights_are_divided(strategy: str) -> None:
    memory = static_memory(strategy, 4, SIZES, TRAINED)
    assert (memory.weights, memory.adapters) == (250, 26)
    assert static_memory(strategy, 8, SIZES, TRAINED).weights == 125


def test_fsdp2_has_some_blocks_gathered_and_the_rest_of_the_model() -> None:
    memory = static_memory("fsdp2", 4, SIZES, TRAINED)
    assert memory.gathered == 200 + 3 * 200
    assert (memory.gradients, memory.optimizer) == (40, 20)


def test_offloaded_weights_lie_in_the_host() -> None:
    memory = static_memory("fsdp2_offload", 4, SIZES, TRAINED)
    assert (memory.weights, memory.adapters, memory.optimizer) == (0, 0, 0)
    assert memory.host == 250 + 26 + 20 + 10


def test_zero2_divides_what_is_trained_and_not_the_weights() -> None:
    memory = static_memory("zero2", 4, SIZES, TRAINED)
    assert (memory.weights, memory.adapters, memory.optimizer) == (1000, 104, 30)


def test_the_peak_is_the_worse_of_learning_and_sampling() -> None:
    assert Memory(weights=10, activations=5, rollout=7, host=99).peak == 17
    assert Memory(weights=10, activations=8, rollout=7).peak == 18


def test_one_process_receives_nothing() -> None:
    for strategy in STRATEGIES:
        assert received(strategy, 1)["total"] == 0
    assert received("single", 4)["total"] == 0


def test_under_ddp_only_what_is_trained_travels() -> None:
    found = received("ddp")
    assert found == {"trained": 2 * 30 * 4, "learning": 0, "rollout": 0, "host": 0, "total": 240}


def test_under_fsdp2_weights_travel_once_forward_and_once_backward() -> None:
    found = received("fsdp2")
    assert found["trained"] == 30 * 4  # reduced once a step
    assert found["learning"] == 0.75 * 1040 * (3 + 2 * 8)
    assert found["rollout"] == 0.75 * 1040 * 20
    assert received("fsdp2", checkpointing=True) == found


def test_under_zero3_recomputing_gathers_once_more_and_every_micro_batch_reduces() -> None:
    found = received("zero3", checkpointing=True)
    assert found["learning"] == 0.75 * 1040 * (3 + 3 * 8)
    assert found["trained"] == 30 * 8


def test_offloaded_shards_come_from_the_host_each_time() -> None:
    assert received("fsdp2_offload")["host"] == 250 * (3 + 2 * 8 + 20)
    assert received("fsdp2_offload", 1)["host"] == 1000 * (3 + 2 * 8 + 20)


def test_a_whole_model_for_rollouts_is_received_once_and_held() -> None:
    found = received("fsdp2", gathering=True)
    assert found["rollout"] == 0.75 * 1040
    assert found["learning"] == received("fsdp2")["learning"]
    assert gathered_model("zero3", SIZES) == 1000
    # The rest of the model and two blocks are gathered anyway.
    assert gathered_model("fsdp2", SIZES) == 1000 - 200 - 2 * 200


def test_zero2_reduces_gradients_of_adapters_in_float32() -> None:
    """DeepSpeed's bucket has the dtype of the trained parameters, whatever that of the backbone is."""
    assert static_memory("zero2", 4, SIZES, TRAINED).gathered == 4 * _BUCKET
