"""The option `--critic`, for the commands in which somebody judges."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CriticArguments:
    """Who helps whoever judges."""

    critic: str | None = field(
        default=None,
        metadata={
            "help": "A helper whose critique of each response is shown to whoever judges: a reward model that learned "
            "from critiques (best with critique_view all), or a solved helper of rrm-lm recurse "
            "(outputs/recurse/nodes/NAME)."
        },
    )
