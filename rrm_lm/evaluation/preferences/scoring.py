"""Score held-out comparisons with a reward model, each response once, on one process or many.

The result does not depend on the order of the comparisons, on how they are batched or padded, or on how many
processes share the
work: every response is scored by itself, under its own prompt, and put back in its place before anything is measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from rrm_lm.errors import ModelError
from rrm_lm.evaluation.preferences.results import ScoredComparison, SetResult, summarise_set
from rrm_lm.feedback.counts import ReadCounts
from rrm_lm.feedback.records import Comparison, Prompt

CHUNK = 256  # most prompts handed to the scorer at once: enough to group by length, few enough to show progress
_CHUNKS = 8  # at least so many of them, where the set is not tiny, so that as many processes have work
_TINY = 4

T = TypeVar("T")


class ResponseScorer(Protocol):
    """Whatever gives rewards: a reward model, someone else's classifier, a judge.

    `score` returns one list of rewards per prompt, one reward per response, in the order given; a higher reward is
    better. A response that cannot be scored gets NaN. It is called as often on every process, with no prompts where
    one has fewer, so that sharded models can compute in step.
    """

    @property
    def name(self) -> str: ...

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]: ...


def chunks(items: Sequence[T]) -> list[Sequence[T]]:
    """The items in the portions in which they are scored, which do not depend on the number of processes.

    So a response is always scored in the same company, and its reward is the same to the last bit.
    """
    size = min(CHUNK, max(_TINY, -(-len(items) // _CHUNKS)))
    return [items[start : start + size] for start in range(0, len(items), size)]


def group_by_prompt(comparisons: Sequence[Comparison]) -> dict[Prompt, list[str]]:
    """Every distinct response of every distinct prompt, in order of first appearance."""
    groups: dict[Prompt, dict[str, None]] = {}
    for comparison in comparisons:
        responses = groups.setdefault(comparison.prompt, {})
        responses[comparison.chosen] = None
        responses[comparison.rejected] = None
    return {prompt: list(responses) for prompt, responses in groups.items()}


def score_shard(
    scorer: ResponseScorer, groups: Mapping[Prompt, Sequence[str]], rank: int, world: int, *, progress: bool = False
) -> list[tuple[int, list[float]]]:
    """Score one process's share of the prompts: (number of the prompt, rewards of its responses) for each.

    Prompts are taken from the longest to the shortest, so that a portion holds similar lengths and a set that
    does not fit into memory fails at once and not after an hour.

    Raises:
        ModelError: if the scorer does not return a reward for each response.
    """
    prompts = list(groups)
    sizes = [sum(len(m.content) for m in prompt) + max(map(len, groups[prompt])) for prompt in prompts]
    portions = chunks(sorted(range(len(prompts)), key=lambda i: (-sizes[i], i)))
    mine = portions[rank::world]
    mine += [()] * (-(-len(portions) // world) - len(mine))  # as often on every process: a sharded model needs all
    rewards: list[tuple[int, list[float]]] = []
    total = sum(len(groups[prompts[i]]) for chunk in mine for i in chunk)
    with tqdm(total=total, desc="scoring", unit="response", disable=not progress) as bar:
        for chunk in mine:
            responses = [list(groups[prompts[i]]) for i in chunk]
            scores = scorer.score([prompts[i] for i in chunk], responses)
            if [len(row) for row in scores] != [len(row) for row in responses]:
                raise ModelError(
                    "the scorer did not return one reward for each response",
                    where=scorer.name,
                    expected=f"rewards for {[len(row) for row in responses][:3]}... responses",
                    remedy="return a list with one reward per response for every prompt, in the order given",
                )
            # A float of a kind of its own may know more than its value (EnsembleReward does).
            rewards += [
                (i, [x if isinstance(x, float) else float(x) for x in row])
                for i, row in zip(chunk, scores, strict=True)
            ]
            bar.update(sum(map(len, responses)))
    return rewards


def score_responses(
    scorer: ResponseScorer,
    groups: Mapping[Prompt, Sequence[str]],
    *,
    across_processes: bool = True,
    progress: bool = True,
) -> dict[Prompt, dict[str, float]]:
    """The reward of every response under its prompt; the processes share the work, and each gets all rewards."""
    state = PartialState()
    show = progress and state.is_main_process
    if across_processes and state.num_processes > 1:
        mine = score_shard(scorer, groups, state.process_index, state.num_processes, progress=show)
        rows = gather_object(mine)
    else:
        rows = score_shard(scorer, groups, 0, 1, progress=show)
    return merge_shards(groups, rows)


def merge_shards(
    groups: Mapping[Prompt, Sequence[str]], rows: Sequence[tuple[int, Sequence[float]]]
) -> dict[Prompt, dict[str, float]]:
    """Put numbered rows of rewards from any number of processes, in any order, back to their prompts and responses."""
    by_number = dict(rows)
    return {
        prompt: dict(zip(responses, by_number[i], strict=True)) for i, (prompt, responses) in enumerate(groups.items())
    }


def make_examples(
    comparisons: Sequence[Comparison], rewards: Mapping[Prompt, Mapping[str, float]]
) -> list[ScoredComparison]:
    """Join comparisons and rewards. A reward that is not finite leaves its comparison unscored, with the reason."""
    examples = []
    for index, comparison in enumerate(comparisons):
        chosen = rewards[comparison.prompt][comparison.chosen]
        rejected = rewards[comparison.prompt][comparison.rejected]
        reason = ""
        if math.isnan(chosen) or math.isnan(rejected):
            reason = "the reward is not a number"
        elif math.isinf(chosen) or math.isinf(rejected):
            reason = "the reward is infinite"
        if reason:
            chosen = rejected = math.nan
        examples.append(ScoredComparison(index, comparison, chosen, rejected, reason))
    return examples


def reader_drops(counts: ReadCounts) -> dict[str, int]:
    """What the reader left out of the files of a set, by reason: the `dropped` of `evaluate_preferences`."""
    total: Counter[str] = Counter()
    for file in counts.files:
        total.update({reason: tally.count for reason, tally in file.dropped.items()})
    return dict(total)


def evaluate_preferences(
    scorer: ResponseScorer,
    comparisons: Sequence[Comparison],
    *,
    name: str,
    dropped: Mapping[str, int] | None = None,
    across_processes: bool = True,
    progress: bool = True,
) -> SetResult:
    """Evaluate a scorer on one set of comparisons: overall, by source and by subset.

    Args:
        scorer: What gives the rewards.
        comparisons: The held-out comparisons. Responses of one prompt are scored together, each once.
        name: What to call the set in results.
        dropped: What the reader left out, by reason (see `reader_drops`); it counts as given and not scored.
        across_processes: Share the prompts among the processes of an `accelerate launch`; each gets the whole result.
        progress: Show a progress bar on the main process.

    Raises:
        DataError: if there are no comparisons, or none could be scored.
        ModelError: if the scorer does not return one reward per response.
    """
    if not comparisons:
        return summarise_set(name, [], dropped)  # raises, with what the reader dropped
    groups = group_by_prompt(comparisons)
    rewards = score_responses(scorer, groups, across_processes=across_processes, progress=progress)
    return summarise_set(name, make_examples(comparisons, rewards), dropped)
