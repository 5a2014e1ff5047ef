"""Lower bounds for an iteration of our trainer: counted operations and bytes, divided by measured ceilings."""

from __future__ import annotations

from typing import Any

from policy_sides import NEW_TOKENS, Case, WatchedPPO

from rrm_lm.models.backbone import adapter_parameters
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.text.batching import share


class Floor:
    """Counts of one iteration. Matrix products dominate; attention, norms and sums are ignored.

    Args:
        trainer: The trainer, after an iteration.
        case: The case that it ran.
    """

    def __init__(self, trainer: WatchedPPO, case: Case) -> None:
        self.case, self.rollouts, backbone = case, trainer.rollouts, trainer.agent.backbone
        groups = trainer.grouping(trainer.rollouts.lines)()
        self.tokens = sum(int(group.batch.is_real.sum()) for group in groups)
        self.padded_tokens = sum(group.tokens for group in groups)
        seen = sum(int((group.batch.position_ids + 1)[group.batch.is_real].sum()) for group in groups)
        self.response_tokens = int(trainer.rollouts.lengths.sum())
        self.prompt_tokens = len(share([tuple(prompt) for prompt in case.prompts]))
        # Weights; each token is multiplied with every one of them once per pass.
        layers = backbone.decoder.named_modules()
        self.frozen = sum(module.weight.numel() for name, module in layers if name.endswith("base_layer"))
        self.lora = sum(parameter.numel() for parameter in adapter_parameters(backbone, POLICY).values())
        self.head = backbone.causal_lm.get_output_embeddings().weight.numel()
        config = backbone.config
        self.attention = 4.0 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * seen

    def operations(self) -> dict[str, float]:
        """Operations of the passes over finished episodes, and of the rollout's prompts."""
        forward = 2.0 * self.tokens * (self.frozen + self.lora) + self.attention
        reference = 2.0 * self.tokens * self.frozen + self.attention
        backward = self.tokens * (2.0 * self.frozen + 4.0 * self.lora) + 2 * self.attention
        log_probs = 2.0 * self.response_tokens * self.head
        estimate = forward + 2 * log_probs  # the head forward, and back to the hidden states
        return {
            "prompts": 2.0 * self.prompt_tokens * self.frozen + 2.0 * self.case.episodes * self.head,
            "score": forward + reference + log_probs,
            "estimate": estimate,
            "update": self.case.epochs * backward + (self.case.epochs - 1) * estimate,
        }

    def seconds(self, matrix: float, read: float) -> dict[str, float]:
        """Seconds by phase, at this many operations and bytes per second."""
        found = {name: count / matrix for name, count in self.operations().items()}
        steps, weights = NEW_TOKENS - 1, self.frozen + self.head
        step = max(2.0 * self.case.episodes * weights / matrix, 4.0 * weights / read)
        return {"roll_out": found.pop("prompts") + steps * step, **found}

    def shares(self, measured: dict[str, float], matrix: float, read: float) -> dict[str, float]:
        """Fractions of the ceilings: passes over finished episodes, rollout, and total."""
        floor, counted = self.seconds(matrix, read), self.operations()
        passes = ("score", "estimate", "update")
        steps, weights = NEW_TOKENS - 1, self.frozen + self.head
        decoding = counted["prompts"] + 2.0 * self.case.episodes * weights * steps
        return {
            "matrix_product_of_passes": sum(floor[name] for name in passes) / sum(measured[name] for name in passes),
            "matrix_product_of_rollout": decoding / matrix / measured["roll_out"],
            "memory_read_of_rollout": 4.0 * weights * steps / read / measured["roll_out"],
            "floor_of_iteration": sum(floor.values()) / measured["iteration"],
        }

    def sizes(self) -> dict[str, Any]:
        """The counts."""
        return {
            "tokens_in_a_pass": self.tokens,
            "padded_tokens_in_a_pass": self.padded_tokens,
            "response_tokens": self.response_tokens,
            "prompt_tokens_computed": self.prompt_tokens,
            "operations_g": {name: round(count / 1e9, 1) for name, count in self.operations().items()},
        }
