"""A solved helper of `rrm-lm recurse`, found and loaded by its folder alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rrm_lm.errors import CheckpointError, ModelError
from rrm_lm.recursion.agents import Agent
from rrm_lm.recursion.tasks import MainTask
from rrm_lm.recursion.teaching import Teaching, is_whole
from rrm_lm.recursion.tree import Node
from rrm_lm.recursion.work import RECORD, Workshop
from rrm_lm.runs.recurse.run import RecurseRun
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.parser import parse
from rrm_lm.settings.workflows import RecurseArguments


def check_helper(folder: Path, *, allow_code: bool = False) -> tuple[RecurseRun, Node]:
    """The run that solved a helper, and its node, if its files are as they were left.

    Raises:
        CheckpointError: It is not solved, or its files or those of its own helpers are broken or of another tree.
        ConfigError: The tree beside it cannot be read, or runs code that is not allowed.
        ModelError: The node answers the requests themselves, and helps nobody.
    """
    folder = folder.resolve()
    settings = folder.parents[1] / "config.yaml"
    if not settings.is_file():
        raise CheckpointError(
            "The tree that this helper is of is not there", where=str(settings), expected="what rrm-lm recurse wrote"
        )
    permission = ["--allow_code"] if allow_code else []
    words = ["--config", str(settings), *permission]
    run = RecurseRun(*parse([RecurseArguments, ModelArguments], words, command="rrm-lm recurse"))
    node = next((one for one in run.tree.walk() if one.name == folder.name), None)
    if node is None:
        raise CheckpointError(f"The tree has no node {folder.name}", where=str(settings))
    if isinstance(node.task, MainTask):
        raise ModelError(
            f"{node.name} answers requests, and does not judge answers",
            where=str(folder),
            expected="one of its helpers: " + ", ".join(one.name for one in node.walk() if one is not node),
        )
    for one in node.walk():
        place = folder.with_name(one.name)
        if not is_whole(place) or _settings(place) != json.loads(json.dumps(asdict(one.settings))):
            raise CheckpointError(
                f"{one.name} is not solved, its files are broken, or the tree was changed since",
                where=str(place),
                remedy=" ".join(["rrm-lm recurse --config", str(settings), *permission]),
            )
    return run, node


def load_helper(folder: Path, *, allow_code: bool = False) -> Agent:
    """The agent of a solved helper, on the backbone that it was solved on.

    Raises:
        RRMError: See `check_helper`; or the backbone cannot be loaded.
    """
    run, node = check_helper(folder, allow_code=allow_code)
    workshop = Workshop(folder.resolve().parent, run.shared(), Teaching(run.args.seed))
    return workshop.agent(node)


def _settings(folder: Path) -> object:
    return json.loads((folder / RECORD).read_text(encoding="utf-8"))["inputs"]["settings"]
