"""`rrm-lm check-server`: does a server give the rewards that a model was saved with?"""

from __future__ import annotations

from rrm_lm.settings.serving import CheckServerArguments

EXAMPLES = """\
rrm-lm check-server http://127.0.0.1:8080 --model outputs/demo/reward \\
    --dialect own                                     (after `make demo`)
rrm-lm check-server http://127.0.0.1:8000 --model outputs/demo/reward \\
    --dialect vllm --served_name merged
"""
COMMON = "url dialect model served_name token_env"


def run(argv: list[str]) -> int:
    """Ask the server for the rewards that are recorded in the model's folder."""
    from rrm_lm.settings.parser import parse

    (args,) = parse(
        [CheckServerArguments], argv, command="rrm-lm check-server URL", examples=EXAMPLES, common=COMMON, first="url"
    )
    args.require()
    from rrm_lm.serving.checks import check_server

    return check_server(args)
