"""What `rrm-lm recurse` does: read the tree, load the backbone, solve, report."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rrm_lm.errors import ConfigError, TrainingError
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm, load_tokenizer, process_state, resolve
from rrm_lm.recursion.agents import Shared
from rrm_lm.recursion.domains import load_domain
from rrm_lm.recursion.recursion import solve
from rrm_lm.recursion.report import write_report
from rrm_lm.recursion.tasks import MainTask
from rrm_lm.recursion.teaching import Teaching, room
from rrm_lm.recursion.tree import Node, read_tree
from rrm_lm.recursion.work import Workshop
from rrm_lm.runs.progress import minutes
from rrm_lm.runs.sft import check_family
from rrm_lm.settings.models import ModelArguments
from rrm_lm.settings.parser import write_resolved
from rrm_lm.settings.workflows import RecurseArguments
from rrm_lm.storage import sha256
from rrm_lm.text.chat import ChatFormat
from rrm_lm.training.output_folder import OutputFolder

logger = logging.getLogger(__name__)

NODES = "nodes"
_NOTE_TOKENS = 64  # what a note behind a response takes, about


class RecurseRun:
    """One run over a tree.

    Args:
        args: The tree.
        model: The backbone, and what adapters on it are like.
    """

    def __init__(self, args: RecurseArguments, model: ModelArguments) -> None:
        self.args, self.model_args = args, model
        self.folder = Path(args.output_dir)
        self.tree = read_tree(load_domain(args.domain), args.tree or {}, args.root)
        if args.node and args.node not in {node.name for node in self.tree.walk()}:
            raise ConfigError(
                f"There is no node {args.node!r}",
                where="node",
                expected="one of " + ", ".join(node.name for node in self.tree.walk()),
            )

    def run(self) -> None:
        """Solve what is not solved; a single node without the lock on the whole, which whoever started this holds."""
        whole = OutputFolder(self.folder, command="rrm-lm recurse", identity=self._identity(), resume=True)
        with contextlib.nullcontext() if self.args.node else whole:
            shared = self.shared()
            self._check_room(shared)
            settings = self.folder / "config.yaml"
            if not self.args.node or not settings.is_file():  # a node solved alone is a critic, too, and needs the tree
                write_resolved(settings, replace(self.args, node=""), self.model_args)
            progress = Progress(self.tree)
            workshop = Workshop(
                self.folder / NODES,
                shared,
                Teaching(self.args.seed, self.args.micro_batch_tokens, self.args.show_progress),
                backbone=self._backbone(shared),
                elsewhere=self._elsewhere if self.args.processes > 1 else None,
            )
            workshop.tell = lambda node, step: progress.tell(workshop, node, step)
            if self.args.node:
                solve(next(node for node in self.tree.walk() if node.name == self.args.node), workshop)
                return
            solve(self.tree, workshop)
            page = write_report(self.tree, workshop, self.folder, base_model=shared.base_model)
            print(f"\nreport: {page}", file=sys.stderr, flush=True)

    def _identity(self) -> dict[str, Any]:
        """What a folder cannot be gone on in without: other settings only make nodes be solved again."""
        return {"domain": self.args.domain, "model": self.model_args.model_name_or_path}

    def shared(self) -> Shared:
        """The backbone, and how conversations on it are written."""
        name = str(self.model_args.model_name_or_path)
        tokenizer: Any = load_tokenizer(
            name,
            trust_remote_code=self.model_args.trust_remote_code,
            revision=self.model_args.model_revision,
            **self.model_args.tokenizing(),
        )
        backbone = Backbone(load_causal_lm(name, **self.model_args.loading()), int(tokenizer.pad_token_id))
        check_family(backbone)
        backbone.to(process_state().device or "cpu").eval()
        return Shared(backbone, ChatFormat(tokenizer, self.args.max_length), name, self.model_args.lora())

    def _backbone(self, shared: Shared) -> dict[str, Any]:
        """What tells this backbone, how it reads, and adapters on it from others."""
        name, revision = str(self.model_args.model_name_or_path), self.model_args.model_revision
        weights = sorted(Path(resolve(name, revision)).glob("*.safetensors"))
        return {
            "weights": [sha256(file) for file in weights],
            "commit": getattr(shared.backbone.config, "_commit_hash", None),  # of a model from the Hub
            "model": asdict(self.model_args),
            "max_length": self.args.max_length,
            "chat_template": shared.chat.tokenizer.chat_template,
        }

    def _check_room(self, shared: Shared) -> None:
        """Refuse a length that would cut off what a helper is to judge."""
        import random

        def need(node: Node) -> int:
            notes = _NOTE_TOKENS * len(node.helpers) * node.settings.notes_as_input
            return room(shared, node.settings, node.task.prompts(32, random.Random(0))) + notes

        needed, name = max((need(node), node.name) for node in self.tree.walk())
        positions = getattr(shared.backbone.config, "max_position_embeddings", None) or self.args.max_length
        if needed > min(self.args.max_length, positions):
            raise ConfigError(
                f"The node {name} needs {needed} tokens for a prompt and a response",
                where=f"max_length {self.args.max_length}, positions of the model {positions}",
                remedy=f"pass --max_length {needed}" if needed <= positions else "use a model with a longer context",
            )

    def _elsewhere(self, nodes: Sequence[Node]) -> None:
        """Solve nodes in processes of their own, so many at once as are asked for.

        Raises:
            TrainingError: Some ended with an error. The others are solved and kept.
        """
        threads = max(1, (os.cpu_count() or 1) // self.args.processes)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "rrm_lm", "recurse", "--config", str(self.folder / "config.yaml")]
        command.append("--allow_code")  # what is in that file was allowed when this process read its settings
        waiting, running, failed = list(nodes), dict[str, subprocess.Popen[bytes]](), list[str]()
        try:
            while waiting or running:
                while waiting and len(running) < self.args.processes:
                    name = waiting.pop(0).name
                    words = [*command, "--node", name, "--processes", "1", "--show_progress", "false"]
                    running[name] = subprocess.Popen(words, env=environment)
                name, process = next(iter(running.items()))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=1)
                    del running[name]
                    failed += [name] if code else []
                    continue
                for other, one in list(running.items()):
                    if one.poll() is not None:
                        failed += [other] if running.pop(other).returncode else []
        finally:
            for process in running.values():
                process.terminate()
        if failed:
            raise TrainingError(
                f"Not every helper could be solved: {', '.join(failed)}",
                where=", ".join(failed),
                remedy="see their messages above; what is finished is kept, and the same command goes on from it",
            )


class Progress:
    """Says which step of which node is under way, and about how long the rest takes.

    Args:
        tree: The whole tree.
    """

    def __init__(self, tree: Node) -> None:
        self.nodes = list(tree.walk())

    def tell(self, workshop: Workshop, node: Node, step: str) -> None:
        """Print a line."""
        place = [one.name for one in self.nodes].index(node.name) + 1
        left = self._left(workshop)
        rest = f"; about {minutes(left)} left" if left else ""
        print(f"[{place}/{len(self.nodes)}] {node.name}: {_STEPS.get(step, step)}{rest}", file=sys.stderr, flush=True)

    def _left(self, workshop: Workshop) -> float:
        """Seconds, by what the solved nodes took for the size that they have; 0 while none is solved."""
        solved = [node for node in self.nodes if workshop.has(node)]
        took = sum(sum(workshop.costs(node).seconds.values()) for node in solved)
        size = sum(map(_size, solved))
        if not size:
            return 0.0
        left = [node for node in self.nodes if node not in solved]
        spent = [sum(workshop.costs(node).seconds.values()) for node in left]
        return sum(max(0.0, took / size * _size(node) - done) for node, done in zip(left, spent, strict=True))


_STEPS = {
    "start": "learning the form of a response",
    "notes": "asking the helpers",
    "feedback": "asking the overseer",
    "reward": "training the reward model",
    "policy": "training the policy",
    "quality": "measuring",
}


def _size(node: Node) -> float:
    """How much work a node is, about, in pairs trained on."""
    settings = node.settings
    pairs = settings.questions * settings.num_train_epochs
    written = 1.5 * settings.max_steps * settings.episodes if settings.policy == "ppo" else 0.0
    extra = settings.drafts + 3 * settings.tested if isinstance(node.task, MainTask) else settings.tested / 2
    return pairs + written + extra
