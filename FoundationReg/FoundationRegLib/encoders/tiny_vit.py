"""TinyViT as an image encoder: MedSAM-Lite (256 pixels) and MobileSAM (1024 pixels).

Read from the top: a stem of two convolutions, one stage of inverted residual blocks (MBConv), three stages of window
attention, and a neck of two convolutions that makes 256 channels. Between the stages sits a strided convolution.
Wu et al., TinyViT (ECCV 2022); Zhang et al., MobileSAM (2023); Ma et al., MedSAM (Nature Communications 2024).

Names of the submodules are those of the published checkpoints, which are loaded strictly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense import Dense, gelu_

WIDTHS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (None, 4, 5, 10)
WINDOWS = (None, 7, 14, 7)
STAGE_STRIDES = (2, 2, 1)
OUT_CHANNELS = 256
# Wide intermediate results on the CPU are made in parts of so many numbers: fresh memory is slow, the cache is fast.
STRIP_VALUES = 1 << 20


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` untouched by autocast. What all later layers build on (the stem, the filters between attention and
    MLP) costs little and loses most in half precision; residual sums stay float32 after it."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def through_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU of ``layer(x)``, in one pass where the layer knows how."""
    return layer(x, gelu=True) if isinstance(layer, Dense) else gelu_(layer(x))


class PointwiseConv(Dense):
    """A 1x1 convolution as the matrix product that it is."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1), gelu).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution and batch norm without a nonlinearity; `folded` makes one convolution of both."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))

    @torch.no_grad()
    def folded(self) -> nn.Module:
        conv, norm = self.c, self.bn
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        ends = conv.in_channels, conv.out_channels
        if conv.kernel_size == (1, 1):
            fused = PointwiseConv(*ends)
        else:
            fused = nn.Conv2d(*ends, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups)
        fused.weight.copy_((conv.weight * scale[:, None, None, None]).view_as(fused.weight))
        fused.bias.copy_(norm.bias - norm.running_mean * scale)
        return fused


def strips(x: Tensor, channels: int, stride: int = 1) -> Iterator[tuple[int, int]]:
    """First and last row of parts of an output of ``stride`` for which ``channels`` at all pixels of ``x`` (B, C, H, W)
    that they need fit into the cache; everything at once where that does not matter, on a GPU."""
    height = -(-x.shape[2] // stride)
    step = max(1, STRIP_VALUES // (channels * stride * x[:, 0, 0].numel())) if x.device.type == "cpu" else height
    for top in range(0, height, step):
        yield top, min(top + step, height)


def filtered_rows(block: nn.Module, x: Tensor, top: int, bottom: int, stride: int = 1) -> Tensor:
    """Rows ``top`` to ``bottom`` of what the first two convolutions of ``block`` make of ``x``: one of each pixel, one
    of 3x3 pixels of each channel with that ``stride``, each with a GELU."""
    # The convolution fills up an edge of the image with zeros; so it does the first row here, which is left out.
    above, below = max(top - 1, 0) * stride, min((bottom - 1) * stride + 2, x.shape[2])
    y = through_gelu(block.conv1, x[:, :, above:below])
    skip = min(top, 1)
    return gelu_(block.conv2(y)[:, :, skip : skip + bottom - top])


class Stem(nn.Module):
    """The first two convolutions. MobileSAM's halve the size twice; MedSAM-Lite's keep it."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        kernel, step = (3, 2) if stride == 4 else (1, 1)
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, kernel, step), nn.GELU(), ConvNorm(width // 2, width, kernel, step)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted residual block: widen four times, filter each channel, narrow, add."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = ConvNorm(width, 4 * width)
        self.conv2 = ConvNorm(4 * width, 4 * width, 3, groups=4 * width)
        self.conv3 = ConvNorm(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        for top, bottom in strips(x, 4 * x.shape[1]):
            z = filtered_rows(self, x, top, bottom)
            gelu_(torch.add(self.conv3(z), x[:, :, top:bottom], out=y[:, :, top:bottom]))
        return y


class Merge(nn.Module):
    """From one stage's width to the next one's; halves the size when ``stride`` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.outputs, self.stride = outputs, stride
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (-(-n // self.stride) for n in x.shape[2:])
        y = x.new_empty(len(x), self.outputs, height, width).to(memory_format=torch.channels_last)
        for top, bottom in strips(x, self.outputs, self.stride):
            y[:, :, top:bottom] = self.conv3(filtered_rows(self, x, top, bottom, self.stride))
        return y


class WindowAttention(nn.Module):
    """Self-attention among the tokens of one square window, with a learned bias per head and distance (|dy|, |dx|)."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Dense(width, 3 * width)
        self.proj = Dense(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        y, x = y.flatten(), x.flatten()
        # The checkpoints number the distances in the order in which they first occur from token (0, 0): row by row.
        distance = (y[:, None] - y).abs() * window + (x[:, None] - x).abs()
        self.register_buffer("distance", distance, persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, tokens, width) to the same."""
        windows, tokens, width = x.shape
        # Each head's queries, keys and values lie together.
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3, width // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        bias = self._looked_up() if self.bias is None else self.bias
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(y.transpose(1, 2).reshape(windows, tokens, width))

    def fold(self) -> None:
        """Keep the bias of all pairs of tokens instead of looking it up in every call."""
        self.bias = self._looked_up().detach().contiguous()

    def _looked_up(self) -> Tensor:
        """(1, heads, tokens, tokens)"""
        return self.attention_biases[:, self.distance][None]


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = Dense(width, 4 * width)
        self.fc2 = Dense(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same, with ``x`` added."""
        if x.device.type != "cpu":
            return x + self._tokens(x)
        tokens = x.reshape(-1, x.shape[-1])
        y = torch.empty_like(tokens)
        step = max(1, STRIP_VALUES // (4 * x.shape[-1]))
        for part, made in zip(tokens.split(step), y.split(step), strict=True):
            torch.add(part, self._tokens(part), out=made)
        return y.view(x.shape)

    def _tokens(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.norm(x), gelu=True))


class AttentionBlock(nn.Module):
    """Window attention, a 3x3 filter of each channel, and an MLP of each token."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        x = self._attended(x.permute(0, 2, 3, 1))
        x = in_float32(self.local_conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.mlp(x).permute(0, 3, 1, 2)

    def _attended(self, x: Tensor) -> Tensor:
        """``x`` (B, H, W, width) with its attention added; on the CPU one row of windows after the other, whose
        intermediate results fit into the cache."""
        if x.device.type != "cpu":
            return x + self._attend(x)
        y = torch.empty_like(x)
        for top in range(0, x.shape[1], self.window):
            rows = slice(top, top + self.window)
            torch.add(x[:, rows], self._attend(x[:, rows]), out=y[:, rows])
        return y

    def _attend(self, x: Tensor) -> Tensor:
        """Attention in each window of ``x`` (B, H, W, width); the last ones are filled up with zeros as in training."""
        batch, height, width, channels = x.shape
        size = self.window
        rows, columns = -(-height // size), -(-width // size)
        if (rows * size, columns * size) != (height, width):
            x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
        x = x.view(batch, rows, size, columns, size, channels).transpose(2, 3)
        x = self.attn(x.reshape(-1, size * size, channels))
        x = x.view(batch, rows, columns, size, size, channels).transpose(2, 3)
        return x.reshape(batch, rows * size, columns * size, channels)[:, :height, :width]


class Stage(nn.Module):
    """Blocks of one width, then the step to the next width."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x).float()


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """(B, 3, H, W) to (B, 256, H / stride, W / stride), for any H and W that are multiples of ``stride``.

    ``stem_stride`` is 1 in MedSAM-Lite (in all 4 pixels per token) and 4 in MobileSAM (16 pixels per token).
    """

    def __init__(self, stem_stride: int):
        super().__init__()
        self.stride = 4 * stem_stride
        self.patch_embed = Stem(WIDTHS[0], stem_stride)
        self.layers = nn.ModuleList(self._stage(n) for n in range(4))
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], OUT_CHANNELS, 1, bias=False),
            ChannelNorm(OUT_CHANNELS),
            nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS, 3, padding=1, bias=False),
            ChannelNorm(OUT_CHANNELS),
        )

    @staticmethod
    def _stage(n: int) -> Stage:
        width = WIDTHS[n]
        if n == 0:
            blocks = [MBConv(width) for _ in range(DEPTHS[n])]
        else:
            blocks = [AttentionBlock(width, HEADS[n], WINDOWS[n]) for _ in range(DEPTHS[n])]
        return Stage(blocks, Merge(width, WIDTHS[n + 1], STAGE_STRIDES[n]) if n < 3 else None)

    def forward(self, x: Tensor) -> Tensor:
        x = in_float32(self.patch_embed, x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)

    def float32_layers(self) -> list[nn.Module]:
        """What runs in float32 in any precision."""
        filters = [module.local_conv for module in self.modules() if isinstance(module, AttentionBlock)]
        return [self.patch_embed, *filters]

    def fold(self) -> TinyViT:
        """Replace every convolution with its batch norm by one convolution, in place, and work out what does not depend
        on the input. The output stays the same."""
        for parent in list(self.modules()):
            if isinstance(parent, WindowAttention):
                parent.fold()
            for name, child in list(parent.named_children()):
                if isinstance(child, ConvNorm):
                    setattr(parent, name, child.folded())
        return self
