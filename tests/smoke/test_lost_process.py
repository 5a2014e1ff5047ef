"""Two processes: if one ends, both end quickly and report the cause first; the run can be resumed."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.storage import verify
from rrm_lm.training.checkpoints import newest_verified
from tests.smoke.commands import flags, read, train
from tests.smoke.launches import ACCELERATE, PROGRAM, ROOT, Launched
from tests.smoke.policies import write_prompts

pytestmark = pytest.mark.slow

CPU2 = "configs/accelerate/cpu2.yaml"


def step(folder: Path) -> int:
    try:
        found = newest_verified(folder)
    except FileNotFoundError:  # removed while it was looked at: the next look finds a newer one
        return 0
    return int(found.name.removeprefix("checkpoint-")) if found else 0


@pytest.mark.timeout(300)
def test_sigterm_resume_and_sigkill(tiny: Path, pairs: Path, tmp_path: Path, capsys: Any) -> None:
    """Through `rrm-lm reward --accelerate_config cpu2`: SIGTERM; the command that it prints; SIGKILL of a process."""
    folder = tmp_path / "out"
    settings = {
        "model_name_or_path": tiny, "dataset_name": pairs, "output_dir": folder, "max_length": 160, "lora_r": 4,
        "max_steps": 100_000, "per_device_train_batch_size": 2, "warmup_steps": 0, "dtype": "float32",
        "save_strategy": "steps", "save_steps": 5, "save_total_limit": 3, "disable_tqdm": "true",
        "logging_steps": 1000,
    }  # fmt: skip
    words = flags(settings)
    run = Launched((*PROGRAM, "reward", "--accelerate_config", "cpu2", *words), tmp_path / "first.log")
    try:
        run.wait_for(lambda: step(folder))
        workers = run.workers()
        assert set(workers) == {0, 1}
        second = train(capsys, tiny, pairs, folder, "--resume_from_checkpoint", "true")
        assert second.code == 2
        assert f"in use by another run: process {workers[0].pid} on " in second.error["error"]
        run.process.send_signal(signal.SIGTERM)
        code, _ = run.end(30)
    finally:
        run.close()
    assert code == 143, run.text
    saved = re.findall(r"saved: (\S+)", run.text)
    assert len(saved) == 1 and verify(saved[0]) == [] and int(saved[0].rpartition("-")[2]) == step(folder)
    assert read(folder / "run.json")["outcome"] == "stopped by Interrupted"
    assert "Traceback" not in run.text and "failed" not in run.text
    goes_on = re.search(r"resume: rrm-lm (.*)", run.text)
    assert goes_on and "--accelerate_config cpu2" in goes_on[1]

    before = step(folder)
    run = Launched((*PROGRAM, *shlex.split(goes_on[1])), tmp_path / "second.log")
    try:
        run.wait_for(lambda: step(folder) > before)
        workers = run.workers()
        workers[0].kill()  # which holds the lock
        code, seconds = run.end(30)
    finally:
        run.close()
    assert code == 128 + signal.SIGKILL and seconds < 30, run.text
    assert not any(worker.is_running() for worker in workers.values())
    errors = [line for line in run.text.splitlines() if re.search("error|Error|failed|Traceback", line)]
    assert errors[0].startswith("[process 1] error: Process 0 was killed"), run.text
    assert "process 0 was ended by SIGKILL" in run.text and "Traceback" not in run.text
    assert step(folder) > before
    changed = train(capsys, tiny, pairs, folder, "--resume_from_checkpoint", "true")
    assert changed.code == 2 and "max_steps was 100000 and is 3" in changed.error["error"]
    assert "took over" in changed.err and f"process {workers[0].pid} on " in changed.err  # its lock


@pytest.mark.timeout(300)
def test_error_in_one_process_stops_both(tiny: Path, tmp_path: Path) -> None:
    """Under plain `accelerate launch`: a reward that fails in the second update of one process; the other waits."""
    prompts = write_prompts(tmp_path / "data")
    (prompts.parent / "failing.py").write_text(
        "import os\ncalls = []\ndef failing(prompts, responses):\n    calls.append(1)\n"
        "    if len(calls) == 3 and os.environ['RANK'] == '1':\n        raise KeyError('no such word')\n"
        "    return [float(len(text)) for text in responses]\n"
    )
    settings = {
        "model_name_or_path": tiny, "prompts": prompts, "reward_function": f"{prompts.parent / 'failing.py'}:failing",
        "output_dir": tmp_path / "out", "response_length": 6, "per_device_train_batch_size": 2, "max_steps": 50,
        "eval_fraction": 0, "save_strategy": "steps", "save_steps": 1, "dtype": "float32", "lora_r": 4,
    }  # fmt: skip
    words = flags(settings)
    script = ROOT / "scripts" / "train_policy.py"
    run = Launched((*ACCELERATE, "--config_file", CPU2, script, *words), tmp_path / "log")
    try:
        run.wait_for(lambda: "no such word" in run.text)
        code, seconds = run.end(30)
    finally:
        run.close()
    assert code != 0 and seconds < 30
    errors = [line for line in run.text.splitlines() if re.search(r"error: |Error|failed|Traceback", line)]
    assert errors[0].startswith("[process 1] error: ") and "no such word" in errors[0], run.text
    assert "[process 0] stopped, because process 1 failed" in run.text
    assert step(tmp_path / "out") == 1 and read(tmp_path / "out" / "run.json")["outcome"].startswith("stopped by")
