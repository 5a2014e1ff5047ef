"""Tokens per pass and per rollout batch, from the free memory of a GPU, where the settings leave them open.

What fits is traced without data (:mod:`rrm_lm.planning.peak_memory`), for the longest rows of this run. On a CPU, and
for models that cannot be traced, they are `TOKENS` of :mod:`rrm_lm.training.arguments`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from peft import LoraConfig

from rrm_lm.errors import ModelError, RRMError
from rrm_lm.models.decoding.token_probs import chunk, logit_bytes
from rrm_lm.models.pretrained import process_state
from rrm_lm.models.sharding import max_over_processes
from rrm_lm.planning.planning import Job, choose, measure
from rrm_lm.training.arguments import TOKENS, open_sizes, set_sizes

logger = logging.getLogger(__name__)

_USED = 0.9  # share of the free memory; the rest is for NCCL's buffers and fragmentation


def fit_sizes(args: Any, task: str, backbone: Any, lora: LoraConfig, job: Callable[[], Job]) -> None:
    """Set `micro_batch_tokens` and `rollout_batch_tokens` where they are None, equally in all processes, and log them.

    Args:
        args: Settings of a trainer, which are changed.
        task: ``reward`` or ``ppo``.
        backbone: Its configuration, dtype and attention implementation are read.
        lora: Of the trained adapter.
        job: Gives the lengths of the longest rows, and the sizes of a step.
    """
    memory = free_memory(backbone) if open_sizes(args) else None
    if memory is not None:
        try:
            found = _fitting(args, task, backbone, lora, job(), memory)
        except RRMError as error:
            logger.warning("batch sizes are not fitted to the GPU: %s", error.what)
        else:
            device: Any = process_state().device
            least = {name: -max_over_processes(-tokens, device) for name, tokens in found.items()}
            set_sizes(args, least)
            shown = ", ".join(f"{name} {tokens}" for name, tokens in least.items())
            logits = chunk(int(backbone.config.vocab_size), device)
            message = "%s: what fits into %.1f GB of GPU memory; logits of %d tokens at once"
            logger.info(message, shown, memory / 1e9, logits)
    set_sizes(args, TOKENS)


def free_memory(backbone: Any) -> float | None:
    """Bytes that this process may use on its GPU, with those of the backbone if it is there already, but without what
    other models hold; None on other devices.
    """
    device: Any = process_state().device
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    own = sum(p.numel() * p.element_size() for p in backbone.model.parameters() if p.device.type == "cuda")
    return _USED * (torch.cuda.mem_get_info(device)[0] + cached + own)


def _fitting(args: Any, task: str, backbone: Any, lora: LoraConfig, job: Job, memory: float) -> dict[str, int]:
    """The open sizes with which a step fits. Raises ModelError: the model cannot be traced; ConfigError: the adapter
    does not fit it.
    """
    model, attention = backbone.causal_lm, backbone.config._attn_implementation
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError("The weights are quantized, and what fits is only known for others")
    shares = backbone.can_share
    job = replace(job, activation_checkpointing=bool(args.activation_checkpointing))
    measured = measure(model.config, lora, model.dtype, job, attention=attention if shares else "sdpa", share=shares)
    processes = process_state().num_processes
    device: Any = process_state().device
    head = logit_bytes(backbone.config.vocab_size, device)
    choice = choose(task, strategy(processes), processes, memory - head, measured, job)
    if not choice.fits:
        logger.warning("the longest rows of this run may not fit into %.1f GB of GPU memory", memory / 1e9)
    found = {"micro_batch_tokens": choice.micro_batch_tokens, "rollout_batch_tokens": choice.rollout_batch_tokens}
    return {name: found[name] for name in open_sizes(args)}


def strategy(processes: int) -> str:
    """The strategy of this launch, by its name in :data:`rrm_lm.planning.strategies.STRATEGIES`."""
    if processes == 1:
        return "single"
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return "fsdp2_offload" if parse_flag_from_env("FSDP_OFFLOAD_PARAMS") else "fsdp2"
    return "zero2" if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else "ddp"
