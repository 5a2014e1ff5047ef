"""`rrm-lm recurse`: solve the nodes of a tree, write the report, and load solved helpers for other commands."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rrm_lm.errors import CheckpointError, ConfigError, ModelError, TrainingError
from rrm_lm.evaluation.reports.formats import duration
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.pretrained import load_causal_lm, process_state, resolve
from rrm_lm.models.tokenizers import load_tokenizer
from rrm_lm.recursion.agents import Agent, Shared
from rrm_lm.recursion.domains import load_domain
from rrm_lm.recursion.report import write_report
from rrm_lm.recursion.solve import solve
from rrm_lm.recursion.tasks import MainTask
from rrm_lm.recursion.training import TrainingOptions, tokens_needed
from rrm_lm.recursion.tree import Node, read_tree
from rrm_lm.recursion.workspace import RECORD, Workspace
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.parsing.parser import parse, write_resolved
from rrm_lm.settings.workflows import RecurseArguments
from rrm_lm.storage import read_object, sha256, verify
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat
from rrm_lm.text.templates import align_responses
from rrm_lm.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

NODES = "nodes"
_NOTE_TOKENS = 64  # approximate length of one note after a response
_STEPS = {
    "start": "learning the format of a response",
    "notes": "asking the helpers",
    "feedback": "asking the overseer",
    "reward": "training the reward model",
    "policy": "training the policy",
    "quality": "measuring",
}


def solve_tree(args: RecurseArguments, model: ModelArguments) -> None:
    """Solve the nodes of the tree that are not solved yet."""
    RecurseRun(args, model).run()


class RecurseRun:
    """One run over a tree."""

    def __init__(self, args: RecurseArguments, model: ModelArguments) -> None:
        self.args, self.model_args = args, model
        self.folder = Path(args.output_dir)
        self.tree = read_tree(load_domain(args.domain), args.tree or {}, args.root)
        self.nodes = {node.name: node for node in self.tree.walk()}
        if args.node and args.node not in self.nodes:
            expected = "one of " + ", ".join(self.nodes)
            raise ConfigError(f"There is no node {args.node!r}", where="node", expected=expected)

    def run(self) -> None:
        """Solve the tree, or one node with `--node`. The calling run of a single node holds the folder's lock."""
        # What must be the same to resume in the folder; other changes only cause nodes to be solved again.
        identity = {"domain": self.args.domain, "model": self.model_args.model_name_or_path}
        whole = OutputFolder(self.folder, command="rrm-lm recurse", identity=identity, resume=True)
        with contextlib.nullcontext() if self.args.node else whole:
            shared = self.shared()
            self._check_length(shared)
            settings = self.folder / "config.yaml"
            if not self.args.node or not settings.is_file():  # a single node needs the tree, too
                write_resolved(settings, replace(self.args, node=""), self.model_args)
            workspace = Workspace(
                self.folder / NODES,
                shared,
                TrainingOptions(self.args.seed, self.args.micro_batch_tokens, self.args.show_progress),
                backbone=self._backbone(shared),
                solve_elsewhere=self._solve_in_processes if self.args.processes > 1 else None,
            )
            workspace.on_step = lambda node, step: self._report(workspace, node, step)
            if self.args.node:
                solve(self.nodes[self.args.node], workspace)
                return
            solve(self.tree, workspace)
            page = write_report(self.tree, workspace, self.folder, base_model=shared.base_model)
            print(f"\nreport: {page}", file=sys.stderr, flush=True)

    def _report(self, workspace: Workspace, node: Node, step: str) -> None:
        """Print a line about a step of a node, with the estimated time left."""
        left = seconds_left(self.nodes.values(), workspace)
        rest = f"; about {duration(left)} left" if left else ""
        place = f"[{list(self.nodes).index(node.name) + 1}/{len(self.nodes)}]"
        print(f"{place} {node.name}: {_STEPS.get(step, step)}{rest}", file=sys.stderr, flush=True)

    def shared(self) -> Shared:
        name = str(self.model_args.model_name_or_path)
        tokenizer: Any = load_tokenizer(
            name,
            trust_remote_code=self.model_args.trust_remote_code,
            revision=self.model_args.model_revision,
            **self.model_args.tokenizing(),
        )
        align_responses(tokenizer)
        backbone = Backbone(load_causal_lm(name, **self.model_args.loading()), int(tokenizer.pad_token_id))
        check_logits(backbone)
        backbone.to(process_state().device or "cpu").eval()
        return Shared(backbone, ChatFormat(tokenizer, self.args.max_length), name, self.model_args.lora())

    def _backbone(self, shared: Shared) -> dict[str, Any]:
        """The parts of the backbone, chat format and adapter configuration that a node depends on."""
        name, revision = str(self.model_args.model_name_or_path), self.model_args.model_revision
        weights = sorted(Path(resolve(name, revision)).glob("*.safetensors"))
        return {
            "weights": [sha256(file) for file in weights],
            "commit": getattr(shared.backbone.config, "_commit_hash", None),  # None unless the model is from the Hub
            "model": asdict(self.model_args),
            "max_length": self.args.max_length,
            "chat_template": shared.chat.tokenizer.chat_template,
        }

    def _check_length(self, shared: Shared) -> None:
        """Refuse a `max_length` that would truncate the input of a helper."""

        def need(node: Node) -> int:
            notes = _NOTE_TOKENS * len(node.helpers) * node.settings.notes_as_input
            return tokens_needed(shared, node.settings, node.task.prompts(32, random.Random(0))) + notes

        needed, name = max((need(node), node.name) for node in self.tree.walk())
        positions = context_length(shared.backbone.config) or self.args.max_length
        if needed > min(self.args.max_length, positions):
            raise ConfigError(
                f"The node {name} needs {needed} tokens for a prompt and a response",
                where=f"max_length {self.args.max_length}, positions of the model {positions}",
                remedy=f"pass --max_length {needed}" if needed <= positions else "use a model with a longer context",
            )

    def _solve_in_processes(self, nodes: Sequence[Node]) -> None:
        """Solve each node in its own process, `--processes` at a time. Raises TrainingError if any failed."""
        threads = max(1, (os.cpu_count() or 1) // self.args.processes)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "rrm_lm", "recurse", "--config", str(self.folder / "config.yaml")]
        command.append("--allow_code")  # this process already has permission for the code in the file
        command += ["--processes", "1", "--show_progress", "false"]
        waiting, running, failed = [node.name for node in nodes], dict[str, subprocess.Popen[bytes]](), list[str]()
        try:
            while waiting or running:
                while waiting and len(running) < self.args.processes:
                    name = waiting.pop(0)
                    running[name] = subprocess.Popen([*command, "--node", name], env=environment)
                time.sleep(0.2)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    failed += [name] if running.pop(name).returncode else []
        finally:
            for process in running.values():
                process.terminate()
        if failed:
            raise TrainingError(
                f"Not every helper could be solved: {', '.join(failed)}",
                where=", ".join(failed),
                remedy="see their messages above; finished work is saved, and the same command resumes",
            )


def seconds_left(nodes: Collection[Node], workspace: Workspace) -> float:
    """Estimated seconds left, from the solved nodes' time per unit of size; 0 if none is solved."""
    spent = {node.name: sum(workspace.costs(node).seconds.values()) for node in nodes}
    solved = [node for node in nodes if workspace.is_solved(node)]
    if not (size := sum(map(_size, solved))):
        return 0.0
    rate = sum(spent[node.name] for node in solved) / size
    return sum(max(0.0, rate * _size(node) - spent[node.name]) for node in nodes if node not in solved)


def _size(node: Node) -> float:
    """The approximate work of a node, in training pairs."""
    settings = node.settings
    pairs = settings.questions * settings.num_train_epochs
    written = 1.5 * settings.max_steps * settings.episodes if settings.policy == "ppo" else 0.0
    extra = settings.drafts + 3 * settings.tested if isinstance(node.task, MainTask) else settings.tested / 2
    return pairs + written + extra


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
