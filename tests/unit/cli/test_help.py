"""Help pages fit a terminal and begin with an example that runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rrm_lm.cli import fetch
from rrm_lm.cli.commands import COMMANDS
from rrm_lm.cli.main import help_text, main
from rrm_lm.launch.launcher import LAUNCHED, OPTIONS

ROOT = Path(__file__).parents[3]
# Folders in examples that an earlier command has to write, which the example says.
WRITTEN = {"compare": "outputs/demo/policy"} | dict.fromkeys(("serve", "check-server", "push"), "outputs/demo/reward")
REPOSITORY = "me/reward"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The help of a command on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def read(command: str, flag: str = "--help") -> str:
        with pytest.raises(SystemExit):
            main([command, flag])
        return capsys.readouterr().out

    return read


def first_example(text: str) -> list[str]:
    """The words of the first command after `Examples:`."""
    lines = text.split("Examples:\n")[1].replace("\\\n", " ").splitlines()
    return shlex.split(re.sub(r"\s+\([^)]*\)$", "", lines[0]))


def test_the_list_of_commands_fits() -> None:
    lines = help_text().splitlines()
    assert lines[0] == "Examples:" and len(lines) <= 45 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_fits(command: str, page: Any) -> None:
    lines = page(command).splitlines()
    assert lines[0] == "Examples:"
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_example_can_be_run_as_written(command: str, page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(command)
    words = first_example(text)
    assert words[:2] == ["rrm-lm", command]
    monkeypatch.chdir(ROOT)
    for word in words[2:]:
        if "/" in word and "://" not in word and word not in (WRITTEN.get(command), REPOSITORY):
            assert Path(word).is_file(), word
    if command in WRITTEN:
        assert "(after `make demo`)" in text
    started: list[Any] = []
    if command == "fetch":
        monkeypatch.setattr("rrm_lm.models.embedded.fetch", lambda *args, **options: started.append(args))
        assert fetch.run(words[2:]) == 0
    else:  # its settings are read
        from rrm_lm.cli.pipeline import pipeline
        from rrm_lm.settings.parsing import parser

        real = parser.parse

        def parse(*args: Any, **options: Any) -> Any:
            started.append(real(*args, **options))
            raise SystemExit

        monkeypatch.setattr(parser, "parse", parse)
        monkeypatch.setattr(pipeline, "parse", parse)
        with pytest.raises(SystemExit):
            main(words[1:])
    assert len(started) == 1


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "fetch"])
def test_every_setting_is_described_once_in_all(command: str, page: Any) -> None:
    text = page(command, "--help_all")
    names = re.findall(r"^  --(\w+) ", text, re.MULTILINE)
    assert len(names) == len(set(names))
    short = set(re.findall(r"^  --(\w+) ", page(command), re.MULTILINE))
    assert short <= set(names) and "allow_code" in names
    assert set(OPTIONS) <= set(names) or command not in LAUNCHED
