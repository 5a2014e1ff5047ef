"""Settings of `rrm-lm server`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ServerArguments:
    """With llm:MODEL: the server that is asked."""

    base_url: str = field(
        default="http://127.0.0.1:8000/v1",
        metadata={"help": "Address of a server with OpenAI's chat completions."},
    )
    judge_key_env: str | None = field(
        default=None,
        metadata={
            "help": "Environment variable with the API key for that server. Unset: OPENAI_API_KEY, which only goes to "
            "https://api.openai.com and to this machine. Only on the command line."
        },
    )
