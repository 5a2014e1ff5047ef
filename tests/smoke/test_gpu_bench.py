"""The GPU benchmark on a CPU: every side on tiny models, through the same code as on a GPU; and its failures."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trl.experimental.ppo import ppo_trainer as trl_module

from tests.deprecations import trls_arguments
from tests.smoke.commands import read
from tests.tiny import tiny_model


@trls_arguments
def test_every_side_trains_and_is_compared(
    gpu: Any, sides: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "launch", lambda job, seconds: sides.run(job))
    monkeypatch.setattr(trl_module, "batch_generation", trl_module.batch_generation)  # put back afterwards
    output = tmp_path / "found.json"
    words = ["--device", "cpu", "--embedded", str(tiny), "--output", str(output)]
    gpu.main([*words, "--models", "tiny", "--tasks", "score", "reward", "ppo"])
    found = read(output)
    for task, both in found["models"]["tiny"].items():
        for side in ("ours", "trl"):
            assert both[side]["tokens_per_second"] > 0 and 0 < both[side]["mfu"] < 1, (task, side)
            assert both[side]["peak_memory_gib"] > 0 and len(both[side]["tried"]) == 1
        assert both["speed_ratio"] > 0 and len(both["speed_ratio_rounds"]) == 1
    runs = found["runs"]
    assert len(runs) == 1 + 3 * (2 * (1 + 1) + 1)
    for name, check in found["checks"].items():
        assert name == "host_waits_per_update" or check["ok"], (name, check)
    assert found["checks"]["rollouts"]["decoder"] == "lean"
    for profile in found["profile"]["tiny"].values():
        assert 0 <= profile["waiting_share"] < 1 and profile["longest"][0]["share"] > 0
    assert found["goals"] == {}
    for task in ("score", "reward", "ppo"):  # the same conversations, in every run
        assert len({run["tokens_per_step"] for key, run in runs.items() if f" {task} " in key}) == 1
    ours, theirs = runs["tiny reward ours round 0"], runs["tiny reward trl round 0"]
    assert ours["shares_prompts"] and ours["flops_per_step"]["reward"] < theirs["flops_per_step"]["reward"]
    assert runs["tiny ppo ours round 0"]["rollout_tokens_per_second"] > 0
    assert runs["tiny ppo trl round 0"]["flops_per_step"]["values"] > 0
    # What is there is not run again; what fails is told, and the rest goes on.
    speeds = {"setting 0": 10.0, "setting 1": 20.0, "setting 2": 15.0}
    done: list[str] = []

    def launch(job: Any, seconds: float) -> Any:
        done.append(f"{job.model} {job.side}")
        if job.side == "trl":
            return {"error": "out of memory"}
        return {**ours, "tokens_per_second": speeds.get(f"setting {len(done) - 1}", 21.0)}

    monkeypatch.setattr(gpu, "launch", launch)
    gpu.main([*words, "--models", "embedded", "tiny", "--tasks", "reward", "--settings", "9", "--rounds", "2"])
    told = read(output)["models"]["embedded"]["reward"]
    assert done[:3] == ["embedded ours"] * 3 and done[3] == "embedded trl"  # the third was slower than the second
    assert told["ours"]["setting"] == runs["tiny reward ours round 0"]["setting"] | told["ours"]["tried"][1]["setting"]
    assert told["ours"]["tokens_per_second"] == 21.0 and told["trl"]["error"] == "out of memory"
    assert "speed_ratio" not in told
    assert read(output)["runs"]["tiny reward ours round 0"] == ours
    # Runs that the time is too short for are listed with that reason, and another call measures them.
    monkeypatch.setattr(gpu.math, "inf", 0.0)
    gpu.main([*words, "--models", "8b", "--tasks", "ppo"])
    assert read(output)["models"]["8b"]["ppo"]["ours"]["error"] == "not started, since the time was over"
    assert not any(key.startswith("8b") for key in read(output)["runs"])
    with pytest.raises(SystemExit, match="start again with --fresh"):
        gpu.main([*words, "--steps", "3"])


@trls_arguments
def test_the_embedded_model_and_the_least_memory_that_trl_can_have(
    sides: Any, jobs: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_module, "batch_generation", trl_module.batch_generation)
    for model, task, side in (("embedded", "reward", "ours"), ("embedded", "reward", "trl"), ("tiny", "ppo", "trl")):
        setting = jobs.SETTINGS[task, side][-1]
        job = jobs.BenchJob(model, task, side, setting, jobs.SMALL, "cpu", 1, str(tiny))
        assert sides.run(jobs.BenchJob.loads(job.dumps()))["tokens_per_second"] > 0


def test_goals_are_judged(gpu: Any) -> None:
    ppo = {"ours": {"mfu": 0.3, "iteration_over_rollout": 1.2}, "speed_ratio": 2.9, "memory_ratio": 0.3}
    goals = gpu.judged({"8b": {"score": {"ours": {"mfu": 0.5}}, "reward": {"ours": {"error": "killed"}}, "ppo": ppo}})
    assert [goal["met"] for goal in goals.values()] == [True, True, False, True]
    goals = gpu.judged({"8b": {"server": {"ours": {"iteration_over_rollout": 1.6}}}})
    assert goals == {"ppo iteration with vllm over its rollout": {"value": 1.6, "goal": 1.5, "met": False}}


def test_a_difference_is_found(gpu: Any) -> None:
    checks = importlib.import_module("gpu_checks")
    one = torch.tensor([1.0, -2.0])
    assert checks._compared(one, one, 0.05) == {"difference": 0.0, "allowed": 0.05, "ok": True}
    assert not checks._compared(one + 0.2, one, 0.05)["ok"]
    assert not checks._compared(one.flip(0), one, 0.05, norm=True)["ok"]


@pytest.mark.slow
def test_separate_process(gpu: Any, jobs: Any, tiny: Path) -> None:
    setting = jobs.SETTINGS["reward", "ours"][0]
    job = jobs.BenchJob("tiny", "reward", "ours", setting, jobs.SMALL, "cpu", 1, str(tiny))
    assert gpu.launch(job, 250)["mfu"] > 0
    assert gpu.launch(job, 0.01) == {"error": "not done in 0.01 seconds"}


def test_failure_of_a_process_becomes_its_result(
    sides: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs.BenchJob("tiny", "reward", "ours", {}, jobs.SMALL, "cpu", 1, "no/such/model")
    monkeypatch.setattr(sys, "argv", ["gpu_sides.py", job.dumps()])
    for error, told in (
        (ValueError("a line\nno such thing"), "ValueError: a line"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
    ):

        def fail(job: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(sides, "run", fail)
        sides.main()
        assert json.loads(capsys.readouterr().out.removeprefix(jobs.MARK)) == {"error": told}
    assert sides.is_memory(RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED"))
    wrapped = ValueError("the reward failed")
    wrapped.__cause__ = MemoryError()
    assert sides.is_memory(wrapped) and not sides.is_memory(ValueError("other"))


def test_counted_operations_match_those_performed(sides: Any) -> None:
    """Compared with torch's counter, without attention, for which torch counts every pair of tokens."""
    flops = importlib.import_module("gpu_flops")
    model = tiny_model(layers=6)
    adapted: Any = sides.get_peft_model(model, sides.lora())
    sizes = flops.WeightCounts.of(model.config, sides.RANK)
    ids = torch.randint(1, 400, (2, 8))
    text = flops.Text(ids.numel(), seen=0)
    with FlopCounterMode(display=False) as forward:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    matrices = {torch.ops.aten.mm, torch.ops.aten.addmm}
    counted = sum(count for name, count in forward.get_flop_counts()["Global"].items() if name in matrices)
    assert counted == sizes.forward(text)
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    counted = sum(count for name, count in backward.get_flop_counts()["Global"].items() if name in matrices)
    # The first layer's queries, keys and values need no gradient of their input.
    assert 0.9 * sizes.backward(text) < counted <= sizes.backward(text)
    assert adapted.peft_config
