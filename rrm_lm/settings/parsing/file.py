"""Read a YAML settings file with the line of every key, so that messages can name it.

Scalars are kept as written: their meaning depends on the setting, as for a flag. So `learning_rate: 1e-4` is a number
and `eval_strategy: no` is the word "no", although YAML reads a string and false.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rrm_lm.errors import ConfigError

_FLOAT = "tag:yaml.org,2002:float"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a settings file."""

    key: str
    line: int  # from 1
    text: str | None  # the value as written, if it is a scalar; None for null, a list or a mapping
    items: tuple[str, ...] | None  # the items as written, if the value is a list of scalars
    value: Any  # as YAML reads it


def read_settings(path: Path) -> tuple[Setting, ...]:
    """The top-level keys of a YAML mapping, in the order of the file. Raises ConfigError: the file is missing, not
    UTF-8, not YAML, not a mapping, or has a key twice at any level.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("The settings file is not UTF-8 text", where=f"{path}, byte {error.start + 1}") from error
    except OSError as error:
        raise ConfigError(
            f"The settings file cannot be read ({error.strerror})", where=str(path), remedy=_existing_files(path)
        ) from error
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("The settings file holds no settings", where=str(path), expected="lines `setting: value`")
        _refuse_duplicates(root, path)
        return tuple(_setting(loader, key, value, path) for key, value in root.value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"The settings file is not valid YAML: {problem}", where=f"{path}{place}") from error
    finally:
        loader.dispose()


def _setting(loader: yaml.SafeLoader, key_node: yaml.Node, node: yaml.Node, path: Path) -> Setting:
    key, line = str(key_node.value), key_node.start_mark.line + 1
    value = loader.construct_object(node, deep=True)
    if isinstance(node, yaml.ScalarNode):
        return Setting(key, line, None if value is None else _text(node, value), None, value)
    if isinstance(node, yaml.SequenceNode):
        nested = [item for item in node.value if not isinstance(item, yaml.ScalarNode)]
        if nested:
            where = f"{path}, line {nested[0].start_mark.line + 1}"
            raise ConfigError(f"The list `{key}` contains a list or mapping", where=where, expected="plain values")
        return Setting(key, line, None, tuple(_text(n, v) for n, v in zip(node.value, value, strict=True)), value)
    return Setting(key, line, None, None, value)


def _text(node: yaml.ScalarNode, value: Any) -> str:
    """The scalar as written, except that YAML's infinity and NaN (`.inf`, `.nan`) are written as Python reads them."""
    return str(value if node.tag == _FLOAT and not math.isfinite(value) else node.value)


def _refuse_duplicates(node: yaml.Node, path: Path) -> None:
    """Raise if a mapping anywhere under `node` has a key twice; YAML would silently keep the last one."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, path)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                what = f"The setting `{name}` is given twice"
                raise ConfigError(what, where=f"{path}, lines {lines[name]} and {line}", remedy="keep one of them")
            lines[name] = line
            _refuse_duplicates(value, path)


def _existing_files(path: Path) -> str:
    """Settings files that exist, to suggest in place of one that does not."""
    folder = path.parent if path.parent.is_dir() else Path("configs")
    files = sorted(str(file) for file in folder.glob("*.yaml"))[:8]
    return f"use an existing one: {', '.join(files)}" if files else "check the path, which is relative to this folder"
