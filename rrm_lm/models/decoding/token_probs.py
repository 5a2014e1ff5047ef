"""Log-probabilities of sampled tokens from hidden states, a chunk of logits at a time.

Logits of a few hundred tokens can take more memory than all layers. With a frozen language-model head, the backward
pass only needs each log-probability's gradient with respect to its hidden state. The forward pass computes it while the
chunk's logits exist, so nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling

CHUNK = 256  # tokens whose logits are held at once, on a CPU
_MOST, _SHARE = 4096, 1 / 64  # on a GPU: at most this many, whose logits take this share of its memory
_COPIES = 4  # tensors of the logits' size that exist at once


def token_log_probs(
    backbone: Backbone, hidden: Tensor, tokens: Tensor, sampling: Sampling, adapter: str | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token in the distribution it was sampled from, and the entropy of that distribution.

    `hidden` is (n, hidden), the final states before the (n,) sampled `tokens`; `adapter` is the active one, for adapted
    heads. Returns (n,) log-probabilities, differentiable in the hidden states and in a trained head, and (n,) entropies
    in nats, without gradient.
    """
    head = _Head(backbone, sampling, adapter)
    if not len(tokens):
        nothing = hidden.float().sum(-1)
        return nothing, nothing.detach()
    if not torch.is_grad_enabled():
        pieces = [head(*piece) for piece in _pieces(hidden, tokens, head.vocabulary)]
    elif head.is_trained:
        pieces = [checkpoint(head, *piece, use_reentrant=False) for piece in _pieces(hidden, tokens, head.vocabulary)]
    else:
        log_probs, entropy = _WithFrozenHead.apply(hidden, tokens, head)  # type: ignore[misc]
        return log_probs, entropy
    log_probs, entropy = zip(*pieces, strict=True)
    return torch.cat(log_probs), torch.cat(entropy).detach()


class _Head:
    """Log-probabilities and entropies of one chunk of tokens."""

    def __init__(self, backbone: Backbone, sampling: Sampling, adapter: str | None) -> None:
        self.backbone, self.sampling, self.adapter = backbone, sampling, adapter
        head = backbone.causal_lm.get_output_embeddings()
        self.is_trained = any(parameter.requires_grad for parameter in head.parameters())
        changed = getattr(backbone.config, "final_logit_softcapping", None) is not None or backbone.logit_scale != 1
        # If logits are one product of a plain layer, the gradient has a closed form.
        self.is_plain = type(head) is nn.Linear and not changed and not sampling.truncates
        self.weight, self.vocabulary = head.weight, int(backbone.config.vocab_size)

    def __call__(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.backbone.logits(hidden, self.adapter)
        log_probs = self.sampling.log_probs(logits, tokens)
        with torch.no_grad():
            all_of_them = self.sampling.shape(logits).log_softmax(-1)
            entropy = torch.special.entr(all_of_them.exp()).sum(-1)
        return log_probs, entropy

    def with_slopes(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also return (n, hidden) each log-probability's gradient with respect to its hidden state."""
        if self.is_plain:
            return self._plain(hidden, tokens)
        with torch.enable_grad():
            states = hidden.detach().requires_grad_()
            log_probs, entropy = self(states, tokens)
            (slopes,) = torch.autograd.grad(log_probs.sum(), states)
        return log_probs.detach(), entropy, slopes

    def _plain(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of ``log softmax(W h / T)[k]`` is ``(W[k] - sum_v p[v] W[v]) / T``.

        1 - p[k] is computed as the sum of all other p[v], and only then rounded to the head's dtype. The difference
        would be zero in bfloat16 for p[k] > 0.998, and has no digits left in float32 at 1 - 1e-6.
        """
        temperature = self.sampling.temperature
        log_p = self.backbone.logits(hidden, self.adapter)
        with torch.autocast(hidden.device.type, enabled=False):  # needs full precision
            if temperature != 1:
                log_p.div_(temperature)
            log_p.sub_(log_p.logsumexp(-1, keepdim=True))
            p, own = log_p.exp(), tokens[:, None]
            entropy = -torch.linalg.vecdot(p, log_p)
            p.scatter_(-1, own, 0.0)
            p.scatter_(-1, own, -p.sum(-1, keepdim=True))
            slopes = (p.to(self.weight.dtype) @ self.weight).to(hidden.dtype).div_(-temperature)
        return log_p.gather(-1, own).squeeze(-1), entropy, slopes


class _WithFrozenHead(torch.autograd.Function):
    """Saves gradients with respect to hidden states instead of logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, head: _Head) -> tuple[Tensor, Tensor]:
        pieces = [head.with_slopes(*piece) for piece in _pieces(hidden, tokens, head.vocabulary)]
        log_probs, entropy, slopes = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes.dtype), None, None


def _pieces(hidden: Tensor, tokens: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    count = chunk(vocabulary, hidden.device)
    return list(zip(hidden.split(count), tokens.split(count), strict=True))


def chunk(vocabulary: int, device: torch.device) -> int:
    """Number of tokens whose logits are held at once."""
    if device.type != "cuda":
        return CHUNK
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(CHUNK, min(_MOST, int(_SHARE * memory / (4 * vocabulary)) // CHUNK * CHUNK))


def logit_bytes(vocabulary: int, device: torch.device) -> int:
    """Bytes of the logits beyond those of `CHUNK` tokens, which :mod:`rrm_lm.planning.peak_memory` counts."""
    return _COPIES * 4 * vocabulary * (chunk(vocabulary, device) - CHUNK)
