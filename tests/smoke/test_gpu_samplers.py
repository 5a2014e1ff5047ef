"""The GPU benchmark's PPO with a server and TRL's GRPO on a CPU, and the server that the benchmark starts and ends."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deprecations import trls_arguments, trls_switch
from tests.rollout_server import rollout_server
from tests.smoke.commands import read

ROOT = Path(__file__).parents[2]

# Does what vLLM does with the arguments that it is started with, and has a child, as vLLM has.
VLLM = """
import json, os, subprocess, sys, time
sys.path.insert(0, {root!r})
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.pretrained import load_causal_lm
from transformers import AutoTokenizer
from tests import http_server
from tests.rollout_server import rollout_server

words = sys.argv[1:]
address = words[words.index("--host") + 1], int(words[words.index("--port") + 1])

class Server(http_server._Server):
    def __init__(self, _, handler):
        super().__init__(address, handler)

http_server._Server = Server
with rollout_server() as fake:
    fake.backbone, answer = Backbone(load_causal_lm(words[1], dtype="bfloat16"), pad_id=0), fake.answer
    others = {{"/health": (200, {{}}), "/version": (200, {{"version": "of the test"}})}}
    fake.answer = lambda path, body: others.get(path) or answer(path, body)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    found = {{"words": words, "pids": [os.getpid(), child.pid]}}
    found["adapters"] = os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]
    found["decoded"] = AutoTokenizer.from_pretrained(words[1]).decode([fake.backbone.config.vocab_size - 1])
    with open({found!r}, "w") as file:
        json.dump(found, file)
    time.sleep(300)
"""


@pytest.fixture
def server(gpu: Any) -> Any:
    return importlib.import_module("gpu_server")


@pytest.fixture
def vllm(tmp_path: Path) -> Callable[[str], str]:
    """Makes a command of a shell script."""

    def make(script: str) -> str:
        path = tmp_path / "vllm"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 10
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


# -- measuring ------------------------------------------------------------------------------------------------------


@trls_arguments
def test_ppo_with_a_running_server_and_grpo(
    gpu: Any, sides: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "launch", lambda job, seconds: sides.run(job))
    monkeypatch.setattr(gpu, "find_vllm", lambda: None)
    output = tmp_path / "found.json"
    words = ["--device", "cpu", "--embedded", str(tiny), "--output", str(output)]
    with rollout_server() as fake:
        words += ["--models", "embedded", "--tasks"]
        gpu.main([*words, "grpo", "server", "--server", fake.url, "--rounds", "2"])
        asked = len(fake.asked)
        assert len(fake.pushed) == 2 * 2 and fake.loaded == []
        assert {body["max_tokens"] for body in fake.asked} == {6} and asked == 2 * 2 * 4
        gpu.main([*words, "server"])  # all is saved
        assert len(fake.asked) == asked
    kept = read(output)
    found = {name: both for name, both in kept["models"]["embedded"].items()}
    ours, grpo = found["server"]["ours"], found["grpo"]["trl"]  # the second call kept what the first had found
    for one in (ours, grpo):
        assert one["tokens_per_second"] > 0 and 0 < one["mfu"] < 1 and one["peak_memory_gib"] > 0
        assert 0 < one["rollout_share"] < 1 and one["rollout_tokens_per_second"] > 0
        assert one["iteration_over_rollout"] > 1
    assert ours["rollout_kl"] < 0.05 and ours["adapter_seconds"] > 0
    assert "server_memory_share" not in ours  # it was not started here
    runs = kept["runs"]
    assert sorted(runs) == sorted(
        ["embedded checks ours once"]
        + [f"embedded {task} {number}" for task in ("server ours", "grpo trl") for number in ("setting 0", "round 1")]
    )
    assert runs["embedded server ours setting 0"]["server"] == "version unknown"
    flops = runs["embedded grpo trl setting 0"]["flops_per_step"]
    assert all(flops[part] > 0 for part in ("roll_out", "old_log_probs", "update"))


@trls_arguments
def test_what_cannot_be_measured_is_recorded_and_tried_again(
    gpu: Any, sides: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "launch", lambda job, seconds: {} if job.task == "checks" else {"error": "no"})
    monkeypatch.setattr(gpu, "find_vllm", lambda: None)
    output = tmp_path / "found.json"
    words = ["--device", "cpu", "--embedded", str(tiny), "--output", str(output), "--quick"]

    def main(*more: str) -> Any:
        gpu.main([*words, *more])
        return read(output)["models"]

    found = main("--models", "embedded", "tiny")
    assert list(found["embedded"]) == ["score", "reward", "ppo"]  # the quick form has the others on the last model
    assert found["tiny"]["server"] == {"ours": {"error": "vllm is not installed"}}
    assert found["tiny"]["grpo"]["trl"]["error"] == "no"
    assert "server" not in main("--models", "8b", "--sides", "trl")["8b"]
    server = ("--tasks", "server", "--server", "http://127.0.0.1:9/v1", "--models")
    assert main(*server, "tiny")["tiny"]["server"]["ours"]["error"].startswith("the server of --server has the model")
    assert main(*server, "embedded")["embedded"]["server"]["ours"]["error"] == "no"
    assert not any(" server " in key for key in read(output)["runs"])  # the server may be there the next time
    monkeypatch.setattr(gpu, "find_vllm", lambda: "vllm")
    assert "not saved for the server: no" in main("--tasks", "server")["tiny"]["server"]["ours"]["error"]
    monkeypatch.setattr(gpu, "launch", lambda job, seconds: {})
    monkeypatch.setattr(gpu, "find_vllm", lambda: "/no/such/vllm")
    assert "/no/such/vllm" in main("--tasks", "server")["tiny"]["server"]["ours"]["error"]


@trls_arguments
@trls_switch
def test_grpo_trains_on_the_same_prompts(sides: Any, jobs: Any, tiny: Path, tmp_path: Path) -> None:
    """Twice on each sample, and it changes the adapter alone."""
    setting = jobs.SETTINGS["grpo", "trl"][-1]  # the least memory
    job = jobs.BenchJob("tiny", "grpo", "trl", setting, jobs.SMALL, "cpu", 1, str(tiny))
    clock, tokenizer = sides.DeviceClock(sides.torch.device("cpu")), sides.load_tokenizer(str(tiny))
    side = sides.maker(job)(job, tokenizer, len(tokenizer), clock, str(tmp_path))
    seen: list[list[int]] = []
    write = side.trainer._generate_single_turn
    side.trainer._generate_single_turn = lambda ids, *rest: seen.extend(ids) or write(ids, *rest)
    before = {name: parameter.detach().clone() for name, parameter in side.trainer.model.named_parameters()}
    side.trainer.train()
    ours = sides.prompts(job, len(tokenizer))
    assert len(seen) == 2 * job.load.episodes and all(ids in ours for ids in seen)
    assert all(seen.count(ids) == 2 * 2 for ids in seen)  # two samples in each of two iterations
    assert len(clock.rollouts) == 2 and len(clock.ends) == 2 * job.load.epochs
    changed = {name for name, parameter in side.trainer.model.named_parameters() if not parameter.equal(before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_responses_of_another_length_are_an_error(gpu: Any) -> None:
    reward = importlib.import_module("gpu_samplers").alternating(3)
    assert reward(completion_ids=[[1, 2, 3], [4, 5, 6]], prompts=[]) == [0.0, 1.0]
    with pytest.raises(ValueError, match=r"responses have \[2\] tokens, not 3"):
        reward(completion_ids=[[1, 2, 3], [4, 5]])


# -- the server -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ppo_with_a_server_that_is_started_and_ended(
    gpu: Any, sides: Any, tiny: Path, tmp_path: Path, vllm: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is saved, served and trained; in the end no process of the server's is left."""
    about, script, output = tmp_path / "about.json", tmp_path / "server.py", tmp_path / "found.json"
    script.write_text(VLLM.format(root=str(ROOT), found=str(about)))
    made = vllm(f'exec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"')
    monkeypatch.setattr(gpu, "launch", lambda job, seconds: sides.run(job))
    monkeypatch.setattr(gpu, "find_vllm", lambda: made)
    words = ["--device", "cpu", "--embedded", str(tiny), "--output", str(output), "--tasks", "server"]
    gpu.main([*words, "--models", "tiny"])
    found, served = read(output)["models"]["tiny"]["server"]["ours"], json.loads(about.read_text())
    assert found["rollout_kl"] < 1e-3  # with other weights it is 0.05
    assert found["server_memory_share"] == 0.3 and found["iteration_over_rollout"] > 1
    assert read(output)["runs"]["tiny server ours setting 0"]["server"] == "vllm of the test"
    assert served["words"][0] == "serve" and not Path(served["words"][1]).exists()  # the saved model is removed
    assert served["words"][served["words"].index("--max-model-len") + 1] == "30" and "--enable-lora" in served["words"]
    assert served["adapters"] == "True" and served["decoded"] == "<511>"
    assert wait_for(lambda: not any(map(is_running, served["pids"])))


def test_server_that_does_not_start(
    server: Any, jobs: Any, tmp_path: Path, vllm: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "END_SECONDS", 0.3)
    pids = tmp_path / "pids"
    stubborn = f"trap '' TERM\nsleep 300 &\necho $$ $! > {shlex.quote(str(pids))}\necho loading\nwait"
    for script, seconds, said in (
        ("echo first; echo no GPU >&2; exit 3", 60, "vllm ended before it was ready: no GPU"),
        (stubborn, 1, "vllm was not ready in 1 seconds: loading"),
    ):
        with (
            pytest.raises(server.ServerError, match=said),
            server.served(vllm(script), str(tmp_path), jobs.SMALL, 16, seconds),
        ):
            pytest.fail("it is not ready")
    assert wait_for(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))


def test_server_is_ended_with_the_benchmark(
    server: Any, jobs: Any, tmp_path: Path, vllm: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "is_healthy", lambda port: (tmp_path / "pid").is_file())
    script, before = f"echo $$ > {shlex.quote(str(tmp_path / 'pid'))}\nexec sleep 300", signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit, match="143"),
        server.served(vllm(script), str(tmp_path), jobs.SMALL, 16, 60) as url,
    ):
        pid = int((tmp_path / "pid").read_text())
        assert url.startswith("http://127.0.0.1:") and is_running(pid)
        os.kill(os.getpid(), signal.SIGTERM)
    assert not is_running(pid) and signal.getsignal(signal.SIGTERM) is before


def test_where_vllm_is_looked_for(
    server: Any, vllm: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vllm("exit 0")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("PATH", "")
    assert server.find_vllm() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server.find_vllm() == made
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert server.find_vllm() == made
