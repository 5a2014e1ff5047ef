"""`rrm-lm chat`: talk to a policy in the terminal."""

from __future__ import annotations

from rrm_lm.errors import ConfigError
from rrm_lm.settings.policies import ChatArguments

EXAMPLES = """\
examples:
  rrm-lm chat smollm2-135m                                        (the model that policies start from)
  rrm-lm chat outputs/sft --temperature 0                         (always the most likely words)
  rrm-lm chat outputs/sft/merged --system "Answer in one sentence." --seed 1
  echo "How long does rice keep?" | rrm-lm chat outputs/sft       (one answer for each line)
"""


def run(argv: list[str]) -> int:
    """Answer what is typed, or each line of what is piped in, until it ends."""
    from rrm_lm.settings.parser import parse

    words = ["--model", *argv] if argv and not argv[0].startswith("-") else argv
    (args,) = parse([ChatArguments], words, command="rrm-lm chat MODEL", examples=EXAMPLES)
    if not args.model:
        raise ConfigError(
            "There is no model to talk to",
            where="the command line",
            expected="a policy's folder, a Hub id or an alias",
            remedy="rrm-lm chat outputs/sft, or rrm-lm chat smollm2-135m",
        )
    from rrm_lm.runs.chat import chat

    return chat(args)
