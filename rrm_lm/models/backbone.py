"""One frozen pretrained model with named LoRA adapters on it.

Reward model, policy, value function and helpers are adapters on the same backbone. Which adapter is active is chosen
per call, without touching ``requires_grad``: PEFT's ``set_adapter`` and ``disable_adapter`` flip it, and an optimizer
made before would go on training what it should not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rrm_lm.errors import ModelError
from rrm_lm.models.pretrained import rounding
from rrm_lm.models.sharding import device_of
from rrm_lm.text.batching import Batch, Row, attention_mask, collate, share

logger = logging.getLogger(__name__)

_MASKED_ATTENTION = ("sdpa", "eager")  # implementations that take a mask of (batch, 1, time, time)
_MASKED_LAYERS = ("full_attention", "sliding_attention")  # layer types whose mask is known here
# Settings of windows that count places in the row (Llama 4, GPT-Neo); a probe of a few tokens would not notice them.
_PLACE_WINDOWS = ("attention_chunk_size", "attention_types")

_Choice = tuple[BaseTunerLayer, Any, bool]  # an adapter layer, its active adapters, and whether they are off


class Backbone(nn.Module):
    """A frozen causal language model, and the adapters that live on it.

    Args:
        model: A causal language model as transformers loads it. Its parameters are frozen here.
        pad_id: Token id for padding; masked everywhere, so any valid id gives the same result.
        sharing: Let lines with a common beginning share its computation where that is exact. ``None`` finds out by
            comparing a shared and an unshared computation once; ``False`` never shares.
    """

    def __init__(self, model: Any, pad_id: int, sharing: bool | None = None) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.model: Any = model
        self.pad_id = pad_id
        self._sharing = sharing
        self._masking: bool | None = None
        self._layers = _adapter_layers(model)

    # -- adapters -------------------------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> Any:
        """The language model itself, with adapter layers in place but no wrapper around it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> Any:
        """The language model's configuration (its text part, for models with several)."""
        return self.causal_lm.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return device_of(next(self.model.parameters()))

    @property
    def decoder(self) -> Any:
        """The part that turns token ids into hidden states, without the language-model head."""
        decoder = self.causal_lm.get_decoder()
        return decoder if decoder is not self.causal_lm else decoder.model  # Llama 4 names its parts otherwise

    def add_adapter(self, name: str, config: LoraConfig) -> None:
        """Put a new LoRA adapter on the backbone. It is trainable; those that were there stay as they were."""
        if isinstance(self.model, PeftModel):
            before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
            self.model.add_adapter(name, config)
            for parameter in self.model.parameters():
                parameter.requires_grad_(before.get(parameter, True))
        else:
            self.model = get_peft_model(self.model, config, adapter_name=name)
        self._layers = _adapter_layers(self.model)

    def remove_adapter(self, name: str) -> None:
        """Take an adapter off the backbone, and free its memory; the others stay as they are."""
        if len(self.model.peft_config) == 1:  # PEFT would go on asking for the last one
            self.model = self.model.unload()
        else:
            before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
            self.model.delete_adapter(name)  # chooses another active adapter, and switches its gradients on
            for parameter in self.model.parameters():
                parameter.requires_grad_(before[parameter])
        self._layers = _adapter_layers(self.model)

    def using(self, adapter: str | None) -> AbstractContextManager[None]:
        """Make one adapter the active one (``None``: the bare backbone), and put the previous choice back after.

        Raises:
            ModelError: There is no adapter of this name.
        """
        if adapter is None:
            return _chosen([(layer, layer._active_adapter, True) for layer in self._layers])
        if not isinstance(self.model, PeftModel) or adapter not in self.model.peft_config:
            raise ModelError(f"The backbone has no adapter {adapter!r}", remedy="add it first, with add_adapter")
        return _chosen([(layer, [adapter], False) for layer in self._layers])

    # -- computing ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, adapter: str | None) -> Tensor:
        """Final hidden states (batch, time, hidden), computed with one adapter."""
        with self.using(adapter):
            output = self.decoder(
                input_ids=batch.input_ids,
                attention_mask=self._mask(batch),
                position_ids=batch.position_ids,
                use_cache=False,
            )
        return output.last_hidden_state

    def logits(self, hidden: Tensor, adapter: str | None = None) -> Tensor:
        """Next-token logits (..., vocabulary) for hidden states, only where they are needed."""
        head = self.causal_lm.get_output_embeddings()
        with self.using(adapter):
            logits = head(hidden.to(head.weight.dtype)).float()
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def rows(self, lines: list[tuple[int, ...]], blind: list[tuple[int, int]] | None = None) -> list[Row]:
        """Lay the lines of one prompt into rows: one tree where sharing is exact, else a row for each line.

        Args:
            lines: Token ids of each line.
            blind: What the end of a line may not see of its beginning (see :func:`rrm_lm.text.batching.share`). Needs
                :attr:`can_mask`.
        """
        hidden = blind or [(0, 0)] * len(lines)
        if self.can_share and len(lines) > 1:
            return [share(lines, hidden)]
        return [share([line], [one]) for line, one in zip(lines, hidden, strict=True)]

    @property
    def can_mask(self) -> bool:
        """Whether the model takes a mask for each pair of tokens, and computes what the mask says."""
        if self._masking is None:
            self._masking = self._sharing or self._try_sharing()
        return self._masking

    @property
    def can_share(self) -> bool:
        """Whether lines may share a prefix on this model; found out once, and said in the log when they may not."""
        if self._sharing is None:
            self._sharing = self.can_mask
        return self._sharing

    @can_share.setter
    def can_share(self, value: bool) -> None:
        self._sharing = value

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute activations in the backward pass, with the adapter that was active in the forward pass.

        Args:
            activation_checkpointing_kwargs: For ``torch.utils.checkpoint``. Adapters on a frozen model need its
                non-reentrant variant, so that is always taken.
            options: Passed to transformers.
        """
        kwargs = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False, "context_fn": self._replay}
        model = self.causal_lm
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs, **options)
        else:  # its name in earlier versions
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs, **options)

    def _replay(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a layer's forward pass and of its recomputation, which happens when `using` is long over."""
        return nullcontext(), _chosen(
            [(layer, layer._active_adapter, layer._disable_adapters) for layer in self._layers]
        )

    # -- masks ----------------------------------------------------------------------------------------------------

    @property
    def _attention(self) -> str:
        return str(getattr(self.config, "_attn_implementation", None) or "eager")

    def _mask(self, batch: Batch) -> Any:
        """The mask in the form this model takes: one tensor, or one for each type of layer."""
        additive = self._attention == "eager"
        dtype = self.causal_lm.dtype
        if batch.sees is None:
            return attention_mask(batch, dtype)
        window = getattr(self.config, "sliding_window", None)
        layer_types = getattr(self.config, "layer_types", None)
        if not layer_types:
            return attention_mask(batch, dtype, window, additive)
        return {
            kind: attention_mask(batch, dtype, window if kind == "sliding_attention" else None, additive)
            for kind in set(layer_types)
        }

    @torch.no_grad()
    def _try_sharing(self) -> bool:
        """Compare a shared and an unshared computation on a few tokens; exact families pass, others are named."""
        if self._attention not in _MASKED_ATTENTION:
            logger.warning("Prefix sharing is off: %s attention takes no mask per token pair.", self._attention)
            return False
        other = sorted(set(getattr(self.config, "layer_types", None) or ()) - set(_MASKED_LAYERS))
        other += [name for name in _PLACE_WINDOWS if getattr(self.config, name, None)]
        if other:
            logger.warning("Prefix sharing is off: %s has %s.", self.config.model_type, ", ".join(other))
            return False
        top = min(int(self.config.vocab_size), 64) - 1
        ids = torch.randint(1, top, (12,), generator=torch.Generator().manual_seed(0)).tolist()
        lines = [tuple(ids[:8]), tuple(ids[:5] + ids[9:12]), tuple(ids[:6])]
        with evaluating(self):
            alone = _line_ends(self, [share([line]) for line in lines])
            try:
                shared = _line_ends(self, [share(lines)])
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                logger.warning("Prefix sharing is off: %s cannot take its mask (%s).", self.config.model_type, error)
                return False
        error = _difference(self, shared, alone)
        if error > 1:
            logger.warning("Prefix sharing is off: %s would compute something else with it.", self.config.model_type)
        return error <= 1


def _adapter_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def _chosen(choices: list[_Choice]) -> Iterator[None]:
    """Put each adapter layer into a state, and back into its own afterwards."""
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer, _, _ in choices]
    try:
        for layer, active, disabled in choices:
            layer._active_adapter, layer._disable_adapters = active, disabled
        yield
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module is put back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _line_ends(backbone: Backbone, rows: list[Row]) -> Tensor:
    """(lines, hidden) at the last token of each line."""
    batch = collate(rows, backbone.pad_id).to(backbone.device)
    hidden = backbone(batch, None).float()
    return torch.stack([hidden[row, indices[-1]] for row, indices in batch.where])


def _difference(backbone: Backbone, mine: Tensor, theirs: Tensor) -> float:
    """How far two results that should be the same are apart, in units of what rounding explains; inf for NaN."""
    unit = rounding(backbone.causal_lm.dtype, backbone.device)
    error = float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)) / unit
    return error if error == error else float("inf")


def check_logits(backbone: Backbone) -> None:
    """Refuse a family whose logits are not its head applied to its hidden states.

    Raises:
        ModelError: The critique loss would train on other probabilities than the model generates with.
    """
    ids = torch.arange(1, 6, device=backbone.device)[None]
    batch = collate([share([tuple(ids[0].tolist())])], backbone.pad_id).to(backbone.device)
    with torch.no_grad(), evaluating(backbone), backbone.using(None):
        mine = backbone.logits(backbone(batch, None))
        theirs = backbone.causal_lm(input_ids=ids, use_cache=False).logits.float()
    if _difference(backbone, mine, theirs) > 1:
        raise ModelError(
            f"The family {backbone.config.model_type} scales its logits in a way this project does not know",
            expected="logits = language-model head(hidden states), soft-capped or not",
            remedy="train without critiques (--critique_weight 0) or use another backbone",
        )
