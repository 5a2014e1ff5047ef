"""Folders of a tree's nodes: which nodes are solved, which must be solved again, and their agents.

Every step of a node writes a complete file or folder and is not repeated. A solved node also has a record of its inputs
(its settings, the backbone, its helpers' manifests) and a manifest with the hash of every file. A node whose inputs
differ from its record is moved aside and solved again, as is every node that it helps.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from rrm_lm import __version__
from rrm_lm.errors import TrainingError
from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.locks import lock
from rrm_lm.recursion.agents import (
    Agent,
    BestOfN,
    Costs,
    ScorerWithNotes,
    Shared,
    TrainedPolicy,
    load_reward,
    load_sampler,
    policy_adapter,
)
from rrm_lm.recursion.assistance import AboutSubject, Assistance, HelperNotes, WorstFlaw
from rrm_lm.recursion.oversight import FlawJudge
from rrm_lm.recursion.tasks import MainTask, PointTask
from rrm_lm.recursion.training import TrainingOptions
from rrm_lm.recursion.tree import Node
from rrm_lm.storage import MANIFEST, read_object, remove_folder, sha256, verify, write_json

logger = logging.getLogger(__name__)

RECORD, COSTS, NOTES = "node.json", "costs.json", "notes.json"
REWARD, START, POLICY = "reward", "start", "policy"  # folders of a node's adapters


@dataclass
class Workspace:
    """The shared backbone and a folder for each node of a tree."""

    folder: Path  # the folder of all nodes
    shared: Shared  # the backbone
    options: TrainingOptions  # how training runs
    # A description of the backbone. A node solved on another backbone is not up to date.
    backbone: dict[str, Any] = field(default_factory=dict)
    on_step: Callable[[Node, str], None] = lambda node, step: None  # called with the node and the step's name
    # solves nodes in other processes; None solves all nodes in this process
    solve_elsewhere: Callable[[Sequence[Node]], None] | None = None
    _agents: dict[str, Agent] = field(default_factory=dict)

    def folder_of(self, node: Node) -> Path:
        return self.folder / node.name

    def is_solved(self, node: Node) -> bool:
        """Whether a node and all nodes below it are solved with the current inputs and their files are intact."""
        if not all(self.is_solved(helper) for helper in node.helpers):
            return False
        folder = self.folder_of(node)
        return not verify(folder) and read_object(folder / RECORD).get("inputs") == self.inputs(node)

    def inputs(self, node: Node) -> dict[str, Any]:
        """All inputs of a node's result. Its helpers must be solved."""
        domain = node.task.domain
        source = inspect.getsourcefile(type(domain))
        made: dict[str, Any] = {
            "version": __version__,
            "domain": [domain.name, sha256(source) if source and Path(source).is_file() else ""],
            "task": node.task.name,
            "settings": asdict(node.settings),
            "seed": self.options.seed,
            "backbone": self.backbone,
            "helpers": {helper.name: sha256(self.folder_of(helper) / MANIFEST) for helper in node.helpers},
        }
        return json.loads(json.dumps(made))

    def agent(self, node: Node) -> Agent:
        if node.name not in self._agents:
            self._agents[node.name] = self._load(node)
        return self._agents[node.name]

    def costs(self, node: Node) -> Costs:
        return Costs(**read_object(self.folder_of(node) / COSTS))

    def solve_in_parallel(self, nodes: Sequence[Node]) -> None:
        """Solve the unsolved nodes in other processes, if configured and there are several."""
        unsolved = [node for node in nodes if not self.is_solved(node)]
        if self.solve_elsewhere is None or len(unsolved) < 2:
            return
        for node in _shared_helpers(unsolved):  # first, or two processes could wait for each other's locks
            with contextlib.suppress(TrainingError):  # nodes that need it report the error; others are solved
                if not self.is_solved(node):
                    self.solve_elsewhere([node])
        self.solve_elsewhere(unsolved)

    @contextlib.contextmanager
    def open_node(self, node: Node) -> Iterator[Path]:
        """Lock the folder of a node whose helpers are solved, and discard results of other inputs."""
        folder, inputs = self.folder_of(node), self.inputs(node)
        with lock(self.folder / f".{node.name}.lock", what=f"The node {node.name}"):
            if folder.exists() and read_object(folder / RECORD).get("inputs") != inputs:
                said = "%s: its inputs have changed, so it is solved again; the previous result is in %s"
                logger.warning(said, node.name, _move_aside(folder))
            elif (folder / MANIFEST).exists():  # an intact folder would have been loaded
                logger.warning("%s: some of its files are damaged, so it is solved again", node.name)
                remove_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RECORD, {"inputs": inputs})
            yield folder
        self._agents.pop(node.name, None)

    def _load(self, node: Node) -> Agent:
        folder, settings, costs = self.folder_of(node), node.settings, Costs()
        scorer: ResponseScorer = load_reward(self.shared, folder / REWARD, node.name)
        if settings.notes_as_input and node.helpers:
            helpers = [self.agent(one) for one in node.helpers]
            ignored = {
                name: one["ignored"]
                for name, one in read_object(folder / NOTES).get("helpers", {}).items()
                if isinstance(one, dict)
            }
            scorer = ScorerWithNotes(scorer, readable(self.assistance(node, helpers, ignored=ignored)))
        sampler = None
        saved = folder / (POLICY if settings.policy == "ppo" else START)
        if saved.is_dir():
            adapter = policy_adapter(node.name)
            sampler = load_sampler(self.shared, saved, adapter, settings.max_new_tokens, costs)
        if settings.policy == "ppo":
            assert sampler is not None
            return Agent(node.name, node.task, scorer, TrainedPolicy(sampler), costs)
        policy = BestOfN(node.task, scorer, sampler, settings.n, self.options.seed, costs)
        return Agent(node.name, node.task, scorer, policy, costs)

    def assistance(
        self, node: Node, helpers: Sequence[Agent], path: Path | None = None, ignored: Mapping[str, str] | None = None
    ) -> Assistance:
        """Make the assistance of a node's overseer; for `path` and `ignored`, see `HelperNotes`."""
        if not helpers:
            return HelperNotes(())
        if node.settings.assistance == "worst_flaw":
            task = helpers[0].task
            assert isinstance(task, PointTask)  # `read_tree` checked it
            return WorstFlaw(helpers[0], FlawJudge(task), path, ignored)
        notes = HelperNotes(helpers, path, ignored)
        return notes if isinstance(node.task, MainTask) else AboutSubject(notes, node.task)


def readable(assistance: Assistance) -> Assistance:
    """The notes that a reward model may read, without the overseer's judgment, which every score would need."""
    return assistance.pointed if isinstance(assistance, WorstFlaw) else assistance


def _move_aside(folder: Path) -> Path:
    """Move a node's folder into `.replaced`, so a changed setting does not delete hours of work."""
    (replaced := folder.parent / ".replaced").mkdir(exist_ok=True)
    return folder.rename(next(p for n in count(1) if not (p := replaced / f"{folder.name}-{n}").exists()))


def _shared_helpers(nodes: Sequence[Node]) -> list[Node]:
    """Nodes below at least two of these nodes, the deepest in the tree first."""
    by_name = {below.name: below for node in nodes for below in node.walk()}
    within = Counter(name for node in nodes for name in {below.name for below in node.walk()})
    return sorted((by_name[name] for name, times in within.items() if times > 1), key=lambda node: node.depth)
