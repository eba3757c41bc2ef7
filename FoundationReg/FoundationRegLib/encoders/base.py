"""What an encoder is to the rest of the library."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SliceEncoder(Protocol):
    """A frozen 2-D network that turns grey slices into a raster of feature vectors.

    ``channels``: length of a feature vector. ``stride``: input pixels per token along each axis. ``multiple``: the
    input's height and width must be multiples of this. ``pixels``: the input's longer side that suits the weights.
    ``weights_sha256``: of the file that was loaded, for the record.

    Token (i, j) has its centre at input pixel ((i + 0.5) * stride - 0.5, (j + 0.5) * stride - 0.5).
    """

    id: str
    channels: int
    stride: int
    multiple: int
    pixels: int
    weights_sha256: str

    def __call__(self, slices: Tensor) -> Tensor:
        """Features (B, channels, H / stride, W / stride), float32, of grey ``slices`` (B, 1, H, W) in 0..1.

        Normalises as the weights were trained, runs in inference mode on the device and in the precision that the
        encoder was loaded with.
        """
        ...


@runtime_checkable
class VolumeEncoder(Protocol):
    """A 3-D encoder. The raster of features covers the same extent as the input: token n of an axis has its centre at
    input voxel (n + 0.5) * stride - 0.5."""

    id: str
    channels: int
    stride: int
    multiple: int
    weights_sha256: str

    def __call__(self, volume: Tensor) -> Tensor:
        """Features (1, channels, D / stride, H / stride, W / stride), float32, of a grey ``volume`` (1, 1, D, H, W)
        in 0..1."""
        ...
