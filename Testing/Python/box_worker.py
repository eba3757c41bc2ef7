"""The real worker, in which networks that need no file stand for those of MedSAM-Lite."""

import sys
import time

import torch
from FoundationRegLib.app import worker
from FoundationRegLib.registration import boxes, encoding, feature_review


class Textures:
    """Tokens of 4 by 4 pixels: mean, spread, and the slopes along both axes."""

    id, channels, stride, multiple, pixels, weights_sha256 = "medsam-lite", 4, 4, 4, 128, "none"

    def __call__(self, slices):
        time.sleep(0.1)
        mean = torch.nn.functional.avg_pool2d(slices, 4)
        spread = torch.nn.functional.avg_pool2d(slices.square(), 4) - mean.square()
        return torch.cat([mean, spread, *torch.gradient(mean, dim=(2, 3))], 1)


def bright_in_box(tokens, faces):
    """A decoder that finds what is bright, and only within the box."""
    logits = torch.nn.functional.interpolate(20 * (tokens[:, :1] - 0.5), scale_factor=4, mode="bilinear")[:, 0]
    height, width = logits.shape[1:]
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    left, top, right, bottom = faces[0]
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    return torch.where(inside, logits, torch.tensor(-20.0)), torch.ones(1)


class Decoder:
    def to(self, device):
        return bright_in_box


def use_stand_ins():
    for module in (boxes, encoding):
        module.load_encoder = lambda *args, **options: Textures()
    boxes.build_box_decoder = lambda path: Decoder()
    boxes.store.ensure, boxes.store.require = lambda item, progress=None: ("", ""), lambda item: None
    feature_review.require = lambda *args: None


if __name__ == "__main__":
    use_stand_ins()
    sys.exit(worker.main())
