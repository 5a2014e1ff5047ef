"""Stages of a pipeline: their inputs, whether these have changed, and running them.

A stage is a command with its settings. Its record holds its inputs (the settings, and the hash of every file that they
name) and its outputs (the hash of every file that a later stage may read). A stage whose record still holds is skipped.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rrm_lm import __version__
from rrm_lm.errors import CheckpointError, ConfigError
from rrm_lm.feedback.reading.tables import every_data_file
from rrm_lm.feedback.store.files import is_store
from rrm_lm.feedback.store.records import store_digest
from rrm_lm.launch import signals
from rrm_lm.storage import MANIFEST, read_object, sha256, write_json, write_text

_CHECKPOINTS = "checkpoint-*"
_RESUMABLE = {"collect": "*.asked"}  # files that a stopped stage resumes from
_LIST = "tag:yaml.org,2002:seq"
_OUTPUTS = (".safetensors", ".jsonl")  # files that later stages read; the others are for people
_MADE = ("config.json", "adapter_config.json", MANIFEST)  # one of them is in a folder with a model or an output
_REPORTS = ("scores.jsonl", "samples.jsonl", "greedy.jsonl", "verdicts.jsonl", "over_optimisation.jsonl")


@dataclass
class Stage:
    """One command of a pipeline."""

    name: str  # its section, with the round from the second one on
    command: str
    settings: str  # its settings as YAML
    flags: tuple[str, ...]  # flags that override them
    folder: Path  # its output folder
    records: Path  # the folder of its settings and its record
    # Whether its settings may run code. Its result does not depend on this, so it is not an input.
    allow_code: bool = False
    section: str = ""  # the section of the pipeline's file that it comes from; unset: named like its command

    def __post_init__(self) -> None:
        self.section = self.section or self.command
        self.file = self.records / f"{self.name}.yaml"  # the settings that its command reads
        self.record_file = self.records / f"{self.name}.json"

    def words(self, settings_file: Path) -> list[str]:
        allowed = ["--allow_code"] if self.allow_code else []
        return ["--config", str(settings_file), "--output_dir", str(self.folder), *self.flags, *allowed]

    def inputs(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "command": self.command,
            "settings": yaml.load(self.settings, Loader=yaml.BaseLoader),
            "flags": list(self.flags),
            "files": {name: _contents(Path(name).expanduser()) for name in self._named_files()},
        }

    def _named_files(self) -> list[str]:
        """Files and folders among the values of its settings."""
        found = set()
        settings = yaml.compose(self.settings, Loader=yaml.SafeLoader)
        assert settings is not None
        flags = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in self.flags]
        for value in [*(scalar.value for scalar in scalars(settings)), *flags]:
            path = value.rpartition(":")[0] if ".py:" in value else value
            if path in ("", "~") or len(path) >= 1000:  # ~ is null in YAML
                continue
            place = Path(path).expanduser()
            if place.exists() and place != self.folder:
                found.add(path)
        return sorted(found)

    def is_done(self) -> bool:
        """Whether it finished with the same inputs, and its outputs are unchanged."""
        record = read_object(self.record_file)
        return bool(record.get("seconds")) and record["inputs"] == self.inputs() and record["outputs"] == self.outputs()

    def outputs(self) -> dict[str, str]:
        """The hash of every file that later stages may read."""
        return _hashes(self.folder) if self.folder.is_dir() else {}

    def can_resume(self) -> bool:
        """Whether it was stopped with the same inputs and left something to resume from."""
        record = read_object(self.record_file)
        started = record.get("inputs") == self.inputs() and not record.get("seconds")
        return started and any(self.folder.glob(_RESUMABLE.get(self.command, _CHECKPOINTS)))

    def run(self) -> int:
        """Run it in its own process, which frees all memory at its end; returns the exit code. Raises CheckpointError:
        it succeeded but wrote nothing.
        """
        more = ["--overwrite_output_dir", "true"]
        if self.can_resume():  # a collection resumes unless it is overwritten
            more = [] if self.command == "collect" else ["--resume_from_checkpoint", "true"]
        self.start()
        began = time.perf_counter()
        code = signals.call([sys.executable, "-m", "rrm_lm", self.command, *self.words(self.file), *more])
        if code == 0:
            self.finish(time.perf_counter() - began)
        return code

    def start(self) -> None:
        write_text(self.file, self.settings)
        write_json(self.record_file, {"inputs": self.inputs()})

    def finish(self, seconds: float) -> None:
        """Record its outputs, and that it is done. Raises CheckpointError: it wrote nothing that a later stage could
        read.
        """
        outputs = self.outputs()
        if not outputs and self.command != "compare":
            raise CheckpointError(f"The stage {self.name} succeeded but left no weights", where=str(self.folder))
        record = {"inputs": self.inputs(), "outputs": outputs, "seconds": round(seconds, 1)}
        write_json(self.record_file, record)


def section(
    node: yaml.MappingNode,
    folders: Mapping[str, Path],
    where: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    additions: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The settings of one section as YAML, each value as it was written.

    `folders`: for each earlier stage, the folder that `$stage` stands for; `defaults`: values of settings that the
    section does not have; `overrides`: values that replace the section's; `additions`: items to put in front of
    settings that are lists. Raises ConfigError: a value refers to a stage that does not come earlier.
    """
    node = copy.deepcopy(node)
    for scalar in scalars(node):
        if scalar.value.startswith("$"):
            if scalar.value[1:] not in folders:
                expected = ", ".join(f"${known}" for known in folders) or "no such value in the first stage"
                raise ConfigError(f"There is no stage {scalar.value} before this one", where=where, expected=expected)
            scalar.value = str(folders[scalar.value[1:]])
    values = {key.value: value for key, value in node.value}
    added = {
        key: yaml.SequenceNode(_LIST, [*map(_node, items), *_items(values.get(key))])
        for key, items in (additions or {}).items()
        if items
    }
    values = _nodes(defaults) | values | _nodes(overrides) | added
    node.value = [(_node(key), value) for key, value in values.items()]
    return yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True)


def _node(value: Any) -> yaml.Node:
    node = yaml.compose(yaml.safe_dump(value, allow_unicode=True), Loader=yaml.SafeLoader)
    assert node is not None
    return node


def _nodes(values: Mapping[str, Any] | None) -> dict[str, yaml.Node]:
    return {key: _node(value) for key, value in (values or {}).items()}


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    if node is None:
        return []
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def scalars(node: yaml.Node) -> list[yaml.ScalarNode]:
    """All scalars in a node."""
    if isinstance(node, yaml.ScalarNode):
        return [node]
    if isinstance(node, yaml.SequenceNode):
        return [scalar for item in node.value for scalar in scalars(item)]
    return [scalar for _, value in node.value for scalar in scalars(value)]


def _contents(path: Path) -> Any:
    """Hashes of what a stage may read: a file, a store of feedback, or a folder of a model, an output or a data set."""
    if path.is_file():
        return store_digest(path) if is_store(path) else sha256(path)
    if any((path / name).is_file() for name in _MADE):
        return _hashes(path)
    return {str(file.relative_to(path)): sha256(file) for file in every_data_file(path)}


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights and records directly in a folder, by name."""
    files = (file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in _OUTPUTS)
    return {file.name: sha256(file) for file in files if file.name not in _REPORTS}
