"""Settings of `rrm-lm serve` and `rrm-lm check-server`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rrm_lm.errors import ConfigError
from rrm_lm.options import check, check_minimum, is_loopback, option, refuse_repeats, require
from rrm_lm.settings.models import EnsembleArguments, SavedModel

DIALECTS = ("own", "vllm", "sglang", "verl", "tei", "openrlhf", "llamafactory")


@dataclass
class TokenArguments:
    """The token that clients send."""

    token_env: str | None = option(
        None, "Environment variable with the token of clients. Needed unless the server is on this machine."
    )

    def token(self) -> str:
        """The token; "" if no variable is named. Raises ConfigError: the variable is not set."""
        if self.token_env is None:
            return ""
        token = os.environ.get(self.token_env, "")
        if not token:
            raise ConfigError(f"The environment variable {self.token_env} is not set", where="token_env")
        return token


@dataclass
class ServeArguments(TokenArguments, SavedModel, EnsembleArguments):
    """The reward models, and how they are served."""

    model: list[str] = option([], "Reward models: folders, Hub ids or aliases. Adapters share their backbone.")
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8080, "Port to listen on; 0 for a free one.")
    max_length: int | None = option(2048, "Longest conversation in tokens, for models that do not record it.")
    micro_batch_tokens: int = option(4096, "Most padded tokens per forward pass; bounds the memory.")
    max_waiting: int = option(20_000, "Responses that may wait; further requests are refused until there is room.")
    max_body_mb: float = option(32, "Largest request in MB.")
    body_timeout: float = option(30, "Seconds in which a request must have arrived.")
    request_timeout: float = option(600, "Seconds after which a request is given up.")
    drain_timeout: int = option(60, "Seconds in which open requests are answered after SIGTERM.")
    self_check: bool = option(True, "Compare the rewards of every dialect with those at saving before serving.")

    def __post_init__(self) -> None:
        refuse_repeats("model", self.model)
        check_minimum(self, port=0, max_length=1, micro_batch_tokens=1, max_waiting=1, drain_timeout=0)
        above = ("max_body_mb", "body_timeout", "request_timeout")
        check(self, *((name, getattr(self, name) > 0, "more than 0") for name in above))

    def require(self) -> None:
        """Raise a ConfigError without a model, or without a token for clients on other machines."""
        require(self, model="pass --model outputs/demo/reward")
        if self.token_env is None and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} is open to other machines, and there is no token",
                where="host",
                remedy="pass --token_env NAME, and put the token into this environment variable",
            )


@dataclass
class CheckServerArguments(TokenArguments):
    """The server, and the model whose rewards it should give."""

    url: str | None = option(None, "Address of the server, such as http://127.0.0.1:8000.")
    dialect: str = option("own", "How the server is asked: " + ", ".join(DIALECTS) + ".")
    model: str | None = option(None, "Folder of the reward model, with its tokenizer and the rewards at saving.")
    served_name: str | None = option(None, "The model's name on the server. Unset: model, as given.")

    def __post_init__(self) -> None:
        check(self, ("dialect", self.dialect in DIALECTS, "one of " + ", ".join(DIALECTS)))

    def require(self) -> None:
        """Raise a ConfigError if a setting is missing."""
        require(self, url="pass http://127.0.0.1:8000 first", model="pass --model outputs/demo/reward")
