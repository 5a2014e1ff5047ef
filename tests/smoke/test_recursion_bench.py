"""The recursion experiment in its quick form: one seed on a tiny model, every arm, restarts, and the verdict."""

from __future__ import annotations

import sys
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
    words = [
        "--model",
        str(tiny),
        "--domain",
        f"{TOY}:Letters",
        "--folder",
        str(tmp_path / "work"),
        "--seeds",
        "0",
        *sizes,
    ]
    words += ["--results", str(tmp_path / "results")]
    bench.main([*words, "--minutes", "0"])
    assert "0 minutes are over; questions is next" in capsys.readouterr().out
    bench.main(words)
    found = read(tmp_path / "results" / "recursion.json")
    assert list(found["arms"]) == ["U", "A", "Sh", "C", "G"]
    for arm in found["arms"].values():
        assert arm["reward_accuracy"]["low"] <= arm["reward_accuracy"]["value"] <= arm["reward_accuracy"]["high"]
        assert set(arm["best_of_n"]) == {"1", "4", "16"} and arm["policy_gold"] is not None
        assert arm["policy_by_seed"] == [pytest.approx(arm["policy_gold"]["value"], abs=1e-4)]
        assert len(arm["policy_unreadable"]) == 1 and 0 <= arm["policy_unreadable"][0] <= 1
        first = found["arms"]["U"]["best_of_n"]["1"]  # the same responses to choose from
        assert arm["best_of_n"]["1"] == pytest.approx(first)
    assert found["arms"]["G"]["label_accuracy"] == 1.0
    assert found["arms"]["A"]["cost"]["checks"] == found["arms"]["C"]["cost"]["checks"] == 16
    assert found["verdict"] in ("helped", "not shown to help", "not testable")
    assert {"pgr_reward_accuracy", "pgr_best_of_16"} <= set(found)
    page = (tmp_path / "results" / "recursion.html").read_text(encoding="utf-8")
    assert f"Computed verdict: {found['verdict']}." in page
    # Nothing is done again; a piece that is missing is.
    monkeypatch.setattr(bench.NodeTrainer, "train_reward", lambda *_: pytest.fail("trained again"))
    bench.main(words)
    with pytest.raises(SystemExit, match="another experiment"):
        bench.main([*words, "--pairs", "9"])


@pytest.mark.slow
def test_ablations_leave_one_helper_out_and_read_the_notes(bench: Any, tiny: Path, tmp_path: Path) -> None:
    sizes = bench.Sizes(**SIZES)
    experiment = bench.Experiment(tmp_path, sizes, str(tiny), f"{TOY}:Letters")
    experiment.make_questions()
    names = []
    for name, run in experiment.pieces([0], "ablations"):
        names.append(name)
        run()
    assert names == [f"seed0/{name}.json" for name in ("helpers", "deep", "A-letter_s", "A-letter_b", "A2", "N")]
    without = read(tmp_path / "seed0" / "A-letter_s.json")
    assert set(without["notes"]) == {"letter_b"} and without["checks"] == 8
    experiment.run_arm("U", 0)
    experiment.run_arm("A", 0)
    summary = sys.modules[bench.summarise.__module__]
    found = summary.depths(summary.Pieces(tmp_path))
    assert [one["arm"] for one in found.values()] == ["U", "A", "A2"] and list(found) == ["0", "1", "2"]
    assert found["1"]["less_A"]["value"] == 0 and found["2"]["seeds"] == [0]
