"""Load tokenizers: each gets a chat template, and a pad token that never ends a turn."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rrm_lm.errors import ModelError
from rrm_lm.models.pretrained import from_pretrained, resolve
from rrm_lm.text.templates import prepare_template, require_template

# Special tokens reserved for padding or unused, in order of preference. Candidates that are the eos
# token or occur in the chat template are skipped.
_PAD_CANDIDATES = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|vision_pad|>",
    "<unk>",
    "[UNK]",
    "<|unk|>",
)


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None, **preparing: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer: an alias, a folder or a Hub id with a branch, tag or commit as `revision`.

    `trust_remote_code` runs Python code from the model's repository. `preparing` is passed to
    :func:`prepare_tokenizer`, whose errors are raised too. Raises ModelError if there is no such tokenizer.
    """
    path = resolve(name, revision)
    tokenizer = from_pretrained(AutoTokenizer, path, revision=revision, trust_remote_code=trust_remote_code)
    return prepare_tokenizer(tokenizer, name, **preparing)


def prepare_tokenizer(
    tokenizer: Any,
    name: str,
    *,
    chat_template: str | None = None,
    pad_token: str | None = None,
    own_pad: bool = False,
    chat_date: str | None = None,
    fold_system: bool = False,
) -> PreTrainedTokenizerBase:
    """Set a loaded tokenizer's chat template, and a pad token that does not end a turn.

    Args:
        chat_template: A Jinja template to use instead of the tokenizer's own.
        pad_token: An existing token to pad with.
        own_pad: Keep the tokenizer's pad token, even eos, because the model was trained with it.
        chat_date, fold_system: See :func:`rrm_lm.text.templates.prepare_template`.

    Raises ConfigError: `chat_date` is not a date; ModelError: no chat template, or no usable pad token.
    """
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    require_template(tokenizer, name)
    prepare_template(tokenizer, chat_date, fold_system)
    if pad_token is None and own_pad and tokenizer.pad_token in tokenizer.get_vocab():
        return tokenizer
    tokenizer.pad_token = _find_pad(tokenizer) if pad_token is None else pad_token
    _check_pad(tokenizer, name)
    return tokenizer


def own_pad_id(config: Any, tokenizer: Any) -> int:
    """The pad token of a classifier's configuration, else of its tokenizer: it reads the last token that is not pad."""
    pad = config.get_text_config().pad_token_id
    return int(tokenizer.pad_token_id) if pad is None or pad < 0 else int(pad)


def align_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's pad token in the model's configurations: classifiers read the last token that is not pad."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Raise a ModelError if text can have a token that the model has no embedding for.

    Published text models may lack special tokens (of images ...) of their tokenizers, which no text has.
    """
    rows, special = model.get_input_embeddings().weight.shape[0], _special_ids(tokenizer)
    written = {*_turn_enders(tokenizer), tokenizer.pad_token_id}
    beyond = {
        token_id: token
        for token, token_id in tokenizer.get_vocab().items()
        if token_id >= rows and (token not in special or token_id in written)
    }
    if beyond:
        last = max(beyond)
        raise ModelError(
            f"The tokenizer has {len(beyond)} tokens that the model has no embeddings for, up to {beyond[last]!r}, "
            f"number {last}",
            where=str(tokenizer.name_or_path),
            expected=f"numbers below {rows}, the rows of the embeddings",
            remedy="call model.resize_token_embeddings(len(tokenizer)), and save the model and the tokenizer",
        )


def _turn_enders(tokenizer: Any) -> set[int]:
    """Ids that may end or begin a turn: eos, bos, and every special token in the chat template."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else " ".join(map(str, template.values()))
    enders = {token_id for token, token_id in _special_ids(tokenizer).items() if token in text}
    return enders | {token_id for token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id) if token_id is not None}


def _special_ids(tokenizer: Any) -> dict[str, int]:
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**added, **dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))}


def _find_pad(tokenizer: Any) -> str | None:
    special, enders = _special_ids(tokenizer), _turn_enders(tokenizer)
    candidates = [tokenizer.pad_token] if tokenizer.pad_token is not None else []
    # Last resort: reserved tokens.
    candidates += [*_PAD_CANDIDATES, *sorted(token for token in special if "reserved" in token or "unused" in token)]
    return next((token for token in candidates if token in special and special[token] not in enders), None)


def _check_pad(tokenizer: Any, name: str) -> None:
    pad = tokenizer.pad_token
    known = pad is not None and pad in tokenizer.get_vocab()
    if known and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    if pad is None:
        what = "No token of this tokenizer can be used for padding without also ending a turn"
    elif known:
        what = f"The pad token {pad!r} is the eos token, which ends every turn"
    else:
        what = f"The pad token {pad!r} is not in the vocabulary"
    raise ModelError(
        what,
        where=name,
        expected="a pad token that is in the vocabulary and is not eos",
        remedy="pass --pad_token with a token that never occurs in text, or add one to tokenizer and embeddings "
        "(add_special_tokens, resize_token_embeddings) and save both",
    )
