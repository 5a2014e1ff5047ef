"""Peak memory of solving a tree of one agent, then of ten, on one backbone: a program, run by test_memory.py."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["ACCELERATE_USE_CPU"] = "true"

import torch

from rrm_lm.recursion.solve import solve
from rrm_lm.recursion.tasks import Aspect
from rrm_lm.recursion.tree import read_tree
from tests.tiny import lora, tiny_config, tiny_model
from tests.unit.recursion.toy import Letters
from tests.unit.recursion.trees import SMALL, workspace

torch.set_num_threads(1)
gc.freeze()  # trainers collect garbage often; without the libraries this is quick


class NineAspects(Letters):
    aspects: Mapping[str, Aspect] = {f"letter_{i}": replace(Letters.aspects["letter_b"]) for i in range(9)}


def megabytes(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def main(folder: Path) -> None:
    config: Any = tiny_config("llama", layers=8)
    config.hidden_size, config.intermediate_size, config.head_dim = 512, 1536, 128
    before = megabytes("VmRSS")
    shop = workspace(folder, model=tiny_model(config=config))
    shop.shared = replace(
        shop.shared, lora=lora(rank=8, random=False)
    )  # about the share of it that rank 16 is of SmolLM2
    # Small passes: what grows with the agents is measured, not the activations of the longest batch, which differs.
    shop.options = replace(shop.options, micro_batch_tokens=1)
    peaks = []
    for helpers in ([], [f"letter_{i}" for i in range(9)]):
        few = SMALL | {"questions": 6, "drafts": 4, "tested": 4}
        nodes = {"top": few | {"task": "main", "helpers": helpers}, **{name: few for name in helpers}}
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        solve(read_tree(NineAspects(), nodes), shop)
        peaks.append(megabytes("VmHWM") - before)
    print(*peaks)


main(Path(sys.argv[1]))
