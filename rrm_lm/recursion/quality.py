"""How good an agent is, by the truth that no overseer and no training sees. Only reports read this.

Of a helper: balanced accuracy on fresh responses as the task above it gets them. Of the main task: how often the reward
orders fresh pairs rightly, near ones too, and what the policy's responses are worth.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rrm_lm.evaluation.statistics.metrics import Estimate, balanced_accuracy, correctness, mean_estimate, share
from rrm_lm.feedback.records import Comparison, Prompt
from rrm_lm.recursion.agents import Agent, BestOfN, Rewards
from rrm_lm.recursion.notes import is_verbatim
from rrm_lm.recursion.tasks import Domain, MainTask, NoteTask
from rrm_lm.recursion.tree import NodeSettings

FILE = "quality.json"
_REQUESTS = 5  # a response is worth so many pairs in time: fewer requests than pairs are tested

FreshPair = tuple[Prompt, str, str]  # the better response first


def measure(agent: Agent, settings: NodeSettings, rng: random.Random) -> dict[str, Any]:
    """What an agent is worth on fresh questions.

    Args:
        agent: The agent.
        settings: How many questions.
        rng: Draws them.
    """
    if isinstance(agent.task, MainTask):
        return _main(agent, agent.task, settings, rng)
    prompts = agent.task.prompts(settings.tested, rng)
    return notes_quality(agent.task, prompts, agent.respond(prompts))


def notes_quality(task: NoteTask, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Any]:
    """What notes are worth.

    Args:
        task: What they are on.
        prompts: What was asked.
        texts: What was written.

    Returns:
        `balanced_accuracy` of seeing that something is wrong, `by_verdict` over all verdicts, which of them were taken
        for which, and what cannot be used.
    """
    truth = [task.truth(prompt) for prompt in prompts]
    notes = [task.read(text) for text in texts]
    said = ["" if note is None else note.verdict for note in notes]
    fine = task.verdicts[0]
    clusters = list(range(len(prompts)))
    taken = Counter(zip(truth, said, strict=True))
    subjects = [task.subject(prompt)[1] for prompt in prompts]
    false = sum(note is not None and not is_verbatim(note, text) for note, text in zip(notes, subjects, strict=True))
    return {
        "kind": "helper",
        "n": len(prompts),
        "balanced_accuracy": balanced_accuracy(
            [one != fine for one in truth], [_problem(one, fine) for one in said], clusters
        ).to_dict(),
        "by_verdict": balanced_accuracy(truth, said, clusters).to_dict(),
        "taken_for": {one: {other: taken[one, other] for other in sorted(set(said))} for one in sorted(set(truth))},
        "unreadable": said.count(""),
        "false_quotations": false,
    }


def _problem(verdict: str, fine: str) -> bool | None:
    """Whether a verdict says that something is wrong; None, which is never right, where there is no verdict."""
    return None if not verdict else verdict != fine


def fresh_pairs(domain: Domain, count: int, rng: random.Random, *, near: bool) -> list[FreshPair]:
    """Pairs of drafts of different worth, each prompt as often as the others; near ones differ in one thing."""
    pairs: list[FreshPair] = []
    while len(pairs) < count:
        prompt = domain.prompts[len(pairs) % len(domain.prompts)]
        one = domain.draft(prompt, rng)
        other = domain.vary(prompt, one, rng) if near else domain.draft(prompt, rng)
        first, second = domain.gold(prompt, one), domain.gold(prompt, other)
        if first != second:
            pairs.append((prompt, one, other) if first > second else (prompt, other, one))
    return pairs


def margins(rewards: Rewards, pairs: Sequence[FreshPair]) -> list[float]:
    """Reward of the better response minus that of the other, for each pair."""
    found = rewards.score([pair[0] for pair in pairs], [pair[1:] for pair in pairs])
    return [better - worse for better, worse in found]


def labels(task: Any, records: Sequence[Comparison]) -> dict[str, Any] | None:
    """How often what the overseer preferred is really better; pairs of equal worth left out."""
    right = [
        float(gap > 0)
        for one in records
        if (gap := task.gold(one.prompt, one.chosen) - task.gold(one.prompt, one.rejected)) != 0
    ]
    return share(right, list(range(len(right)))).to_dict() if right else None


def _main(agent: Agent, task: MainTask, settings: NodeSettings, rng: random.Random) -> dict[str, Any]:
    domain = task.domain
    far, near = (fresh_pairs(domain, settings.tested, rng, near=near) for near in (False, True))
    requests = task.prompts(max(len(domain.prompts), settings.tested // _REQUESTS), rng)
    responses = agent.respond(requests)
    found: dict[str, Any] = {
        "kind": "main",
        "n": settings.tested,
        "reward_accuracy": _accuracy(agent.rewards, far).to_dict(),
        "near_accuracy": _accuracy(agent.rewards, near).to_dict(),
        "gold": gold_estimate(domain, requests, responses).to_dict(),
        "unreadable": sum(domain.parse(text) is None for text in responses),
        "examples": responses[:4],
    }
    policy = agent.policy
    writer = policy.writer
    if writer is not None and isinstance(policy, BestOfN):
        start = [group[0] for group in writer.write(requests, 1, seed=rng.randrange(2**31))]
        found["start"] = gold_estimate(domain, requests, start).to_dict()
    return found


def _accuracy(rewards: Rewards, pairs: Sequence[FreshPair]) -> Estimate:
    return share(correctness(margins(rewards, pairs)), list(range(len(pairs))))


def gold_estimate(domain: Domain, requests: Sequence[Prompt], responses: Sequence[str]) -> Estimate:
    """Mean worth of responses, each request by itself: the prompts are all there are, not some of many."""
    values = [domain.gold(prompt, text) for prompt, text in zip(requests, responses, strict=True)]
    bounds = (min(values) - 1.0, max(values) + 1.0)
    return mean_estimate(values, list(range(len(values))), bounds=bounds)
