"""`rrm-lm recurse`: solve a task whose overseer is helped by agents trained on easier tasks, and these by others."""

from __future__ import annotations

from typing import Any

from rrm_lm.settings.workflows import RecurseArguments

EXAMPLES = """\
examples:
  rrm-lm recurse --config configs/chip_quick.yaml
  rrm-lm recurse --config configs/chip.yaml --processes 2          (independent helpers side by side)
  rrm-lm recurse --config my_tree.yaml --domain my_domain.py:MyDomain
`tree` in the file maps names to the settings of each node: rrm_lm/recursion/tree.py lists them, and
rrm_lm/recursion/__init__.py says how to write a domain. Started again, solved nodes are kept; a stopped one goes on.
"""


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.settings.models import ModelArguments
    from rrm_lm.settings.parser import parse

    return parse([RecurseArguments, ModelArguments], argv, command="rrm-lm recurse", examples=EXAMPLES)


def run(argv: list[str]) -> int:
    """Solve what is left of the tree."""
    settings = read(argv)
    from rrm_lm.runs.recurse.run import RecurseRun

    RecurseRun(*settings).run()
    return 0
