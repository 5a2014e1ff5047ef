"""`rrm-lm recurse`: solve a task with helpers that were trained on easier tasks, recursively."""

from __future__ import annotations

from typing import Any

from rrm_lm.settings.workflows import RecurseArguments

EXAMPLES = """\
rrm-lm recurse --config configs/chip_quick.yaml
rrm-lm recurse --config configs/chip.yaml --processes 2  (helpers in parallel)
rrm-lm recurse --config my_tree.yaml --domain my_domain.py:MyDomain
`tree` in the file maps names of nodes to settings (rrm_lm/recursion/tree.py).
scripts/examples/recursion/my_domain.py is an example of a domain of your own.
Run again, it keeps solved nodes and resumes a stopped one.
"""
COMMON = "domain tree root node processes output_dir max_length micro_batch_tokens seed model_name_or_path lora_r dtype"


def read(argv: list[str]) -> tuple[Any, ...]:
    """The settings."""
    from rrm_lm.settings.models import ModelArguments
    from rrm_lm.settings.parser import parse

    return parse([RecurseArguments, ModelArguments], argv, command="rrm-lm recurse", examples=EXAMPLES, common=COMMON)


def run(argv: list[str]) -> int:
    """Solve the nodes of the tree that are not solved yet."""
    settings = read(argv)
    from rrm_lm.runs.recurse.run import RecurseRun

    RecurseRun(*settings).run()
    return 0
