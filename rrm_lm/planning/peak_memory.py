"""Peak memory of training and sampling in addition to the weights, traced with tensors without data.

The memory that autograd keeps depends on the family, the dtypes of weights and adapters, and checkpointing, so there is
no formula for it. Instead, models with two and with three layers run the real pass under torch's FakeTensorMode, for
several numbers of rows, and every allocation is counted. Layers are alike, so each additional layer needs as much as
the third.
"""

from __future__ import annotations

import copy
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rrm_lm.errors import ModelError
from rrm_lm.models.agent import VALUE, AgentModel, disable_dropout
from rrm_lm.models.backbone import Backbone
from rrm_lm.models.decoding.decoders import WholeDecoder
from rrm_lm.models.decoding.key_values import KeyValues
from rrm_lm.models.decoding.lean_decoder import LeanDecoder
from rrm_lm.models.decoding.rollouts import PREFILL_TOKENS
from rrm_lm.models.decoding.sampling import Sampling
from rrm_lm.models.decoding.token_probs import CHUNK
from rrm_lm.models.reward import ADAPTER, RewardModel, RewardSettings
from rrm_lm.models.saving.policies import POLICY
from rrm_lm.planning.footprint import model_without_weights, with_layers
from rrm_lm.text.batching import Batch, collate, share
from rrm_lm.text.chat import Line

_DEPTHS = (2, 3)
_MOST_ROWS = 1 << 20

_Run = Callable[[Batch, list[Line]], None]


@dataclass(frozen=True, slots=True)
class RowShape:
    """Lengths of one row of a batch, in tokens."""

    prompt: int
    response: int  # each response
    responses: int = 1  # number of responses that share the prompt
    critique: int = 0  # the critique of each response; 0 for none

    @property
    def line(self) -> int:
        """Tokens of the prompt and one response."""
        return self.prompt + self.response

    @property
    def width(self) -> int:
        return self.prompt + self.responses * (self.response + self.critique)

    def lines(self) -> list[Line]:
        """Lines of this shape, which differ from the first response token."""
        end, length = self.line - 1, self.line + self.critique
        ids = [(1,) * self.prompt + (2 + number,) * (length - self.prompt) for number in range(self.responses)]
        return [Line(one, self.prompt, end, range(end + 1, length), end if self.critique else 0) for one in ids]


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak bytes of a computation, without weights, gradients and optimizer state."""

    rows: tuple[int, ...]  # traced numbers of rows, increasing
    base: tuple[float, ...]  # bytes that do not depend on the number of layers, for each number of rows
    layer: tuple[float, ...]  # bytes per layer, for each number of rows
    layers: int  # number of layers of the model
    width: int  # number of tokens in a row

    def bytes(self, rows: int) -> int:
        """Peak bytes for a number of rows: interpolated between traced numbers, extrapolated beyond them."""
        found = np.array(self.base) + self.layers * np.array(self.layer)
        last = int(np.searchsorted(self.rows, rows).clip(1, len(self.rows) - 1))
        slope = (found[last] - found[last - 1]) / (self.rows[last] - self.rows[last - 1])
        return max(0, round(float(found[last] + (rows - self.rows[last]) * slope)))

    def rows_within(self, budget: float) -> int:
        """Number of rows that fit into `budget` bytes."""
        return bisect_right(range(1, _MOST_ROWS), budget, key=self.bytes)


class Tracer:
    """Traces passes of a model without weights.

    Args:
        attention: Attention implementation; ``None`` for transformers' default.
        value: The policy's value function, ``head`` or ``adapter``.
    """

    def __init__(
        self,
        config: Any,
        lora: LoraConfig,
        dtype: torch.dtype,
        *,
        attention: str | None = None,
        value: str = "head",
        share: bool = True,
    ) -> None:
        self.config, self.lora, self.dtype, self.attention = config.get_text_config(), lora, dtype, attention
        self.value, self.share = value, share
        self._mode = FakeTensorMode()

    def reward(self, shape: RowShape, checkpointing: bool) -> Peak:
        """Forward and backward pass of a reward model. Each row is a prompt and the two responses of a pair."""

        def start(backbone: Backbone) -> tuple[nn.Module, _Run]:
            self._adapt(backbone, [ADAPTER])
            model = RewardModel(backbone, RewardSettings(""))
            if checkpointing:
                model.activation_checkpointing_enable()

            def run(batch: Batch, lines: list[Line]) -> None:
                output = model(batch, lines, with_critiques=shape.critique > 0)
                (output.members.sum() + output.critique_nll.sum()).backward()

            return model.train(), run

        return self._peak(start, shape)

    def policy(self, shape: RowShape, checkpointing: bool) -> Peak:
        """Forward and backward pass of PPO's policy with its value function. Each row is a prompt and its samples.

        PPO keeps the graph of the pass that gives the old log-probabilities while it computes the next rows without
        one.
        """
        sampling = Sampling(shape.response, 0.7)

        def start(backbone: Backbone) -> tuple[nn.Module, _Run]:
            self._adapt(backbone, [POLICY, VALUE] if self.value == "adapter" else [POLICY])
            agent = AgentModel(backbone, value=self.value)
            disable_dropout(agent)
            if checkpointing:
                agent.activation_checkpointing_enable()

            def run(batch: Batch, lines: list[Line]) -> None:
                output: Any = agent("policy", batch, lines, sampling)
                with torch.no_grad():
                    agent("policy", batch, lines, sampling)
                (output.log_probs.sum() + output.values.sum()).backward()

            return agent.train(checkpointing), run

        return self._peak(start, shape)

    def rollout(self, shape: RowShape) -> Peak:
        """Sampling: weight copies (float32 only), keys and values, prompts, and logits. Each row is an episode."""
        sampling = Sampling(shape.response, 0.7)

        def start(backbone: Backbone) -> tuple[nn.Module, _Run]:
            self._adapt(backbone, [POLICY])

            @torch.no_grad()
            def run(_: Batch, lines: list[Line]) -> None:
                rows = len(lines)
                with backbone.using(POLICY):
                    try:
                        decoder: Any = LeanDecoder(backbone, POLICY, False)
                    except (TypeError, AttributeError):
                        decoder = WholeDecoder(backbone)
                    cache = KeyValues(int(backbone.config.num_hidden_layers), rows, shape.line)
                    several = max(1, min(rows, PREFILL_TOKENS // shape.prompt))
                    hidden = torch.empty(0)
                    for first in range(0, rows, several):
                        count = min(several, rows - first)
                        starts = torch.arange(count) % 2  # uneven lengths require a mask
                        cache.place(0, [0, 1], first)
                        ids = torch.ones(count, shape.prompt, dtype=torch.long)
                        hidden = decoder(ids, starts, cache)[:, -1]
                    hidden = hidden[:1].expand(rows, -1)
                    tokens = sampling.draw(backbone.logits(hidden, POLICY), torch.rand(rows, dtype=torch.float64))
                    cache.place(shape.line - 1, [0, 1])
                    decoder(tokens[:, None], torch.arange(rows) % 2, cache)

            return backbone.eval(), run

        return self._peak(start, shape)

    def _adapt(self, backbone: Backbone, adapters: Sequence[str]) -> None:
        for name in adapters:
            backbone.add_adapter(name, copy.deepcopy(self.lora))

    def _batch(self, shape: RowShape, rows: int) -> tuple[Batch, list[Line]]:
        lines = shape.lines()
        together = [lines] if self.share else [[line] for line in lines]
        laid = [share([line.ids for line in group], [line.blind for line in group]) for group in together]
        return collate(laid * rows, pad_id=0), lines * rows

    def _peak(self, start: Callable[[Backbone], tuple[nn.Module, _Run]], shape: RowShape) -> Peak:
        """Trace a pass for two depths and several numbers of rows."""
        whole = -(-CHUNK // (shape.responses * (shape.response + shape.critique)))  # rows that fill a chunk of logits
        batches = {rows: self._batch(shape, rows) for rows in sorted({1, whole, 2 * whole, 4 * whole, 16 * whole})}
        found: dict[tuple[int, int], int] = {}
        for depth in _DEPTHS:
            with self._explain_errors():
                with torch.device("meta"):
                    model = model_without_weights(with_layers(self.config, depth), self.dtype, self.attention)
                    module, run = start(Backbone(model, 0, sharing=self.share))
                with self._mode:
                    _as_if_on_cpu(module)
                    for rows, (batch, lines) in batches.items():
                        found[depth, rows] = _measured(module, lambda b=batch, x=lines, f=run: f(_without_data(b), x))
        low, high = _DEPTHS
        layer = [(found[high, rows] - found[low, rows]) / (high - low) for rows in batches]
        return Peak(
            rows=tuple(batches),
            base=tuple(found[low, rows] - low * each for rows, each in zip(batches, layer, strict=True)),
            layer=tuple(layer),
            layers=self.config.num_hidden_layers,
            width=batches[1][0].input_ids.numel(),
        )

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, NotImplementedError, TypeError, IndexError, AttributeError) as error:
            raise ModelError(
                f"This model cannot be traced without data ({' '.join(str(error).split())[:200]})",
                where=str(getattr(self.config, "model_type", "")),
                expected="a dense language model, whose computation does not depend on token values",
                remedy="plan with a dense model of about the same size",
            ) from error


def _without_data(batch: Batch) -> Batch:
    """A batch with the same shapes, created under the current mode."""
    parts = (batch.input_ids, batch.position_ids, batch.is_real, batch.sees)
    ids, positions, real, sees = (None if part is None else torch.empty(part.shape, dtype=part.dtype) for part in parts)
    assert ids is not None and positions is not None and real is not None
    return Batch(ids, positions, real, sees, batch.where)


def _as_if_on_cpu(module: nn.Module) -> None:
    """Replace tensors on the meta device, which would use other kernels, with fake CPU tensors."""
    made: dict[Tensor, Tensor] = {}
    tables: list[Any] = [table for part in module.modules() for table in (part._parameters, part._buffers)]
    for table in tables:
        for name, tensor in table.items():
            if tensor is None:
                continue
            if tensor not in made:
                made[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype)
                if isinstance(tensor, nn.Parameter):
                    made[tensor] = nn.Parameter(made[tensor], tensor.requires_grad)
            table[name] = made[tensor]


def _measured(module: nn.Module, run: Callable[[], None]) -> int:
    """Peak bytes of a run, without the module's tensors and gradients."""
    held: list[Tensor] = [*module.parameters(), *module.buffers()]
    for parameter in module.parameters():
        if parameter.requires_grad:  # gradients exist from the first micro-batch on
            parameter.grad = torch.zeros_like(parameter)
            held.append(parameter.grad)
    with AllocationPeak(held) as peak:
        run()
    return peak.most


class AllocationPeak(TorchDispatchMode):
    """Counts the bytes of all live tensors, except existing ones (`held`): `now`, and at their peak (`most`)."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # the most frequent call, and slow in FakeTensorMode
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, result)
        self.most = max(self.most, self.now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._held:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.now += size

    def _forget(self, key: int, size: int, _: Any) -> None:
        self._alive.pop(key, None)
        self.now -= size
