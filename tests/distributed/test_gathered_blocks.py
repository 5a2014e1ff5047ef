"""Memory that two real processes (gloo, on the CPU) hold while FSDP2 computes, compared with the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig

from rrm_lm.launch.signals import exit_process
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.reward import RewardModel, RewardSettings
from rrm_lm.planning.footprint import footprint
from rrm_lm.planning.peak_memory import RowShape
from rrm_lm.planning.strategies import Trained, static_memory
from rrm_lm.text.batching import collate
from tests.allocations import held, peak_allocated
from tests.smoke.launches import free_port
from tests.tiny import lora, tiny_model

SHAPE = RowShape(prompt=8, response=4, responses=2)  # few tokens: what is large are the weights
CONFIG = LlamaConfig(
    vocab_size=500, hidden_size=128, intermediate_size=384, num_hidden_layers=8, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0,
)  # fmt: skip
PASSES = 12


def make() -> RewardModel:
    return RewardModel.create(Backbone(tiny_model(config=CONFIG), 0, sharing=True), lora(), RewardSettings("tiny"))


def learn(model: RewardModel) -> int:
    """
    Bytes at the peak of a forward and backward pass, beside what the process holds; not in the first one.

    A thread of gloo's may be the last to let go of a gathered block, late or where the profiler does not look: then one
    block too many is counted, in a third of the passes on crowded cores. The least of several is what FSDP2 needs.
    """
    lines = SHAPE.lines()
    batch = collate(model.backbone.rows([line.ids for line in lines]), 0)

    def run() -> None:
        model(batch, lines, with_critiques=False).members.sum().backward()

    run()
    return min(peak_allocated(run) for _ in range(PASSES))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_gathered_memory_matches_the_plan(tmp_path: Path) -> None:
    port = free_port()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    subprocess.run(
        [*command, "-m", "tests.distributed.test_gathered_blocks", str(tmp_path)],
        cwd=root, check=True, timeout=200, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    model = make()
    sizes = footprint(CONFIG, lora(), torch.float32)
    planned = static_memory("fsdp2", 2, sizes, Trained(held(model) - sizes.weights))
    assert found["held"] == pytest.approx(planned.weights + planned.adapters, rel=0.01)
    assert found["peak"] - learn(model) == pytest.approx(planned.gathered, rel=0.15)


def main(folder: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = make()
    for layer in model.backbone.decoder.layers:
        fully_shard(layer)
    fully_shard(model)
    parameters: Any = list(model.parameters())
    parts = [parameter.to_local() for parameter in parameters]
    found = {"held": sum(part.nbytes for part in parts), "peak": learn(model)}
    if dist.get_rank() == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
    exit_process(0)
