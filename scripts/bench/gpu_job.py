"""The jobs of `gpu.py`: models, settings of each side, the workload of a step, and the job of one process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

TASKS, SIDES, EMBEDDED = ("score", "reward", "ppo"), ("ours", "trl"), "embedded"
# Tasks of one side: our PPO with rollouts by vLLM's server, and TRL's GRPO.
SERVER, GRPO = "server", "grpo"
ALONE = {SERVER: "ours", GRPO: "trl"}
CHECKS, PROFILE, SAVE = "checks", "profile", "save"  # other jobs of one process
RANK = 16  # of all LoRA adapters
MARK = "RESULT "  # precedes the result of a process


@dataclass(frozen=True)
class Shape:
    """A model of the Llama family, randomly initialized."""

    hidden: int
    layers: int
    heads: int
    groups: int
    inner: int
    vocabulary: int
    tied: bool

    def config(self) -> Any:
        """Its configuration."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden, num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.groups, intermediate_size=self.inner, vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 512, tied=True),  # for tests
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, tied=True),  # as Llama 3.2 1B
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, tied=False),  # as Llama 3.1 8B
}
MODELS = (EMBEDDED, *SHAPES)

_OURS: list[dict[str, Any]] = [
    {"micro_batch_tokens": 16384, "activation_checkpointing": False},
    {"micro_batch_tokens": 4096, "activation_checkpointing": False},
    {"micro_batch_tokens": 16384, "activation_checkpointing": True},
    {"micro_batch_tokens": 2048, "activation_checkpointing": True},
]
# Settings to try for each side, from the fastest expected to the smallest memory.
SETTINGS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("score", "ours"): [{"micro_batch_tokens": 65536}, {"micro_batch_tokens": 16384}, {"micro_batch_tokens": 4096}],
    # Of plain transformers: TRL has no code of its own for scoring.
    ("score", "trl"): [{"micro_batch_tokens": 65536}, {"micro_batch_tokens": 16384}, {"micro_batch_tokens": 4096}],
    ("reward", "ours"): _OURS,
    ("reward", "trl"): [
        {"micro_batch": 16, "gradient_checkpointing": False},
        {"micro_batch": 4, "gradient_checkpointing": False},
        {"micro_batch": 16, "gradient_checkpointing": True},
        {"micro_batch": 2, "gradient_checkpointing": True},
    ],
    ("ppo", "ours"): _OURS,
    # TRL's PPO never recomputes activations, whatever its settings. Its value model is fully trained, TRL's default;
    # if that does not fit, only an adapter is.
    ("ppo", "trl"): [
        {"micro_batch": 16, "rollout_batch": 64, "value_model": "whole"},
        {"micro_batch": 4, "rollout_batch": 16, "value_model": "whole"},
        {"micro_batch": 4, "rollout_batch": 16, "value_model": "lora"},
        {"micro_batch": 1, "rollout_batch": 4, "value_model": "lora"},
    ],
    # Without the largest: the server has a part of the memory.
    (SERVER, "ours"): _OURS[1:],
    (GRPO, "trl"): [
        {"micro_batch": 16, "gradient_checkpointing": False},
        {"micro_batch": 4, "gradient_checkpointing": False},
        {"micro_batch": 16, "gradient_checkpointing": True},
        {"micro_batch": 2, "gradient_checkpointing": True},
    ],
}


@dataclass(frozen=True)
class Load:
    """The workload of a step. Lengths of prompts and of responses of pairs are evenly spaced between two limits.

    Attributes:
        pairs: Of a step of reward-model training.
        episodes: Of an update of PPO.
        shortest, longest: Tokens of a prompt, and of a pair's responses.
        new_tokens: Tokens of each PPO response; none ends early.
        epochs: PPO epochs.
    """

    pairs: int = 32
    episodes: int = 64
    shortest: int = 64
    longest: int = 384
    new_tokens: int = 128
    epochs: int = 4


SMALL = Load(pairs=4, episodes=4, shortest=6, longest=24, new_tokens=6, epochs=2)  # for tests on a CPU


@dataclass(frozen=True)
class BenchJob:
    """One process's work.

    Attributes:
        model: One of MODELS.
        task, side: What is done, by whom; the task CHECKS compares results, PROFILE profiles a step of the task in
            `setting`, and SAVE writes the model to the folder in `setting`.
        setting: One of SETTINGS.
        load: The workload of a step.
        device: Where.
        steps: Number of measured steps, after a first one.
        embedded: The model whose tokenizer all models use, and which is called ``embedded``.
        server: With the task SERVER: address of the server that samples.
        server_share: Its share of the GPU's memory, if it was started here.
    """

    model: str
    task: str
    side: str
    setting: dict[str, Any]
    load: Load
    device: str = "cuda"
    steps: int = 4
    embedded: str = "smollm2-135m"
    server: str = ""
    server_share: float | None = None

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> BenchJob:
        found = json.loads(text)
        return cls(**{**found, "load": Load(**found["load"])})

    def config(self) -> Any:
        """The model's configuration."""
        from rrm_lm.planning.footprint import read_config

        return read_config(self.embedded)[0] if self.model == EMBEDDED else SHAPES[self.model].config()
