"""Steps of solving one node: assist, collect feedback, train the reward model, train the policy, measure."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.feedback.asking.collection import collect
from rrm_lm.feedback.asking.overseers import BothOrders
from rrm_lm.feedback.reading.files import read_rows
from rrm_lm.feedback.records import Comparison, Demonstration, Origin, Prompt
from rrm_lm.recursion import quality
from rrm_lm.recursion.agents import (
    Agent,
    BestOfN,
    Costs,
    Sampler,
    ScorerWithNotes,
    TrainedPolicy,
    load_reward,
    load_sampler,
    policy_adapter,
    total_costs,
)
from rrm_lm.recursion.assistance import Assistance, Assisted, WorstFlaw
from rrm_lm.recursion.oversight import overseer_of
from rrm_lm.recursion.tasks import HelperTask, MainTask, PointTask
from rrm_lm.recursion.training import NodeTrainer, read_with_notes
from rrm_lm.recursion.tree import Node
from rrm_lm.recursion.workspace import COSTS, NOTES, POLICY, REWARD, START, Workspace, readable
from rrm_lm.storage import write_json, write_jsonl, write_manifest


class NodeRun:
    """Runs the steps of a node. Each step saves its result in the node's folder and is not repeated."""

    def __init__(self, node: Node, workspace: Workspace, folder: Path) -> None:
        self.node, self.workspace, self.folder = node, workspace, folder
        self.settings, self.task = node.settings, node.task
        self.shared, self.options = workspace.shared, workspace.options
        self.trainer = NodeTrainer(workspace.shared, node.name, node.settings, workspace.options)
        self.costs = workspace.costs(node)
        self.helpers: Sequence[Agent] = ()
        self.feedback: Sequence[Comparison] = ()

    def assist(self, helpers: Sequence[Agent]) -> Assistance:
        self.helpers = helpers
        return self.workspace.assistance(self.node, helpers, self.folder / "helpers.jsonl")

    def collect(self, assistance: Assistance) -> list[Comparison]:
        """Ask the assisted overseer to compare responses to the task."""
        prompts, responses = self._to_judge()
        most = max(map(len, responses), default=0)
        pairs_each = max(1, most * (most - 1) // 2)
        if isinstance(self.task, MainTask):
            pairs_each = -(-self.settings.questions // len(set(prompts)))
        with self._step("notes"):
            before = total_costs([helper.costs for helper in self.helpers])
            assistance.prepare([(p, text) for p, group in zip(prompts, responses, strict=True) for text in group])
            after = total_costs([helper.costs for helper in self.helpers])
            self.costs.tokens += after.tokens - before.tokens
            self.costs.scored += after.scored - before.scored
        with self._step("feedback"):
            overseer = Assisted(overseer_of(self.task, self.options.seed), assistance)
            collected = collect(
                BothOrders(overseer) if self.settings.both_orders else overseer,
                prompts,
                responses,
                comparisons_per_prompt=pairs_each,
                critiques=self.settings.critiques,
                path=self.folder / "feedback.jsonl",
                seed=self.options.seed,
            )
        self.costs.comparisons = collected.counts.pairs if isinstance(self.task, MainTask) else 0
        self.costs.checks = self._checks(prompts, assistance)
        write_json(self.folder / NOTES, {"helpers": assistance.account(), "collected": collected.counts.to_dict()})
        self.feedback = collected.records
        return list(collected.records)

    def train_reward(self, feedback: Sequence[Comparison], assistance: Assistance) -> ResponseScorer:
        folder, notes = self.folder / REWARD, readable(assistance)
        with self._step("reward"):
            records = read_with_notes(feedback, notes) if self.settings.notes_as_input else list(feedback)
            self.trainer.train_reward(records, folder)
        scorer = load_reward(self.shared, folder, self.node.name)
        return ScorerWithNotes(scorer, notes) if self.settings.notes_as_input else scorer

    def train_policy(self, scorer: ResponseScorer) -> BestOfN | TrainedPolicy:
        """Train the policy against the reward model with PPO, or use best-of-n."""
        needs_sampler = self.settings.policy == "ppo" or isinstance(self.task, MainTask)
        sampler = self._start() if needs_sampler else None
        if self.settings.policy == "best_of_n":
            return BestOfN(self.task, scorer, sampler, self.settings.n, self.options.seed)
        prompts = self.task.prompts(self.settings.questions, self._rng("prompts"), self.settings.planted)
        start, folder = self.folder / START, self.folder / POLICY
        with self._step("policy"):
            self.costs.tokens += self.trainer.train_policy(prompts, scorer, start, folder)
        return TrainedPolicy(self._load(folder, Costs()))

    def finish(self, policy: BestOfN | TrainedPolicy, scorer: ResponseScorer) -> None:
        path = self.folder / quality.FILE
        if not path.is_file():
            with self._step("quality"):
                agent = Agent(self.node.name, self.task, scorer, policy, Costs())
                found = quality.measure(agent, self.settings, self._rng("tested"))
                write_json(path, found | {"labels": quality.labels(self.task, self.feedback)})
        write_json(self.folder / COSTS, self.costs)
        write_manifest(self.folder)

    def _to_judge(self) -> tuple[list[Prompt], list[list[str]]]:
        """Prompts, and the responses to each that the overseer compares."""
        rng = self._rng("prompts")
        if isinstance(self.task, MainTask):
            saved = self.folder / "responses.jsonl"
            if not saved.is_file():
                prompts = self.task.prompts(self.settings.questions, rng)
                # Best-of-n uses another seed: it must not be tested on the reward model's training responses.
                sampled = self._start().sample(prompts, 2, seed=self._rng("responses").randrange(2**31))
                rows = [{"prompt": _plain(p), "responses": group} for p, group in zip(prompts, sampled, strict=True)]
                write_jsonl(saved, rows)
            rows = [row for _, row in read_rows(saved)]
            asked = {json.dumps(_plain(prompt)): prompt for prompt in self.task.domain.prompts}
            return [asked[json.dumps(row["prompt"])] for row in rows], [row["responses"] for row in rows]
        prompts = self.task.prompts(self.settings.questions, rng, self.settings.planted)
        # A policy that writes its own quotations must learn that made-up ones lose.
        free = self.settings.policy == "ppo"
        made_up = [[f'{rng.choice(self.task.verdicts)} "no such words"'] if free else [] for _ in prompts]
        return prompts, [self.task.candidates(p) + more for p, more in zip(prompts, made_up, strict=True)]

    def _start(self) -> Sampler:
        """The start policy, which only knows the format of a response."""
        folder, rng = self.folder / START, self._rng("drafts")
        with self._step("start"):
            prompts = self.task.prompts(self.settings.drafts, rng, self.settings.planted)
            drafts = [
                Demonstration(prompt=prompt, response=self.task.draft(prompt, rng), origin=Origin("drafts", row))
                for row, prompt in enumerate(prompts, start=1)
            ]
            self.trainer.train_start(drafts, folder)
        return self._load(folder, self.costs)

    def _load(self, folder: Path, costs: Costs) -> Sampler:
        return load_sampler(self.shared, folder, policy_adapter(self.node.name), self.settings.max_new_tokens, costs)

    def _checks(self, prompts: Sequence[Prompt], assistance: Assistance) -> int:
        """Number of checks, independent of interruptions."""
        if isinstance(assistance, WorstFlaw):
            return assistance.looks
        if isinstance(self.task, HelperTask):
            # A bench with helpers only measures responses without notes.
            return sum(not assistance.notes(prompt, "") for prompt in set(prompts))
        if isinstance(self.task, PointTask):
            return len(set(prompts)) * len(self.task.flaws)
        return 0

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.options.seed} {self.task.name} {purpose}")

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Report a step and add its time to the costs."""
        self.workspace.on_step(self.node, name)
        began = time.perf_counter()
        try:
            yield
        finally:
            took = self.costs.seconds.get(name, 0.0) + time.perf_counter() - began
            self.costs.seconds[name] = round(took, 2)


def _plain(prompt: Prompt) -> list[list[Any]]:
    return [[message.role, message.content] for message in prompt]
