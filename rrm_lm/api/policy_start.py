"""Setup shared by SFT and policy training: a fresh adapter, and checks of the backbone."""

from __future__ import annotations

import logging

from peft import LoraConfig

from rrm_lm.api.lora import lora_settings
from rrm_lm.errors import ModelError
from rrm_lm.models.backbone import Backbone, check_logits
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.settings.models import ModelArguments

logger = logging.getLogger(__name__)


def put_fresh_adapter(backbone: Backbone, args: ModelArguments, lora: LoraConfig | None = None) -> None:
    """Add a new policy adapter to a backbone. Raises ConfigError if the LoRA settings do not fit the model."""
    with lora_settings(backbone, lora or args.lora()) as settings:
        backbone.add_adapter(POLICY, settings)


def check_family(backbone: Backbone) -> None:
    """Refuse a model family whose probabilities would be computed wrong. Raises ModelError if its logits are not its
    head applied to its hidden states.
    """
    try:
        check_logits(backbone)
    except ModelError as error:
        raise ModelError(error.what, expected=error.expected, remedy="use another backbone") from error


def fitted(asked: int | None, backbone: Backbone) -> int | None:
    """`max_length`, reduced to the number of positions of the model if that is smaller."""
    context = getattr(backbone.config, "max_position_embeddings", None)
    if context is None or (asked is not None and asked <= int(context)):
        return asked
    if asked is not None:
        logger.warning("max_length is %d, not %d: the model has no more positions", context, asked)
    return int(context)
