"""PDD-net's features: an abdominal CT described for registration between people.

Heinrich, Closing the Gap between Deep and Conventional Image Registration using Probabilistic Dense Displacement
Networks (MICCAI 2019): differences of a smoothed image at pairs of learned offsets, mixed by three convolutions into
24 channels on every third voxel. Input is Hounsfield units / 500; offsets are fractions of the volume's half width, so
the volume must hold the abdomen in the frame of the training. Names of parameters are those of the published files.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..weights.checkpoints import load_strictly, read_checkpoint
from .obelisk import sampled

_SPARSITY, _SAMPLED = 3, 4 * 48


class PddFeatures(nn.Module):
    """(1, 1, D, H, W) to (1, 24, D // 3, H // 3, W // 3)."""

    def __init__(self, width: int, groups: int, outputs: int):
        super().__init__()
        self.offsets = nn.Parameter(torch.zeros(2, 48, 3))
        self.layer0 = nn.Conv3d(1, 4, 5, stride=2, padding=2, bias=False)
        self.batch0 = nn.BatchNorm3d(4)
        # Differences of 48 pairs of places in four channels.
        self.layer1 = nn.Conv3d(_SAMPLED, width, 1, groups=groups, bias=False)
        self.batch1 = nn.BatchNorm3d(width)
        self.layer2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.batch2 = nn.BatchNorm3d(width)
        self.layer3 = nn.Conv3d(width, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        size = [n // _SPARSITY for n in image.shape[2:]]
        x = F.avg_pool3d(image, 3, stride=2, padding=1)
        x = F.relu(self.batch0(self.layer0(x)))
        first, second = (part.view(1, -1, 1, 1, 3) for part in self.offsets)
        x = sampled(x, first, size) - sampled(x, second, size)
        x = F.relu(self.batch1(self.layer1(x)))
        x = F.relu(self.batch2(self.layer2(x)))
        return self.layer3(x)


def build_pdd(path: Path) -> PddFeatures:
    """The features with the weights in ``path``. Raises `WeightsError` for keys that do not fit."""
    state = read_checkpoint(path)
    try:
        width, inputs = state["layer1.weight"].shape[:2]
        network = PddFeatures(width, _SAMPLED // inputs, state["layer3.weight"].shape[0])
    except (KeyError, ValueError, ZeroDivisionError):
        raise WeightsError(f"The file {path} holds no PDD-net features.") from None
    load_strictly(network, state, path)
    return network.eval()
