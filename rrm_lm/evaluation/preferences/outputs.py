"""Machine-readable files of an evaluation. `evaluation/reports` makes the card and the page.

`results.json`  the numbers, per set; `accuracy` has `value`, `low` and `high`. `scores.jsonl`  one line per comparison:
its origin, its rewards and its margin. `<model>.json`, `<model>_outputs.jsonl`  the files of `rewardbench` 0.1.4, for
its users' scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from rrm_lm.evaluation.preferences.benchmarks import SECTIONS
from rrm_lm.evaluation.preferences.results import Evaluation, SetResult
from rrm_lm.feedback.records import Prompt
from rrm_lm.models.ensemble import EnsembleReward
from rrm_lm.storage import write_json, write_jsonl

# The text that the model reads for a prompt, with a response or without one (None).
Render = Callable[[Prompt, "str | None"], str]

# Names of other files in the folder, which `<model>.json` must not overwrite.
_TAKEN = frozenset({"results", "config", "generation_config", "adapter_config", "tokenizer", "tokenizer_config"})
_TAKEN |= {"special_tokens_map", "manifest", "leakage", "trainer_state", "train_results", "eval_results", "all_results"}


def plain_text(prompt: Prompt, response: str | None) -> str:
    """A transcript with role names, for scorers without a chat template."""
    turns = [f"{message.role}: {message.content}" for message in prompt]
    return "\n\n".join(turns if response is None else [*turns, f"assistant: {response}"])


def write_evaluation(
    evaluation: Evaluation, folder: Path, *, render: Render = plain_text, tokenizer: str | None = None
) -> None:
    """Write results.json, scores.jsonl and RewardBench's files into `folder`.

    RewardBench's files cover one set each. With several sets, each set has its own folder inside `folder`. For these
    files, `render` gives the text that the model reads, and `tokenizer` the tokenizer's name (default: the model's).
    """
    write_json(folder / "results.json", evaluation.to_dict())
    write_jsonl(folder / "scores.jsonl", score_rows(evaluation))
    name = file_name(evaluation.model)
    for result in evaluation.sets:
        where = folder if len(evaluation.sets) == 1 else folder / re.sub(r"[^\w.-]+", "-", result.name).strip("-.")
        write_json(where / f"{name}.json", rewardbench_summary(result, evaluation.model, tokenizer=tokenizer))
        write_jsonl(where / f"{name}_outputs.jsonl", rewardbench_rows(result, render))


def file_name(name: str) -> str:
    """A model's name as part of a path. A Hub name keeps its organization as a folder, as in RewardBench."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    short = re.sub(r"[^\w.-]+", "-", PurePath(name).name).strip("-.") or "model"
    return f"{short}-model" if short in _TAKEN else short


def score_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row per comparison of every set, scored or not, in the order of the sets and their comparisons."""
    for result in evaluation.sets:
        for example in result.examples:
            comparison, origin = example.comparison, example.comparison.origin
            known = ("reward_chosen", "reward_rejected", "margin", "probability", "correct")
            rewards = {"std_chosen": example.reward_chosen, "std_rejected": example.reward_rejected}
            yield {
                "set": result.name,
                "index": example.index,
                **{name: getattr(comparison, name) for name in ("prompt_id", "source", "subset", "group", "styles")},
                "origin": {"file": origin.file, "row": origin.row},
                **{name: None if example.reason else getattr(example, name) for name in known},
                "length_chosen": len(comparison.chosen),
                "length_rejected": len(comparison.rejected),
                "not_scored_because": example.reason or None,
                # over the members of an ensemble
                **{name: one.std for name, one in rewards.items() if isinstance(one, EnsembleReward)},
            }


def rewardbench_summary(result: SetResult, model: str, *, tokenizer: str | None = None) -> dict[str, Any]:
    """RewardBench's `<model>.json`. It counts a tie as wrong, so its accuracy can be below ours.

    As in RewardBench, `extra_results` is the accuracy of each subset if the set is RewardBench's, else None.
    """
    won = [int(example.margin > 0) for example in result.scored]
    by_subset: dict[str, list[int]] = {}
    for example, win in zip(result.scored, won, strict=True):
        by_subset.setdefault(example.comparison.subset, []).append(win)
    known = {name for counts in SECTIONS.values() for name in counts}
    own = bool(by_subset) and set(by_subset) <= known
    return {
        "accuracy": sum(won) / len(won),
        "num_prompts": len(won),
        "model": model,
        "ref_model": None,
        "tokenizer": tokenizer or model,
        "chat_template": None,
        "extra_results": {name: sum(wins) / len(wins) for name, wins in sorted(by_subset.items())} if own else None,
    }


def rewardbench_rows(result: SetResult, render: Render = plain_text) -> Iterator[dict[str, Any]]:
    """The rows of RewardBench's `<model>_outputs.jsonl`: only scored comparisons."""
    for example in result.scored:
        comparison = example.comparison
        yield {
            "prompt": render(comparison.prompt, None),
            "results": int(example.margin > 0),
            "scores_chosen": example.reward_chosen,
            "scores_rejected": example.reward_rejected,
            "text_chosen": render(comparison.prompt, comparison.chosen),
            "text_rejected": render(comparison.prompt, comparison.rejected),
            "chosen": comparison.chosen,
            "rejected": comparison.rejected,
            "subset": comparison.subset,
            "id": comparison.origin.row,
        }
