"""The `--help` of a command: examples, then its common settings; `--help_all` describes every setting."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from rrm_lm.launch.launcher import LAUNCHED, OPTIONS

# Packages whose settings come after our own.
_INHERITED_FROM = ("transformers", "trl")
_SOURCES = (
    "Settings come from a YAML file with lines `setting: value` (--config FILE.yaml); flags override it. Paths in it "
    "are relative to the working folder. Its `env:` mapping sets environment variables. A file that runs code, or sets "
    "a variable that could, needs --allow_code on the command line."
)
_LONGEST = 60  # characters of a list of choices that is printed after its flag
_PLACEHOLDERS = {"int": "N", "float": "X", "str": "TEXT", "string_to_bool": "true|false"}


def command_help(
    parser: argparse.ArgumentParser,
    dataclass_types: Sequence[type],
    *,
    command: str,
    examples: str = "",
    common: str = "",
    everything: bool = False,
) -> str:
    """The help page of a command whose settings are the fields of `dataclass_types`.

    `command`: as typed, for example `rrm-lm reward`; `examples`: printed first; `common`: names of the settings on the
    short page, separated by spaces; by default all that are not inherited.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    actions = {action.dest: action for action in reversed(parser._actions)}  # so that `--NAME` replaces `--no_NAME`
    own, inherited = _by_origin(dataclass_types)
    sections = own | inherited if everything else {"Common settings": common.split()} if common else own
    launched = command.split()[1] in LAUNCHED
    parts = ["Examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  ")] if examples else []
    parts.append(f"usage: {command} [--config FILE.yaml] [--SETTING VALUE ...]")
    if everything:
        parts.append(textwrap.fill(_SOURCES, width))
    parts += [_section(title, [actions[name] for name in names], width) for title, names in sections.items()]
    if everything and launched:
        flags = argparse.ArgumentParser(add_help=False)
        added = [flags.add_argument(f"--{name}", metavar=o.placeholder, help=o.help) for name, o in OPTIONS.items()]
        parts.append(_section("Several processes, started as `accelerate launch` does", added, width))
    if not everything:
        count = sum(len(names) for names in (*own.values(), *inherited.values()))
        more = "Several GPUs: add --accelerate_config fsdp2 --num_processes 8. " if launched else ""
        more += f"--help_all describes all {count} settings. --config reads a file of lines `setting: value`."
        parts.append(textwrap.fill(more, width, break_on_hyphens=False))
    return "\n\n".join(parts) + "\n"


def _by_origin(dataclass_types: Iterable[type]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of fields: our own by the title of their dataclass, inherited ones by the name of the class."""
    own: dict[str, list[str]] = {}
    inherited: dict[str, list[str]] = {}
    for dataclass_type in dataclass_types:
        title = re.split(r"\n|\. ", inspect.getdoc(dataclass_type) or dataclass_type.__name__)[0].rstrip(".")
        fields = {name: field for name, field in dataclass_type.__dataclass_fields__.items() if field.init}  # pyright: ignore[reportAttributeAccessIssue]
        for definer in dataclass_type.__mro__:  # settings of the class itself before those of its bases
            for name in inspect.get_annotations(definer):
                if fields.pop(name, None) is None:
                    continue
                if definer.__module__.split(".")[0] in _INHERITED_FROM:
                    inherited.setdefault(definer.__name__, []).append(name)
                else:
                    own.setdefault(title, []).append(name)
    return own, inherited


def _section(title: str, actions: Iterable[argparse.Action], width: int) -> str:
    formatter = _Formatter("", max_help_position=32, width=width)
    formatter.start_section(title)
    formatter.add_arguments(actions)
    formatter.end_section()
    return formatter.format_help().strip()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling per flag (`--lora_r`; hyphens work, too), and a placeholder that describes the value."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.choices is not None:
            placeholder = "{" + ",".join(map(str, action.choices)) + "}"
            placeholder = placeholder if len(placeholder) <= _LONGEST else "NAME"
        else:
            placeholder = action.metavar or _PLACEHOLDERS.get(getattr(action.type, "__name__", ""), "VALUE")
        return f"--{action.dest} {placeholder}" + (" ..." if action.nargs == "+" else "")

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        choices = ", ".join(map(str, action.choices or ()))
        if len(choices) > _LONGEST:
            text += f" One of {choices}."
        if action.default in (None, argparse.SUPPRESS, [], ""):
            return text
        return f"{text} (default: %(default)s)".strip()
