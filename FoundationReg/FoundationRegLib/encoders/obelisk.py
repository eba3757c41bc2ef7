"""OBELISK: abdominal organs in CT from sparse sampling at learned places.

Heinrich, Oktay and Bouteldja, OBELISK-Net (Med. Image Anal. 54, 2019). An OBELISK layer reads a smoothed image at some
hundred learned offsets around every node and mixes what it finds with 1x1 convolutions, which see an organ's
surroundings at little cost; a small U-Net places the edges. Three published networks: the hybrids for TCIA's and
VISCERAL's labels, and the plain one for VISCERAL's. Names of parameters are those of the published files.

Offsets and sampling positions are fractions of the input's half width, as `torch.nn.functional.grid_sample` takes them,
so that every network wants the body in the frame that it was trained with. The weights were trained when grid_sample
put -1 and 1 at the centres of the outermost voxels (``align_corners=True``); grids from ``linspace`` and from
``affine_grid`` both meant that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights.checkpoints import load_strictly, read_checkpoint


def halved(size: Sequence[int]) -> tuple[int, ...]:
    """Size after a convolution of stride 2 with padding 1."""
    return tuple((n + 1) // 2 for n in size)


def nodes(size: Sequence[int], like: Tensor) -> Tensor:
    """Positions (1, 1, nodes, 1, 3) of a lattice of ``size`` (D, H, W) in -1..1, x first, ends on the outer nodes."""
    axes = [torch.linspace(-1, 1, n, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).view(1, 1, -1, 1, 3)


def sampled(image: Tensor, offsets: Tensor, size: Sequence[int]) -> Tensor:
    """``image`` (1, C, D, H, W) at the ``offsets`` (1, n, 1, 1, 3) around each node of ``size``: (1, C * n, *size)."""
    parts = [
        F.grid_sample(image, nodes(size, image) + part, align_corners=True).reshape(1, image.shape[1], -1, *size)
        for part in offsets.split(64, 1)
    ]
    return torch.cat(parts, 2).reshape(1, -1, *size)


def upsampled(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=list(size), mode="trilinear", align_corners=False)


def blurred(x: Tensor, kernel: int = 3) -> Tensor:
    return F.avg_pool3d(x, kernel, stride=1, padding=kernel // 2)


class _Hybrid(nn.Module):
    """What both hybrids share: two dense nets of 1x1 convolutions, and convolutions with batch norm."""

    leakage = 0.025

    def _declare_dense(self, number: int, inputs: int, groups: int, outputs: int) -> None:
        for letter, width, made in zip("abcde", (inputs, 128, 160, 192, 224), (128, 32, 32, 32, outputs), strict=True):
            convolution = nn.Conv3d(width, made, 1, groups=groups if letter == "a" else 1, bias=False)
            self.add_module(f"linear{number}{letter}", convolution)
            if letter != "e":
                self.add_module(
                    f"batch{number}{letter}", nn.BatchNorm3d({"a": 128, "b": 160, "c": 192, "d": 224}[letter])
                )

    def _declare(self, name: str, inputs: int, outputs: int, stride: int = 1) -> None:
        self.add_module(f"conv{name}", nn.Conv3d(inputs, outputs, 3, stride, padding=1))
        self.add_module(f"batch{name}", nn.BatchNorm3d(outputs))

    def _dense(self, number: int, x: Tensor) -> Tensor:
        """Each 1x1 convolution sees all that came before it; only the first and the last stand alone."""
        x = self._dense_act(getattr(self, f"linear{number}a")(x))
        for letter, norm in zip("bcd", "abc", strict=True):
            seen = getattr(self, f"batch{number}{norm}")(x)
            x = torch.cat((x, self._dense_act(getattr(self, f"linear{number}{letter}")(seen))), 1)
        return self._dense_act(getattr(self, f"linear{number}e")(getattr(self, f"batch{number}d")(x)))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.leaky_relu(getattr(self, f"batch{name}")(getattr(self, f"conv{name}")(x)), self.leakage)

    def _dense_act(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class TciaHybrid(_Hybrid):
    """(1, 1, 144, 144, 144), Hounsfield units / 1024 + 1, to logits (1, 9, 144, 144, 144)."""

    def __init__(self, classes: int = 9):
        super().__init__()
        self.offset1 = nn.Parameter(torch.zeros(1, 128, 1, 1, 3))
        self.offset2 = nn.Parameter(torch.zeros(1, 512, 1, 1, 3))
        for name, inputs, outputs, stride in (
            ("0", 1, 4, 1), ("1", 4, 16, 2), ("11", 16, 16, 1), ("2", 16, 32, 2), ("22", 32, 32, 1), ("3", 32, 32, 1),
            ("6bU", 64, 32, 1), ("6U", 64, 12, 1), ("7U", 16, classes, 1),
        ):  # fmt: skip
            self._declare(name, inputs, outputs, stride)
        self._declare_dense(1, 128, 2, 16)
        self._declare_dense(2, 512, 4, 32)
        self.conv77U = nn.Conv3d(classes, classes, 1)

    def _dense_act(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.leakage)

    def forward(self, image: Tensor) -> Tensor:
        full = image.shape[2:]
        half, quarter = halved(full), halved(halved(full))
        once = blurred(image)
        fine = self._conv("0", image)
        middle = self._conv("11", self._conv("1", fine))
        x = self._conv("3", self._conv("22", self._conv("2", middle)))
        near = upsampled(self._dense(1, sampled(once, self.offset1, quarter)), half)
        far = upsampled(self._dense(2, sampled(blurred(once), self.offset2, halved(quarter))), quarter)
        x = upsampled(self._conv("6bU", torch.cat((x, far), 1)), half)
        x = upsampled(self._conv("6U", torch.cat((x, near, middle), 1)), full)
        return self.conv77U(self._conv("7U", torch.cat((x, fine), 1)))


class VisceralHybrid(_Hybrid):
    """(1, 1, D, H, W), Hounsfield units / 1000 smoothed and halved, to logits (1, 8, D, H, W)."""

    leakage = 0.05

    def __init__(self, classes: int = 8):
        super().__init__()
        self.offset1 = nn.Parameter(torch.zeros(1, 128, 1, 1, 3))
        self.offset2 = nn.Parameter(torch.zeros(1, 512, 1, 1, 3))
        for name, inputs, outputs, stride in (
            ("0", 1, 4, 1), ("1", 4, 16, 2), ("11", 16, 16, 1), ("2", 16, 32, 2), ("6bU", 64, 32, 1), ("6U", 80, 32, 1),
        ):  # fmt: skip
            self._declare(name, inputs, outputs, stride)
        self._declare_dense(1, 4 * 128, 4, 32)
        self._declare_dense(2, 512, 4, 32)
        self.conv8 = nn.Conv3d(32, classes, 1)

    def _dense_act(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, image: Tensor) -> Tensor:
        full = image.shape[2:]
        half, quarter = halved(full), halved(halved(full))
        fine = self._conv("0", image)
        middle = self._conv("11", self._conv("1", fine))
        x = self._conv("2", middle)
        near = upsampled(self._dense(1, sampled(fine, self.offset1, quarter)), half)
        far = upsampled(self._dense(2, sampled(blurred(image), self.offset2, halved(quarter))), quarter)
        x = upsampled(self._conv("6bU", torch.cat((x, far), 1)), half)
        x = self._conv("6U", torch.cat((x, near, middle), 1))
        return upsampled(self.conv8(x), full)


class VisceralObelisk(nn.Module):
    """(1, 1, D, H, W), Hounsfield units / 500 smoothed thrice, to logits (1, 8, D, H, W); one OBELISK layer.

    Its 1024 features are differences of two places each.
    """

    def __init__(self, classes: int = 8):
        super().__init__()
        self.offset1 = nn.Parameter(torch.zeros(1, 1024, 1, 2, 3))
        self.LIN1 = nn.Conv3d(1024, 256, 1, groups=4, bias=False)
        self.LIN2 = nn.Conv3d(256, 128, 1, bias=False)
        self.BN1, self.BN2 = nn.BatchNorm3d(256), nn.BatchNorm3d(128)
        for n, letter in enumerate("abcd"):
            self.add_module(f"LIN3{letter}", nn.Conv3d(128 + 32 * n, 32, 1, bias=False))
            self.add_module(f"BN3{letter}", nn.BatchNorm3d(160 + 32 * n))
        self.LIN4 = nn.Conv3d(256, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        half = halved(image.shape[2:])
        first, second = (self.offset1[:, :, :, n : n + 1] for n in (0, 1))
        x = sampled(image, first, halved(half)) - sampled(image, second, halved(half))
        x = self.BN2(self.LIN2(F.relu(self.BN1(self.LIN1(x)))))
        x = torch.cat((x, F.relu(self.LIN3a(x))), 1)
        for letter, norm in zip("bcd", "abc", strict=True):
            seen = getattr(self, f"BN3{norm}")(x)
            x = torch.cat((x, F.relu(getattr(self, f"LIN3{letter}")(seen))), 1)
        x = self.LIN4(self.BN3d(x))
        return upsampled(upsampled(x, half), image.shape[2:])


NETWORKS = {"tcia-hybrid": TciaHybrid, "visceral-hybrid": VisceralHybrid, "visceral": VisceralObelisk}


def build_obelisk(path: Path, kind: str) -> nn.Module:
    """The network ``kind`` of `NETWORKS` with the weights in ``path``. Raises `WeightsError` where they misfit."""
    network = NETWORKS[kind]()
    load_strictly(network, read_checkpoint(path), path)
    return network.eval()
