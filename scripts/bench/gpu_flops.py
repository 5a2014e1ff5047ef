"""Operations that training a Llama-style model needs: counted, not measured, and without repeated work.

The product of a token with a matrix of N weights takes 2 N operations forward, 2 N backward to its input, and 2 N
backward to the weights if they are trained. So a frozen layer counts 4 N per token, not 6 N, and each LoRA weight 6.
Attention counts 4 operations forward and 8 backward per query dimension and visible key. The language-model head
counts only for tokens whose probability is needed: those of responses. Not counted are embeddings, norms, activations,
softmax, scalar heads, the optimizer, padding and recomputed activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens that go through a model.

    Attributes:
        tokens: How many.
        seen: Sum over the tokens of how many tokens each sees, including itself.
    """

    tokens: int
    seen: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Text:
        """Sequences of these lengths, computed separately."""
        return cls(sum(lengths), sum(length * (length + 1) // 2 for length in lengths))


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """Numbers of weights that each token is multiplied with once per pass.

    Attributes:
        layers: Of all layers, without adapters.
        lora: Of one adapter on all their linear layers.
        head: Of the language-model head.
        width: Query dimensions, summed over all heads and layers.
    """

    layers: int
    lora: int
    head: int
    width: int

    @classmethod
    def of(cls, config: Any, rank: int) -> WeightCounts:
        """The counts of a configuration of the Llama family with LoRA of this rank."""
        hidden, inner = config.hidden_size, config.intermediate_size
        size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        queries, keys = size * config.num_attention_heads, size * config.num_key_value_heads
        shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
        count = config.num_hidden_layers
        return cls(
            layers=count * sum(a * b for a, b in shapes),
            lora=count * rank * sum(a + b for a, b in shapes),
            head=hidden * config.vocab_size,
            width=count * queries,
        )

    def forward(self, text: Text, lora: bool = True) -> float:
        """Operations of a forward pass through the layers."""
        return 2.0 * text.tokens * (self.layers + self.lora * lora) + 4.0 * self.width * text.seen

    def backward(self, text: Text, whole: bool = False) -> float:
        """Operations of a backward pass: to the inputs and to LoRA weights, or to all weights and no adapter."""
        weights = 4.0 * self.layers if whole else 2.0 * self.layers + 4.0 * self.lora
        return text.tokens * weights + 8.0 * self.width * text.seen

    def score(self, text: Text) -> float:
        """Rewards of conversations."""
        return self.forward(text)

    def reward(self, text: Text) -> float:
        """A step of reward-model training on conversations."""
        return self.forward(text) + self.backward(text)

    def ppo(self, lengths: Sequence[int], response: int, epochs: int, value_model: str | None) -> dict[str, float]:
        """A PPO update, by its parts.

        Old log-probabilities and values come from the first training pass or from the rollout; only a separate value
        model needs another pass.

        Args:
            lengths: Tokens of each episode, prompt and response.
            response: Tokens of each response.
            epochs: PPO epochs.
            value_model: ``whole`` for a separate, fully trained value model, ``lora`` for a separate one with an
                adapter, ``None`` for a value head on the policy.
        """
        lines, decoded = Text.of(lengths), Text.of([length - 1 for length in lengths])
        head = 2.0 * len(lengths) * response * self.head
        adapted = value_model != "whole"
        passes = self.forward(lines) + self.backward(lines) + 2 * head
        values = 0.0 if value_model is None else self.forward(lines, adapted)
        if value_model is not None:
            passes += self.forward(lines, adapted) + self.backward(lines, whole=not adapted)
        return {
            "roll_out": self.forward(decoded) + head,
            "score": self.forward(lines, value_model is None) + self.forward(lines, False) + head,
            "values": values,
            "update": epochs * passes,
        }

    def grpo(self, lengths: Sequence[int], response: int, epochs: int) -> dict[str, float]:
        """An iteration of GRPO without a reference, by its parts: as PPO's without reward, reference and values.

        Args:
            lengths: Tokens of each sample, prompt and response.
            response: Tokens of each response.
            epochs: How often each sample is trained on; once needs no pass for the old log-probabilities.
        """
        parts = self.ppo(lengths, response, epochs, None)
        old = parts["score"] - self.forward(Text.of(lengths), False) if epochs > 1 else 0.0
        return {"roll_out": parts["roll_out"], "old_log_probs": old, "update": parts["update"]}
