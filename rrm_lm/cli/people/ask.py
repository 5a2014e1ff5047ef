"""`rrm-lm ask`: a page on which people compare, criticize, correct and write answers."""

from __future__ import annotations

from rrm_lm.settings.asking import AskArguments

EXAMPLES = """\
rrm-lm ask --responses scripts/examples/asking/responses.jsonl
rrm-lm ask --prompts my_prompts.jsonl --model outputs/policy --train true
rrm-lm ask --responses my_responses.jsonl --people anna ben --overlap 2
rrm-lm reward --dataset_name feedback.db             (train on the answers)
"""
COMMON = (
    "store responses prompts model people overlap ask criteria instructions keys host port train train_every "
    "train_config"
)


def run(argv: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    from rrm_lm.settings.parser import parse

    (args,) = parse([AskArguments], argv, command="rrm-lm ask", examples=EXAMPLES, common=COMMON)
    try:
        from rrm_lm.asking.run import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "markdown_it"):
            raise
        from rrm_lm.errors import ConfigError

        what = f"The page needs the package {error.name}, which is not installed"
        raise ConfigError(what, where="rrm-lm ask", remedy="pip install 'rrm_lm[ask]'") from error
    return serve(args)
