"""Sharded models (FSDP2): which tensors are shards, how they become whole, and the way into a root module's parts.

Each process holds a shard of every parameter. The parameters of a layer are whole while it computes, those of the root
(embeddings, heads) from its first forward pass until the next backward pass or :func:`settle`. What is called here
"by all processes" talks to the other ones: a process that leaves it out stops all of them. Nothing here changes or
costs anything where a model is whole, so callers need not ask.
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
    """Whether a tensor is this process's part of one."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without gradient. Called by all processes."""
    shard: Any = tensor.detach()
    return shard.full_tensor() if is_shard(tensor) else shard


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some tensors as they are written down: whole, on the CPU. Called by all processes, if they are shards."""
    return {name: whole(tensor).cpu().contiguous() for name, tensor in tensors.items()}


def shard_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, cut as another one is; the same on every process, so that nothing has to be sent."""
    if not is_shard(target) or is_shard(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = target
    return distribute_tensor(value.to(device_of(target)), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a value into a parameter, each process its own shard of it. The root must be settled (:func:`settle`).

    Args:
        target: A parameter, or what shares its memory.
        value: Whole, and the same on every process; or cut like the parameter.
    """
    target.copy_(shard_like(value, target))


def device_of(parameter: Tensor) -> torch.device:
    """Where a parameter is computed with, which is not where an offloaded shard is kept."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.device_type == parameter.device.type:
        return parameter.device
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


# -- modules ----------------------------------------------------------------------------------------------------------


def units(module: nn.Module) -> list[Any]:
    """The modules that are sharded each by itself: the root and its layers; none in a whole model."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    """Whether a model, or a part of it, is sharded."""
    return bool(units(module))


def settle(module: nn.Module) -> None:
    """Make all parameters shards again: what is written into whole ones is lost, the optimizer has the shards."""
    for part in units(module):
        part.reshard()


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """Every parameter whole on every process for a while, so that each may compute what it likes, or nothing.

    Entered and left by all processes, with a root that is open (:func:`open_ways`). Parameters must not be changed
    inside.
    """
    here: Any = root
    parts = [] if getattr(here, "is_gathered", False) else units(root)
    if not parts:
        yield
        return
    here.alone(lambda: None)  # the root is known as such from its own first pass on, which must come before a layer's
    frees = {part: _frees(part) for part in parts}
    try:
        for part in parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        here.is_gathered = True
        yield
    finally:
        here.is_gathered = False
        for part in parts:
            part.set_reshard_after_forward(frees[part], recurse=False)
            part.reshard()


def _frees(part: Any) -> bool:
    """Whether a unit gives its whole parameters back after a forward pass. There is a setter for this, no getter."""
    return any(group.post_forward_mesh_info is not None for group in part._get_fsdp_state()._fsdp_param_groups)


def inside(root: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function that computes with parts of a model by themselves: a decoder, a head.

    Called by all processes. Where the root does not gather, the function must run its layers equally often in each.
    """
    here: Any = root
    if is_sharded(root) and getattr(here, "gathers", True):
        with gathered(root):
            return function(*args, **kwargs)
    return in_step(root, function, *args, **kwargs)


def in_step(root: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As :func:`inside`, never gathered: for what every process computes alike."""
    here: Any = root
    return here.alone(function, *args, **kwargs) if is_sharded(root) else function(*args, **kwargs)


class Root(nn.Module):
    """A module that is sharded as one, with what Accelerate looks for on the models it shards.

    Attributes:
        gathers: Whether :func:`inside` gathers the whole model: faster, where it fits. Else its layers are gathered
            one after the other, each time.
        is_gathered: Whether it is gathered now.
    """

    gathers: bool = True
    is_gathered: bool = False

    def inside(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """See :func:`inside`."""
        return inside(self, function, *args, **kwargs)

    def alone(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What FSDP takes for a forward pass (see :func:`open_ways`)."""
        return function(*args, **kwargs)

    @property
    def _no_split_modules(self) -> list[str]:
        """Class names of the layers, each of which is sharded by itself. Accelerate asks for this name."""
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


# -- preparing --------------------------------------------------------------------------------------------------------


def refuse_zero(plugin: Any) -> None:
    """Refuse a ZeRO stage of DeepSpeed that takes weights away, which are read here outside of forward passes, too.

    Args:
        plugin: Accelerate's settings of DeepSpeed, or None. Settings of trainers ask, since transformers loads models
            in parts as soon as it knows of stage 3.

    Raises:
        ConfigError: It is such a stage, or none at all.
    """
    if plugin is not None and plugin.zero_stage not in (1, 2):
        raise ConfigError(
            f"The launch asks for DeepSpeed's ZeRO stage {plugin.zero_stage}",
            where="zero_stage",
            expected="1 or 2, where each process has the whole model",
            remedy="launch with configs/accelerate/fsdp2.yaml, which shards all that stage 3 would, or with zero2.yaml",
        )


def shards(accelerator: Any) -> bool:
    """Whether this launch shards models.

    Raises:
        ConfigError: It does, in the way of FSDP's first version or of DeepSpeed; with DeepSpeed on the CPU; or on the
            CPU of a machine with a GPU.
    """
    zero = getattr(accelerator.state, "deepspeed_plugin", None)
    refuse_zero(zero)
    if zero is not None and accelerator.num_processes == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "With DeepSpeed and without a GPU, every process takes itself for the only one",
            where="the launch",
            expected="processes that share the work",
            remedy="launch with configs/accelerate/cpu2.yaml",
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or accelerator.num_processes == 1:
        return False
    if plugin.fsdp_version != 2:
        raise ConfigError(
            "The launch shards models with the first version of FSDP",
            where="fsdp_version",
            expected="fsdp_version: 2, which lets frozen and trained parameters be in one layer",
            remedy="launch with --config_file configs/accelerate/fsdp2.yaml",
        )
    if accelerator.device.type != default_device().type:
        raise ConfigError(
            "The launch shards models on the CPU of a machine with a GPU, which FSDP2 would take instead",
            where="use_cpu",
            remedy='leave out --use_cpu, or hide the GPU: CUDA_VISIBLE_DEVICES=""',
        )
    return accelerator.is_fsdp2


def arrange(accelerator: Any, root: nn.Module) -> None:
    """Choose how a model is sharded, where this launch shards models. Before `Accelerator.prepare`.

    Each layer is a unit; parameters keep their own precision, so that a frozen bfloat16 model and float32 adapters and
    heads stay what they are, and gradients are summed in theirs; activations are recomputed by this project's own
    checkpointing, which knows the adapter that was active.

    Raises:
        ConfigError: See :func:`shards`.
    """
    if not shards(accelerator):
        return
    from torch.distributed.fsdp import OffloadPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin: Any = accelerator.state.fsdp_plugin
    if accelerator.device.type == "cpu":
        plugin.cpu_offload = OffloadPolicy()  # shares are in the machine's memory already, and need no pinned copy
    present = {type(module).__name__ for module in root.modules()}
    if not set(plugin.transformer_cls_names_to_wrap or ()) & present:
        plugin.transformer_cls_names_to_wrap = list(getattr(root, "_no_split_modules", None) or ()) or None
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    if plugin.activation_checkpointing:
        plugin.activation_checkpointing = False
        enable: Any = getattr(root, "activation_checkpointing_enable", None) or root.gradient_checkpointing_enable
        enable()
    plugin.mixed_precision_policy = None
    if accelerator.native_amp:
        _autocast(accelerator, root)


def _autocast(accelerator: Any, root: Any) -> None:
    """Mixed precision as Accelerate does it for whole models; for sharded ones it would round the heads' weights."""
    own = type(root).forward

    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return own(self, *args, **kwargs)

    root._original_forward = root.forward  # by which Accelerate knows that there is something to unwrap
    root.forward = MethodType(forward, root)


def open_ways(root: nn.Module) -> None:
    """Tell FSDP of the other way into a root that it has sharded, its `alone`. After `Accelerator.prepare`.

    The log says what each process holds from now on, whatever the launch has asked for.
    """
    here: Any = root
    _log_strategy(root)
    if not is_sharded(root) or "alone" in vars(root):
        return
    from torch.distributed.fsdp import register_fsdp_forward_method

    if not isinstance(root, Root):
        here.alone = lambda function, *args, **kwargs: function(*args, **kwargs)
    register_fsdp_forward_method(here, "alone")


def _log_strategy(root: nn.Module) -> None:
    state = process_state()
    if state.num_processes == 1:
        return
    whole_model = "DeepSpeed" if state.distributed_type == DistributedType.DEEPSPEED else "DDP"
    parameters: list[Any] = [parameter.detach() for parameter in root.parameters()]
    count = sum(parameter.numel() for parameter in parameters)
    # Where the rows of a parameter cannot be shared evenly, the main process, which logs, has one more.
    held = sum((parameter.to_local() if is_shard(parameter) else parameter).numel() for parameter in parameters)
    logger.info(
        "%s over %d processes: each holds at most %.0f%% of the model's %s parameters",
        "FSDP2" if is_sharded(root) else whole_model,
        state.num_processes,
        100 * held / count,
        f"{count:,}",
    )


def shard_for_use(root: Root) -> bool:
    """Shard a model that is used and not trained, where this launch shards models; returns whether it did."""
    from accelerate import Accelerator
    from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env

    if process_state().num_processes == 1 or not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    accelerator = Accelerator(cpu=str(process_state().device).startswith("cpu"))
    if not shards(accelerator):
        return False
    arrange(accelerator, root)
    fsdp2_prepare_model(accelerator, root.requires_grad_(False).eval())
    open_ways(root)
    return True


def fits(module: nn.Module) -> bool:
    """Whether a whole copy of a model has room beside it, on the device of this process."""
    parameters = list(module.parameters())
    device = device_of(parameters[0])
    if device.type == "cpu" or not is_sharded(module):
        return True
    free = torch.get_device_module(device.type).mem_get_info()[0]
    return 1.2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters) < free


def most(number: int, device: torch.device) -> int:
    """The greatest of the processes' numbers. Called by all processes."""
    if not torch.distributed.is_initialized():
        return number
    found = torch.tensor([number], device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)
