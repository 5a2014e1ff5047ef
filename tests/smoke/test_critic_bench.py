"""The critic benchmark in its quick form on a tiny model: every arm, restarted, and the computed verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.smoke.commands import load_bench, pair_rows, read, write_rows


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_bench("critic")


def feedback(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs whose responses both have critiques."""
    rows = pair_rows(count, seed=seed)
    return [row | {"chosen_critiques": ["Good."], "rejected_critiques": ["It is too long.", "No."]} for row in rows]


def test_every_arm_runs_once_and_can_be_restarted(
    bench: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = feedback(8, seed=1)
    # Of these, one has a held-out prompt and one a held-out answer.
    train = [
        *feedback(10, seed=2),
        heldout[0] | {"chosen": "other"},
        feedback(1, seed=3)[0] | {"chosen": heldout[1]["chosen"]},
    ]
    write_rows(tmp_path / "data" / "train.jsonl", train)
    write_rows(tmp_path / "data" / "dev.jsonl", heldout)
    sizes = {"train": 12, "pairs": 8, "epochs": 1, "max_length": 200, "max_critique_length": 6}
    words = [str(word) for name, value in sizes.items() for word in (f"--{name}", value)]
    words += ["--model", str(tiny), "--data", str(tmp_path / "data"), "--folder", str(tmp_path / "work")]
    words += ["--results", str(tmp_path / "results")]
    bench.main([*words, "--minutes", "0"])
    assert "0 minutes are over; trained is next" in capsys.readouterr().out
    bench.main(words)
    found = read(tmp_path / "results" / "critic.json")
    assert found["heldout"] == {"pairs": 8, "prompts": 8, "responses": 16}
    arms = [f"{help_}-{question}" for help_ in ("critic", "sham", "human") for question in ("plain", "notes")]
    assert set(found["accuracy"]) == {"own", "none-plain", "none-notes", *arms}
    for one in (*found["accuracy"].values(), *found["differences"].values()):
        assert one["low"] <= one["value"] <= one["high"]
    assert (
        set(found["length"]["correlation"]) == set(found["accuracy"])
        and 0 <= found["length"]["longer_is_right"]["value"] <= 1
    )
    assert found["critiques"]["responses"] == 16 and "samples" not in found["critiques"]
    assert found["critiques"]["words_by_people"] == 3.0  # "Good." and "It is too long. No."
    assert found["verdict"] in ("helped", "harmed", "no more help than a sham") or "did not help" in found["verdict"]
    learned = bench.split(tmp_path / "data", bench.Sizes(**sizes))[0]
    assert len(learned) == 10 and not found["leakage"]["found"]
    # Nothing is done again, and another size is another bench.
    monkeypatch.setattr(bench.NodeTrainer, "train_reward", lambda *_: pytest.fail("trained again"))
    bench.main(words)
    with pytest.raises(SystemExit, match="another bench"):
        bench.main([*words, "--pairs", "7"])


def test_sham_critique_is_always_about_another_prompt(bench: Any) -> None:
    subjects = [((number,), f"{number} {place}") for number in range(5) for place in range(2 + number % 3)]
    others = bench.elsewhere(subjects, 0)
    assert sorted(others.values()) == sorted(subjects)
    assert all(one[0] != other[0] for one, other in others.items())


def test_verdict_claims_no_more_than_the_intervals(bench: Any) -> None:
    def found(critic: float, sham: float, human: float) -> str:
        values = {"critic-notes minus none-plain": critic, "critic-notes minus sham-notes": sham}
        values |= {"human-notes minus none-plain": human}
        return bench.verdict({name: {"low": value - 0.1, "high": value + 0.1} for name, value in values.items()})

    assert found(0.2, 0.2, 0.3) == "helped"
    assert found(0.2, 0.05, 0.3) == "no more help than a sham"
    assert found(-0.2, 0, 0) == "harmed"
    assert found(0.05, 0.2, 0.3) == "did not help"
    assert "people's own critiques did not either" in found(0.05, 0, 0.05)
