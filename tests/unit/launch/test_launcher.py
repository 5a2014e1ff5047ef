"""Flags that start a command on several processes, and the configurations that they name."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.commands.launch as accelerate_launch
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from rrm_lm.cli.main import main
from rrm_lm.launch import launcher

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
SCRIPTS = {"reward": "train_reward", "sft": "train_sft", "policy": "train_policy"}

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """What Accelerate would start, from the project's folder, with its settings worked out by its own code."""
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(accelerate_launch, "launch_command", lambda args: seen.append(started(args)))
    monkeypatch.chdir(ROOT)
    for name in ("LOCAL_RANK", launcher.COMMAND, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return seen


def started(args: argparse.Namespace) -> argparse.Namespace:
    return accelerate_launch._validate_launch_command(args)[0]


def commands(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line[1:]) for line in lines if line.startswith("#   ")]


def test_there_are_those_that_the_project_promises() -> None:
    promised = {"cpu2", "ddp", "fsdp2", "fsdp2_offload", "zero2", "zero3", "two_nodes"}
    assert {path.stem for path in CONFIGS} == promised
    assert all(name in launcher.OPTIONS["accelerate_config"].help for name in promised)


@every_config
def test_accelerate_reads_it(path: Path) -> None:
    config: Any = load_config_from_file(str(path))
    kinds = {"cpu2": "MULTI_GPU", "ddp": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds.get(path.stem, "FSDP")
    assert config.mixed_precision == "no"  # what is computed in which precision is not for a launcher to say
    assert config.num_machines == (2 if path.stem == "two_nodes" else 1)
    if config.distributed_type == "FSDP":
        known = {name.removeprefix("fsdp_") for name in vars(launch_arguments("x.py")) if name.startswith("fsdp_")}
        assert {name.removeprefix("fsdp_") for name in config.fsdp_config} <= known
        assert config.fsdp_config["fsdp_offload_params"] is (path.stem == "fsdp2_offload")


def launch_arguments(*words: str) -> argparse.Namespace:
    return accelerate_launch.launch_command_parser().parse_args(list(words))


@every_config
def test_its_first_lines_say_what_for_and_two_commands_that_are_the_same_run(
    path: Path, launched: list[argparse.Namespace]
) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and len(text.splitlines()[0]) > 60
    own = [words[1:] for words in commands(path) if words[0] == "rrm-lm"]
    theirs = [words[2:] for words in commands(path) if words[:2] == ["accelerate", "launch"]]
    assert len(own) == len(theirs) >= 1
    for mine, other in zip(own, theirs, strict=True):
        assert (ROOT / mine[mine.index("--config") + 1]).is_file()
        assert main(mine) == 0
        got = launched.pop()
        wanted = started(launch_arguments(*other))
        assert got.training_script == "rrm_lm" and got.module
        assert f"scripts/{SCRIPTS[got.training_script_args[0]]}.py" == wanted.training_script
        assert got.training_script_args[1:] == wanted.training_script_args
        for args in (got, wanted):
            for name in ("training_script", "training_script_args", "module", "config_file", "nondefault"):
                delattr(args, name)
        assert got == wanted
        assert got.num_processes == {"cpu2": 2, "two_nodes": 16}.get(path.stem, 8)


def test_flags_are_split_from_the_words_of_the_command() -> None:
    words = ["--config", "a.yaml", "--num-processes=4", "--seed", "1", "--accelerate_config", "fsdp2"]
    options, rest = launcher.take_options(words)
    assert options == {"num_processes": "4", "accelerate_config": "fsdp2"}
    assert rest == ["--config", "a.yaml", "--seed", "1"]
    assert launcher.take_options(rest) == ({}, rest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_processes", "two"], "--num_processes cannot be 'two'"),
        (["--num_processes", "0"], "--num_processes cannot be '0'"),
        (["--num_processes"], "--num_processes cannot be ''"),
        (["--accelerate_config", "--seed", "1"], "--accelerate_config cannot be '--seed'"),
        (["--num_processes", "2", "--num_processes", "2"], "--num_processes is given twice"),
        (["--accelerate_config", "fsdp"], "There is no configuration `fsdp`"),
        (["--accelerate_config", "mine/fsdp.yaml"], "There is no such file"),
    ],
)
def test_what_cannot_be_meant(
    words: list[str], message: str, launched: list[argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reward", *words]) == 2
    error = capsys.readouterr().err
    assert f"error: {message}" in error and not launched
    if "no " in message:
        assert "cpu2, ddp, fsdp2" in error


def test_a_name_is_looked_for_here_first_and_is_found_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert launcher.config_file("ddp") == ROOT / "configs" / "accelerate" / "ddp.yaml"
    own = tmp_path / "configs" / "accelerate" / "ddp.yaml"
    own.parent.mkdir(parents=True)
    own.write_text((ROOT / "configs/accelerate/ddp.yaml").read_text())
    assert launcher.config_file("ddp") == own
    assert launcher.config_file(str(own)) == own


def test_an_installed_package_has_them(tmp_path: Path, monkeypatch: Any) -> None:
    """As a wheel leaves them: the project's folder is not there, and the files are below share/."""
    there = tmp_path / "share" / "rrm_lm" / "accelerate" / "zero3.yaml"
    there.parent.mkdir(parents=True)
    there.write_text("")

    class File(type(Path())):
        def locate(self) -> Path:
            return tmp_path / self

    files = [File("rrm_lm/cli/main.py"), File("share/rrm_lm/accelerate/zero3.yaml")]
    monkeypatch.setattr(launcher, "distribution", lambda name: SimpleNamespace(files=files))
    monkeypatch.setattr(launcher, "__file__", str(tmp_path / "lib" / "rrm_lm" / "cli" / "launcher.py"))
    monkeypatch.chdir(tmp_path)
    assert launcher.config_file("zero3") == there


def test_a_process_that_was_launched_starts_no_more(
    launched: list[argparse.Namespace], monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["score", "--num_processes", "2"]) == 2
    assert "This is one of several processes already" in capsys.readouterr().err and not launched


def test_the_processes_are_told_what_was_typed(launched: list[argparse.Namespace]) -> None:
    assert main(["sft", "--num_processes", "3", "--output_dir", "my folder"]) == 0
    assert os.environ[launcher.COMMAND] == "rrm-lm sft --num_processes 3 --output_dir 'my folder'"
    assert launched[0].num_processes == 3 and launched[0].config_file.endswith("ddp.yaml")
    assert launched[0].training_script_args == ["sft", "--output_dir", "my folder"]


def failed(codes: dict[int, int]) -> ChildFailedError:
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in codes.items()}
    error = ChildFailedError.__new__(ChildFailedError)
    error.failures = failures  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({0: 1, 1: 2}, 2),  # an error to mend in one, and its consequence in the other
        ({0: 1, 1: -signal.SIGKILL}, 137),
        ({0: -signal.SIGTERM, 1: 1}, 1),
        ({0: 143, 1: 143}, 143),  # all were asked to stop
        ({0: 143, 1: 2}, 2),
    ],
)
def test_the_exit_code_is_that_of_what_came_first(
    codes: dict[int, int], code: int, launched: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(args: argparse.Namespace) -> None:
        raise failed(codes)

    monkeypatch.setattr(accelerate_launch, "launch_command", launch)
    assert main(["reward", "--accelerate_config", "cpu2"]) == code
    assert ("process 1 was ended by SIGKILL" in capsys.readouterr().err) == (code == 137)


def test_a_signal_to_the_launcher_and_a_file_that_is_none(
    launched: Any, monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def launch(args: argparse.Namespace) -> None:
        raise SignalException("", signal.SIGTERM)

    (tmp_path / "wrong.yaml").write_text("num_processes: 2\n")
    with monkeypatch.context() as patch:
        patch.setattr(accelerate_launch, "launch_command", launch)
        assert main(["reward", "--accelerate_config", "cpu2"]) == 143
    assert main(["reward", "--accelerate_config", str(tmp_path / "wrong.yaml")]) == 2
    error = capsys.readouterr().err
    assert "`distributed_type` must be specified" in error and f"where: {tmp_path / 'wrong.yaml'}" in error


@pytest.mark.parametrize("command", launcher.LAUNCHED)
def test_help_names_each_flag_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help_all"])
    page = capsys.readouterr().out
    for name in launcher.OPTIONS:
        assert len(re.findall(rf"--{name}\b", page)) == 1, name
    assert max(map(len, page.splitlines())) <= 120


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="it is installed here")
def test_what_is_not_installed_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(launcher.COMMAND, "")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert main(["reward", "--accelerate_config", "zero2"]) == 2
    assert "DeepSpeed is not installed" in capsys.readouterr().err
