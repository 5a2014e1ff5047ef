"""Commands on several processes, started by Accelerate: `--accelerate_config fsdp2 --num_processes 8`.

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
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from rrm_lm.errors import ConfigError

LAUNCHED = ("reward", "sft", "policy", "evaluate", "score")
COMMAND = "RRM_LM_COMMAND"  # environment variable with the command as the user typed it
DEFAULT = "ddp"
FOLDER = Path("configs/accelerate")
# Accelerate's agent kills processes that take longer than this many seconds to exit after a signal.
_PATIENCE = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")


class LaunchOption(NamedTuple):
    """A flag of the launcher."""

    placeholder: str
    help: str
    minimum: int | None = None  # of a whole number


OPTIONS = {
    "accelerate_config": LaunchOption(
        "NAME",
        "A name in configs/accelerate (cpu2, ddp, fsdp2, fsdp2_offload, zero2, zero3, two_nodes) or a file of "
        f"`accelerate config`. Unset: {DEFAULT}.",
    ),
    "num_processes": LaunchOption("N", "Processes on all machines together. Unset: as in the configuration.", 1),
    "num_machines": LaunchOption("N", "Machines. Unset: as in the configuration.", 1),
    "machine_rank": LaunchOption("N", "With several machines: the number of this machine, from 0.", 0),
    "main_process_ip": LaunchOption("ADDRESS", "With several machines: the address of machine 0."),
    "main_process_port": LaunchOption("PORT", "A free port of machine 0. Unset: as in the configuration.", 0),
}


def take_options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the launcher's flags from a command's words: their values by name, and the other words. Raises ConfigError:
    a flag has no value or an invalid one, or is given twice.
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
        found[name] = value = value if equals else next(remaining, "")
        is_valid, expected = bool(value) and not value.startswith("--"), f"--{name} {OPTIONS[name].placeholder}"
        if (minimum := OPTIONS[name].minimum) is not None:
            is_valid, expected = value.isdecimal() and int(value) >= minimum, f"a whole number of at least {minimum}"
        if not is_valid:
            raise ConfigError(f"--{name} cannot be {value!r}", where="the command line", expected=expected)
    return found, rest


def config_file(name: str) -> Path:
    """The Accelerate configuration that a name stands for; anything with a suffix or a folder is a path.

    A name is looked up in `configs/accelerate` of the working folder, this repository, and the installation. Raises
    ConfigError: there is no such file or name.
    """
    path, known = Path(name), {file.stem: file for file in reversed(list(_shipped()))}
    expected = f"one of {', '.join(reversed(known))}, or a file of `accelerate config`"
    if path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        if path.is_file():
            return path
        raise ConfigError("There is no such file", where=f"--accelerate_config {name}", expected=expected)
    if name not in known:
        raise ConfigError(f"There is no configuration `{name}`", where="--accelerate_config", expected=expected)
    return known[name]


def _shipped() -> Iterator[Path]:
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        yield from sorted((folder / FOLDER).glob("*.yaml"))
    try:
        files = distribution("rrm_lm").files or []
    except PackageNotFoundError:
        files = []
    for file in files:  # an installed wheel has them under share/
        if file.suffix == ".yaml" and file.parts[-2:-1] == (FOLDER.name,):
            yield Path(str(file.locate()))


def launch(command: str, options: Mapping[str, str], words: Sequence[str]) -> int:
    """Run a command on several processes; returns 0, or the exit code of the process that failed first. Raises
    ConfigError: these processes cannot be started here.
    """
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(
            f"This is one of several processes already and cannot start more (--{next(iter(options))})",
            where="the command line",
            remedy="pass these flags to the launcher, before the script, or start the command without a launcher",
        )
    os.environ[COMMAND] = shlex.join(["rrm-lm", command, *_as_words(options), *words])
    os.environ.setdefault(*_PATIENCE)
    file = config_file(options.get("accelerate_config", DEFAULT))
    more = _as_words({name: value for name, value in options.items() if name != "accelerate_config"})
    return _run(file, ["--config_file", str(file), *more, "--module", "rrm_lm", command, *words])


def _run(file: Path, words: Sequence[str]) -> int:
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gc.freeze()  # collecting the libraries' objects at exit would take seconds
    try:
        args = launch_command_parser().parse_args(list(words))
        _check_devices(file, args)
        logging.disable(logging.ERROR)  # the agent's log of each process that exits; they report their own errors
        launch_command(args)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        return _report_killed(error)
    except (ValueError, TypeError, AssertionError, ConnectionError, ImportError) as error:
        raise ConfigError(
            f"Accelerate cannot start the processes: {' '.join(str(error).split())}",
            where=str(file),
            remedy="correct that file or the flags; `accelerate launch --help` describes them",
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _check_devices(file: Path, args: argparse.Namespace) -> None:
    """Refuse more processes than a machine has GPUs, if it has any."""
    import torch
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(file))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    machines = args.num_machines or config.num_machines
    per_machine = (args.num_processes or config.num_processes) // max(1, machines)
    if gpus and not config.use_cpu and per_machine > gpus:
        raise ConfigError(
            f"{per_machine} processes were requested on a machine with {gpus} GPUs",
            where="num_processes",
            expected=f"at most {gpus} per machine",
            remedy=f"pass --num_processes {gpus * machines}",
        )


def _report_killed(error: Any) -> int:
    """Print which processes were killed; returns the exit code of the first failure."""
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    names = {int(one): one.name for one in signal.Signals}
    for rank, signum in killed.items():
        print(f"process {rank} was ended by {names.get(signum, f'signal {signum}')}", file=sys.stderr)
    if killed:
        return 128 + next(iter(killed.values()))
    found = [code if code > 0 else 128 - code for code in codes.values()]
    consequences = (1, 128 + signal.SIGTERM)  # exit codes of processes stopped by another's failure
    return next((code for code in found if code not in consequences), min(found))


def _as_words(options: Mapping[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", value)]
