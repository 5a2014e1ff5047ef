"""Who judges: a model behind a server, and a critic that helps it."""

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


@dataclass
class CriticArguments:
    """Who helps whoever judges."""

    critic: str | None = field(
        default=None,
        metadata={
            "help": "A helper whose critique of each response is shown to whoever judges: a reward model that learned "
            "from critiques (best with critique_view all), or a solved helper of rrm-lm recurse "
            "(outputs/recurse/nodes/NAME)."
        },
    )
