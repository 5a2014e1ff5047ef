"""FSDP2 sharding: shards and full tensors, computing outside ``forward``, configuring Accelerate.

Each process holds a shard of every parameter. A layer's parameters are full while it computes. Those of the root
(embeddings, heads) are full from its first forward pass until the next backward pass or :func:`reshard`. Functions
documented as "called by all processes" are collective: if one process skips the call, the others hang. On an unsharded
model they are no-ops or plain calls, so callers need not check.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from rrm_lm.errors import ConfigError
from rrm_lm.models.pretrained import default_device, process_state

logger = logging.getLogger(__name__)

T = TypeVar("T")


# -- tensors ----------------------------------------------------------------------------------------------------------


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is this process's shard of a larger one."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather the full tensor, detached. Called by all processes."""
    detached: Any = tensor.detach()
    return detached.full_tensor() if is_shard(tensor) else detached


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather full copies on the CPU, ready to save. Called by all processes if the tensors are shards."""
    return {name: full_tensor(tensor).cpu().contiguous() for name, tensor in tensors.items()}


def shard_like(value: Tensor, target: Tensor) -> Tensor:
    """Shard a full tensor like `target`. All processes hold the same value, so nothing is communicated."""
    if not is_shard(target) or is_shard(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = target
    return distribute_tensor(value.to(device_of(target)), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a value into a parameter; each process copies its own shard. Call :func:`reshard` on the root first. The
    target is a parameter, or a tensor that shares its memory. The value is full and equal on every process, or sharded
    like the parameter.
    """
    target.copy_(shard_like(value, target))


def device_of(parameter: Tensor) -> torch.device:
    """The device a parameter is computed on. An offloaded shard is stored elsewhere."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.device_type == parameter.device.type:
        return parameter.device
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


# -- modules ----------------------------------------------------------------------------------------------------------


def fsdp_units(module: nn.Module) -> list[Any]:
    """The separately sharded modules (the root and its layers); empty for an unsharded model."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    """Whether a model, or a part of it, is sharded."""
    return bool(fsdp_units(module))


def reshard(module: nn.Module) -> None:
    """Free full parameters. Call it before writing parameters, because the optimizer only updates the shards."""
    for unit in fsdp_units(module):
        unit.reshard()


@contextmanager
def full_params(root: nn.Module) -> Iterator[None]:
    """Keep every parameter full on every process, after :func:`register_forward`; processes may then run different
    numbers of passes. Entered and exited by all processes. Do not change parameters inside.
    """
    module: Any = root
    units = [] if getattr(module, "is_gathered", False) else fsdp_units(root)
    if not units:
        yield
        return
    module.run_as_forward(lambda: None)  # FSDP must see the root's first pass before that of a layer
    frees = {unit: _frees_after_forward(unit) for unit in units}
    try:
        for unit in units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        module.is_gathered = True
        yield
    finally:
        module.is_gathered = False
        for unit in units:
            unit.set_reshard_after_forward(frees[unit], recurse=False)
            unit.reshard()


def _frees_after_forward(unit: Any) -> bool:
    """Whether a unit frees its full parameters after a forward pass. FSDP2 has a setter for this but no getter."""
    return any(group.post_forward_mesh_info is not None for group in unit._get_fsdp_state()._fsdp_param_groups)


def with_full_params(root: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function that uses parts of a model (a decoder, a head) outside its `forward`.

    Called by all processes. If `root.gathers` is False, the function must run the layers equally often in each process.
    """
    if is_sharded(root) and getattr(root, "gathers", True):
        with full_params(root):
            return function(*args, **kwargs)
    return run_as_forward(root, function, *args, **kwargs)


def run_as_forward(root: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Like :func:`with_full_params`, but gathers layer by layer. The function must do the same in all processes."""
    module: Any = root
    return module.run_as_forward(function, *args, **kwargs) if is_sharded(root) else function(*args, **kwargs)


class Root(nn.Module):
    """A module that is sharded as a whole, with the attributes that Accelerate looks for."""

    # Whether :func:`with_full_params` gathers the whole model at once. This is faster if the model fits; otherwise
    # layers are gathered one by one in every pass.
    gathers: bool = True
    is_gathered: bool = False  # whether the model is gathered now
    backbone: Any

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def run_as_forward(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Registered with FSDP as a second forward method (see :func:`register_forward`)."""
        return function(*args, **kwargs)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Recompute activations of all backbones in the backward pass. `transformers.Trainer` calls this."""
        for child in self.children():
            enable = getattr(child, "activation_checkpointing_enable", None)
            if enable is not None:
                enable(activation_checkpointing_kwargs or gradient_checkpointing_kwargs, **options)

    gradient_checkpointing_enable = activation_checkpointing_enable  # its name in transformers before 5.23

    @property
    def _no_split_modules(self) -> list[str]:
        """Class names of the layers, each of which becomes a unit. Accelerate reads this attribute."""
        models = [module for module in self.modules() if isinstance(module, PreTrainedModel)]
        named = {name for model in models for name in model._no_split_modules or ()}
        found = sorted(named & {type(module).__name__ for module in self.modules()})
        lists = [module for module in self.modules() if isinstance(module, nn.ModuleList) and len(module)]
        return found or sorted({type(max(lists, key=len)[0]).__name__} if lists else ())

    def tie_weights(self) -> None:
        """Tie embeddings again. Accelerate calls it after it has moved parameters."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
                module.tie_weights()


# -- configuration ----------------------------------------------------------------------------------------------------


def refuse_zero3(plugin: Any) -> None:
    """Raise a ConfigError for DeepSpeed's ZeRO stage 3, which shards weights that this package also reads outside
    forward passes. Called before transformers loads a model, which would load only shards. `plugin` is accelerate's
    DeepSpeed settings, or None.
    """
    if plugin is not None and plugin.zero_stage not in (1, 2):
        raise ConfigError(
            f"The launch asks for DeepSpeed's ZeRO stage {plugin.zero_stage}",
            where="zero_stage",
            expected="1 or 2, which keep the whole model in each process",
            remedy="launch with configs/accelerate/fsdp2.yaml, which shards all that stage 3 would, or with zero2.yaml",
        )


def shards_models(accelerator: Any) -> bool:
    """Whether this launch shards models. Raises ConfigError if the launch shards with FSDP 1 or ZeRO-3, uses DeepSpeed
    on the CPU, or shards on the CPU of a machine with a GPU.
    """
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    refuse_zero3(deepspeed)
    if deepspeed is not None and accelerator.num_processes == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = "DeepSpeed without a GPU does not connect the processes: each one runs alone"
        remedy = "launch with configs/accelerate/cpu2.yaml"
        raise ConfigError(what, where="the launch", expected="processes that share the work", remedy=remedy)
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or accelerator.num_processes == 1:
        return False
    if plugin.fsdp_version != 2:
        raise ConfigError(
            "The launch shards models with the first version of FSDP",
            where="fsdp_version",
            expected="fsdp_version: 2, which allows frozen and trained parameters in one layer",
            remedy="launch with --config_file configs/accelerate/fsdp2.yaml",
        )
    if accelerator.device.type != default_device().type:
        what = "The launch shards models on the CPU of a machine with a GPU, but FSDP2 would use the GPU"
        raise ConfigError(what, where="use_cpu", remedy='leave out --use_cpu, or hide the GPU: CUDA_VISIBLE_DEVICES=""')
    return accelerator.is_fsdp2


def configure_fsdp(accelerator: Any, root: nn.Module) -> None:
    """Configure sharding of a model, if this launch shards models. Call it before `Accelerator.prepare`.

    Each layer becomes an FSDP unit. Parameters keep their precision: a frozen bfloat16 model stays bfloat16, adapters
    and heads stay float32. Activations are recomputed by this package's checkpointing, which restores the adapter that
    was active. Raises ConfigError (see :func:`shards_models`), also for compiled layers that would be recomputed.
    """
    if not shards_models(accelerator):
        return
    from torch.distributed.fsdp import OffloadPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin: Any = accelerator.state.fsdp_plugin
    if accelerator.device.type == "cpu":
        plugin.cpu_offload = OffloadPolicy()  # shards are in host memory already and need no pinned copy
    present = {type(module).__name__ for module in root.modules()}
    if not set(plugin.transformer_cls_names_to_wrap or ()) & present:
        plugin.transformer_cls_names_to_wrap = list(getattr(root, "_no_split_modules", None) or ()) or None
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    if plugin.activation_checkpointing:
        if any(getattr(module, "is_compiled", False) for module in root.modules()):
            raise ConfigError(
                "torch.compile cannot trace layers that recompute their activations",
                where="fsdp_activation_checkpointing of the launch, and compile_layers",
                expected="one of them",
            )
        plugin.activation_checkpointing = False
        enable: Any = getattr(root, "activation_checkpointing_enable", None) or root.gradient_checkpointing_enable
        enable()
    plugin.mixed_precision_policy = None
    if accelerator.native_amp:
        _autocast(accelerator, root)


def _autocast(accelerator: Any, root: Any) -> None:
    """Use Accelerate's mixed precision for unsharded models; the one for sharded models rounds the heads' weights."""
    own = type(root).forward

    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return own(self, *args, **kwargs)

    root._original_forward = root.forward  # Accelerate unwraps models that have this attribute
    root.forward = MethodType(forward, root)


def register_forward(root: nn.Module) -> None:
    """Register `run_as_forward` with FSDP and log the strategy in use. Call it after `Accelerator.prepare`."""
    module: Any = root
    _log_strategy(root)
    if not is_sharded(root) or "run_as_forward" in vars(root):
        return
    from torch.distributed.fsdp import register_fsdp_forward_method

    if not isinstance(root, Root):
        module.run_as_forward = lambda function, *args, **kwargs: function(*args, **kwargs)
    register_fsdp_forward_method(module, "run_as_forward")


def _log_strategy(root: nn.Module) -> None:
    state = process_state()
    if state.num_processes == 1:
        return
    unsharded = "DeepSpeed" if state.distributed_type == DistributedType.DEEPSPEED else "DDP"
    parameters: list[Any] = [parameter.detach() for parameter in root.parameters()]
    count = sum(parameter.numel() for parameter in parameters)
    # If rows do not divide evenly, the main process, which logs, holds one row more than the last.
    held = sum((parameter.to_local() if is_shard(parameter) else parameter).numel() for parameter in parameters)
    logger.info(
        "%s over %d processes: each holds at most %.0f%% of the model's %s parameters",
        "FSDP2" if is_sharded(root) else unsharded,
        state.num_processes,
        100 * held / count,
        f"{count:,}",
    )


def shard_for_use(root: Root, accelerator: Any = None) -> bool:
    """Shard a model for inference, if this launch shards models; return whether it did. `accelerator` is that of a
    trainer, if there is one.
    """
    from accelerate import Accelerator
    from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env

    if process_state().num_processes == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    accelerator = accelerator or Accelerator(cpu=str(process_state().device).startswith("cpu"))
    if not shards_models(accelerator):
        return False
    configure_fsdp(accelerator, root)
    fsdp2_prepare_model(accelerator, root.requires_grad_(False).eval())
    register_forward(root)
    return True


def full_copy_fits(module: nn.Module) -> bool:
    """Whether this process's device has memory for a full copy of a sharded model in addition to its shards."""
    parameters = list(module.parameters())
    device = device_of(parameters[0])
    if device.type == "cpu" or not is_sharded(module):
        return True
    accelerator: Any = torch.get_device_module(device.type)
    free = accelerator.mem_get_info()[0] + accelerator.memory_reserved() - accelerator.memory_allocated()
    return 1.2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters) < free


def max_over_processes(number: int, device: torch.device) -> int:
    """The maximum of a number over all processes. Called by all processes."""
    if not torch.distributed.is_initialized():
        return number
    found = torch.tensor([number], device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)
