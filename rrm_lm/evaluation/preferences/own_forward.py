"""Compare the rewards of another program's model with its own forward pass: one conversation at a time, unpadded."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from rrm_lm.errors import ModelError
from rrm_lm.models.portable import EXAMPLES, Conversation, messages_of
from rrm_lm.models.pretrained import rounding
from rrm_lm.models.reward import RewardModel
from rrm_lm.text.chat import ChatFormat

logger = logging.getLogger(__name__)


def check_forward(scorer: Any) -> None:
    """Compare a scorer's rewards of a few short conversations with those of its model's own forward pass.

    Those of this package were checked when they were saved. If a classifier reads padded rows differently, the scorer
    (a `RewardScorer` or a `ClassifierScorer`) runs it without padding from then on. Raises ModelError if the rewards
    differ, or there are several.
    """
    if scorer.chat.trim:
        return
    reward = scorer.model if isinstance(scorer.model, RewardModel) else None
    model: Any = scorer.model if reward is None else _as_classifier(reward, scorer.chat)
    if model is None:
        return
    with nullcontext() if reward is None else reward.backbone.using(reward.adapter):
        expected = _own_rewards(model, scorer.chat)
    unit = rounding(model.dtype, model.device)

    def is_equal() -> bool:
        found = scorer.score([prompt for prompt, _ in expected], [[response] for _, response in expected])
        mine = [reward for (reward,) in found]
        return np.allclose(mine, list(expected.values()), rtol=unit, atol=unit, equal_nan=True)

    if not is_equal() and reward is None:
        logger.info("%s reads padded rows differently: rows of equal length are scored together", scorer.name)
        scorer.padded = False
    if not is_equal():
        raise ModelError(
            "The rewards differ from those of the model's own forward pass",
            where=scorer.name,
            expected=f"{list(expected.values())} for a few short conversations",
            remedy="call its maker's code in a reward function; please report the model and the library versions",
        )


@torch.no_grad()
def _own_rewards(model: Any, chat: ChatFormat) -> dict[Conversation, float]:
    """The reward of each example that the template renders."""
    found = {}
    for talk in EXAMPLES:
        try:
            text = chat.tokenizer.apply_chat_template(messages_of(*talk), tokenize=False)
        except Exception:  # Jinja raises many kinds; the template may need a system message
            continue
        ids = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        logits = model(ids.to(model.device)).logits
        if logits.numel() != 1:
            raise ModelError(f"The model gives {logits.numel()} numbers per response", where=model.name_or_path)
        found[talk] = float(logits)
    return found


def _as_classifier(reward: RewardModel, chat: ChatFormat) -> Any:
    """The sequence classifier of transformers with this model's weights, which it shares; None without one."""
    lm = reward.backbone.causal_lm
    config = copy.deepcopy(lm.config)
    config.num_labels, config.get_text_config().pad_token_id = 1, chat.pad_id
    try:
        with torch.device("meta"):
            plain: Any = AutoModelForSequenceClassification.from_config(config)
        setattr(plain, plain.base_model_prefix, getattr(lm, lm.base_model_prefix))
    except (ValueError, AttributeError) as error:
        logger.info("the rewards are not compared with the model's own forward pass (%s)", error)
        return None
    plain.score = copy.deepcopy(reward.head).to(lm.dtype)
    return plain.eval()
