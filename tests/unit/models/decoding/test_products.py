"""Matrix products with adapters added in and weights laid out anew: the layer's own numbers, for any number of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from rrm_lm.models.decoding.products import Adapted, Product, can_pack, computing_with, merged_weight, products_of


def layer(kind: type = nn.Linear, **options: Any) -> Any:
    """A PEFT LoRA layer, 6 features in and 9 out, in evaluation mode."""
    torch.manual_seed(0)
    base = Conv1D(9, 6) if kind is Conv1D else nn.Linear(6, 9, bias=bool(options.pop("bias", True)))
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["0"], "init_lora_weights": False, **options}
    return get_peft_model(nn.Sequential(base), LoraConfig(**settings)).base_model.model[0].eval()  # type: ignore


def packings() -> list[bool]:
    return [False, True] if can_pack(torch.zeros(1)) else [False]


@pytest.mark.parametrize("packed", packings())
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 16, 33, 300])
def test_products_for_any_number_of_rows(rows: int, bias: bool, packed: bool) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(48, 96, bias=bias).requires_grad_(False)
    product = Product(linear.weight, linear.bias, packed)
    x, total = torch.randn(rows, 48), torch.randn(rows, 96)
    torch.testing.assert_close(product(x), linear(x))
    torch.testing.assert_close(product(x.view(rows, 1, 48)), linear(x.view(rows, 1, 48)))
    strided = torch.randn(48, rows).t()
    torch.testing.assert_close(product(strided), linear(strided))
    torch.testing.assert_close(product.add_to(total.clone(), x), total + linear(x))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"bias": "none"}], ids=str)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_the_merged_weight_is_that_of_the_layer(kind: type, options: dict[str, Any]) -> None:
    module = layer(kind, **options, **({"fan_in_fan_out": True} if kind is Conv1D else {}))
    x = torch.randn(4, 6)
    found = merged_weight(module, "default")
    assert found is not None
    torch.testing.assert_close(nn.functional.linear(x, *found), module(x))
    bare = merged_weight(module, None)
    assert bare is not None
    torch.testing.assert_close(nn.functional.linear(x, *bare), module.base_layer(x))
    assert bare[0].data_ptr() == module.base_layer.weight.data_ptr()
    assert float((found[0] - bare[0]).detach().abs().max()) > 0.01


def test_a_layer_without_this_adapter_is_bare() -> None:
    found = merged_weight(layer(), "another")
    assert found is not None and torch.equal(found[0], layer().base_layer.weight)


def half(module: Any) -> None:
    module.to(torch.bfloat16)


def mixed(module: Any) -> None:
    module.base_layer.to(torch.bfloat16)


def merged(module: Any) -> None:
    module.merge()


class Other(nn.Linear):
    """A linear layer that computes something else, as quantised ones do."""


def other(module: Any) -> None:
    module.base_layer.__class__ = Other


def other_kind(module: Any) -> None:
    module.base_layer = nn.Embedding(6, 9)


@pytest.mark.parametrize("change", [half, mixed, merged, other])
def test_layers_that_cannot_be_one_weight(change: Any) -> None:
    module = layer()
    change(module)
    assert merged_weight(module, "default") is None


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_adapters_that_are_more_than_a_weight(options: dict[str, Any]) -> None:
    assert merged_weight(layer(**options), "default") is None
    assert merged_weight(nn.Embedding(3, 4), None) is None


def test_an_adapter_of_more_bits_is_computed_apart() -> None:
    """Three layers with one input, one of them without an adapter: PEFT's outputs, to the last rounding."""
    modules = [layer(), layer(bias=False), nn.Linear(6, 5).eval()]
    for module in modules:
        getattr(module, "base_layer", module).to(torch.bfloat16)
    joined = Adapted(modules, "default")
    x, total = torch.randn(40, 6).bfloat16(), torch.randn(40, 23).bfloat16()
    expected = torch.cat([module(x) for module in modules], -1)
    assert joined(x).dtype == torch.bfloat16
    torch.testing.assert_close(joined(x), expected, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(joined.add_to(total, x), total + expected, rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(joined(x.view(5, 8, 6)).view(40, -1), joined(x))
    without = torch.cat([getattr(module, "base_layer", module)(x) for module in modules], -1)
    assert float((without - expected).abs().max()) > 0.1


@pytest.mark.parametrize("change", [merged, other_kind], ids=lambda change: change.__name__)
def test_what_cannot_be_computed_apart(change: Any) -> None:
    module = layer()
    change(module)
    with pytest.raises(TypeError):
        Adapted([module], "default")


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=str)
def test_other_adapters_cannot_be_computed_apart(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="more than two matrices"):
        Adapted([layer(**options)], "default")


def test_modules_compute_with_products_and_get_their_own_way_back() -> None:
    module = layer()
    own = module.base_layer
    calls: list[str] = []

    def patched(x: Any) -> Any:
        calls.append("patched")
        return x

    own.forward = patched
    x = torch.randn(2, 6)
    products = {module: Product(torch.ones(1, 6), None, packed=False), own: Product(torch.zeros(1, 6), None, False)}
    with pytest.raises(KeyError), computing_with(products):
        torch.testing.assert_close(module(x), x.sum(1, keepdim=True))
        torch.testing.assert_close(own(x), torch.zeros(2, 1))
        raise KeyError
    assert "forward" not in module.__dict__ and own.forward is patched and not calls


def test_which_layers_of_a_model_get_products() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(layer(), nn.LayerNorm(9)))
    adapted = model[1][0]  # type: ignore[index]
    assert products_of(model, "default", packed=False).keys() == {adapted}
    if can_pack(torch.zeros(1)):
        assert products_of(model, "default", packed=True).keys() == {adapted, model[0]}


@pytest.mark.parametrize("weight", [torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, device="meta")], ids=str)
def test_only_single_precision_on_a_cpu_is_laid_out_anew(weight: torch.Tensor) -> None:
    assert not can_pack(weight)
