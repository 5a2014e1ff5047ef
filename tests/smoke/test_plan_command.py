"""`rrm-lm plan`: what fits, on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.published import write_config
from tests.smoke.commands import run


@pytest.fixture(scope="module")
def config_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("plan") / "Llama-3.1-8B", "Llama-3.1-8B")


def test_the_page_is_one_screen(config_8b: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run(capsys, "plan", "--model_name_or_path", config_8b, "--num_processes", 8, "--gpu_memory", "80GB")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    advice = [line for line in lines if line.startswith("use ")]
    assert max(len(line) for line in lines if line not in advice) <= 80
    assert len(lines) <= 60
    assert "8.03 B parameters, 16.1 GB in bfloat16" in result.out
    assert "…" not in result.out  # nothing is cut
    assert [line.split(" for ")[1].split(":")[0] for line in advice] == ["rrm-lm reward", "rrm-lm policy"]
    for name in ("one process", "DDP", "ZeRO-2", "FSDP2", "ZeRO-3", "FSDP2, offloaded"):
        assert any(line.strip().startswith(name) for line in lines), name


def test_json_output(tiny: Path, capsys: Any) -> None:
    words = ("--num_processes", 2, "--gpu_memory", "8GiB", "--dtype", "float32", "--prompt_length", 32)
    result = run(capsys, "plan", "--model_name_or_path", tiny, *words, "--response_length", 16, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["gpu_memory"], found["planned_with"]) == (2**33, round(2**33 * 0.9))
    assert found["recommended"] == {"reward": "ddp", "ppo": "ddp"}
    choices = {(choice["task"], choice["strategy"]): choice for choice in found["choices"]}
    ddp = choices["reward", "ddp"]
    # Half of what is trained goes around the ring twice.
    assert ddp["traffic"]["trained"] == found["sizes"]["adapter"] + 4 * 32
    assert ddp["memory"]["weights"] == found["sizes"]["weights"]
    assert choices["ppo", "fsdp2"]["memory"]["weights"] * 2 == found["sizes"]["weights"]
    assert all(choice["fits"] for choice in choices.values())


def test_nothing_fits(tiny: Path, capsys: Any) -> None:
    words = ("--model_name_or_path", tiny, "--num_processes", 1, "--gpu_memory", "1MB", "--dtype", "float32")
    result = run(capsys, "plan", *words)
    assert result.code == 2
    assert "one process" in result.out  # the page is there all the same
    error = result.error
    assert "reward model and PPO cannot be trained on 1 x 1MB" in error["error"]
    assert "use at least " in error["what to do"]


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (("--gpu_memory", "80"), "gpu_memory", "'80' is not an amount of memory"),
        (("--gpu_memory", "80 parsecs"), "gpu_memory", "not an amount of memory"),
        (("--gpu_memory", "0GB"), "gpu_memory", "not an amount of memory"),
        (("--num_processes", "0"), "num_processes", "num_processes is 0"),
        (("--memory_margin", "1"), "memory_margin", "memory_margin is 1"),
        (("--load_in_4bit", "true"), "load_in_4bit", "quantized weights cannot be planned for"),
        (("--dtype", "int8"), "dtype", "is not a dtype for weights"),
        (("--samples_per_prompt", "3"), "samples_per_prompt", "cannot be divided by 3"),
        (("--model_name_or_path", "no/such/config.json"), "no/such/config.json", "no such folder"),
    ],
)
def test_bad_input(words: tuple[str, ...], where: str, what: str, tiny: Path, capsys: Any) -> None:
    given = () if "--model_name_or_path" in words else ("--model_name_or_path", tiny)
    result = run(capsys, "plan", *given, *words)
    assert result.code == 2
    assert what in result.error["error"] and where in result.error["where"]
