"""Quality of a solved node by the gold reward, which overseers and training never see. For reports only.

For a helper: balanced accuracy on fresh responses like those from its parent task. For the main task: accuracy of the
reward model on fresh pairs, and gold reward of the policy's responses.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rrm_lm.evaluation.preferences.scoring import ResponseScorer
from rrm_lm.evaluation.statistics.metrics import Estimate, balanced_accuracy, correctness, mean_estimate, share
from rrm_lm.feedback.records import Comparison, Prompt
from rrm_lm.recursion.agents import Agent, BestOfN
from rrm_lm.recursion.notes import is_verbatim
from rrm_lm.recursion.tasks import Domain, MainTask, NoteTask, Task
from rrm_lm.recursion.tree import NodeSettings

FILE = "quality.json"
_PAIRS_A_REQUEST = 5  # generating a response costs about as much as scoring this many pairs

FreshPair = tuple[Prompt, str, str]  # prompt, better response, worse response


def measure(agent: Agent, settings: NodeSettings, rng: random.Random) -> dict[str, Any]:
    """Measure an agent on `settings.tested` fresh questions drawn with `rng`."""
    task = agent.task
    if isinstance(task, MainTask):
        return _main_quality(agent, task.domain, settings, rng)
    prompts = task.prompts(settings.tested, rng)
    return notes_quality(task, prompts, agent.respond(prompts))


def notes_quality(task: NoteTask, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Any]:
    """The quality of a helper's answers: `balanced_accuracy` of problem against no problem, `by_verdict` over all
    verdicts, `taken_for` (counts of answers for each true verdict), and counts of unusable answers.
    """
    truth = [task.truth(prompt) for prompt in prompts]
    notes = [task.read(text) for text in texts]
    said = ["" if note is None else note.verdict for note in notes]
    fine, clusters = task.verdicts[0], list(range(len(prompts)))
    problems = [None if not one else one != fine for one in said]  # an answer without a verdict is always wrong
    counts = Counter(zip(truth, said, strict=True))
    pairs = zip(notes, (task.subject(prompt)[1] for prompt in prompts), strict=True)
    return {
        "kind": "helper",
        "n": len(prompts),
        "balanced_accuracy": balanced_accuracy([one != fine for one in truth], problems, clusters).to_dict(),
        "by_verdict": balanced_accuracy(truth, said, clusters).to_dict(),
        "taken_for": {one: {other: counts[one, other] for other in sorted(set(said))} for one in sorted(set(truth))},
        "unreadable": said.count(""),
        "false_quotations": sum(note is not None and not is_verbatim(note, text) for note, text in pairs),
    }


def fresh_pairs(domain: Domain, count: int, rng: random.Random, *, near: bool) -> list[FreshPair]:
    """Pairs of drafts with different gold rewards, evenly over prompts; near pairs differ in one respect."""
    pairs: list[FreshPair] = []
    while len(pairs) < count:
        prompt = domain.prompts[len(pairs) % len(domain.prompts)]
        one = domain.draft(prompt, rng)
        other = domain.vary(prompt, one, rng) if near else domain.draft(prompt, rng)
        first, second = domain.gold(prompt, one), domain.gold(prompt, other)
        if first != second:
            pairs.append((prompt, one, other) if first > second else (prompt, other, one))
    return pairs


def labels(task: Task, records: Sequence[Comparison]) -> dict[str, Any] | None:
    """How often the overseer prefers the response with the higher gold reward; ties in gold do not count."""
    gaps = [task.gold(one.prompt, one.chosen) - task.gold(one.prompt, one.rejected) for one in records]
    right = [float(gap > 0) for gap in gaps if gap != 0]
    return share(right, list(range(len(right)))).to_dict() if right else None


def gold_estimate(domain: Domain, requests: Sequence[Prompt], responses: Sequence[str]) -> Estimate:
    """Mean gold reward. Requests are not clustered by prompt, because the domain has no other prompts."""
    values = [domain.gold(prompt, text) for prompt, text in zip(requests, responses, strict=True)]
    bounds = (min(values) - 1.0, max(values) + 1.0)
    return mean_estimate(values, list(range(len(values))), bounds=bounds)


def _main_quality(agent: Agent, domain: Domain, settings: NodeSettings, rng: random.Random) -> dict[str, Any]:
    far, near = (fresh_pairs(domain, settings.tested, rng, near=near) for near in (False, True))
    requests = agent.task.prompts(max(len(domain.prompts), settings.tested // _PAIRS_A_REQUEST), rng)
    responses = agent.respond(requests)
    found: dict[str, Any] = {
        "kind": "main",
        "n": settings.tested,
        "reward_accuracy": _accuracy(agent.scorer, far).to_dict(),
        "near_accuracy": _accuracy(agent.scorer, near).to_dict(),
        "gold": gold_estimate(domain, requests, responses).to_dict(),
        "unreadable": sum(domain.parse(text) is None for text in responses),
        "examples": responses[:4],
    }
    if isinstance(agent.policy, BestOfN) and agent.policy.sampler is not None:
        start = [group[0] for group in agent.policy.sampler.sample(requests, 1, seed=rng.randrange(2**31))]
        found["start"] = gold_estimate(domain, requests, start).to_dict()
    return found


def margins(scorer: ResponseScorer, pairs: Sequence[FreshPair]) -> list[float]:
    """For each pair, the reward of the better response minus that of the worse one."""
    found = scorer.score([pair[0] for pair in pairs], [pair[1:] for pair in pairs])
    return [better - worse for better, worse in found]


def _accuracy(scorer: ResponseScorer, pairs: Sequence[FreshPair]) -> Estimate:
    return share(correctness(margins(scorer, pairs)), list(range(len(pairs))))
