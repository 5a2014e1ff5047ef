"""Load a solved helper of `rrm-lm recurse` from its folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.recursion.agents import Agent
from rrm_lm.recursion.tasks import MainTask
from rrm_lm.recursion.training import TrainingOptions
from rrm_lm.recursion.tree import Node
from rrm_lm.recursion.workspace import RECORD, Workspace
from rrm_lm.runs.recurse.run import RecurseRun
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.parser import parse
from rrm_lm.settings.workflows import RecurseArguments
from rrm_lm.storage import read_object, verify


def check_helper(folder: Path, *, allow_code: bool = False) -> tuple[RecurseRun, Node]:
    """Check a helper's files; returns the run that solved it and its node. Raises CheckpointError: it is not solved, or
    its files or those of its own helpers are damaged or from another tree; ConfigError: the tree's config.yaml cannot
    be read, or runs code that is not allowed; ModelError: the node answers requests, so it is not a critic.
    """
    folder = folder.resolve()
    file = folder.parents[1] / "config.yaml"
    if not file.is_file():
        expected = "the file that rrm-lm recurse wrote"
        raise CheckpointError("The tree of this helper is missing", where=str(file), expected=expected)
    words = ["--config", str(file)] + ["--allow_code"] * allow_code
    run = RecurseRun(*parse([RecurseArguments, ModelArguments], words, command="rrm-lm recurse"))
    node = run.nodes.get(folder.name)
    if node is None:
        raise CheckpointError(f"The tree has no node {folder.name}", where=str(file))
    if isinstance(node.task, MainTask):
        raise ModelError(
            f"{node.name} answers requests, and does not judge answers",
            where=str(folder),
            expected="one of its helpers: " + ", ".join(one.name for one in node.walk() if one is not node),
        )
    for one in node.walk():
        place = folder.with_name(one.name)
        settings = json.loads(json.dumps(asdict(one.settings)))
        if verify(place) or read_object(place / RECORD)["inputs"]["settings"] != settings:
            what = f"{one.name} is not solved, its files are damaged, or the tree has changed since"
            raise CheckpointError(what, where=str(place), remedy=" ".join(["rrm-lm recurse", *words]))
    return run, node


def load_helper(folder: Path, *, allow_code: bool = False) -> Agent:
    """Load the agent of a solved helper on the backbone that it was trained on. Raises RRMError: as `check_helper`, or
    the backbone cannot be loaded.
    """
    run, node = check_helper(folder, allow_code=allow_code)
    workspace = Workspace(folder.resolve().parent, run.shared(), TrainingOptions(run.args.seed))
    return workspace.agent(node)
