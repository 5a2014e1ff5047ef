"""`rrm-lm run` and `rrm-lm collect` on tiny models: every stage once, further rounds, one page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.commands import read, read_rows, run
from tests.smoke.policies import HELD_OUT, QUESTIONS, write_prompts

OVERSEER = '''
class Counts:
    """Likes the letter e."""

    name, limit = "counts", "can only count"

    def compare(self, prompt, responses):
        from rrm_lm.feedback.asking.overseers import Verdict

        counts = [text.count("e") for text in responses]
        return Verdict(None if counts[0] == counts[1] else counts.index(max(counts)))

    def critique(self, prompt, response):
        return f"It has the letter e {response.count('e')} times."


def overseer():
    return Counts()


def no_overseer():
    return 3


def gold(prompts, responses):
    return [float(text.count("e")) for text in responses]
'''
CONFIG = """\
output_dir: {root}/out
reward:
  model_name_or_path: {model}
  dataset_name: {pairs}
  max_length: 160
  max_steps: 2
  per_device_train_batch_size: 4
  learning_rate: 1e-3
  save_strategy: no
  use_cpu: true
  lora_r: 4
policy:
  model_name_or_path: {model}
  prompts: {root}/prompts.jsonl
  response_length: 6
  per_device_train_batch_size: 4
  max_steps: 2
  save_strategy: no
  use_cpu: true
  lora_r: 4
  dtype: float32
collect:
  prompts: {root}/prompts.jsonl
  overseer: {root}/people.py:overseer
  samples: 3
  max_new_tokens: 6
compare:
  prompts: {root}/heldout.jsonl
  gold: {root}/people.py:gold
  samples: 2
  max_new_tokens: 6
"""


@pytest.fixture
def config(tiny: Path, pairs: Path, tmp_path: Path) -> Path:
    write_prompts(tmp_path)
    (tmp_path / "people.py").write_text(OVERSEER)
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(root=tmp_path, model=tiny, pairs=pairs))
    return file


def ran(error: str) -> list[str]:
    """The stages that were run, as opposed to those found done."""
    lines = [line for line in error.splitlines() if line.startswith("[") and "/" in line.split("]")[0]]
    return [
        line.split("] ")[1].split(":")[0] for line in lines if "already done" not in line and ": stopped" not in line
    ][::2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_run_once_and_again_after_a_change(config: Path, tmp_path: Path, capfd: Any) -> None:
    first = run(capfd, "run", "--allow_code", "--config", config)
    assert first.code == 0, first.err
    assert ran(first.err) == ["reward", "policy", "compare"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in (
        "How it was made",
        "reward/report.html",
        "policy/report.html",
        "held-out comparisons right",
        "2 updates",
    ):
        assert text in page
    assert read(tmp_path / "out" / "compare" / "results.json")["n_prompts"] == len(HELD_OUT)

    again = run(capfd, "run", "--allow_code", "--config", config)
    assert again.code == 0 and ran(again.err) == []

    changed = run(capfd, "run", "--allow_code", "--config", config, "--policy.learning_rate", "3e-3")
    assert changed.code == 0 and ran(changed.err) == ["policy", "compare"]

    online = run(capfd, "run", "--allow_code", "--config", config, "--policy.learning_rate", "3e-3", "--rounds", 2)
    assert online.code == 0 and ran(online.err) == ["collect-2", "reward-2", "policy-2", "compare"]
    rows = read_rows(tmp_path / "out" / "collect-2" / "feedback.jsonl")
    assert rows and {row["subset"] for row in rows} == {"round 2"}
    assert read(tmp_path / "out" / "stages" / "policy-2.json")["inputs"]["files"]["" + str(tmp_path / "out" / "policy")]
    assert "policy-2" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_every_section_is_read_before_the_first_stage_runs(config: Path, tmp_path: Path, capsys: Any) -> None:
    config.write_text(config.read_text().replace("response_length: 6", "respnse_length: 6"))
    result = run(capsys, "run", "--allow_code", "--config", config)
    assert result.code == 2
    assert "respnse_length" in result.error["error"] and "response_length" in result.error["error"]
    assert result.error["where"] == f"{config}, section policy"
    assert not (tmp_path / "out").exists()


def test_a_stage_that_fails_stops_the_run_and_keeps_the_others(config: Path, tmp_path: Path, capfd: Any) -> None:
    config.write_text(config.read_text().replace("prompts.jsonl\n  response", "nothing.jsonl\n  response"))
    config.write_text(config.read_text().replace("max_steps: 2", "max_steps: 1"))
    result = run(capfd, "run", "--allow_code", "--config", config)
    assert result.code == 2
    assert "[2/3] policy: stopped" in result.err and "nothing.jsonl" in result.err
    assert (tmp_path / "out" / "reward" / "adapter_model.safetensors").is_file()


WAITING = """
import os, time
from pathlib import Path

def slow(prompts, responses, calls=[]):  # a trial, for the monitor, and for each update
    calls.append(1)
    if len(calls) > 3 and os.environ.get("WAIT"):
        Path(os.environ["WAIT"]).touch()
        time.sleep(600)
    return [float(len(text)) for text in responses]
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_pipeline_resumes_within_its_stage(config: Path, tmp_path: Path, capfd: Any) -> None:
    """SIGKILL in the policy's second update: neither the reward model nor the first update is computed again."""
    (tmp_path / "slow.py").write_text(WAITING)
    text = config.read_text().replace(
        "response_length: 6", f"response_length: 6\n  reward_function: {tmp_path}/slow.py:slow"
    )
    head, policy = text.split("policy:\n", 1)
    config.write_text(
        head + "policy:\n" + policy.replace("save_strategy: no", "save_strategy: steps\n  save_steps: 1", 1)
    )
    waiting = tmp_path / "waiting"
    process = subprocess.Popen(
        [sys.executable, "-m", "rrm_lm", "run", "--allow_code", "--config", config],
        env={**os.environ, "WAIT": str(waiting)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not waiting.is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    rest = run(capfd, "run", "--allow_code", "--config", config)
    assert rest.code == 0, rest.err
    assert ran(rest.err) == ["policy", "compare"]
    assert "update 1 of 2" not in rest.err and "update 2 of 2" in rest.err


# -- collecting -------------------------------------------------------------------------------------------------------


def collect(capture: Any, tiny: Path, config: Path, *words: object, overseer: str = "overseer") -> Any:
    root = config.parent
    settings = ("--prompts", root / "prompts.jsonl", "--overseer", f"{root / 'people.py'}:{overseer}")
    return run(
        capture, "collect", tiny, *settings, "--max_new_tokens", 6, "--output_dir", root / "new", *words
    )  # fmt: skip


def test_collected_feedback_is_what_the_overseer_said(tiny: Path, config: Path, tmp_path: Path, capsys: Any) -> None:
    result = collect(capsys, tiny, config, "--comparisons_per_prompt", 2)
    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "new" / "feedback.jsonl")
    assert rows
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen.count("e") > rejected.count("e")
        assert row["chosen_critiques"] == [f"It has the letter e {chosen.count('e')} times."]
    counts = read(tmp_path / "new" / "counts.json")
    assert counts["comparisons"] == len(rows) and counts["prompts"] == len(QUESTIONS)
    assert counts["comparisons"] + counts["ties"] == counts["pairs"]


def test_finished_collection_is_not_repeated(tiny: Path, config: Path, tmp_path: Path, capsys: Any) -> None:
    assert collect(capsys, tiny, config).code == 0
    before = (tmp_path / "new" / "feedback.jsonl").read_bytes()
    people = tmp_path / "people.py"
    people.write_text(people.read_text().replace("return Verdict(", "raise SystemError(responses); Verdict("))
    again = collect(capsys, tiny, config)
    assert again.code == 0, again.err
    assert (tmp_path / "new" / "feedback.jsonl").read_bytes() == before


def test_overseers_that_are_refused(tiny: Path, config: Path, tmp_path: Path, capsys: Any) -> None:
    result = collect(capsys, tiny, config, overseer="no_overseer")
    assert result.code == 2 and "returned int, which is not an overseer" in result.error["error"]
    result = run(capsys, "collect", tiny, "--prompts", tmp_path / "prompts.jsonl", "--overseer", "nobody")
    assert result.code == 2 and "no overseer 'nobody'" in result.error["error"]
    result = run(capsys, "collect", tiny, "--overseer", "nobody")
    assert result.code == 2 and "`prompts` is not given" in result.error["error"]
