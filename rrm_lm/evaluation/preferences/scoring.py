"""Score held-out comparisons with a reward model, each response once, on one or more processes.

The result does not depend on the order of the comparisons, on batching and padding, or on the number of processes.
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

CHUNK = 256  # maximum prompts per call of the scorer: enough to group by length, few enough to show progress
_CHUNKS = 8  # minimum number of calls unless the set is tiny, so that this many processes have work
_TINY = 4

T = TypeVar("T")


class ResponseScorer(Protocol):
    """A source of rewards: a reward model, a classifier, a judge.

    `score` returns one list per prompt with one reward per response, in the given order. A higher reward is better; NaN
    means that a response cannot be scored. All processes make the same number of calls, some without prompts, because
    sharded models compute on all processes together.
    """

    @property
    def name(self) -> str: ...

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]]) -> list[list[float]]: ...


def chunks(items: Sequence[T]) -> list[Sequence[T]]:
    """Split items into the portions that are scored together.

    Portions do not depend on the number of processes. A response is always batched with the same others, so its reward
    is the same to the last bit.
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
    """Score one process's share of the prompts: (index of the prompt, rewards of its responses) for each.

    The longest prompts come first, so lengths in a portion are similar and an out-of-memory error occurs early. Raises
    ModelError if the scorer does not return one reward per response.
    """
    prompts = list(groups)
    sizes = [sum(len(m.content) for m in prompt) + max(map(len, groups[prompt])) for prompt in prompts]
    portions = chunks(sorted(range(len(prompts)), key=lambda i: (-sizes[i], i)))
    mine = portions[rank::world]
    mine += [()] * (-(-len(portions) // world) - len(mine))  # all processes make the same number of calls
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
            # Keep subclasses of float: EnsembleReward also has a standard deviation.
            floats = [[x if isinstance(x, float) else float(x) for x in row] for row in scores]
            rewards += zip(chunk, floats, strict=True)
            bar.update(sum(map(len, responses)))
    return rewards


def score_responses(
    scorer: ResponseScorer,
    groups: Mapping[Prompt, Sequence[str]],
    *,
    across_processes: bool = True,
    progress: bool = True,
) -> dict[Prompt, dict[str, float]]:
    """The reward of every response to its prompt. Processes share the work, and each gets all rewards."""
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
    """Rewards by prompt and response, from indexed rows of any number of processes in any order."""
    by_number = dict(rows)
    return {
        prompt: dict(zip(responses, by_number[i], strict=True)) for i, (prompt, responses) in enumerate(groups.items())
    }


def make_examples(
    comparisons: Sequence[Comparison], rewards: Mapping[Prompt, Mapping[str, float]]
) -> list[ScoredComparison]:
    """Join comparisons and rewards. A comparison with a nonfinite reward is marked as not scored, with the reason."""
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
    """Rows that the reader dropped, by reason: the argument `dropped` of `evaluate_preferences`."""
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
    progress: bool = True,
) -> SetResult:
    """Evaluate a scorer on one set of comparisons: overall, by source and by subset.

    Each distinct response to a prompt is scored once. `dropped` are rows that the reader dropped, by reason (see
    `reader_drops`); they count as given and not scored. The processes of an `accelerate launch` share the prompts, and
    each gets the whole result. Raises DataError: there are no comparisons, or none could be
    scored; ModelError: the scorer does not return one reward per response.
    """
    groups = group_by_prompt(comparisons)
    rewards = score_responses(scorer, groups, progress=progress)
    return summarise_set(name, make_examples(comparisons, rewards), dropped)
