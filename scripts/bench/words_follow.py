"""Does the reward do what people said? The follow-through of the rewards of words_lora.py.

    python scripts/bench/words_follow.py --draws 6

The critiques of the held-out comparisons of data/notes (validation part) name faults; edits by rule fix some of them
(`rrm_lm/evaluation/preferences/follow_through.py`). For each simulated person and draw of 16 comparisons: how often
does the edited response get a higher reward, from the comparisons alone and with criteria? The edits move what
detectors measure, so criteria with the right signs follow by construction; a LoRA reward does not. Each run is one line
of results/words_follow_runs.jsonl and is not repeated; results/words_follow.json has intervals over draws and prompts.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from common import RESULTS, commit, machine, save
from words_lora import ADDED, HELD_OUT, PEOPLE, criteria_of, held_out, read, trained
from words_runs import is_kept, keep, kept

from rrm_lm import RewardModel
from rrm_lm.evaluation.preferences.follow_through import fixed_faults
from rrm_lm.evaluation.statistics.metrics import correctness, over_runs, verdict

RUNS = RESULTS / "words_follow_runs.jsonl"


def run(person: str, draw: int) -> list[dict[str, Any]]:
    """For each arm, whether each edit has the higher reward."""
    fixed, _ = fixed_faults(read(held_out(person)))
    prompts, texts = [one.prompt for one in fixed], [[one.response, one.edit] for one in fixed]
    model = RewardModel.from_pretrained(trained(person, draw, "pairs"))
    lora = np.array(model.scorer.score(prompts, texts))
    rewards = {"pairs": lora}
    for arm in ADDED:
        criteria = np.array(criteria_of("words" if arm == "words_alone" else arm, person, draw).rewards(prompts, texts))
        rewards[arm] = criteria if arm == "words_alone" else lora + criteria
    about = {"prompts": [one.prompt_id for one in fixed], "aspects": [one.aspect for one in fixed], "commit": commit()}
    return [
        {"person": person, "draw": draw, "arm": arm, "rises": correctness(one[:, 1] - one[:, 0]).tolist(), **about}
        for arm, one in rewards.items()
    ]


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The share of edits with the higher reward, by person and by aspect, and the gains of `words`."""
    found: dict[str, Any] = {}
    for person in PEOPLE:
        mine = [one for one in runs if one["person"] == person]
        if len({one["draw"] for one in mine}) > 1:
            aspects = mine[0]["aspects"]
            groups = {"all": np.full(len(aspects), True)} | {
                name: np.array([one == name for one in aspects]) for name in sorted({*aspects})
            }
            found[person] = {
                name: table(mine, chosen) | {"edits": int(chosen.sum())} for name, chosen in groups.items()
            }
    return found


def table(runs: Sequence[Mapping[str, Any]], chosen: np.ndarray) -> dict[str, Any]:
    prompts = np.array(runs[0]["prompts"])[chosen].tolist()
    draws = sorted({one["draw"] for one in runs})
    of = {(one["arm"], one["draw"]): np.array(one["rises"])[chosen] for one in runs}
    arms = {arm: np.stack([of[arm, draw] for draw in draws]) for arm in ("pairs", *ADDED)}
    gains = {arm: over_runs(arms["words"] - one, prompts) for arm, one in arms.items() if arm != "words"}
    return {
        "share": {arm: asdict(over_runs(one, prompts)) for arm, one in arms.items()},
        "gain_of_words_over": {arm: asdict(gain) | {"verdict": verdict(gain)} for arm, gain in gains.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=6)
    args = parser.parse_args()
    for draw in range(args.draws):
        for person in PEOPLE:
            if not is_kept(kept(RUNS), {"person": person, "draw": draw}):
                found = run(person, draw)
                keep(RUNS, found)
                print(person, draw, {one["arm"]: round(float(np.mean(one["rises"])), 3) for one in found}, flush=True)
    save("words_follow.json", {"machine": machine(), "held_out": HELD_OUT, **summary(kept(RUNS))})


if __name__ == "__main__":
    main()
