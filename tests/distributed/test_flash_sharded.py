"""PPO with attention like flash attention's, sharded with FSDP2 and gathered layer by layer: equal to one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm_lm.launch.signals import exit_process
from tests.distributed.processes import launch, shard_on_cpu
from tests.distributed.test_sharded import LAYERS, MOST, close, policy_on, together
from tests.tiny_policy import tiny_agent
from tests.unpadded import NAME, register, unregister

torch.set_num_threads(1)


def trained(folder: Path, processes: int) -> dict[str, Any]:
    agent = tiny_agent(value="adapter", reward=True, layers=LAYERS, attention=NAME)
    assert not agent.can_share
    # With this seed, no random number is so near the border of two tokens that rounding decides which is drawn.
    found = policy_on(folder, processes, agent=agent, ds3_gather_for_generation=False, seed=0)
    return {name: found[name] for name in ("kept", "learned", "share")}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_processes_equal_one(tmp_path: Path) -> None:
    launch(__file__, tmp_path)
    both = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    register()
    try:
        one = trained(tmp_path / "one", 1)
    finally:
        unregister()
    close(together([found["kept"] for found in both]), one["kept"], 1e-4)
    for found in both:
        assert found["share"] <= MOST
        close(found["learned"], one["learned"], 1e-4)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    shard_on_cpu()
    register()
    result = trained(out / "two", 2)
    torch.save(result, out / f"rank{torch.distributed.get_rank()}.pt")
    exit_process(0)
