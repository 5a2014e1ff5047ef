"""The work on a tree: where it is done, what each step of a node does, and what is kept of it.

A node has a folder. Every step leaves a whole file or folder in it and is not done again; a finished node also has a
record of what went into it (its settings, the backbone, its helpers' own manifests) and a manifest with the hash of
every file. A node whose inputs are others than those recorded is set aside and begun anew, and so, in turn, is
whatever it helps with.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from rrm_lm import __version__
from rrm_lm.errors import TrainingError
from rrm_lm.feedback.asking.collection import collect
from rrm_lm.feedback.asking.overseers import BothOrders
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.records import Comparison, Demonstration, Origin, Prompt
from rrm_lm.locks import lock
from rrm_lm.recursion import quality
from rrm_lm.recursion.agents import (
    Agent,
    BestOfN,
    Costs,
    Rewards,
    RewardsWithNotes,
    Shared,
    Writer,
    Written,
    policy_adapter,
    put_scorer,
    put_writer,
)
from rrm_lm.recursion.assistance import AboutSubject, Assistance, Assisted, HelperNotes, Unassisted, WorstFlaw
from rrm_lm.recursion.notes import with_notes
from rrm_lm.recursion.oversight import FlawJudge, overseer_of
from rrm_lm.recursion.tasks import HelperTask, MainTask, PointTask
from rrm_lm.recursion.teaching import Teaching, is_whole, learn_form, read_with_notes, train_policy, train_reward
from rrm_lm.recursion.tree import Node
from rrm_lm.storage import MANIFEST, remove_folder, sha256, write_json, write_jsonl, write_manifest

logger = logging.getLogger(__name__)

RECORD, COSTS, NOTES = "node.json", "costs.json", "notes.json"
FEEDBACK = "feedback.jsonl"

Tell = Callable[[Node, str], None]


@dataclass
class Workshop:
    """Where a tree is solved.

    Attributes:
        folder: Each node has a folder in it.
        shared: The backbone, and everything that is on it.
        teaching: How training runs.
        backbone: What the backbone is, so that a node is not taken for one that was solved on another.
        tell: Called with each step of each node.
        elsewhere: Solves some nodes in processes of their own; None solves all of them here.
    """

    folder: Path
    shared: Shared
    teaching: Teaching
    backbone: dict[str, Any] = field(default_factory=dict)
    tell: Tell = lambda node, step: None
    elsewhere: Callable[[Sequence[Node]], None] | None = None
    _agents: dict[str, Agent] = field(default_factory=dict)

    def place(self, node: Node) -> Path:
        """The folder of a node."""
        return self.folder / node.name

    def has(self, node: Node) -> bool:
        """Whether a node, and everything below it, is solved with the same inputs, and its files are whole."""
        if not all(self.has(helper) for helper in node.helpers):
            return False
        return is_whole(self.place(node)) and _read(self.place(node) / RECORD).get("inputs") == self.inputs(node)

    def inputs(self, node: Node) -> dict[str, Any]:
        """Everything that the result of a node depends on. Its helpers must be solved."""
        made: dict[str, Any] = {
            "version": __version__,
            "domain": [node.task.domain.name, _source(node.task.domain)],
            "task": node.task.name,
            "settings": asdict(node.settings),
            "seed": self.teaching.seed,
            "backbone": self.backbone,
            "helpers": {helper.name: sha256(self.place(helper) / MANIFEST) for helper in node.helpers},
        }
        return json.loads(json.dumps(made))

    def agent(self, node: Node) -> Agent:
        """The agent of a solved node, put on the backbone when it is first asked for."""
        if node.name not in self._agents:
            self._agents[node.name] = self._load(node)
        return self._agents[node.name]

    def costs(self, node: Node) -> Costs:
        """What a solved node took."""
        return Costs(**_read(self.place(node) / COSTS))

    def solve_elsewhere(self, nodes: Sequence[Node]) -> None:
        """Let other processes solve what is not solved, if there are any to do it and more than one node to solve."""
        left = [node for node in nodes if not self.has(node)]
        if self.elsewhere is None or len(left) < 2:
            return
        for node in _common(left):  # solved once: two processes that both need it would be in each other's way
            with contextlib.suppress(TrainingError):  # those that it helps tell of it; the others are solved
                if not self.has(node):
                    self.elsewhere([node])
        self.elsewhere(left)

    @contextlib.contextmanager
    def work_on(self, node: Node) -> Iterator[Work]:
        """The work on a node whose helpers are solved; its folder is this process's alone meanwhile."""
        folder, inputs = self.place(node), self.inputs(node)
        with lock(self.folder / f".{node.name}.lock", what=f"The node {node.name}"):
            changed = _read(folder / RECORD).get("inputs") != inputs
            if changed and folder.exists():
                said = "%s: what it depends on has changed, so it is begun anew; the old is in %s"
                logger.warning(said, node.name, _set_aside(folder))
            elif (folder / MANIFEST).exists():  # whole, it would have been taken
                logger.warning("%s: some of its files are broken, so it is begun anew", node.name)
                remove_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RECORD, {"inputs": inputs})
            yield Work(node, self, folder)
        self._agents.pop(node.name, None)

    def _load(self, node: Node) -> Agent:
        folder, settings = self.place(node), node.settings
        costs = Costs()
        rewards = put_scorer(self.shared, folder / "reward", node.name)
        if settings.notes_as_input and node.helpers:
            helpers = [self.agent(one) for one in node.helpers]
            rewards = RewardsWithNotes(rewards, _readable(self.assistance(node, helpers, ignored=_ignored(folder))))
        writer = None
        kind = "policy" if settings.policy == "ppo" else "start"
        if (folder / kind).is_dir():
            adapter = policy_adapter(node.name)
            writer = put_writer(self.shared, folder / kind, adapter, settings.max_new_tokens, costs)
        if settings.policy == "ppo":
            assert writer is not None
            return Agent(node.name, node.task, rewards, Written(writer), costs)
        policy = BestOfN(node.task, rewards, writer, settings.n, self.teaching.seed, costs)
        return Agent(node.name, node.task, rewards, policy, costs)

    def assistance(
        self,
        node: Node,
        helpers: Sequence[Agent],
        path: Path | None = None,
        ignored: Mapping[str, str] | None = None,
    ) -> Assistance:
        """The help that a node's overseer gets; `path` and `ignored` are those of `HelperNotes`."""
        if not helpers:
            return Unassisted()
        if node.settings.assistance == "worst_flaw":
            task = helpers[0].task
            assert isinstance(task, PointTask)  # the tree was checked
            return WorstFlaw(helpers[0], FlawJudge(task), path, ignored)
        notes = HelperNotes(helpers, path, ignored)
        return notes if isinstance(node.task, MainTask) else AboutSubject(notes, node.task)


@dataclass
class Work:
    """The steps of one node, each kept as soon as it is done."""

    node: Node
    workshop: Workshop
    folder: Path

    def __post_init__(self) -> None:
        self.settings, self.task = self.node.settings, self.node.task
        self.shared, self.teaching = self.workshop.shared, self.workshop.teaching
        self.costs = Costs(**_read(self.folder / COSTS))
        self.helpers: Sequence[Agent] = ()
        self.feedback: Sequence[Comparison] = ()

    def assist(self, helpers: Sequence[Agent]) -> Assistance:
        """What helps this node's overseer."""
        self.helpers = helpers
        return self.workshop.assistance(self.node, helpers, self.folder / "helpers.jsonl")

    def collect(self, assistance: Assistance) -> list[Comparison]:
        """Ask the overseer, with help, about responses to the task."""
        prompts, responses = self._to_judge()
        with self._step("notes"):
            before = sum(helper.costs.tokens for helper in self.helpers), sum(h.costs.scored for h in self.helpers)
            assistance.prepare(
                [(prompt, text) for prompt, group in zip(prompts, responses, strict=True) for text in group]
            )
            self.costs.tokens += sum(helper.costs.tokens for helper in self.helpers) - before[0]
            self.costs.scored += sum(helper.costs.scored for helper in self.helpers) - before[1]
        with self._step("feedback"):
            judge = overseer_of(self.task, self.teaching.seed)
            overseer = Assisted(judge, assistance)
            collected = collect(
                BothOrders(overseer) if self.settings.both_orders else overseer,
                prompts,
                responses,
                comparisons_per_prompt=self._pairs_each(prompts, responses),
                critiques=self.settings.critiques,
                path=self.folder / FEEDBACK,
                seed=self.teaching.seed,
            )
        self.costs.comparisons = collected.counts.pairs if isinstance(self.task, MainTask) else 0
        self.costs.checks = self._checks(prompts, assistance)
        write_json(self.folder / NOTES, {"helpers": assistance.account(), "collected": collected.counts.to_dict()})
        self.feedback = collected.records
        return list(collected.records)

    def train_reward(self, feedback: Sequence[Comparison], assistance: Assistance) -> Rewards:
        """Train the reward model on what was collected."""
        folder = self.folder / "reward"
        with self._step("reward"):
            records, read = list(feedback), _readable(assistance)
            if self.settings.notes_as_input:
                records = read_with_notes(records, lambda prompt, text: with_notes(text, read.notes(prompt, text)))
            train_reward(self.shared, self.node.name, records, self.settings, self.teaching, folder)
        rewards = put_scorer(self.shared, folder, self.node.name)
        return RewardsWithNotes(rewards, read) if self.settings.notes_as_input else rewards

    def train_policy(self, rewards: Rewards) -> BestOfN | Written:
        """Train the policy against the reward, or let it be the best of n."""
        writer = self._start() if self._needs_writer else None
        if self.settings.policy == "best_of_n":
            return BestOfN(self.task, rewards, writer, self.settings.n, self.teaching.seed)
        prompts = self.task.prompts(self.settings.questions, self._rng("prompts"), self.settings.planted)
        start, folder = self.folder / "start", self.folder / "policy"
        with self._step("policy"):
            self.costs.tokens += train_policy(
                self.shared, self.node.name, prompts, rewards, self.settings, self.teaching, start, folder
            )
        adapter = policy_adapter(self.node.name)
        return Written(put_writer(self.shared, folder, adapter, self.settings.max_new_tokens, Costs()))

    def keep(self, policy: BestOfN | Written, rewards: Rewards) -> None:
        """Measure what was made, write down what it took, and close the folder with its manifest."""
        path = self.folder / quality.FILE
        if not path.is_file():
            with self._step("quality"):
                agent = Agent(self.node.name, self.task, rewards, policy, Costs())
                found = quality.measure(agent, self.settings, self._rng("tested"))
                write_json(path, found | {"labels": quality.labels(self.task, self.feedback)})
        write_json(self.folder / COSTS, self.costs)
        write_manifest(self.folder)

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _needs_writer(self) -> bool:
        return self.settings.policy == "ppo" or isinstance(self.task, MainTask)

    def _to_judge(self) -> tuple[list[Prompt], list[list[str]]]:
        """Prompts, and for each the responses that the overseer compares."""
        rng = self._rng("prompts")
        if isinstance(self.task, MainTask):
            kept = self.folder / "responses.jsonl"
            if not kept.is_file():
                prompts = self.task.prompts(self.settings.questions, rng)
                # Not the seed that the best of n is drawn with: it would be tested on what its reward learned from.
                written = self._start().write(prompts, 2, seed=self._rng("responses").randrange(2**31))
                write_jsonl(kept, [_row(prompt, group) for prompt, group in zip(prompts, written, strict=True)])
            rows = [row for _, row in read_rows(kept)]
            asked = {json.dumps(_row(prompt, [])["prompt"]): prompt for prompt in self.task.domain.prompts}
            return [asked[json.dumps(row["prompt"])] for row in rows], [row["responses"] for row in rows]
        prompts = self.task.prompts(self.settings.questions, rng, self.settings.planted)
        # Where a policy writes its quotations itself, it must learn from some that are made up.
        free = self.settings.policy == "ppo"
        made_up = [[f'{rng.choice(self.task.verdicts)} "no such words"'] if free else [] for _ in prompts]
        return prompts, [self.task.candidates(p) + more for p, more in zip(prompts, made_up, strict=True)]

    def _pairs_each(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> int:
        if isinstance(self.task, MainTask):
            return -(-self.settings.questions // len(set(prompts)))
        most = max(map(len, responses), default=0)
        return max(1, most * (most - 1) // 2)

    def _start(self) -> Writer:
        """The policy that knows nothing but the form of a response."""
        folder, rng = self.folder / "start", self._rng("drafts")
        with self._step("start"):
            prompts = self.task.prompts(self.settings.drafts, rng, self.settings.planted)
            drafts = [
                Demonstration(prompt=prompt, response=self.task.draft(prompt, rng), origin=Origin("drafts", row))
                for row, prompt in enumerate(prompts, start=1)
            ]
            learn_form(self.shared, self.node.name, drafts, self.settings, self.teaching, folder)
        adapter = policy_adapter(self.node.name)
        return put_writer(self.shared, folder, adapter, self.settings.max_new_tokens, self.costs)

    def _checks(self, prompts: Sequence[Prompt], assistance: Assistance) -> int:
        """Checks that were asked for, however often the asking was interrupted."""
        if isinstance(assistance, WorstFlaw):
            return assistance.looks
        if isinstance(self.task, HelperTask):
            # With helpers, the bench measures only what none of them says anything about.
            return sum(not assistance.notes(prompt, "") for prompt in set(prompts))
        if isinstance(self.task, PointTask):
            return len(set(prompts)) * len(self.task.flaws)
        return 0

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self.teaching.seed} {self.node.task.name} {what}")

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Tell of a step, and add up what it takes, also over interruptions."""
        self.workshop.tell(self.node, name)
        began = time.perf_counter()
        try:
            yield
        finally:
            took = self.costs.seconds.get(name, 0.0) + time.perf_counter() - began
            self.costs.seconds[name] = round(took, 2)
            write_json(self.folder / COSTS, self.costs)


def _set_aside(folder: Path) -> Path:
    """Move a node's folder to where nothing looks for it: what took hours is not lost to a changed setting."""
    aside = folder.parent / ".replaced"
    aside.mkdir(exist_ok=True)
    free = next(place for number in count(1) if not (place := aside / f"{folder.name}-{number}").exists())
    return folder.rename(free)


def _common(nodes: Sequence[Node]) -> list[Node]:
    """What helps several of these nodes, the easiest first."""
    by_name = {below.name: below for node in nodes for below in node.walk()}
    within = Counter(name for node in nodes for name in {below.name for below in node.walk()})
    return sorted((by_name[name] for name, count in within.items() if count > 1), key=lambda node: node.depth)


def _readable(assistance: Assistance) -> Assistance:
    """The notes that a reward may read: without the overseer's word, or it would have to look at all that is scored."""
    return assistance.pointed if isinstance(assistance, WorstFlaw) else assistance


def _source(domain: Any) -> str:
    """The hash of the file that a domain is written in."""
    file = inspect.getsourcefile(type(domain))
    return sha256(file) if file and Path(file).is_file() else ""


def _ignored(folder: Path) -> dict[str, str]:
    """Which helpers weighed nothing when a node was solved, and why."""
    account = _read(folder / NOTES).get("helpers", {})
    return {name: one["ignored"] for name, one in account.items() if isinstance(one, dict)}


def _row(prompt: Prompt, responses: Sequence[str]) -> dict[str, Any]:
    return {"prompt": [[message.role, message.content] for message in prompt], "responses": list(responses)}


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
