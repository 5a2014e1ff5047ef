"""Log-probabilities of sampled tokens from hidden states, without ever holding many logits.

A vocabulary is wide: the logits of a few hundred tokens take more memory than the layers that made them. So they are
computed a chunk of tokens at a time, and the chunk is dropped before the next. With a frozen language-model head, what
the backward pass needs of a chunk is one vector per token, the gradient of its log-probability in its hidden state,
which is worked out while the logits are there: nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.sampling import Sampling

_CHUNK = 256  # tokens whose logits are held at once


def token_log_probs(
    backbone: Backbone, hidden: Tensor, tokens: Tensor, sampling: Sampling, adapter: str | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token in the distribution it was drawn from, and the entropy of that distribution.

    Args:
        backbone: Its language-model head is used.
        hidden: (n, hidden) final hidden states in front of the tokens.
        tokens: (n,) the tokens that were drawn.
        sampling: How they were drawn.
        adapter: Which adapter is active, for heads that have one.

    Returns:
        (n,) log-probabilities, differentiable in the hidden states (and in the head, where it is trained), and (n,)
        entropies in nats, without gradient.
    """
    head = _Head(backbone, sampling, adapter)
    if not len(tokens):
        nothing = hidden.float().sum(-1)
        return nothing, nothing.detach()
    if not torch.is_grad_enabled():
        pieces = [head(*piece) for piece in _pieces(hidden, tokens)]
    elif head.is_trained:
        pieces = [checkpoint(head, *piece, use_reentrant=False) for piece in _pieces(hidden, tokens)]
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
        capped = getattr(backbone.config, "final_logit_softcapping", None) is not None
        # Where logits are one product of a plain layer, the gradient can be written down.
        self.is_plain = type(head) is nn.Linear and not capped and not sampling.truncates
        self.weight = head.weight

    def __call__(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.backbone.logits(hidden, self.adapter)
        log_probs = self.sampling.log_probs(logits, tokens)
        with torch.no_grad():
            all_of_them = self.sampling.shape(logits).log_softmax(-1)
            entropy = torch.special.entr(all_of_them.exp()).sum(-1)
        return log_probs, entropy

    def with_slopes(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As above, and (n, hidden) the gradient of each log-probability in its hidden state."""
        if self.is_plain:
            return self._plain(hidden, tokens)
        with torch.enable_grad():
            states = hidden.detach().requires_grad_()
            log_probs, entropy = self(states, tokens)
            (slopes,) = torch.autograd.grad(log_probs.sum(), states)  # a token's log-probability has one hidden state
        return log_probs.detach(), entropy, slopes

    def _plain(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of ``log softmax(W h / T)[k]`` is ``(W[k] - sum_v p[v] W[v]) / T``.

        In bfloat16 1 - p[k] would be zero from p[k] = 0.998 on, and the gradient with it; in float32 it has no digits
        left at 1 - 1e-6. It is the sum of all other p[v], which loses none, and only then rounded to the head's dtype.
        """
        temperature = self.sampling.temperature
        log_p = self.backbone.logits(hidden, self.adapter)
        with torch.autocast(hidden.device.type, enabled=False):  # of what is left, no digits can be spared
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
    """Keeps the slopes of log-probabilities in hidden states instead of logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, head: _Head) -> tuple[Tensor, Tensor]:
        pieces = [head.with_slopes(*piece) for piece in _pieces(hidden, tokens)]
        log_probs, entropy, slopes = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes.dtype), None, None


def _pieces(hidden: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(_CHUNK), tokens.split(_CHUNK), strict=True))
