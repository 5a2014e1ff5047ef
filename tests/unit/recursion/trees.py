"""Small trees over the toy domain on a tiny backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rrm_lm.models.backbone import Backbone
from rrm_lm.recursion.agents import Shared
from rrm_lm.recursion.training import TrainingOptions
from rrm_lm.recursion.tree import Node, read_tree
from rrm_lm.recursion.workspace import Workspace
from tests.tiny import lora, tiny_chat, tiny_model
from tests.unit.recursion.toy import Letters

SMALL: dict[str, Any] = {
    "questions": 12, "num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "drafts": 8,
    "draft_epochs": 1, "max_new_tokens": 6, "tested": 12, "n": 2, "max_steps": 1, "episodes": 4,
}  # fmt: skip


def tree(**nodes: dict[str, Any]) -> Node:
    return read_tree(Letters(), {name: SMALL | settings for name, settings in nodes.items()})


def three_levels(**more: Any) -> Node:
    return tree(
        top={"task": "main", "helpers": ["letter_s", "letter_b"]} | more,
        letter_s={"helpers": ["small_s", "capital_s"]},
        letter_b={},
        small_s={},
        capital_s={},
    )


def workspace(folder: Path, *, model: Any = None, seed: int = 0) -> Workspace:
    torch.manual_seed(1)
    backbone = Backbone(model if model is not None else tiny_model(), pad_id=0)
    shared = Shared(backbone, tiny_chat(max_length=300), "tiny", lora(random=False))
    return Workspace(folder, shared, TrainingOptions(seed=seed, show_progress=False), backbone={"name": "tiny"})
