"""Settings of a command: dataclasses filled from a YAML file and from flags, on top of TRL's `TrlParser`.

In addition to it, values in the file are checked like flags (TRL silently accepts `max_steps: 1.5`, or a string for a
list), unknown keys and flags are errors that name the nearest known one, abbreviated flags are not accepted, and every
message names the file and line, or the flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import os
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from trl.scripts.utils import TrlParser  # not from `trl`, which may import more in later versions

from rrm_lm import __version__
from rrm_lm.errors import ConfigError, did_you_mean
from rrm_lm.settings.parsing.file import Setting, read_settings
from rrm_lm.settings.parsing.help import command_help
from rrm_lm.settings.permissions import FLAGS_ONLY, KEYS, CodeArguments, check_environment, check_setting, runs_code
from rrm_lm.storage import plain, write_text

_FLAGS = "the command line"
_EXPECTED = {
    "int": "a whole number",
    "float": "a number, such as 0.5 or 1e-4",
    "string_to_bool": "true or false",
    "str": "text",
    "dict": "a mapping",
}
_UNKNOWN_REMEDY = "correct it, or remove it; --help_all lists every setting"
# Not saved with the settings of a run: output folders are shared, and a repeated run is a new one.
_NOT_WRITTEN = {"hub_token", "resume_from_checkpoint", *FLAGS_ONLY}


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str],
    *,
    command: str,
    examples: str = "",
    common: str = "",
    first: str = "",
) -> tuple[Any, ...]:
    """Read settings from `--config FILE.yaml`, overridden by flags, into one instance of each dataclass.

    Args:
        dataclass_types: The dataclasses; no two may have a field of the same name. A field's name is its flag and key.
            Each command has the flag `--allow_code`; one that needs its value derives a dataclass of CodeArguments.
        command: As typed, for `--help`: `rrm-lm reward`.
        examples: Printed first by `--help`.
        common: Names of the settings that `--help` describes, separated by spaces.
        first: The setting that takes the words before the first flag.

    Returns:
        The instances, in the order of `dataclass_types`.

    Raises:
        ConfigError: An unknown key or flag, a value of the wrong type, a missing setting, an error in the YAML file,
            something in it that needs permission on the command line (see `permissions`), or settings that contradict
            each other (a ValueError of a dataclass's `__post_init__`).
        SystemExit: With 0, after printing help for `--help` or `--help_all`.
    """
    has_permission = any(issubclass(kind, CodeArguments) for kind in dataclass_types)
    kinds = [*dataclass_types] if has_permission else [*dataclass_types, CodeArguments]
    parser = _Parser(list[Any](kinds), prog=command, allow_abbrev=False, add_help=False)
    if first and argv and not argv[0].startswith("-"):
        argv = [f"--{first}", *argv]
    general = _Parser(allow_abbrev=False, add_help=False)
    general.add_argument("--config", action="append", nargs="?", default=[])
    general.add_argument("-h", "--help", action="store_true")
    general.add_argument("--help_all", "--help-all", action="store_true")
    asked, flags = general.parse_known_args(argv)
    if asked.help or asked.help_all:
        page = command_help(parser, kinds, command=command, examples=examples, common=common, everything=asked.help_all)
        print(page, end="")
        raise SystemExit(0)
    config = _config_file(asked.config)
    if config is not None:
        _apply_file(parser, kinds, config, flags)
    _refuse_unknown_flags(parser, flags)
    parser.where = _FLAGS
    try:
        # Hugging Face's parser would also read an `.args` file next to the program.
        *settings, stray = parser.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"The settings contradict each other: {' '.join(str(error).split())}",
            where=f"{config} and {_FLAGS}" if config is not None else _FLAGS,
            remedy="change one of them; --help_all describes each",
        ) from error
    if stray:
        raise ConfigError(
            f"There is a value that belongs to no flag: {' '.join(stray)}",
            where=_FLAGS,
            expected="--flag value",
            remedy="put the flag before it, or quote a value that has spaces",
        )
    return tuple(settings[: len(dataclass_types)])


def write_resolved(path: str | os.PathLike[str], *configs: Any) -> None:
    """Write every setting of `configs` as YAML that `--config` reads again, with a heading for each dataclass.

    Tokens, flags that only the command line may set, and whether the run was resumed are left out. Raises
    CheckpointError: the file cannot be written.
    """
    import yaml

    everything = {name: value for config in configs for name, value in vars(config).items()}
    flags = " --allow_code" if any(runs_code(name, value) for name, value in everything.items()) else ""
    flags += "".join(f" --{name} {everything[name]}" for name in KEYS if everything.get(name))
    parts = [
        f"# Every setting of this run, as resolved by rrm_lm {__version__}. To repeat it: --config THIS_FILE{flags}\n"
    ]
    for config in configs:
        values = {
            field.name: plain(getattr(config, field.name), only_finite=False)
            for field in dataclasses.fields(config)
            if field.init and field.name not in _NOT_WRITTEN
        }
        body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
        parts.append(f"# {type(config).__name__}\n{body}")
    write_text(path, "\n".join(parts))


class _Parser(TrlParser):
    """`TrlParser` whose errors are ConfigErrors that name the value and its place."""

    where = _FLAGS

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message[0].upper() + message[1:], where=self.where, remedy="see --help")

    def convert(self, action: argparse.Action, text: str) -> Any:
        value = self._get_value(action, text)
        self._check_value(action, value)
        return value

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            raise self.misfit(action, arg_string) from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise self.misfit(action, value) from error

    def misfit(self, action: argparse.Action, value: Any) -> ConfigError:
        if action.choices is not None:
            choices = [str(choice.value if isinstance(choice, enum.Enum) else choice) for choice in action.choices]
            expected = "one of " + ", ".join(choices) + did_you_mean(str(value), choices)
        else:
            kind = getattr(action.type, "__name__", str(action.type))
            expected = _EXPECTED.get(kind, kind) + (", one or more" if action.nargs == "+" else "")
        return ConfigError(f"The setting `{action.dest}` cannot be {value!r}", where=self.where, expected=expected)


def _config_file(found: Sequence[str | None]) -> Path | None:
    if len(found) > 1:
        raise ConfigError("More than one --config is given", where=_FLAGS, remedy="merge the files into one")
    if found and not found[0]:
        raise ConfigError("--config names no file", where=_FLAGS, expected="--config FILE.yaml")
    return Path(str(found[0])) if found else None


def _apply_file(parser: _Parser, dataclass_types: Sequence[type], path: Path, flags: Sequence[str]) -> None:
    """Make the values of a settings file the parser's defaults; check those that need permission."""
    hints = {name: hint for kind in dataclass_types for name, hint in get_type_hints(kind).items()}
    actions = {action.dest: action for action in reversed(parser._actions)}
    settings = read_settings(path)
    if unknown := [setting for setting in settings if setting.key not in actions and setting.key != "env"]:
        named = [f"`{s.key}` in line {s.line}{did_you_mean(s.key, actions)}" for s in unknown]
        raise ConfigError(f"There is no setting {' and no '.join(named)}", where=str(path), remedy=_UNKNOWN_REMEDY)
    options = parser._option_string_actions
    given = {options[name].dest for name in _names(flags) if name in options}
    permission = _Parser(list[Any]([CodeArguments]), allow_abbrev=False, add_help=False).parse_known_args(flags)[0]
    values: dict[str, Any] = {}
    for setting in settings:
        parser.where = f"{path}, line {setting.line}"
        if setting.key == "env":
            _set_environment(setting, parser.where, allow_code=permission.allow_code)
        else:
            value = values[setting.key] = _value(parser, actions[setting.key], hints[setting.key], setting)
            check_setting(setting.key, value, parser.where, given=given, allow_code=permission.allow_code)
    parser.set_defaults_with_config(**values)


def _set_environment(setting: Setting, where: str, *, allow_code: bool) -> None:
    """Set the environment variables of the `env:` mapping, which TRL's configuration files may have."""
    if not isinstance(setting.value, dict) or any(isinstance(v, dict | list) for v in setting.value.values()):
        raise ConfigError("`env` is not a mapping", where=where, expected="environment variables, each with its value")
    check_environment(setting.value, where, allow_code=allow_code)
    os.environ.update({str(name): str(value) for name, value in setting.value.items()})


def _value(parser: _Parser, action: argparse.Action, hint: Any, setting: Setting) -> Any:
    """The value of a setting in the file; it equals the flag's value wherever a flag can express it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    origins = {get_origin(kind) or kind for kind in kinds}
    if setting.text is not None:
        if isinstance(setting.value, bool) and bool in kinds:
            return setting.value  # YAML also has the words on and off
        if action.choices is None and any(kind == Literal[setting.value] for kind in kinds):
            return setting.value  # such as the false of `str | None | Literal[False]`, which a flag cannot express
        value = parser.convert(action, setting.text)
        return [value] if action.nargs == "+" else value
    if setting.items is not None and (action.nargs == "+" or list in origins):
        return [parser.convert(action, item) for item in setting.items]
    if isinstance(setting.value, dict) and dict in origins:
        return setting.value
    if setting.value is None and (types.NoneType in origins or (action.default is None and not action.required)):
        return None
    raise parser.misfit(action, setting.value)


def _names(flags: Sequence[str]) -> list[str]:
    return [word.partition("=")[0] for word in flags if re.match(r"--?[A-Za-z_][^\s=]*(=|$)", word)]


def _refuse_unknown_flags(parser: _Parser, flags: Sequence[str]) -> None:
    known = parser._option_string_actions
    if unknown := [name for name in _names(flags) if name not in known]:
        spellings = {option.lstrip("-").replace("-", "_") for option in known}
        named = [f"`{name}`{did_you_mean(name.lstrip('-').replace('-', '_'), spellings, '--')}" for name in unknown]
        raise ConfigError(f"There is no flag {' and no '.join(named)}", where=_FLAGS, remedy=_UNKNOWN_REMEDY)
