"""A policy's answers, sampled in a thread ahead of need, and the order of items by disagreement."""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path

from rrm_lm.asking.desk import Desk
from rrm_lm.asking.items import pairs
from rrm_lm.feedback.records import Prompt
from rrm_lm.feedback.store.events import Item
from rrm_lm.settings.asking import AskArguments
from rrm_lm.storage import MANIFEST, sha256

logger = logging.getLogger(__name__)

AHEAD = 8  # items that wait for people before sampling pauses
BATCH = 4  # prompts that are answered at once


class Sampler(threading.Thread):
    """Answers prompts with the policy until all have items, and pauses while `AHEAD` items wait.

    Args:
        desk: Where items go.
        args: The model and how it answers.
        prompts: Prompts by the file that they are from. Those with items in the store are left out.
    """

    def __init__(self, desk: Desk, args: AskArguments, prompts: dict[Prompt, str]) -> None:
        super().__init__(daemon=True, name="sampler")
        known = {item.prompt for item in desk.state.items.values() if item.responses}
        self.desk, self.args, self.stopped, self.error = desk, args, threading.Event(), ""
        self.left = [(prompt, source) for prompt, source in prompts.items() if prompt not in known]

    def run(self) -> None:
        try:
            self._sample()
        except Exception as error:  # shown on the page, which goes on with the items that it has
            logger.exception("sampling stopped")
            self.error = f"{type(error).__name__}: {error}"

    def _sample(self) -> None:
        if not self.left:
            return
        import rrm_lm

        args = self.args
        policy = rrm_lm.Policy.from_pretrained(str(args.model))
        digest = model_digest(str(args.model))
        while self.left and not self.stopped.is_set():
            if self._waiting() >= AHEAD:
                self.stopped.wait(0.5)
                continue
            batch, self.left = self.left[:BATCH], self.left[BATCH:]
            options = {"n": args.samples, "max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
            seed = args.seed + len(self.left)
            texts = policy.respond([list(prompt) for prompt, _ in batch], **options, seed=seed)
            for (prompt, source), group in zip(batch, texts, strict=True):
                group = [group] if isinstance(group, str) else group
                self.desk.store.add_items(list(pairs(prompt, group, model=digest, source=source)))

    def _waiting(self) -> int:
        state = self.desk.state
        return sum(len(state.people_of(name)) < self.desk.overlap for name in state.items)


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
