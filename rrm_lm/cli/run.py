"""`rrm-lm run`: run a pipeline of stages from feedback to a policy and its report."""

from __future__ import annotations

import re
from pathlib import Path

from rrm_lm.errors import ConfigError
from rrm_lm.settings.workflows import PipelineArguments

EXAMPLES = """\
rrm-lm run --config configs/demo.yaml
rrm-lm run --config configs/demo.yaml --policy.total_episodes 512
rrm-lm run --config configs/demo.yaml --rounds 2   (new feedback, then again)
A section of the file holds the settings of the command with that name; the
value `$reward` is the folder of that stage. Run again, the command skips
finished stages with the same settings and files, and resumes a stopped one.
"""


def run(argv: list[str]) -> int:
    """Run the stages that are not done yet."""
    from rrm_lm.settings.parser import parse

    words, flags = take_stage_flags(argv)
    (args,) = parse([PipelineArguments], words, command="rrm-lm run", examples=EXAMPLES)
    from rrm_lm.cli.pipeline.pipeline import Pipeline

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
