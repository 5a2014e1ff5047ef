"""Commands on several processes: `--accelerate_config fsdp2 --num_processes 8`, started by Accelerate's own launcher.

`rrm-lm policy --accelerate_config fsdp2 --num_processes 8 --config FILE` is the same run as
`accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 8 scripts/train_policy.py --config FILE`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from rrm_lm.errors import ConfigError

LAUNCHED = ("reward", "sft", "policy", "evaluate", "score")
COMMAND = "RRM_LM_COMMAND"  # tells the processes what was typed
DEFAULT = "ddp"
FOLDER = Path("configs/accelerate")
# The agent that Accelerate starts kills processes which take longer to end after a signal, unless this is set.
_PATIENCE = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")


@dataclass(frozen=True)
class _Option:
    """A flag of the launcher: what kind of value it takes, and what it is for."""

    value: str
    help: str
    least: int | None = None  # of a whole number


OPTIONS = {
    "accelerate_config": _Option(
        "NAME",
        "A name in configs/accelerate (cpu2, ddp, fsdp2, fsdp2_offload, zero2, zero3, two_nodes) or a file of "
        f"`accelerate config`; unset: {DEFAULT}.",
    ),
    "num_processes": _Option("N", "Processes on all machines together; unset: as the configuration has it.", 1),
    "num_machines": _Option("N", "Machines; unset: as the configuration has it.", 1),
    "machine_rank": _Option("N", "On each of several machines: which one it is, from 0.", 0),
    "main_process_ip": _Option("ADDRESS", "On each of several machines: the address of machine 0."),
    "main_process_port": _Option("PORT", "A free port of machine 0; unset: as the configuration has it.", 0),
}


def help_text(width: int) -> str:
    """The part of a command's help about these flags, the same for each command, in lines of so many characters."""
    flags = {f"--{name} {option.value}": option.help for name, option in OPTIONS.items()}
    column = max(map(len, flags)) + 2
    head = "On several processes, as `accelerate launch` starts them (which takes its flags before the script)"
    return textwrap.fill(head, width) + "".join(
        "\n" + textwrap.fill(text, width, initial_indent=f"  {flag:<{column}}", subsequent_indent=" " * (column + 2))
        for flag, text in flags.items()
    )


def take_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the launcher's flags from a command's words: their values by name, and the other words.

    Raises:
        ConfigError: A flag without a value, twice, or with one that is no number.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--") or name not in OPTIONS:
            rest.append(word)
            continue
        if name in found:
            raise ConfigError(f"--{name} is given twice", where="the command line", expected="once")
        found[name] = value if equals else next(remaining, "")
        _check(name, found[name])
    return found, rest


def _check(name: str, value: str) -> None:
    option = OPTIONS[name]
    if option.least is None:
        right, expected = bool(value) and not value.startswith("--"), f"--{name} {option.value}"
    else:
        right, expected = value.isdecimal() and int(value) >= option.least, f"a whole number from {option.least}"
    if not right:
        raise ConfigError(f"--{name} cannot be {value!r}", where="the command line", expected=expected)


def config_file(name: str) -> Path:
    """The file of Accelerate's settings that a name stands for.

    A name is looked for in `configs/accelerate` of the working folder, then where this package is developed, then where
    it is installed. Anything with a suffix or a folder is a path.

    Raises:
        ConfigError: There is none; with those that there are.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise ConfigError("There is no such file", where=f"--accelerate_config {name}", expected=_known())
    for file in _shipped():
        if file.stem == name:
            return file
    raise ConfigError(f"There is no configuration `{name}`", where="--accelerate_config", expected=_known())


def _known() -> str:
    return "one of " + ", ".join(dict.fromkeys(file.stem for file in _shipped())) + ", or a file of `accelerate config`"


def _shipped() -> Iterator[Path]:
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        yield from sorted((folder / FOLDER).glob("*.yaml"))
    try:
        files = distribution("rrm_lm").files or []
    except PackageNotFoundError:
        files = []
    for file in files:  # an installed wheel has put them below share/
        if file.suffix == ".yaml" and file.parts[-2:-1] == (FOLDER.name,):
            yield Path(str(file.locate()))


def launch(command: str, options: Mapping[str, str], words: Sequence[str]) -> int:
    """Run a command on several processes and return its exit code: that of the process that failed first, if any.

    Args:
        command: Its name.
        options: The launcher's flags.
        words: The others.

    Raises:
        ConfigError: These processes cannot be started here.
    """
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(
            f"This is one of several processes already, and cannot start more (--{next(iter(options))})",
            where="the command line",
            remedy="give these flags to the launcher, before the script, or start the command without it",
        )
    os.environ[COMMAND] = shlex.join(["rrm-lm", command, *_as_words(options), *words])
    os.environ.setdefault(*_PATIENCE)
    file = config_file(options.get("accelerate_config", DEFAULT))
    more = _as_words({name: value for name, value in options.items() if name != "accelerate_config"})
    args = ["--config_file", str(file), *more, "--module", "rrm_lm", command, *words]
    return _run(file, args)


def _run(file: Path, words: Sequence[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gc.freeze()  # the libraries' objects end with this process; to collect them at its end takes seconds
    try:
        args = launch_command_parser().parse_args(list(words))
        _refuse_more_than_devices(file, args)
        with _quiet_agent():
            launch_command(args)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        return _report_killed(error)
    except (ValueError, TypeError, AssertionError, ConnectionError, ImportError) as error:
        raise ConfigError(
            f"Accelerate cannot start the processes: {' '.join(str(error).split())}",
            where=str(file),
            remedy="correct that file or the flags; `accelerate launch --help` describes each",
        ) from error
    return 0


def _refuse_more_than_devices(file: Path, args: argparse.Namespace) -> None:
    """Each process of a machine with accelerators needs one of them."""
    import torch
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(file))
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = args.num_processes or config.num_processes
    wanted = processes // max(1, args.num_machines or config.num_machines)
    if there and not config.use_cpu and wanted > there:
        raise ConfigError(
            f"{wanted} processes on a machine with {there} GPUs",
            where="num_processes",
            expected=f"at most {there} a machine",
            remedy=f"pass --num_processes {there * (args.num_machines or config.num_machines)}",
        )


def _report_killed(error: Any) -> int:
    """Say which process was killed, which it cannot say itself; the exit code of the first failure."""
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    for rank, signum in killed.items():
        try:
            name = signal.Signals(signum).name
        except ValueError:
            name = f"signal {signum}"
        print(f"process {rank} was ended by {name}", file=sys.stderr)
    if killed:
        return 128 + next(iter(killed.values()))
    found = [code if code > 0 else 128 - code for code in codes.values()]
    of_others = (1, 128 + signal.SIGTERM)  # how those end that a failure has left behind
    first = [code for code in found if code not in of_others]
    return first[0] if first else min(found)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Silence the agent's account of each process that ends; the processes speak for themselves."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _as_words(options: Mapping[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]
