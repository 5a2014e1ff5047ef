"""Make the virtual environment that the Makefile uses; where that fails, say why in one sentence.

The Makefile has checked which Python runs this. Only the standard library is there yet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "configs" / "constraints.txt"
# torch and what belongs to one build of it: TORCH chooses that, for the hardware.
_BUILD = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
_FULL = 50_000_000  # bytes; with fewer left, nothing can be installed
_NETWORK = re.compile(r"Retrying \(Retry|Could not fetch URL|ConnectionError|ReadTimeout|ProxyError|HTTP error 5\d\d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("install", help="make an environment, or bring one up to date")
    making.add_argument("venv", type=Path)
    making.add_argument("--torch", required=True, help="what to give to pip where there is no torch yet")
    making.add_argument("--constraints", help="file of the versions to install; without it, the newest")
    making.add_argument("--dev", action="store_true", help="also what checks and tests need")
    making.add_argument("--latest", action="store_true", help="let no upper bound of pyproject.toml count")
    commands.add_parser("newer", help="print what is newer or older here than in the tested set")
    commands.add_parser("freeze", help="write this environment down as the tested set").add_argument("--tests")
    given = parser.parse_args()
    try:
        if given.command == "install":
            install(given.venv, given.torch, given.constraints, given.dev, given.latest)
        elif given.command == "newer":
            print("\n".join(newer(installed(), pinned(CONSTRAINTS.read_text()))) or "the tested set")
        else:
            CONSTRAINTS.write_text(frozen(installed(), given.tests or ""))
    except KeyboardInterrupt:
        sys.exit(130)


def install(venv: Path, torch: str, constraints: str | None, dev: bool, latest: bool) -> None:
    """Everything in the order in which it is needed. torch comes once, as it was chosen, and is never replaced."""
    python = venv / "bin" / "python"
    tested = ["--constraint", constraints] if constraints else []
    print(f"[1/3] virtual environment in {venv}")
    if _run(python, "-m", "pip", "--version").returncode != 0:
        made = _run(Path(sys.executable), "-m", "venv", str(venv))
        if made.returncode != 0:
            fail(made.stdout, venv, "a virtual environment could not be made")
    found = _run(python, "-c", "import sys; print(*sys.version_info[:2], sep='.')").stdout.strip()
    if found not in ("3.11", "3.12", "3.13"):
        _end(f"{venv} holds Python {found}, and 3.11 to 3.13 is needed; run `make clean` first")
    print("[2/3] torch (some 200 MB the first time; more with CUDA)")
    if _run(python, "-c", "import torch").returncode != 0:  # not there, or half there after a full disk
        _pip(venv, *tested, *shlex.split(torch))
    print(
        f"[3/3] {'what checks and tests need' if dev else 'rrm_lm and what it needs'} (a minute or two the first time)"
    )
    _pip(venv, *tested, *requirements((ROOT / "pyproject.toml").read_text(), dev, latest))
    # setuptools, which builds the package, is taken from the tested set, too: an option of newer versions of pip alone.
    build = {name: constraints for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT") if constraints}
    _pip(venv, "--no-deps", "--editable", str(ROOT), **build)


def requirements(pyproject: str, dev: bool = False, latest: bool = False) -> list[str]:
    """What pyproject.toml asks for, without torch; with `latest` without upper bounds (``==`` is none)."""
    project = tomllib.loads(pyproject)["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if dev else [])
    wanted = [line for line in wanted if not re.match(r"torch\b", line)]
    return [re.sub(r",?<[^,;]*", "", line) for line in wanted] if latest else wanted


def installed() -> dict[str, str]:
    """Versions of all that this Python has, without pip and this package."""
    found = {_name(each.metadata["Name"]): each.version for each in importlib.metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name not in ("pip", "rrm-lm")}


def frozen(versions: dict[str, str], tests: str) -> str:
    """The text of a constraints file."""
    lines = [f"{name}=={version}" for name, version in versions.items() if not _BUILD.fullmatch(name)]
    where = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, torch {versions['torch']}"
    return f"""\
# Every version, direct and indirect, that `make demo` and `make test` install. `make update` tests the newest versions
# that pyproject.toml allows, and writes this file.
# tested: {datetime.now(UTC):%Y-%m-%d}, {where}
# tests: {tests or "all"}
# torch and what belongs to its build (triton, CUDA's libraries) are left out: TORCH in the Makefile chooses those.
{chr(10).join(lines)}
"""


def pinned(text: str) -> dict[str, str]:
    """The versions in a constraints file."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, flags=re.MULTILINE))


def newer(here: dict[str, str], tested: dict[str, str]) -> list[str]:
    """What is not as tested, a line each."""
    return [
        f"{name} {version} ({f'tested: {tested[name]}' if name in tested else 'not in the tested set'})"
        for name, version in here.items()
        if not _BUILD.fullmatch(name) and tested.get(name) != version
    ]


def why(text: str, free: dict[str, int], index: str = "") -> str | None:
    """One sentence for what pip or venv printed; ``None`` where it is none of the usual.

    Args:
        text: What it printed.
        free: Bytes that are free in the folders that it writes to.
        index: Where the package index is, if that was said.
    """
    at = f" {index}" if index else ""
    if "No space left on device" in text or "Errno 28" in text or min(free.values()) < _FULL:
        left = " and ".join(f"{there / 1e6:.0f} MB in {place}" for place, there in free.items())
        return (
            f"the disk is full ({left} are free); the environment takes some 2 GB: free some space, or set TMPDIR to a "
            "folder on another disk if it is the temporary one that is full"
        )
    if "ensurepip" in text or "No module named venv" in text:
        return (
            f"{sys.executable} cannot make virtual environments: ensurepip is missing; install it (on Debian and "
            f"Ubuntu: `apt install python3.{sys.version_info[1]}-venv`), or name another Python: make PYTHON=..."
        )
    if _NETWORK.search(text):
        return (
            f"the package index{at} cannot be reached; check the network and the proxy, or name another index with "
            "PIP_INDEX_URL=..."
        )
    if missing := re.search(r"No matching distribution found for (\S+)", text):
        return (
            f"the package index{at} has no {missing[1]} for this Python and platform; name a more complete index with "
            "PIP_INDEX_URL=..., or install the newest versions in place of the tested ones with make CONSTRAINTS="
        )
    return None


def fail(text: str, venv: Path, otherwise: str) -> NoReturn:
    """End with one sentence; what is not understood is shown before it."""
    writes_to = (str(venv if venv.exists() else ROOT), tempfile.gettempdir())
    index = re.sub(r"^\w+://(.*@)?|/.*", "", os.environ.get("PIP_INDEX_URL", ""))  # never a password
    sentence = why(text, {place: shutil.disk_usage(place).free for place in writes_to}, index)
    if sentence is None:
        print(text[-4000:], file=sys.stderr)
    _end(sentence or f"{otherwise}; what it said is above")


def _pip(venv: Path, *words: str, **environment: str) -> None:
    # Compiled when first imported: most modules never are, and the install takes half the time.
    words = ("install", "--quiet", "--progress-bar", "off", "--no-compile", *words)
    command = ("-m", "pip", "--disable-pip-version-check", "--no-input", *words)
    done = _run(venv / "bin" / "python", *command, **environment)
    if done.returncode != 0:
        fail(done.stdout, venv, f"pip failed (exit {done.returncode})")


def _run(program: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What it prints is kept, not shown."""
    command, there = [str(program), *words], {**os.environ, **environment}
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=there
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, str(error))


def _name(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _end(sentence: str) -> NoReturn:
    sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    main()
