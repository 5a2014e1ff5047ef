"""`rrm-lm`: finds the command, runs it, and turns errors that a user can fix into one clear message.

Commands are imported only when they run: `rrm-lm --help` never waits for torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from rrm_lm import __version__
from rrm_lm.api.resuming import resume_command
from rrm_lm.cli.commands import COMMANDS
from rrm_lm.errors import ConfigError, Interrupted, RRMError, did_you_mean
from rrm_lm.launch import failures, launcher, signals

HELP_FLAGS = {"-h", "--help", "--help_all", "--help-all"}

USER_ERROR = 2
_TRACEBACK = "RRM_LM_TRACEBACK"
_PACKAGE = str(Path(__file__).parents[1])
_SHOWN = 400  # characters of a library's message


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, as `main` does, and end the process with its exit code."""
    signals.exit_process(main(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    It is 0 for success, 2 for an error that the user can fix, and 130 or 143 if Ctrl-C or SIGTERM stopped it.

    Args:
        argv: The arguments; by default those of this process.

    Raises:
        Exception: An error that is raised in this package is a bug, and keeps its traceback. One that is raised in a
            library is printed as one sentence, and the exit code is 1; with ``--traceback``, it also keeps it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--traceback" in words:
        words.remove("--traceback")
        os.environ[_TRACEBACK] = "1"  # also for the processes of a launch
    with failures.shared() as processes, signals.sigterm_interrupts():
        try:
            return _dispatch(words)
        except RRMError as error:
            processes.report(error, partial(failures.print_error, error))
            return USER_ERROR
        except KeyboardInterrupt as error:
            cause = processes.cause()
            if cause is not None:  # the launcher stopped this process because of it
                print(f"{failures.process_prefix()}stopped, because process {cause.rank} failed", file=sys.stderr)
                return failures.FAULT
            return _interrupted(error, words)
        except Exception as error:
            if isinstance(processes, failures.OneOfSeveral):
                processes.report(error, partial(_print_fault, error))
                return failures.FAULT
            if not _library(error):
                raise
            _print_fault(error)
            return failures.FAULT


def _print_fault(error: Exception) -> None:
    what, library = "this is a bug in rrm_lm", _library(error)
    if failures.is_broken_connection(error):
        what, library = "the connection to a process on another machine broke; that machine reports the cause", ""
    if not library:
        print(f"{failures.process_prefix()}error: {what}", file=sys.stderr)
        traceback.print_exception(error)
        return
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
    place = f"{ours[-1].filename}, line {ours[-1].lineno}" if ours else ""
    what = f"{library} raised {type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}"
    failures.print_error(RRMError(what, where=place, remedy="repeat with --traceback for all of the traceback"))


def _library(error: Exception) -> str:
    """The library whose code raised an error; "" if this package did, or if the traceback is asked for."""
    if os.environ.get(_TRACEBACK):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(_PACKAGE):
            return ""
        if "site-packages" in Path(frame.filename).parts:
            return frame.filename.replace(os.sep, "/").rpartition("site-packages/")[2].split("/")[0]
    return ""


def _interrupted(error: KeyboardInterrupt, words: Sequence[str]) -> int:
    """Print how to resume; returns the exit code for the signal."""
    signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
    if os.environ.get("RANK", "0") == "0":
        print("interrupted", file=sys.stderr)
        if isinstance(error, Interrupted) and error.checkpoint:
            print(f"  saved: {error.checkpoint}\n  resume: {resume_command(words)}", file=sys.stderr)
    return signals.exit_code(signum)


def _dispatch(words: list[str]) -> int:
    if not words:
        print(help_text(), end="", file=sys.stderr)
        return USER_ERROR
    name, *rest = words
    if name in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if name in ("-V", "--version"):
        print(f"rrm-lm {__version__}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(
            f"There is no command `{name}`{did_you_mean(name.lstrip('-'), COMMANDS)}",
            expected=f"one of {', '.join(COMMANDS)}",
            remedy="see rrm-lm --help",
        )
    show_log()
    if name in launcher.LAUNCHED:
        options, rest = launcher.take_options(rest)
        if options and not HELP_FLAGS.intersection(rest):
            return launcher.launch(name, options, rest)
    return COMMANDS[name].run(rest)


def help_text() -> str:
    """What `rrm-lm --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {one.summary}" for name, one in COMMANDS.items())
    return f"""\
Examples:
  rrm-lm fetch smollm2-135m                                    (once)
  rrm-lm run --config configs/demo.yaml                        (the whole demo)
  rrm-lm inspect my_pairs.jsonl --model smollm2-135m
  rrm-lm reward --dataset_name my_pairs.jsonl --output_dir outputs/reward
  rrm-lm evaluate --model outputs/reward --dataset other_pairs.jsonl
  rrm-lm policy --prompts my_prompts.jsonl --reward_model outputs/reward
  rrm-lm serve --model outputs/reward

usage: rrm-lm COMMAND [--config FILE.yaml] [--SETTING VALUE ...]

Turns feedback, critiques included, into reward models and policies, and
evaluates them on held-out data.

Commands:
{commands}

Options:
  --help       this page; after a command, its common settings (--help_all: all)
  --version    the version
  --traceback  after a command: the traceback of a library's error

Several GPUs: add --accelerate_config fsdp2 --num_processes 8 to reward, sft,
policy, evaluate or score. `python -m rrm_lm` is the same program.
"""


def show_log() -> None:
    """Print this package's log to stderr: everything from the main process, warnings from the others."""
    log = logging.getLogger("rrm_lm")
    for earlier in [handler for handler in log.handlers if isinstance(handler.formatter, _Plain)]:
        log.removeHandler(earlier)  # from an earlier call in this process, when stderr may have been another stream
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    log.addHandler(handler)
    # Warnings between libraries, which a user cannot act on.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    for old in ("is_gradient_checkpointing", "broadcast_buffers"):
        warnings.filterwarnings("ignore", f"`{old}` is deprecated", FutureWarning)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


class _Plain(logging.Formatter):
    """The message, preceded by its level from WARNING up."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{failures.process_prefix()}{level}{super().format(record)}"
