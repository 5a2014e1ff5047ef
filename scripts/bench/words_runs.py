"""What the benches of words share: commands of the program, and runs that are kept by line and not repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def run_command(command: str, *words: object, **settings: object) -> None:
    """Run a command of the program. Raises RuntimeError with the end of its output if it fails."""
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    parts = [sys.executable, "-m", "rrm_lm", command, *map(str, (*words, *options))]
    done = subprocess.run(parts, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(parts)}\n{done.stdout[-4000:]}")


def kept(file: Path) -> list[dict[str, Any]]:
    """The runs in a file of JSON lines; none if there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def is_kept(runs: Sequence[Mapping[str, Any]], key: Mapping[str, Any]) -> bool:
    return any(key.items() <= run.items() for run in runs)


def keep(file: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Append runs to a file, a line each."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(run) + "\n" for run in runs))
