"""`Policy`: a language model that responds to prompts."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rrm_lm.api.data.rows import Text, is_prompt, to_prompt
from rrm_lm.errors import ConfigError, ModelError
from rrm_lm.evaluation.policies.samples import draw
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.saving.policies import Policy as LoadedPolicy
from rrm_lm.models.saving.policies import PolicySettings, load_policy, save_policy
from rrm_lm.text.batching import context_length
from rrm_lm.text.chat import ChatFormat


class Policy:
    """Responds to prompts.

    Args:
        loaded: The model with its adapter and chat format, as :meth:`from_pretrained` loads it.
        name: Where it was loaded from.

    Example:
        >>> policy = Policy.from_pretrained("outputs/policy")
        >>> policy.respond("Hello!")
        'Hello! How can I help you today?'
    """

    def __init__(self, loaded: LoadedPolicy, name: str = "") -> None:
        self.loaded, self.name = loaded, name

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Policy:
        """Load a policy onto this process's device (the GPU, if there is one).

        Args:
            name: An adapter folder or merged checkpoint from `rrm-lm sft`, `rrm-lm policy` or `PPOTrainer`, or any
                causal language model: a folder, a Hub id, or ``smollm2-135m``.
            options: ``dtype``, ``attn_implementation``, ``revision``, ``trust_remote_code``, ``base_model``,
                ``chat_template`` (Jinja) and ``pad_token``.

        Raises:
            ModelError: No such model, or one that does not generate text.
            CheckpointError: The adapter's weights are broken or do not fit its backbone.
        """
        loaded = load_policy(str(name), **options)
        loaded.backbone.to(torch.device(process_state().device or "cpu"))
        return cls(loaded, str(name))

    def respond(
        self,
        prompts: Text | Sequence[Text],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        n: int = 1,
        seed: int | None = None,
    ) -> Any:
        """Sample responses to prompts, in batches by length. Each prompt is computed once for all of its responses.

        Args:
            prompts: One prompt (text, or messages with ``role`` and ``content``), or a list of prompts. A prompt that
                leaves no tokens for a response loses its oldest turns, then its beginning.
            max_new_tokens: Maximum length of a response, in tokens.
            temperature: 0 takes the most likely token each time.
            top_p: Sample from the smallest set of tokens with at least this total probability.
            top_k: Sample from this many most likely tokens; 0 for all.
            n: Responses per prompt.
            seed: Seed for sampling; None for different responses each time.

        Returns:
            One text for one prompt, a list of texts for a list of prompts. If ``n`` is above 1, each text is replaced
            by a list of ``n`` texts.

        Raises:
            ConfigError: A setting outside its range, or several responses at temperature 0.
            DataError: A prompt without a user turn, or one that ends with the assistant's.
        """
        one = is_prompt(prompts)
        asked = [to_prompt(p, f"prompt {number}") for number, p in enumerate([prompts] if one else prompts, 1)]  # type: ignore[arg-type]
        if n < 1:
            raise ConfigError(f"n is {n}", where="n", expected="at least 1")
        backbone, chat, adapter, _ = self.loaded
        context = context_length(backbone.config)
        if context is not None and max_new_tokens >= int(context):
            what = f"max_new_tokens is {max_new_tokens}, and the model has {context} positions"
            raise ConfigError(what, where="max_new_tokens", expected="fewer, so that a prompt fits")
        drawn = draw(
            backbone,
            adapter,
            ChatFormat(chat.tokenizer, None if context is None else int(context) - max_new_tokens),
            asked,
            Sampling(max_new_tokens, temperature, top_p, top_k),
            samples=n,
            seed=secrets.randbits(31) if seed is None else seed,
        )
        texts = [[response.text for response in group] for group in drawn]
        found = texts if n > 1 else [group[0] for group in texts]
        return found[0] if one else found

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy's adapter folder, which `AutoPeftModelForCausalLM` can load.

        Raises:
            ModelError: The policy has no adapter.
        """
        backbone, chat, adapter, settings = self.loaded
        if adapter is None:
            raise ModelError("The policy is a whole model without an adapter", where=self.name)
        save_policy(backbone, Path(folder), chat.tokenizer, settings or PolicySettings(self.name), adapter)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.loaded.backbone.device

    def to(self, device: str | torch.device) -> Policy:
        """Move the weights to a device; returns this policy."""
        self.loaded.backbone.to(device)
        return self
