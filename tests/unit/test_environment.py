"""What `make` installs, and its messages when the installation fails."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PLENTY = {"/here": 10**12, "/tmp": 10**12}


def load() -> Any:
    described = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


environment = load()


# -- the tested set ---------------------------------------------------------------------------------------------------


def test_the_tested_set_is_within_the_ranges() -> None:
    tested = environment.pinned((ROOT / "configs" / "constraints.txt").read_text())
    if environment.newer(environment.installed(), tested):
        pytest.skip("another set is being tested")  # by `make update`, which writes a new one
    for line in environment.requirements(PYPROJECT, dev=True):
        wanted = Requirement(line)
        assert wanted.specifier.contains(tested[canonicalize_name(wanted.name)]), line


def test_the_tested_set_leaves_torch_to_the_hardware() -> None:
    versions = {"cuda-bindings": "1", "numpy": "2", "nvidia-nccl-cu13": "3", "torch": "2.13.0+cpu", "triton": "4"}
    text = environment.frozen({**versions, "torchao": "5"}, "")
    assert environment.pinned(text) == {"numpy": "2", "torchao": "5"}
    assert "torch 2.13.0+cpu" in text and "# tests: all\n" in text
    assert "torch" not in environment.pinned((ROOT / "configs" / "constraints.txt").read_text())
    assert not any(line.startswith("torch") for line in environment.requirements(PYPROJECT, dev=True))


def test_installed_versions() -> None:
    here = environment.installed()
    assert {"transformers", "huggingface-hub", "pytest"} <= here.keys() and not {"pip", "rrm-lm"} & here.keys()


def test_without_upper_bounds() -> None:
    project = '[project]\ndependencies = ["a>=5.20,<5.25", "b==1.12.*", "c<2", "d", "torch>=2,<3", "torchao"]\n'
    project += '[project.optional-dependencies]\ndev = ["e[x]>=1,<2"]\n'
    assert environment.requirements(project) == ["a>=5.20,<5.25", "b==1.12.*", "c<2", "d", "torchao"]
    latest = environment.requirements(project, dev=True, latest=True)
    assert latest == ["a>=5.20", "b==1.12.*", "c", "d", "torchao", "e[x]>=1"]


def test_newer_versions() -> None:
    found = environment.newer({"a": "1", "b": "2", "c": "3", "torch": "4"}, {"a": "1", "b": "1", "d": "5"})
    assert found == ["b 2 (tested: 1)", "c 3 (not in the tested set)"]


def test_dependencies_have_upper_bounds() -> None:
    ends = {
        wanted.name: any(part.operator in ("<", "==") for part in wanted.specifier)
        for wanted in map(Requirement, re.findall(r'^    "([a-z]+[>=][^"]*)"', PYPROJECT, flags=re.MULTILINE))
    }
    names = ("accelerate", "datasets", "peft", "torch", "transformers", "trl")
    assert all(ends[name] for name in names)


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "free", "sentence"),
    [
        ("ERROR: Could not install packages: [Errno 28] No space left on device", PLENTY, "the disk is full"),
        ("Error: Command '['python', '-m', 'ensurepip']' failed", {"/here": 0}, "the disk is full (0 MB in /here are"),
        ("Error: Command '['python', '-m', 'ensurepip']' failed", PLENTY, "ensurepip is missing"),
        (
            "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            PLENTY,
            "the package index host:9 cannot be reached",
        ),
        ("ERROR: No matching distribution found for a==9", PLENTY, "the package index host:9 has no a==9"),
    ],
)
def test_known_failures_are_explained_in_one_sentence(text: str, free: dict[str, int], sentence: str) -> None:
    found = environment.why(text, free, "host:9")
    assert sentence in found and "\n" not in found


def test_unknown_failures_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert environment.why("ERROR: a wheel is broken", PLENTY) is None
    with pytest.raises(SystemExit, match="error: pip failed; see the output above"):
        environment.fail("ERROR: a wheel is broken", tmp_path, "pip failed")
    assert "a wheel is broken" in capsys.readouterr().err


def make(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    there = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_"))}
    return subprocess.run(["make", *words], cwd=ROOT, env=there | settings, capture_output=True, text=True, check=False)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


@pytest.mark.parametrize("target", ["demo", "test"])
def test_unsuitable_python(target: str, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    code = "import sys; sys.version_info = (3, 10, 13, 'final', 0); sys.argv.pop(0); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    old.chmod(0o755)
    venv = f"VENV={tmp_path / 'venv'}"
    [sentence] = errors(make(target, venv, f"PYTHON={old}"))
    assert sentence.startswith(f"error: Python 3.11 to 3.13 is needed, and {old} is 3.10")
    [sentence] = errors(make(target, venv, f"PYTHON={tmp_path / 'none'}"))
    assert sentence.startswith(f"error: {tmp_path / 'none'} does not start")


@pytest.mark.slow
def test_an_index_that_cannot_be_reached(tmp_path: Path) -> None:
    settings = {
        "PIP_INDEX_URL": "http://user:secret@127.0.0.1:9/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "1",
    }
    [sentence] = errors(make("install", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}", **settings))
    assert sentence.startswith("error: the package index 127.0.0.1:9 cannot be reached; ") and "secret" not in sentence
