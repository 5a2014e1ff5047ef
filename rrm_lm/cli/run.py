"""`rrm-lm run`: from feedback to a policy and a page that compares it, stage by stage, each at most once."""

from __future__ import annotations

import re
from pathlib import Path

from rrm_lm.errors import ConfigError
from rrm_lm.settings.workflows import PipelineArguments

EXAMPLES = """\
examples:
  rrm-lm run --config configs/demo.yaml
  rrm-lm run --config configs/demo.yaml --output_dir outputs/longer --policy.total_episodes 512
  rrm-lm run --config configs/demo.yaml --rounds 2      (new feedback on the policy's own answers, then both again)
a section of the file holds the settings of the command of that name; the value `$reward` is that stage's folder.
Started again, finished stages whose settings and files are the same are not run again, and a stopped one goes on.
"""


def run(argv: list[str]) -> int:
    """Run what is left of the stages."""
    from rrm_lm.settings.parser import parse

    words, flags = take_stage_flags(argv)
    (args,) = parse([PipelineArguments], words, command="rrm-lm run", examples=EXAMPLES)
    from rrm_lm.cli.pipeline.pipeline import Pipeline

    return Pipeline(args, config_file(words), flags).run()


def config_file(argv: list[str]) -> Path:
    """The file after `--config`.

    Raises:
        ConfigError: There is none: stages have too many settings for flags.
    """
    for place, word in enumerate(argv):
        if word.startswith("--config"):
            return Path(word.partition("=")[2] or argv[place + 1])
    raise ConfigError(
        "There is no file of stages", where="the command line", remedy="rrm-lm run --config configs/demo.yaml"
    )


def take_stage_flags(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split `--policy.learning_rate 1e-4` off the other words: those, and by stage the flags without its name."""
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
