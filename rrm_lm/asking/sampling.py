"""A policy's answers, sampled in another process ahead of need, and the order of items by disagreement."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

from rrm_lm.asking.items import pairs
from rrm_lm.asking.training import current_policy
from rrm_lm.feedback.records import Prompt
from rrm_lm.feedback.store.events import Item, State
from rrm_lm.feedback.store.files import Store
from rrm_lm.settings.feedback import AskArguments
from rrm_lm.storage import MANIFEST, sha256

AHEAD = 8  # items that wait for people before sampling pauses
BATCH = 4  # prompts that are answered at once


class Sampler:
    """A process that answers prompts with the policy until all have items, and pauses while `AHEAD` items wait. Where a
    policy is trained meanwhile, it then waits for the next one, which answers all prompts again.

    A process and not a thread, because a thread that generates would hold up the page.

    Args:
        args: The store, the model, and how it answers.
        prompts: Prompts by the file that they are from. Those with items in the store are left out.
    """

    def __init__(self, args: AskArguments, prompts: Mapping[Prompt, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._error, self._problems, report = "", *context.Pipe(duplex=False)
        self._waits = context.Event()
        self._process = context.Process(
            target=_process, args=(args, prompts, report, self._waits), daemon=True, name="sampler"
        )

    def start(self) -> None:
        self._process.start()

    @property
    def is_working(self) -> bool:
        """Whether there are prompts that it is going to answer."""
        return self._process.is_alive() and not self._waits.is_set()

    @property
    def error(self) -> str:
        """Why it stopped; "" if it did not, or is done."""
        with contextlib.suppress(EOFError):  # it ended, and had nothing to report
            if not self._error and self._problems.poll():
                self._error = self._problems.recv()
        return self._error

    def stop(self) -> None:
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(10)


def _process(args: AskArguments, prompts: Mapping[Prompt, str], report: Connection, waits: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process; the server ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if hasattr(os, "nice"):
        os.nice(5)
    try:
        while True:
            name = current_policy(args)
            sample(args, prompts, name)
            waits.set()
            if not args.policy_config:
                return
            while current_policy(args) == name:
                time.sleep(1)
            waits.clear()
    except Exception as error:  # shown on the page, which goes on with the items that it has
        report.send(f"{type(error).__name__}: {error}")
        raise


def sample(args: AskArguments, prompts: Mapping[Prompt, str], model: str) -> None:
    """Answer the prompts that have no items yet, with the first policy, or none of this one, with a later one; until
    there is a newer one. Raises RRMError: a model or store that cannot be used.
    """
    with Store(args.store) as store:
        digest = model_digest(model)
        items = [item for item in store.state().items.values() if item.responses]
        known = {item.prompt for item in items if item.model == digest or model == args.model}
        asked = {item.prompt for item in items}
        left = [(prompt, source) for prompt, source in prompts.items() if prompt not in known]
        left.sort(key=lambda pair: pair[0] in asked)  # those that nobody saw yet come first
        if not left:
            return
        import rrm_lm

        policy = rrm_lm.Policy.from_pretrained(model)
        options = {"n": args.samples, "max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
        batch = 1  # the first item comes as early as possible
        while left and current_policy(args) == model:
            if waiting(store.state(), args) >= AHEAD:
                time.sleep(0.5)
                continue
            now, left = left[:batch], left[batch:]
            texts = policy.respond([list(prompt) for prompt, _ in now], **options, seed=args.seed + len(left))
            for (prompt, source), group in zip(now, texts, strict=True):
                group = [group] if isinstance(group, str) else group
                store.add_items(list(pairs(prompt, group, model=digest, source=source)))
            batch = BATCH


def waiting(state: State, args: AskArguments) -> int:
    """How many items wait for the person who has the fewest left: whoever comes first is not kept from answering."""
    answered = [state.people_of(name) for name in state.items]
    return min(sum(who not in by and len(by) < args.overlap for by in answered) for who in args.everybody)


def model_digest(name: str) -> str:
    """Identifies the weights of a model: its name and, of a folder, the hash of its manifest."""
    manifest = Path(name) / MANIFEST
    return f"{name} {sha256(manifest)[:16]}" if manifest.is_file() else name


class Disagreement:
    """How differently reward models see a pair: the standard deviation of their margins, in nats."""

    def __init__(self, names: Sequence[str]) -> None:
        import rrm_lm

        self._models = [rrm_lm.RewardModel.from_pretrained(name) for name in names]
        self._known: dict[str, float] = {}

    def prepare(self, items: Sequence[Item]) -> None:
        """Score items that are not scored yet, together."""
        new = [item for item in items if len(item.responses) == 2 and item.id not in self._known]
        if new:
            prompts, responses = [list(item.prompt) for item in new], [item.responses for item in new]
            margins = [[float(a - b) for a, b in model.score(prompts, responses)] for model in self._models]  # type: ignore[arg-type]
            deviations = map(statistics.pstdev, zip(*margins, strict=True))
            self._known |= {item.id: deviation for item, deviation in zip(new, deviations, strict=True)}

    def __call__(self, item: Item) -> float:
        """The deviation; 0 for items that are not scored."""
        return self._known.get(item.id, 0.0)
