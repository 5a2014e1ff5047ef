"""`rrm-lm serve`: serve reward models over HTTP."""

from __future__ import annotations

from rrm_lm.settings.serving import ServeArguments

EXAMPLES = """\
rrm-lm serve --model outputs/demo/reward              (after `make demo`)
rrm-lm serve --model outputs/mine outputs/other --port 8080
curl http://127.0.0.1:8080/v1/rewards -H 'Content-Type: application/json' \\
    -d '{"items": [{"prompt": "Hi", "responses": ["Hello!"]}]}'
"""
COMMON = "model host port token_env max_length micro_batch_tokens max_waiting request_timeout drain_timeout dtype"


def run(argv: list[str]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from rrm_lm.settings.parser import parse

    (args,) = parse([ServeArguments], argv, command="rrm-lm serve", examples=EXAMPLES, common=COMMON)
    args.require()
    from rrm_lm.serving.run import serve

    return serve(args)
