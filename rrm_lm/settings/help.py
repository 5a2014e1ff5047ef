"""The `--help` of a command: examples first, then this project's own settings, then Hugging Face's."""

from __future__ import annotations

import argparse
import inspect
import shutil
import textwrap
from collections.abc import Sequence

from rrm_lm.feedback.reading.limits import ReadLimits
from rrm_lm.launch import starting as launching
from rrm_lm.settings.permissions import CodeArguments
from rrm_lm.settings.policies import ServerArguments

# Packages whose settings are documented by themselves; everything else is ours and printed in full.
_INHERITED_FROM = ("transformers", "trl")
_SOURCES = (
    "Settings come from a YAML file with lines `setting: value` (--config FILE.yaml); flags override it. Paths in it "
    "are relative to the folder that the command runs in. Its `env:` mapping sets environment variables. A file that "
    "runs code, or sets a variable which may do so, needs --allow_code on the command line."
)
# What commands have in common stands below their own settings, although a dataclass has it before them.
_SHARED = (ServerArguments, ReadLimits, CodeArguments)
# What most people set among the inherited ones.
_COMMON = (
    "model_name_or_path",
    "output_dir",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lora_r",
    "lora_alpha",
    "dtype",
    "attn_implementation",
    "load_in_4bit",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "report_to",
    "seed",
)
_PLACEHOLDERS = {"int": "N", "float": "X", "str": "TEXT", "string_to_bool": "true|false"}


def command_help(
    parser: argparse.ArgumentParser,
    dataclass_types: Sequence[type],
    *,
    command: str,
    examples: str = "",
    everything: bool = False,
) -> str:
    """The help page of a command whose settings are the fields of `dataclass_types`.

    Args:
        parser: Has one argument a field.
        dataclass_types: The dataclasses, in the order to print them.
        command: As typed, for example `rrm-lm reward`.
        examples: Printed first, as they are.
        everything: Whether inherited settings are printed in full, too.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    own, inherited = _by_origin(dataclass_types)
    parts = [f"usage: {command} [--config FILE.yaml] [--SETTING VALUE ...]"]
    if examples.strip():
        lines = textwrap.dedent(examples).strip().splitlines()
        lines = lines[1:] if lines[0].lower() == "examples:" else lines  # a heading of its own is as good
        parts.append("Examples:\n" + textwrap.indent(textwrap.dedent("\n".join(lines)), "  "))
    parts.append(textwrap.fill(_SOURCES, width))
    shared = list(map(_title, _SHARED))
    titles = sorted(own, key=lambda title: shared.index(title) if title in shared else -1)
    parts += [_section(parser, title, own[title], width) for title in titles]
    if command.split()[-1] in launching.LAUNCHED:
        parts.append(launching.help_text(width))
    if everything:
        parts += [_section(parser, title, names, width) for title, names in inherited.items()]
    elif inherited:
        count = sum(map(len, inherited.values()))
        known = {name for names in inherited.values() for name in names}
        common = " ".join(f"--{name}" for name in _COMMON if name in known)
        text = f"{count} more settings are Hugging Face's, under their own names" + (
            f": {common} ..." if common else ""
        )
        parts.append(textwrap.fill(f"{text} (--help_all describes them)", width, break_on_hyphens=False))
    return "\n\n".join(parts) + "\n"


def _by_origin(dataclass_types: Sequence[type]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of the fields by the title of the class that defines them: our own classes, and inherited ones."""
    own: dict[str, list[str]] = {}
    inherited: dict[str, list[str]] = {}
    for dataclass_type in dataclass_types:
        for name, field in dataclass_type.__dataclass_fields__.items():  # pyright: ignore[reportAttributeAccessIssue]
            if field.init:
                definer = next(c for c in dataclass_type.__mro__ if name in vars(c).get("__annotations__", {}))
                group = inherited if definer.__module__.split(".")[0] in _INHERITED_FROM else own
                group.setdefault(_title(definer), []).append(name)
    return own, inherited


def _title(definer: type) -> str:
    """The first line of the class's docstring; its name where it has only the signature that dataclasses write."""
    first = (inspect.getdoc(definer) or "").partition("\n")[0].strip().rstrip(".")
    generated = not first or first.startswith(f"{definer.__name__}(")
    return definer.__name__ if generated or definer.__module__.split(".")[0] in _INHERITED_FROM else first


def _section(parser: argparse.ArgumentParser, title: str, names: Sequence[str], width: int) -> str:
    actions = {action.dest: action for action in reversed(parser._actions)}  # the first of a name is not its `--no_`
    formatter = _Formatter(parser.prog, max_help_position=36, width=width)
    formatter.start_section(title)
    formatter.add_arguments(actions[name] for name in names if name in actions)
    formatter.end_section()
    return formatter.format_help().strip()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling a flag (`--lora_r`; hyphens work as well), and a placeholder that says what the value is."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.choices is not None:
            placeholder = "{" + ",".join(map(str, action.choices)) + "}"
        else:
            placeholder = _PLACEHOLDERS.get(getattr(action.type, "__name__", ""), "VALUE")
        more = f" [{placeholder} ...]" if action.nargs == "+" else ""
        return f"--{action.dest} {placeholder}{more}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.default in (None, argparse.SUPPRESS, [], ""):
            return text
        return f"{text} (default: %(default)s)".strip()
