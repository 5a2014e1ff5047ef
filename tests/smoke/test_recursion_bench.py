"""The recursion experiment in its quick form: two seeds on a tiny model, every arm, restarts, and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.smoke.commands import load_bench, read

TOY = Path(__file__).parents[1] / "unit" / "recursion" / "toy.py"
SIZES = {
    "pairs": 8, "checks": 8, "far": 8, "near": 6, "requests": 4, "samples": 4, "epochs": 1, "helper_epochs": 1,
    "batch": 4, "updates": 1, "episodes": 4, "drafts": 8, "draft_epochs": 1, "max_new_tokens": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_bench("recursion")


@pytest.mark.slow
def test_every_arm_runs_once_and_can_be_restarted(
    bench: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    words = ["--model", str(tiny), "--domain", f"{TOY}:Letters", "--folder", str(tmp_path / "work"), *sizes]
    words += ["--seeds", "1", "4", "--results", str(tmp_path / "results")]  # 4 is not a seed of the controls
    bench.main([*words, "--minutes", "0"])
    assert "0 minutes are over; questions is next" in capsys.readouterr().out
    bench.main(words)
    found = read(tmp_path / "results" / "recursion.json")
    assert list(found["arms"]) == ["U", "A", "C", "G", "Sh", "C0", "C+", "A0", "B"]
    assert found["seeds"] == [1, 4] and found["policy_seeds"] == [1]
    arms = {name: arm for name, arm in found["arms"].items() if name != "B"}
    for name, arm in arms.items():
        assert arm["seeds"] == ([1, 4] if name in "UACG" else [1])
        spread = arm["reward_accuracy"]
        assert spread["low"] is None if len(arm["seeds"]) == 1 else spread["low"] <= spread["value"] <= spread["high"]
        assert set(arm["best_of_n"]) == {"1", "4", "16"} and (arm["policy_gold"] is None) == (
            name in ("C0", "C+", "A0")
        )
        assert all(0 <= one <= 1 for one in arm["policy_unreadable"])
        first = found["arms"]["U"]["best_of_n"]["1"]["value"]  # the same responses to choose from
        assert arm["best_of_n"]["1"]["value"] == pytest.approx(first)
    assert arms["G"]["label_accuracy"] == 1.0
    assert arms["A"]["cost"]["checks"] == arms["C"]["cost"]["checks"] == arms["C+"]["cost"]["checks"] == 16
    # 4 of 8 pairs are measured: C0 has these alone, C+ three times. An overseer's ties are left out.
    cost = {name: arm["cost"]["comparisons"] for name, arm in arms.items()}
    assert cost["C0"] <= 4 and cost["U"] <= cost["C"] <= 8 < cost["C+"] <= 16
    assert found["arms"]["B"]["random"] <= found["arms"]["B"]["constant"] <= found["arms"]["B"]["constant_by_prompt"]
    assert found["verdict"] in ("not shown to help", "not testable")
    assert {"pgr_reward_accuracy", "pgr_best_of_16", "pgr_policy"} <= set(found)
    assert [one["arm"] for one in found["depths"].values()] == ["U", "A", "A2"] and list(found["depths"]) == [
        "0",
        "1",
        "2",
    ]
    assert found["depths"]["1"]["less_A"]["value"] == 0 and found["depths"]["2"]["seeds"] == [1]
    assert {one for one in found["helpers"] if found["helpers"][one]["helps_main"]} == {"letter_s", "letter_b"}
    page = (tmp_path / "results" / "recursion.html").read_text(encoding="utf-8")
    assert f"Computed verdict: {found['verdict']}." in page
    # Another machine has none of the pieces: what was measured stays, and the rest follows from it.
    bench.summarise(tmp_path / "nowhere", tmp_path / "results", {})
    again = read(tmp_path / "results" / "recursion.json")
    assert {**again, "created": ""} == {**found, "created": ""}
    # Nothing is done again; a piece that is missing is.
    monkeypatch.setattr(bench.NodeTrainer, "train_reward", lambda *_: pytest.fail("trained again"))
    bench.main(words)
    with pytest.raises(SystemExit, match="another experiment"):
        bench.main([*words, "--pairs", "9"])


@pytest.mark.slow
def test_ablations_leave_one_helper_out_and_read_the_notes(bench: Any, tiny: Path, tmp_path: Path) -> None:
    experiment = bench.Experiment(tmp_path, bench.Sizes(**SIZES), str(tiny), f"{TOY}:Letters")
    experiment.make_questions()
    names = []
    for name, run in experiment.pieces([0], ["ablations"]):
        names.append(name)
        run()
    assert names == [f"seed0/{name}.json" for name in ("helpers_A", "A-letter_s", "A-letter_b", "N")]
    without = read(tmp_path / "seed0" / "A-letter_s.json")
    assert set(without["notes"]) == {"letter_b"} and without["checks"] == 8
