"""Load policies for inference onto this process's device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rrm_lm.models.pretrained import process_state
from rrm_lm.models.saving.policies import Policy, load_policy


def load_policy_on_device(name: str | Path, **options: Any) -> Policy:
    """Load a policy and move it to this process's device; see `load_policy` for options and errors."""
    policy = load_policy(name, **options)
    policy.backbone.to(torch.device(process_state().device or "cpu"))
    return policy


def max_conversation_tokens(policy: Policy, max_length: int | None) -> int | None:
    """Maximum tokens of a prompt plus response: `max_length`, or the model's positions if there are fewer."""
    positions = getattr(policy.backbone.config, "max_position_embeddings", None)
    return min((int(n) for n in (positions, max_length) if n is not None), default=None)
