"""Local means and moments of volumes (..., D, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import kernels


def local_normalised(image: Tensor, sigma: float = 1.6, seen: Tensor | None = None) -> Tensor:
    """``image`` (D, H, W) minus its local mean, over its local standard deviation, as (1, D, H, W).

    Moments are taken under a Gaussian with a standard deviation of ``sigma`` voxels. ``seen`` (D, H, W), 0 to 1: how
    much each voxel counts in them (normalised convolution, Knutsson and Westin, CVPR 1993); 0 where nothing is seen.
    """
    moments = torch.stack([image, image.square()] if seen is None else [seen * image, seen * image.square(), seen])
    # A wide Gaussian is as good on blocks of voxels.
    block = max(1, int(sigma / 2.5))
    if block > 1:
        pad = [n for count in reversed(image.shape) for n in (0, -count % block)]
        moments = F.avg_pool3d(F.pad(moments[None], pad, mode="replicate"), block)[0]
    # A box of 3 voxels has the variance 2/3.
    for _ in range(max(1, round(1.5 * (sigma / block) ** 2))):
        moments = smooth(moments)
    if block > 1:
        moments = F.interpolate(moments[None], scale_factor=block, mode="trilinear", align_corners=False)[0]
    mean, power, *share = moments[(slice(None), *(slice(n) for n in image.shape))]
    if share:
        mean, power = (values / share[0].clamp_min(1e-3) for values in (mean, power))
    spread = (power - mean.square()).clamp_min(0)
    typical = spread.mean() if seen is None else (seen * spread).sum() / seen.sum().clamp_min(1)
    # Noise in flat places is not stretched to the size of anatomy.
    normalised = ((image - mean) / (spread + 0.1 * typical).clamp_min(1e-12).sqrt())[None]
    return normalised if seen is None else normalised * seen


def smooth(volume: Tensor) -> Tensor:
    """Mean over 3 nodes along each axis of (..., D, H, W); border nodes are repeated outwards."""
    if kernels.usable(volume):
        return kernels.smooth(volume)
    total = 1
    for axis in (-3, -2, -1):
        count = volume.shape[axis]
        if count > 1:
            total *= 3
            around = torch.empty_like(volume)
            low, high = volume.narrow(axis, 0, count - 2), volume.narrow(axis, 2, count - 2)
            torch.add(low, high, out=around.narrow(axis, 1, count - 2))
            for here, inside in ((0, 1), (count - 1, count - 2)):
                border = around.narrow(axis, here, 1).copy_(volume.narrow(axis, here, 1))
                border.add_(volume.narrow(axis, inside, 1))
            volume = around.add_(volume)
    return volume.div_(total) if total > 1 else volume


def halved(values: Tensor) -> Tensor:
    """Means over blocks of 2 nodes of (C, D, H, W); an odd border node is repeated outwards."""
    if kernels.usable(values):
        return kernels.halve(values)
    pad = [n for count in reversed(values.shape[1:]) for n in (0, count % 2)]
    if any(pad):
        values = F.pad(values[None], pad, mode="replicate")[0]
    return F.avg_pool3d(values[None], 2)[0]
