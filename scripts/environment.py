"""Make the virtual environment that the Makefile uses, or explain in one sentence why that failed.

The Makefile has already checked the version of Python. Only the standard library is available at this point.
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
# torch and the packages of its build; TORCH in the Makefile chooses the build for the hardware.
_BUILD = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
_FULL = 50_000_000  # bytes of free disk space below which nothing can be installed
_NETWORK = re.compile(r"Retrying \(Retry|Could not fetch URL|ConnectionError|ReadTimeout|ProxyError|HTTP error 5\d\d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("install", help="make or update an environment")
    making.add_argument("venv", type=Path)
    making.add_argument("--torch", required=True, help="arguments for pip if torch is not installed yet")
    making.add_argument("--constraints", help="file with the versions to install; default: the newest")
    making.add_argument("--dev", action="store_true", help="also install what checks and tests need")
    making.add_argument("--latest", action="store_true", help="ignore the upper bounds in pyproject.toml")
    commands.add_parser("newer", help="print the versions that differ from the tested set")
    commands.add_parser("freeze", help="record this environment as the tested set").add_argument("--tests")
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
    """Install everything. torch is installed first, as chosen, and never replaced afterwards."""
    python = venv / "bin" / "python"
    tested = ["--constraint", constraints] if constraints else []
    print(f"[1/3] virtual environment in {venv}")
    if _run(python, "-m", "pip", "--version").returncode != 0:
        made = _run(Path(sys.executable), "-m", "venv", str(venv))
        if made.returncode != 0:
            fail(made.stdout, venv, "the virtual environment could not be created")
    found = _run(python, "-c", "import sys; print(*sys.version_info[:2], sep='.')").stdout.strip()
    if found not in ("3.11", "3.12", "3.13"):
        _end(f"{venv} has Python {found}, but 3.11 to 3.13 is required; run `make clean` first")
    print("[2/3] torch (about 200 MB the first time; more with CUDA)")
    if _run(python, "-c", "import torch").returncode != 0:  # missing, or incomplete after the disk was full
        _pip(venv, *tested, *shlex.split(torch))
    print(
        f"[3/3] {'what checks and tests need' if dev else 'rrm_lm and what it needs'} (a minute or two the first time)"
    )
    _pip(venv, *tested, *requirements((ROOT / "pyproject.toml").read_text(), dev, latest))
    # setuptools, which builds the package, also comes from the tested set; only newer versions of pip support this.
    build = {name: constraints for name in ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT") if constraints}
    _pip(venv, "--no-deps", "--editable", str(ROOT), **build)


def requirements(pyproject: str, dev: bool = False, latest: bool = False) -> list[str]:
    """The requirements in pyproject.toml except torch; with `latest`, without upper bounds (``==`` is kept)."""
    project = tomllib.loads(pyproject)["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if dev else [])
    wanted = [line for line in wanted if not re.match(r"torch\b", line)]
    return [re.sub(r",?<[^,;]*", "", line) for line in wanted] if latest else wanted


def installed() -> dict[str, str]:
    """Versions of all installed packages except pip and this one."""
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
# torch and the packages of its build (triton, CUDA's libraries) are not listed: TORCH in the Makefile chooses those.
{chr(10).join(lines)}
"""


def pinned(text: str) -> dict[str, str]:
    """The versions in a constraints file."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, flags=re.MULTILINE))


def newer(here: dict[str, str], tested: dict[str, str]) -> list[str]:
    """One line for each package whose version differs from the tested one."""
    return [
        f"{name} {version} ({f'tested: {tested[name]}' if name in tested else 'not in the tested set'})"
        for name, version in here.items()
        if not _BUILD.fullmatch(name) and tested.get(name) != version
    ]


def why(text: str, free: dict[str, int], index: str = "") -> str | None:
    """One sentence that explains the output of pip or venv; ``None`` if the cause is not a known one.

    Args:
        text: The output.
        free: Free bytes in the folders that are written to.
        index: Address of the package index, if one was set.
    """
    at = f" {index}" if index else ""
    if "No space left on device" in text or "Errno 28" in text or min(free.values()) < _FULL:
        left = " and ".join(f"{there / 1e6:.0f} MB in {place}" for place, there in free.items())
        return (
            f"the disk is full ({left} are free); the environment needs about 2 GB: free some space, or set TMPDIR to "
            "a folder on another disk if the temporary folder is full"
        )
    if "ensurepip" in text or "No module named venv" in text:
        return (
            f"{sys.executable} cannot make virtual environments: ensurepip is missing; install it (on Debian and "
            f"Ubuntu: `apt install python3.{sys.version_info[1]}-venv`), or use another Python: make PYTHON=..."
        )
    if _NETWORK.search(text):
        return (
            f"the package index{at} cannot be reached; check the network and the proxy, or set another index with "
            "PIP_INDEX_URL=..."
        )
    if missing := re.search(r"No matching distribution found for (\S+)", text):
        return (
            f"the package index{at} has no {missing[1]} for this Python and platform; set a more complete index with "
            "PIP_INDEX_URL=..., or install the newest versions instead of the tested ones with make CONSTRAINTS="
        )
    return None


def fail(text: str, venv: Path, otherwise: str) -> NoReturn:
    """Exit with a one-sentence error, after the output if its cause is unknown."""
    writes_to = (str(venv if venv.exists() else ROOT), tempfile.gettempdir())
    index = re.sub(r"^\w+://(.*@)?|/.*", "", os.environ.get("PIP_INDEX_URL", ""))  # never a password
    sentence = why(text, {place: shutil.disk_usage(place).free for place in writes_to}, index)
    if sentence is None:
        print(text[-4000:], file=sys.stderr)
    _end(sentence or f"{otherwise}; see the output above")


def _pip(venv: Path, *words: str, **environment: str) -> None:
    # Modules are compiled when first imported. Most never are, so this halves the time of the installation.
    words = ("install", "--quiet", "--progress-bar", "off", "--no-compile", *words)
    command = ("-m", "pip", "--disable-pip-version-check", "--no-input", *words)
    done = _run(venv / "bin" / "python", *command, **environment)
    if done.returncode != 0:
        fail(done.stdout, venv, f"pip failed (exit {done.returncode})")


def _run(program: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program and capture its output."""
    command, there = [str(program), *words], {**os.environ, **environment}
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=there
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, str(error))


def _name(name: str) -> str:
    """A package name in the normalized form that package indexes compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _end(sentence: str) -> NoReturn:
    sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    main()
