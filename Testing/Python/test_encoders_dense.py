"""Linear layers by oneDNN are what torch's are, and every network gets them."""

import math

import pytest
import torch
import torch.nn.functional as F
from FoundationRegLib.encoders import dense
from FoundationRegLib.encoders.dense import Dense, use_onednn
from FoundationRegLib.encoders.loading import NetworkEncoder
from FoundationRegLib.encoders.tiny_vit import TinyViT
from FoundationRegLib.encoders.vit import VisionTransformer
from FoundationRegLib.weights.catalogue import Entry
from torch import nn


def product(layer, x):
    """The definition, in float64."""
    y = x.double() @ layer.weight.double().T
    return y if layer.bias is None else y + layer.bias.double()


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 24), (2, 5, 7, 24), (24,)])
def test_a_layer_is_its_definition_with_and_without_gelu(shape, bias):
    torch.manual_seed(0)
    layer, x = Dense(24, 40, bias), torch.randn(shape)
    assert torch.allclose(layer(x).double(), product(layer, x), atol=1e-5)
    assert torch.allclose(layer(x, gelu=True).double(), gelu(product(layer, x)), atol=1e-5)


@torch.inference_mode()
def test_views_that_are_not_contiguous_are_read_right():
    layer, x = Dense(24, 40), torch.randn(3, 24, 5, 6)
    view = x.permute(0, 2, 3, 1)[:, 1:4]
    assert torch.allclose(layer(view).double(), product(layer, view.contiguous()), atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_its_digits(precision):
    layer, x = Dense(64, 32).to(precision), torch.randn(50, 64)
    expected = gelu(product(layer, x.to(precision)))
    with torch.autocast("cpu", precision):
        made = layer(x, gelu=True)
    assert made.dtype == precision
    assert (made.double() - expected).norm() < 0.01 * expected.norm()


def test_without_onednn_and_with_gradients_torch_does_it_as_ever(monkeypatch):
    layer, x = Dense(24, 40), torch.randn(6, 24)
    layer(x, gelu=True).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    monkeypatch.setattr(dense, "_onednn_works", lambda: False)
    with torch.inference_mode():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@torch.inference_mode()
def test_a_network_gives_the_same_and_shares_its_parameters():
    torch.manual_seed(0)
    network = VisionTransformer(48, 2, 3, 4, table=5).eval()
    before, x = {id(p) for p in network.parameters()}, torch.rand(1, 3, 20, 32)
    expected = network(x)
    use_onednn(network)
    assert {id(p) for p in network.parameters()} == before
    linear = [type(module) for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 8 and set(linear) == {Dense}
    assert torch.allclose(network(x), expected, atol=1e-5)


@torch.inference_mode()
def test_half_precision_spares_the_layers_of_tiny_vit_that_need_all_digits():
    item = Entry("small", "small", "tiny_vit", 256, 4, 32, options={"mean": 0.0, "std": 1.0})
    torch.manual_seed(0)
    networks = [TinyViT(1).eval().fold() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    full, half = (
        NetworkEncoder(item, network, torch.device("cpu"), precision, "")
        for network, precision in zip(networks, (torch.float32, torch.bfloat16), strict=True)
    )
    types = {name: value.dtype for name, value in networks[1].named_parameters()}
    assert types["patch_embed.seq.0.weight"] == types["layers.1.blocks.0.local_conv.weight"] == torch.float32
    assert types["layers.1.blocks.0.mlp.fc1.weight"] == types["layers.0.blocks.0.conv2.weight"] == torch.bfloat16
    x = torch.rand(1, 1, 32, 48)
    expected, made = full(x), half(x)
    assert made.dtype == torch.float32 and (made - expected).norm() < 0.05 * expected.norm()
    assert half.weights_bytes < 0.7 * full.weights_bytes
