"""scripts/examples/slurm.sh with stand-ins for SLURM: two launchers, a preempted job, and its second start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.commands import read
from tests.smoke.launches import ROOT, environment, free_port
from tests.smoke.policies import write_prompts

pytestmark = pytest.mark.slow

# Starts the program once per node, and fails if one fails. As SLURM's, it kills all on SIGTERM; `scancel` signals them.
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
nodes=()
trap 'kill -KILL "${nodes[@]}"' TERM
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node "$@" &
    nodes+=($!)
done
echo "${nodes[@]}" > "$(dirname "$0")/step"
code=0
for one in "${nodes[@]}"; do
    wait "$one"; found=$?
    while kill -0 "$one" 2> /dev/null; do wait "$one"; found=$?; done
    [ "$found" -gt "$code" ] && code=$found
done
exit "$code"
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM 7.0" ] && kill -TERM $(cat "$(dirname "$0")/step")
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$(dirname "$0")/asked"; fi
"""


def start(folder: Path, out: Path, *words: object, restarts: int = 0) -> subprocess.Popen[str]:
    commands = {"srun": SRUN, "scontrol": SCONTROL, "scancel": SCANCEL}
    commands |= {"rrm-lm": f'#!/bin/bash\nexec {sys.executable} -m rrm_lm "$@"\n'}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "a,b",
        "SLURM_RESTART_COUNT": str(restarts), "MAIN_PORT": str(free_port()),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    script = [str(ROOT / "scripts" / "examples" / "slurm.sh"), str(out), *map(str, words)]
    with (folder / f"log{restarts}").open("w") as log:
        return subprocess.Popen(script, env={**environment(), **slurm}, cwd=ROOT, stdout=log, stderr=log, text=True)


@pytest.mark.timeout(400)
def test_a_preempted_job_is_queued_again_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    prompts, out, folder = write_prompts(tmp_path / "data"), tmp_path / "out", tmp_path / "bin"
    folder.mkdir()
    words: list[Any] = ["policy", "--model_name_or_path", tiny, "--prompts", prompts, "--allow_code"]
    words += ["--reward_function", f"{prompts.parent / 'rewards.py'}:gold", "--response_length", 4]
    words += ["--per_device_train_batch_size", 2, "--save_strategy", "no", "--report_to", "none", "--eval_fraction", 0]
    first = start(folder, out, *words, "--max_steps", 2000)
    log, end = folder / "log0", time.monotonic() + 200
    while " 2 of 2000" not in log.read_text() and first.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0, log.read_text()
    text = log.read_text()
    assert "FSDP2 over 2 processes" in text and "finishing this step and saving it" in text
    assert (folder / "asked").read_text() == "requeue 7\n"
    (checkpoint,) = out.glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    again = start(folder, out, *words, "--max_steps", step + 1, "--allow_config_change", "true", restarts=1)
    assert again.wait(200) == 0, (folder / "log1").read_text()
    assert f"{step + 1} of {step + 1}: reward" in (folder / "log1").read_text()
    assert read(out / "run.json")["outcome"] == "finished"
    assert (folder / "asked").read_text() == "requeue 7\n"
