"""The fused LoRA layer against PEFT's own, and every case in which it must step aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rrm_lm.models.fast import lora as fast_lora
from rrm_lm.models.fast.lora import speed_up
from tests.tiny import lora, tiny_model

torch.set_num_threads(1)


def layer(*, bias: bool = True, out: int = 7, config: dict[str, Any] | None = None, seed: int = 0) -> Any:
    """A PEFT LoRA layer, 5 features in; the same arguments give the same weights."""
    torch.manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["0"], "init_lora_weights": False, **(config or {})}
    model = nn.Sequential(nn.Linear(5, out, bias=bias))
    model.requires_grad_(False)
    return get_peft_model(model, LoraConfig(**settings)).base_model.model[0]  # type: ignore[arg-type, index]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the fused computation really ran."""
    counted: list[int] = []
    apply = fast_lora._LoraLinear.apply

    def counting(*args: Any) -> Any:
        counted.append(1)
        return apply(*args)

    monkeypatch.setattr(fast_lora._LoraLinear, "apply", counting)
    return counted


def results(module: Any, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Output and all gradients of a loss that weighs every number of the output differently."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    out = module(x)
    (out.float() * weight[..., : out.shape[-1]]).sum().backward()
    assert x.grad is not None
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **grads}


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert mine[name].dtype == theirs[name].dtype
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 1, 3, 5)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_peft(bias: bool, shape: tuple[int, ...], rslora: bool, calls: list[int]) -> None:
    module = layer(bias=bias, config={"use_rslora": rslora})
    x, weight = torch.randn(shape), torch.randn((*shape[:-1], 7))
    theirs = results(module, x, weight)
    assert not calls
    assert speed_up(module) == 1
    mine = results(module, x, weight)
    assert calls == [1]
    assert {"out", "x"} < mine.keys() and len(mine) == 4  # and A and B, but not the frozen weight
    assert_same(mine, theirs)


def test_inputs_without_gradient_and_memory_in_other_orders(calls: list[int]) -> None:
    module = layer()
    x = torch.randn(5, 6).t()[::2]
    weight = torch.randn(7, 3).t()
    theirs = results(module, x, weight)
    speed_up(module)
    assert_same(results(module, x, weight), theirs)
    module.zero_grad()
    (module(x) * weight).sum().backward()  # x has no gradient, as in the first layer of a frozen model
    torch.testing.assert_close(module.lora_A.default.weight.grad, theirs["lora_A.default.weight"])
    with torch.no_grad():
        torch.testing.assert_close(module(x), theirs["out"])
    assert len(calls) == 3


def test_gradients_that_are_not_wanted_are_not_made() -> None:
    module = layer()
    speed_up(module)
    module.lora_A.default.weight.requires_grad_(False)
    module(torch.randn(2, 5)).sum().backward()
    assert module.lora_A.default.weight.grad is None
    assert module.lora_B.default.weight.grad is not None


def test_gradients_against_differences() -> None:
    module = layer().double()
    speed_up(module)
    a, b = module.lora_A.default.weight, module.lora_B.default.weight

    def forward(x: Tensor, a: Tensor, b: Tensor) -> Any:
        return fast_lora._LoraLinear.apply(x, module.base_layer.weight, module.base_layer.bias, a, b, 0.7)

    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, a, b))


def disabled(module: Any) -> None:
    module._disable_adapters = True


def merged(module: Any) -> None:
    module.merge()


def two_active(module: Any) -> None:
    torch.manual_seed(8)
    module.update_layer("other", r=2, lora_alpha=2, config=LoraConfig(r=2, init_lora_weights=False))
    module._active_adapter = ["default", "other"]


def trainable_weight(module: Any) -> None:
    module.base_layer.weight.requires_grad_(True)


def trainable_bias(module: Any) -> None:
    module.base_layer.bias.requires_grad_(True)


class Other(nn.Linear):
    """A linear layer that computes something else, as quantised ones do."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


def other_linear(module: Any) -> None:
    module.base_layer.__class__ = Other


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (disabled, {}),
        (merged, {}),
        (two_active, {}),
        (trainable_weight, {}),
        (trainable_bias, {}),
        (other_linear, {}),
        (lambda module: None, {"use_dora": True}),
        (lambda module: None, {"lora_bias": True}),
    ],
    ids=["disabled", "merged", "two_active", "trainable_weight", "trainable_bias", "other_linear", "dora", "lora_bias"],
)
def test_steps_aside(change: Callable[[Any], None], config: dict[str, Any], calls: list[int]) -> None:
    module = layer(config=config)
    change(module)
    x, weight = torch.randn(4, 5), torch.randn(4, 7)
    theirs = results(module, x, weight)
    speed_up(module)
    assert_same(results(module, x, weight), theirs)
    assert not calls


def test_steps_aside_for_dropout_that_is_on(calls: list[int]) -> None:
    module = layer(config={"lora_dropout": 0.5})
    x, weight = torch.randn(40, 5), torch.randn(40, 7)
    module.train()
    torch.manual_seed(1)
    theirs = results(module, x, weight)
    speed_up(module)
    torch.manual_seed(1)
    assert_same(results(module, x, weight), theirs)
    assert not calls
    module.eval()
    assert float((results(module, x, weight)["out"] - theirs["out"]).abs().max()) > 0.1
    assert calls == [1]


@pytest.mark.parametrize("where", ["base", "input", "autocast"])
def test_steps_aside_for_mixed_precision(where: str, calls: list[int]) -> None:
    module = layer()
    x, weight = torch.randn(4, 5), torch.randn(4, 7)
    if where == "base":
        module.base_layer.to(torch.bfloat16)
        x = x.to(torch.bfloat16)
    elif where == "input":
        module = module.to(torch.bfloat16)
        module.lora_A.float()
        module.lora_B.float()
        x = x.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where == "autocast"):
        theirs = results(module, x, weight)
        speed_up(module)
        assert_same(results(module, x, weight), theirs)
    assert not calls


def test_all_bfloat16_is_fused(calls: list[int]) -> None:
    module = layer().to(torch.bfloat16)
    x, weight = torch.randn(4, 5).to(torch.bfloat16), torch.randn(4, 7)
    theirs = results(module, x, weight)
    speed_up(module)
    mine = results(module, x, weight)
    assert calls == [1]
    for name in theirs:
        assert mine[name].dtype == torch.bfloat16
        torch.testing.assert_close(mine[name], theirs[name], rtol=0.05, atol=0.1)


def test_whole_model_has_the_same_gradients(calls: list[int]) -> None:
    model = tiny_model("llama")
    model.requires_grad_(False)
    torch.manual_seed(0)
    peft = get_peft_model(model, lora())
    ids = torch.arange(3, 23).view(2, 10)

    def gradients() -> dict[str, Tensor]:
        peft.zero_grad()
        peft(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in peft.named_parameters() if p.grad is not None}

    theirs = gradients()
    assert speed_up(peft) == 14  # seven linear layers in each of two blocks
    mine = gradients()
    assert len(calls) == 14
    assert mine.keys() == theirs.keys() and len(mine) == 28
    for name in theirs:
        assert float((mine[name] - theirs[name]).norm() / theirs[name].norm()) < 1e-5, name
    with peft.disable_adapter(), torch.no_grad():
        bare = peft(input_ids=ids).logits
    torch.testing.assert_close(bare, tiny_model("llama")(input_ids=ids).logits)


def test_gpt2_keeps_its_own_layers() -> None:
    """GPT-2's linear layers have transposed weights."""
    model = tiny_model("gpt2")
    ids = torch.arange(3, 23).view(2, 10)
    torch.manual_seed(0)
    peft = get_peft_model(model, lora("gpt2"))
    with torch.no_grad():
        theirs = peft(input_ids=ids).logits
        speed_up(peft)
        assert torch.equal(peft(input_ids=ids).logits, theirs)
