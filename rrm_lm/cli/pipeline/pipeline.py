"""`rrm-lm run`: plan the stages, check all of their settings, run those that are not done, write a report."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rrm_lm.cli.commands import COMMANDS
from rrm_lm.cli.pipeline.stages import Stage, scalars, section
from rrm_lm.cli.pipeline.views import stage_view
from rrm_lm.errors import ConfigError
from rrm_lm.evaluation.reports.formats import duration
from rrm_lm.launch import launcher
from rrm_lm.settings.parsing.parser import parse
from rrm_lm.settings.workflows import PipelineArguments
from rrm_lm.storage import write_text
from rrm_lm.training.output_folder import OutputFolder

_RECORDS = "stages"
_COMMANDS = {"reward_first": "reward"}  # of sections that are not named like their command
_NEXT = (
    "with feedback of your own:",
    "  rrm-lm inspect my_feedback.jsonl",
    "  rrm-lm reward --dataset_name my_feedback.jsonl --output_dir outputs/mine",
)
FEEDBACK = "feedback.jsonl"  # written by `collect` (runs/data/collect.py names it, but importing that loads torch)


class Pipeline:
    """Feedback to reward model to policy to comparison.

    Args:
        file: The file they came from; sections are taken from it as written.
        flags: For each stage, flags that override its section.
    """

    def __init__(self, args: PipelineArguments, file: Path, flags: Mapping[str, Sequence[str]]) -> None:
        self.folder = Path(args.output_dir)
        self.file = file
        self.stages = plan(args, file, flags)
        if not self.stages:
            raise ConfigError("There are no stages", where=str(file), expected="sections reward, policy, compare ...")

    def run(self) -> int:
        """Run every stage that is not done, in order; returns 0, or the exit code of the stage that failed."""
        self._check()
        with OutputFolder(self.folder, command="rrm-lm run", resume=True):
            for number, stage in enumerate(self.stages, start=1):
                place = f"[{number}/{len(self.stages)}] {stage.name}"
                if stage.is_done():
                    _print(f"{place}: already done, and its inputs have not changed")
                    continue
                _print(f"{place}: {COMMANDS[stage.command].summary}" + (" (resumes)" if stage.can_resume() else ""))
                began = time.perf_counter()
                code = self._compare(stage) if stage.command == "compare" else stage.run()
                if code:
                    _print(f"{place}: stopped. Finished stages are kept; the same command resumes here.")
                    return code
                _print(f"{place}: {duration(time.perf_counter() - began)}")
            self._conclude()
        return 0

    def _conclude(self) -> None:
        """Print the outcome of each stage, where the report is, and what to do with other feedback."""
        views = [stage_view(stage, self.folder) for stage in self.stages if stage.command != "compare"]  # just printed
        lines = [f"  {view.name}: {view.outcome.removeprefix('reward model: ')}" for view in views]
        where = f"report: {self._page}" if self._page.is_file() else f"everything is in {self.folder}"
        _print("\n".join([*lines, where, *_NEXT]))

    @property
    def _page(self) -> Path:
        return self.folder / "report.html"

    def _compare(self, stage: Stage) -> int:
        """Compare in this process, because the pipeline's report shows the results, too."""
        from rrm_lm.evaluation.reports.policies import render_policy_report
        from rrm_lm.runs.compare import CompareRun

        stage.start()
        began = time.perf_counter()
        report = CompareRun(*COMMANDS["compare"].read(stage.words(stage.file))).run()
        stage.finish(time.perf_counter() - began)
        views = [stage_view(done, self.folder) for done in self.stages]
        page = render_policy_report(replace(report, title="From feedback to a policy", stages=views))
        write_text(self._page, page)
        return 0

    def _check(self) -> None:
        """Read the settings of every stage before the first one runs. Raises a ConfigError if any are invalid."""
        with tempfile.TemporaryDirectory() as folder:
            for stage in self.stages:
                file = Path(folder) / f"{stage.name}.yaml"
                write_text(file, stage.settings)
                words = stage.words(file)
                try:
                    COMMANDS[stage.command].read(
                        launcher.take_options(words)[1] if stage.command in launcher.LAUNCHED else words
                    )
                except ConfigError as error:
                    where = error.where.replace(str(file), f"{self.file}, section {stage.section}")
                    what, where = self._in_file(stage, error.what), self._in_file(stage, where)
                    raise ConfigError(what, where=where, expected=error.expected, remedy=error.remedy) from error

    def _in_file(self, stage: Stage, text: str) -> str:
        """A message about a stage's settings, with the line numbers of the user's file."""
        node = _sections(self.file)[stage.section]
        lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
        written = stage.settings.splitlines()

        def line(found: re.Match[str]) -> str:
            key = written[int(found[1]) - 1].partition(":")[0]
            return f"line {lines.get(key, node.start_mark.line)}"  # the section's if the pipeline sets the key

        return re.sub(r"\bline (\d+)", line, text)


def _print(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def plan(args: PipelineArguments, file: Path, flags: Mapping[str, Sequence[str]]) -> list[Stage]:
    """The stages in order, each with its inputs from earlier stages. Raises ConfigError: flags for an unknown stage, or
    a value refers to a stage that does not come earlier.
    """
    nodes = _sections(file)
    root = Path(args.output_dir)
    if unknown := sorted(set(flags) - set(nodes)):
        raise ConfigError(
            f"There is no section {unknown[0]}", where="the command line", expected=", ".join(nodes) or "none"
        )
    stages: list[Stage] = []
    folders: dict[str, Path] = {}

    def add(key: str, number: int = 1, **wiring: Mapping[str, Any]) -> None:
        name = key if number == 1 else f"{key}-{number}"
        text = section(nodes[key], folders, f"{file}, section {key}", **wiring)
        command, words = _COMMANDS.get(key, key), tuple(flags.get(key, ()))
        stages.append(Stage(name, command, text, words, root / name, root / _RECORDS, args.allow_code, key))
        folders[key] = folders[name] = stages[-1].folder

    for number in range(1, args.rounds + 1):
        before = folders.get("policy")
        if number > 1:
            add("collect", number, overrides={"policy": str(before), "round": number})
        if number == 1 and "sft" in nodes and _starts_from(nodes, "$sft"):
            add("sft")
        if "reward_first" in nodes and number == 1:
            add("reward_first")
        if "reward" in nodes:
            first = {"model_name_or_path": str(folders["reward_first"])} if "reward_first" in folders else {}
            collected = [str(stage.folder / FEEDBACK) for stage in reversed(stages) if stage.command == "collect"]
            add("reward", number, defaults=first, additions={"dataset_name": collected})
        if "sft" in nodes and "sft" not in folders:
            add("sft")
        if "policy" in nodes:
            reward = {"reward_model": [str(folders["reward"])]} if "reward" in folders else {}
            start = {} if before is None else {"model_name_or_path": str(before)}
            add("policy", number, defaults=reward, overrides=start)
    if "compare" in nodes:
        policies = [str(stage.folder) for stage in stages if stage.command in ("sft", "policy")]
        proxy = {"proxy": str(folders["reward"])} if "reward" in folders else {}
        add("compare", defaults={"policies": policies, **proxy})
    return stages


def _starts_from(nodes: Mapping[str, yaml.MappingNode], stage: str) -> bool:
    """Whether a reward model refers to this stage, which then comes before it."""
    rewards = [nodes[name] for name in ("reward_first", "reward") if name in nodes]
    return any(scalar.value == stage for node in rewards for scalar in scalars(node))


def _sections(file: Path) -> dict[str, yaml.MappingNode]:
    root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # checked when the settings were read
    return {key.value: value for key, value in root.value if isinstance(value, yaml.MappingNode)}


EXAMPLES = """\
rrm-lm run --config configs/demo.yaml
rrm-lm run --config configs/demo.yaml --policy.total_episodes 512
rrm-lm run --config configs/demo.yaml --rounds 2   (new feedback, then again)
A section holds the settings of the command with that name; `$reward` is the
folder of that stage, and `reward` may start from `$sft`. Run again, it skips
finished stages with the same settings and files, and resumes a stopped one.
"""


def run(argv: list[str]) -> int:
    """Run the stages that are not done yet; returns 0, or the exit code of the stage that failed."""
    words, flags = take_stage_flags(argv)
    (args,) = parse([PipelineArguments], words, command="rrm-lm run", examples=EXAMPLES)
    return Pipeline(args, config_file(words), flags).run()


def config_file(argv: list[str]) -> Path:
    """The file after `--config`. Raises a ConfigError without one: stages have too many settings for flags."""
    for place, word in enumerate(argv):
        if word.startswith("--config"):
            return Path(word.partition("=")[2] or argv[place + 1])
    raise ConfigError(
        "There is no pipeline file", where="the command line", remedy="rrm-lm run --config configs/demo.yaml"
    )


def take_stage_flags(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split off flags such as `--policy.lora_r 8`; returns the other words, and the flags of each stage."""
    words: list[str] = []
    flags: dict[str, list[str]] = {}
    target = words
    for word in argv:
        found = re.fullmatch(r"--(\w+)\.([\w-]+)(=.*)?", word, flags=re.DOTALL)
        if found:
            target = flags.setdefault(found[1], [])
            target.append(f"--{found[2]}{found[3] or ''}")
        else:
            if word.startswith("--"):
                target = words
            target.append(word)
    return words, flags
