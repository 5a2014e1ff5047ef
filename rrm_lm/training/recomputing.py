"""Recomputing activations in the backward pass: one setting, whose name depends on the version of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Recomputing:
    """Training arguments that take ``activation_checkpointing`` and its earlier name, ``gradient_checkpointing``.

    transformers 5.23 renamed it and warns of the earlier name, which TRL's arguments set by default; before 5.23 there
    is the earlier name alone. Here both mean the same in every version, and both hold the choice once it is made.
    """

    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations, for memory at the cost of time; unset: no.",
            "nargs": "?",
            "const": True,
        },
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "How: for activation_checkpointing_enable()."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Earlier name of activation_checkpointing.", "nargs": "?", "const": True}
    )

    def __post_init__(self) -> None:
        arguments: Any = super()
        for old, new in (
            ("gradient_checkpointing", "activation_checkpointing"),
            ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        ):
            chosen = getattr(self, old) if getattr(self, new) is None else getattr(self, new)
            setattr(self, new, chosen)
            setattr(self, old, chosen)
        self.activation_checkpointing = self.gradient_checkpointing = bool(self.activation_checkpointing)
        arguments.__post_init__()
        # Before 5.23 the settings under the earlier name alone are read from their JSON.
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs  # type: ignore[attr-defined]
