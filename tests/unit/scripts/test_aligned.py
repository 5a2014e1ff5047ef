"""The summary of the five-seed comparison on data/notes, from made-up measurements with a planted gain."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.smoke.commands import load_bench

ALIGNED = load_bench("aligned")
USER = ALIGNED.NoteUser.from_file(ALIGNED.DATA / "validation_questions.jsonl.gz")


def keep(folder: Path, seed: int, gain: float = 0.1, config: str = "same") -> None:
    """What a finished seed leaves: PPO is above SFT, and SFT above the others, by `gain` in everything."""
    rng, count = np.random.default_rng(seed), len(USER.requests)
    base = {key: rng.uniform(0.2, 0.4, count) for key in ("gold", *USER.parts)}

    def above(steps: int) -> dict[str, list[float]]:
        noise = {key: rng.normal(0, 0.01, count) for key in base}
        return {key: (values + steps * gain + noise[key]).tolist() for key, values in base.items()}

    policies = {"start": above(0), "sft": above(1), "ppo": above(2), "dpo": above(0)}
    with gzip.open(ALIGNED.DATA / "validation_plain.jsonl.gz", "rt", encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    kept: dict[str, Any] = {
        "seed": seed, "commit": "", "config": config, "seconds": {}, "general": {},
        "pairs": {"correct": [row["decided_by"] == "answer" for row in pairs], "baselines": {}},
        "values": {"sampled": policies, "greedy": policies, "best_of": {"best_of_8": above(3)}}
        | {"trivial": {ALIGNED.START_PLUS_CLOSE: above(0)}},
        "likelihood": {"start": [-2.0, -3.0], "sft": [-2.5, -3.5], "ppo": [-2.5, -4.5], "dpo": [-2.0, -3.0]},
    }  # fmt: skip
    (folder / f"validation_seed{seed}.json").write_text(json.dumps(kept), encoding="utf-8")


def test_the_summary_finds_the_planted_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ALIGNED, "KEPT", tmp_path)
    for seed in range(1, 6):
        keep(tmp_path, seed)
    found = ALIGNED.summary("validation")
    assert found["seeds"] == [1, 2, 3, 4, 5]
    assert (found["better_in_gold"], found["better_in_answers"]) == ("sft", "sft")
    for key in ("ppo_minus_best_other", "answer_ppo_minus_best_other"):
        assert found[key]["value"] == pytest.approx(0.1, abs=0.01) and 0.08 < found[key]["low"] < found[key]["value"]
    assert found["policies"]["best_of_8"]["gold"]["value"] > found["policies"]["ppo"]["gold"]["value"]
    assert found["accuracy_by_part"]["answer"]["value"] == 1 and found["accuracy_by_part"]["close"]["value"] == 0
    assert 0 < found["reward_accuracy"]["value"] < 1
    likelihood = found["general_likelihood"]
    assert likelihood["start"]["value"] == -2.5
    assert {name: one["value"] for name, one in likelihood["minus_start"].items()} == {"sft": -0.5, "ppo": -1, "dpo": 0}
    patterns = {row["pattern"] for row in ALIGNED.questions("validation").values()}
    assert found["ppo_minus_best_other"]["clusters"] == found["reward_accuracy"]["clusters"] == len(patterns)
    rule = found["trivial"][ALIGNED.WORD_OVERLAP]["answer"]["value"]
    statistics = json.loads((ALIGNED.DATA / "statistics.json").read_text())["validation"]
    known = statistics["right_by_rule"]["value in the sentence that shares most words"]
    assert rule == pytest.approx(known, abs=0.08)
    assert found["trivial"]["whole note"]["gold"]["value"] < 0.3
    assert found["trivial"][ALIGNED.START_PLUS_CLOSE]["ppo_minus"]["value"] == pytest.approx(0.2, abs=0.02)


def test_seeds_with_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ALIGNED, "KEPT", tmp_path)
    with pytest.raises(SystemExit, match="no seeds"):
        ALIGNED.summary("validation")
    keep(tmp_path, 1)
    keep(tmp_path, 2, config="other")
    with pytest.raises(SystemExit, match="different settings"):
        ALIGNED.summary("validation")
