"""One frozen pretrained model with named LoRA adapters on it.

Reward model, policy, value function and helpers are adapters on the same backbone. The active adapter is chosen per
call, without changing ``requires_grad``: PEFT's ``set_adapter`` and ``disable_adapter`` flip it, and an existing
optimizer would then train the wrong parameters.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rrm_lm.errors import ModelError
from rrm_lm.models.lora_targets import decoder_of, default_targets
from rrm_lm.models.pretrained import rounding
from rrm_lm.models.sharding import device_of
from rrm_lm.text.batching import Batch, Row, attention_mask, by_layer_type, collate, share

logger = logging.getLogger(__name__)

_MASKED_ATTENTION = ("sdpa", "eager")  # implementations that take a mask of (batch, 1, time, time)
_MASKED_LAYERS = ("full_attention", "sliding_attention")  # layer types whose mask is known here
# Windows over indices in the row instead of positions (Llama 4, GPT-Neo); a probe of a few tokens cannot detect them.
_INDEX_WINDOWS = ("attention_chunk_size", "attention_types")

_Choice = tuple[BaseTunerLayer, Any, bool]  # an adapter layer, its active adapters, and whether they are off


class Backbone(nn.Module):
    """A frozen causal language model with LoRA adapters.

    The model is as transformers loads it; its parameters are frozen here. `pad_id` is masked everywhere, so any valid
    token id gives the same result. `sharing` says whether lines share the computation of common prefixes: ``None``
    compares a shared and an unshared computation once; ``False`` never shares.
    """

    def __init__(self, model: Any, pad_id: int, sharing: bool | None = None) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.model: Any = model
        self.pad_id = pad_id
        self._sharing = sharing
        self._masking: bool | None = None
        self._layers = _adapter_layers(model)
        self.is_compiled = False
        for module in model.modules():
            if any("jitter" in name for name in vars(module)):  # routers of mixtures of experts
                module.register_forward_pre_hook(_without_noise)

    # -- adapters -------------------------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> Any:
        """The language model with its adapter layers, without PEFT's wrapper."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self) -> Any:
        """The language model's configuration (the text part of multimodal models)."""
        return self.causal_lm.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return device_of(next(self.model.parameters()))

    @property
    def decoder(self) -> Any:
        """The language model without its head. Maps token ids to hidden states."""
        return decoder_of(self.causal_lm)

    def add_adapter(self, name: str, config: LoraConfig) -> None:
        """Add a new, trainable LoRA adapter. Other adapters keep their ``requires_grad``."""
        if str(config.target_modules).lower() == "all-linear":
            config.target_modules = default_targets(self.causal_lm, config)  # type: ignore[assignment]
        if isinstance(self.model, PeftModel):
            before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
            self.model.add_adapter(name, config)
            for parameter in self.model.parameters():
                parameter.requires_grad_(before.get(parameter, True))
        else:
            self.model = get_peft_model(self.model, config, adapter_name=name)
        self._layers = _adapter_layers(self.model)

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter and free its memory. Other adapters keep their ``requires_grad``."""
        if len(self.model.peft_config) == 1:  # PEFT would keep looking for the last one
            self.model = self.model.unload()
        else:
            before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
            self.model.delete_adapter(name)  # activates another adapter and makes it trainable
            for parameter in self.model.parameters():
                parameter.requires_grad_(before[parameter])
        self._layers = _adapter_layers(self.model)

    def has_adapter(self, name: str) -> bool:
        return isinstance(self.model, PeftModel) and name in self.model.peft_config

    def set_trainable(self, adapter: str, trainable: bool) -> None:
        for parameter in adapter_parameters(self, adapter).values():
            parameter.requires_grad_(trainable)

    def using(self, adapter: str | None) -> AbstractContextManager[None]:
        """Activate one adapter (``None``: none) inside a ``with`` block. Raises ModelError if it does not exist."""
        if adapter is None:
            return _chosen([(layer, layer._active_adapter, True) for layer in self._layers])
        if not self.has_adapter(adapter):
            raise ModelError(f"The backbone has no adapter {adapter!r}", remedy="add it first, with add_adapter")
        return _chosen([(layer, [adapter], False) for layer in self._layers])

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each layer with torch.compile, for any batch size and length. All layers share the compiled versions,
        one for each role, which the first passes make. Call it before the model is sharded. Sampling does not use them.
        """
        # Versions differ by role, gradients and kind of layer; DDP would cut them at its buckets.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        torch._dynamo.config.optimize_ddp = False
        layers = max((one for one in self.decoder.children() if isinstance(one, nn.ModuleList)), key=len)
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)
        self.is_compiled = True

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Run layers as they are in a ``with`` block: for caches, and where results must be equal bit for bit."""
        return torch.compiler.set_stance("force_eager") if self.is_compiled else nullcontext()

    # -- computing ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, adapter: str | None) -> Tensor:
        """Return the final hidden states (batch, time, hidden) under one adapter."""
        with self.using(adapter):
            output = self.decoder(
                input_ids=batch.input_ids,
                attention_mask=self.mask(batch),
                position_ids=batch.position_ids,
                use_cache=False,
            )
        return output.last_hidden_state

    def logits(self, hidden: Tensor, adapter: str | None = None) -> Tensor:
        """Return the next-token logits (..., vocabulary) of hidden states."""
        head = self.causal_lm.get_output_embeddings()
        with self.using(adapter):
            logits = head(hidden.to(head.weight.dtype)).float()
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def logit_scale(self) -> float:
        """Factor of the head's output. Cohere and HyperCLOVA X multiply by their setting, Granite divides by it."""
        scaling = float(getattr(self.config, "logits_scaling", None) or 1.0)
        scaling = scaling if self.config.model_type.startswith("hyperclovax") else 1 / scaling
        return scaling * float(getattr(self.config, "logit_scale", None) or 1.0)

    def rows(self, lines: list[tuple[int, ...]], blind: list[tuple[int, int]] | None = None) -> list[Row]:
        """Arrange the lines of one prompt in rows: one tree if sharing is exact, else one row per line. `blind` says
        what the end of each line must not attend to (see :func:`rrm_lm.text.batching.share`); it needs
        :attr:`can_mask`.
        """
        hidden = blind or [(0, 0)] * len(lines)
        if self.can_share and len(lines) > 1:
            return [share(lines, hidden)]
        return [share([line], [one]) for line, one in zip(lines, hidden, strict=True)]

    @property
    def can_mask(self) -> bool:
        """Whether the model takes a mask per token pair and applies it correctly."""
        if self._masking is None:
            why = "" if self._sharing else self._why_separate()
            if why:
                logger.warning("Prefix sharing is off: %s.", why)
            self._masking = not why
        return self._masking

    @property
    def can_share(self) -> bool:
        """Whether lines may share a prefix on this model. Tested once; a negative result is logged."""
        if self._sharing is None:
            self._sharing = self.can_mask
        return self._sharing

    @can_share.setter
    def can_share(self, value: bool) -> None:
        self._sharing = value

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute activations in the backward pass, with the adapter that was active in the forward pass. The keyword
        arguments are for ``torch.utils.checkpoint``. Adapters on a frozen model need its non-reentrant variant, which
        is always used.
        """
        kwargs = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False, "context_fn": self._replay}
        model = self.causal_lm
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs, **options)
        else:  # its name in earlier versions
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs, **options)

    def _replay(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for a layer's forward pass and for its recomputation, which runs after `using` has exited."""
        return nullcontext(), _chosen(
            [(layer, layer._active_adapter, layer._disable_adapters) for layer in self._layers]
        )

    # -- masks ----------------------------------------------------------------------------------------------------

    @property
    def _attention(self) -> str:
        return str(getattr(self.config, "_attn_implementation", None) or "eager")

    def mask(self, batch: Batch) -> Any:
        """The mask in this model's form: one tensor, or one per layer type."""
        additive, dtype = self._attention == "eager", self.causal_lm.dtype
        if batch.sees is None:
            return attention_mask(batch, dtype)
        return by_layer_type(self.config, lambda window: attention_mask(batch, dtype, window, additive))

    @property
    def pads_only(self) -> bool:
        """Whether attention only takes a mask of real tokens, as flash attention does."""
        return self._attention not in _MASKED_ATTENTION and not self._other_layers()

    def _other_layers(self) -> list[str]:
        """Kinds of layers whose mask is not known here."""
        other = sorted(set(getattr(self.config, "layer_types", None) or ()) - set(_MASKED_LAYERS))
        return other + [name for name in _INDEX_WINDOWS if getattr(self.config, name, None)]

    @torch.no_grad()
    def _why_separate(self) -> str:
        """Why a mask per token pair is not possible, or not exact in a computation of a few tokens; "" if it is."""
        if self._attention not in _MASKED_ATTENTION:
            return f"{self._attention} attention takes no mask per token pair"
        if other := self._other_layers():
            return f"{self.config.model_type} has {', '.join(other)}"
        top = min(int(self.config.vocab_size), 64) - 1
        ids = torch.randint(1, top, (12,), generator=torch.Generator().manual_seed(0)).tolist()
        lines = [tuple(ids[:8]), tuple(ids[:5] + ids[9:12]), tuple(ids[:6])]
        with evaluating(self):
            separate = _line_ends(self, [share([line]) for line in lines])
            try:
                shared = _line_ends(self, [share(lines)])
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                return f"{self.config.model_type} cannot take its mask ({error})"
        is_exact = difference(self, shared, separate) <= 1
        return "" if is_exact else f"{self.config.model_type} gives other results with it"


def adapter_parameters(module: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, by their names in the module."""
    own = re.compile(rf"\.lora_\w+\.{re.escape(adapter)}(\.|$)")
    return {name: parameter for name, parameter in module.named_parameters() if own.search(name)}


def _without_noise(router: nn.Module, _: Any) -> None:
    """Route as in evaluation: frozen routers do not explore, and a policy is trained on the routes of its samples."""
    router.training = False


def _adapter_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def _chosen(choices: list[_Choice]) -> Iterator[None]:
    """Set the state of adapter layers inside a ``with`` block, then restore it."""
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
    """Evaluation mode inside a ``with`` block; then restore the mode of every module."""
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


def difference(backbone: Backbone, mine: Tensor, theirs: Tensor) -> float:
    """Difference of two results that should be equal, relative to the rounding tolerance; inf for NaN."""
    unit = rounding(backbone.causal_lm.dtype, backbone.device)
    error = float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)) / unit
    return error if error == error else float("inf")


def check_logits(backbone: Backbone) -> None:
    """Raise a ModelError if logits are not the head applied to hidden states: critiques could not be trained."""
    ids = torch.arange(1, 6, device=backbone.device)[None]
    batch = collate([share([tuple(ids[0].tolist())])], backbone.pad_id).to(backbone.device)
    with torch.no_grad(), evaluating(backbone), backbone.using(None):
        mine = backbone.logits(backbone(batch, None))
        theirs = backbone.causal_lm(input_ids=ids, use_cache=False).logits.float()
    if difference(backbone, mine, theirs) > 1:
        raise ModelError(
            f"The family {backbone.config.model_type} scales its logits in an unknown way",
            expected="logits = language-model head(hidden states), optionally soft-capped",
            remedy="use another backbone, or train a reward model without critiques (--critique_weight 0)",
        )
