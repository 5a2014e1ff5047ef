"""Stream one response token by token."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.key_values import cache_name

_HALF = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


def stream(
    backbone: Backbone,
    adapter: str | None,
    prompt: Sequence[int],
    draw: Callable[[Tensor], int],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int,
) -> Iterator[int]:
    """Yield the tokens of a response to one prompt as they are drawn, including the token that ends it.

    Works for every model family in transformers, with its own cache if it has one. The active adapter (``None`` for the
    backbone without adapters) and the gradient mode change only while a token is computed. The caller may stop at any
    time. The backbone is in evaluation mode, and `prompt` has token ids up to the start of the response, not empty.
    `draw` chooses a token from (vocabulary,) float32 logits.
    """
    model = backbone.causal_lm
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    name = cache_name(model)
    ids, cache = list(prompt), None
    for _ in range(max_new_tokens):
        new = torch.tensor([ids if cache is None else ids[-1:]], device=backbone.device)
        caching = {} if name is None else {name: cache, "use_cache": True}
        with torch.no_grad(), backbone.using(adapter):
            output: Any = model(input_ids=new, **caching, **last_only)
        cache = None if name is None else getattr(output, name)
        token = draw(output.logits[0, -1].float())
        ids.append(token)
        yield token
        if token in end_ids:
            return


class Words:
    """Decodes a stream of tokens into pieces of text that never end inside a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""  # all text returned so far

    def add(self, token: int) -> str:
        """The text that the token completes; empty while a character is incomplete."""
        self._ids.append(token)
        return self.rest(may_wait=True)

    def rest(self, may_wait: bool = False) -> str:
        """The remaining text after the last token."""
        # Always decode all tokens, because a token's text can depend on the previous one.
        text = self._tokenizer.decode(self._ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if may_wait and text.endswith(_HALF):
            return ""
        new, self.text = text[len(self.text) :], text
        return new
