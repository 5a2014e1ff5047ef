"""`rrm-lm`: finds the command, runs it, and turns errors that a user can act on into one clear message.

Commands are imported only when they run: `rrm-lm --help` never waits for torch.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from rrm_lm import __version__
from rrm_lm.api.resuming import resume_command
from rrm_lm.errors import ConfigError, Interrupted, RRMError
from rrm_lm.launch import failures, signals
from rrm_lm.launch import starting as launching
from rrm_lm.launch.leaving import leave

# Each command's module has `run(argv) -> exit code`, where argv is what follows the command's name.
COMMANDS = {
    "run": ("rrm_lm.cli.run", "run a whole pipeline: feedback to reward model to policy to a page that compares"),
    "reward": ("rrm_lm.cli.reward", "train a reward model on comparisons and critiques, and judge it"),
    "evaluate": ("rrm_lm.cli.evaluate", "judge a reward model on held-out preferences, with error bars"),
    "score": ("rrm_lm.cli.score", "give each response in a file its reward"),
    "sft": ("rrm_lm.cli.sft", "train a policy to imitate demonstrations, corrections or chosen responses"),
    "policy": ("rrm_lm.cli.policy", "train a policy against reward models or functions, with PPO"),
    "chat": ("rrm_lm.cli.chat", "talk to a policy or any language model in the terminal"),
    "collect": ("rrm_lm.cli.collect", "let an overseer compare and criticise a policy's answers: new feedback"),
    "compare": ("rrm_lm.cli.compare", "judge policies on held-out prompts, against what they started from"),
    "plan": ("rrm_lm.cli.plan", "what training takes on each GPU under each strategy, on paper, and what fits"),
    "recurse": ("rrm_lm.cli.recurse", "solve a task with helpers that were trained on easier tasks, recursively"),
    "fetch": ("rrm_lm.cli.fetch", "make the embedded default model ready (no Hub needed)"),
}

USER_ERROR = 2


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, as `main` does, and end the process with its exit code."""
    leave(main(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    It is 0 if all went well, 2 for an error to mend, and 130 or 143 where Ctrl-C or SIGTERM stopped it.

    Args:
        argv: The words after the program's name; by default those it was started with.

    Raises:
        Exception: Whatever is not an `RRMError` is a fault of this program and keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with failures.shared() as processes, signals.sigterm_ends_in_order():
        try:
            return _dispatch(words)
        except RRMError as error:
            processes.report(error, partial(failures.print_error, error))
            return USER_ERROR
        except KeyboardInterrupt as error:
            cause = processes.cause()
            if cause is not None:  # which the launcher ends the other processes for
                print(f"{failures.process_prefix()}stopped, because process {cause.rank} failed", file=sys.stderr)
                return failures.FAULT
            return _interrupted(error, words)
        except Exception as error:
            if isinstance(processes, failures.OneOfSeveral):
                processes.report(error, partial(_print_fault, error))
                return failures.FAULT
            raise


def _print_fault(error: Exception) -> None:
    what = "this is a fault of the program"
    if failures.is_broken_connection(error):
        what = "the connection to a process on another machine broke; the cause is told there"
    print(f"{failures.process_prefix()}error: {what}", file=sys.stderr)
    traceback.print_exception(error)


def _interrupted(error: KeyboardInterrupt, words: Sequence[str]) -> int:
    """Say where to go on; returns the exit code of a program that the signal ended."""
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
        nearest = difflib.get_close_matches(name.lstrip("-"), COMMANDS, n=1)
        raise ConfigError(
            f"There is no command `{name}`" + (f" (did you mean `{nearest[0]}`?)" if nearest else ""),
            expected=f"one of {', '.join(COMMANDS)}",
            remedy="see rrm-lm --help",
        )
    show_log()
    if name in launching.LAUNCHED:
        options, rest = launching.take_options(rest)
        if options and not {"-h", "--help", "--help_all", "--help-all"}.intersection(rest):
            return launching.launch(name, options, rest)
    return importlib.import_module(COMMANDS[name][0]).run(rest)


def help_text() -> str:
    """What `rrm-lm --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items())
    return f"""\
usage: rrm-lm COMMAND [--config FILE.yaml] [--SETTING VALUE ...]

From feedback, the words included, to reward models and policies, judged on held-out evidence.

Commands:
{commands}

Examples:
  rrm-lm fetch smollm2-135m
  rrm-lm run --config configs/demo.yaml
  rrm-lm recurse --config configs/chip_quick.yaml
  rrm-lm reward --config configs/hh.yaml --dataset_name my_pairs.jsonl --learning_rate 1e-4
  rrm-lm evaluate --model outputs/demo/reward --dataset my_pairs.jsonl
  rrm-lm sft --dataset_name my_pairs.jsonl --sft_on chosen
  rrm-lm policy --prompts my_prompts.jsonl --reward_model outputs/demo/reward
  rrm-lm chat outputs/sft
  rrm-lm compare outputs/sft --prompts my_pairs.jsonl --reward_model outputs/demo/reward
  rrm-lm plan --model_name_or_path Qwen/Qwen3-8B --num_processes 8 --gpu_memory 80GB
  rrm-lm score --help

Options:
  --help     this page; after a command, that command's settings
  --version  the version

`python -m rrm_lm` is the same program. On several processes: add --accelerate_config
fsdp2 --num_processes 8 to reward, sft, policy, evaluate or score (their --help says more).
"""


def show_log() -> None:
    """Print this package's log to stderr: everything from the main process, warnings from the others."""
    log = logging.getLogger("rrm_lm")
    for earlier in [handler for handler in log.handlers if isinstance(handler.formatter, _Plain)]:
        log.removeHandler(earlier)  # of an earlier call in this process, when stderr may have been another
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    log.addHandler(handler)
    # Between the libraries; nobody who reads it can do anything about it.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # that TRL's PPO may change is our concern, not the user's
    for old in ("is_gradient_checkpointing", "broadcast_buffers"):
        warnings.filterwarnings("ignore", f"`{old}` is deprecated", FutureWarning)
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


class _Plain(logging.Formatter):
    """The message alone; from a warning on with its level before it."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{failures.process_prefix()}{level}{super().format(record)}"
