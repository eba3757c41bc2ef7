"""Builds encoders from catalogue entries and checked weight files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.progress import Progress
from ..errors import InputError
from ..weights import store, trust
from ..weights.catalogue import Entry, entry, own_model
from ..weights.checkpoints import below, load_strictly, read_checkpoint
from .base import SliceEncoder, VolumeEncoder
from .dense import use_onednn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NetworkEncoder:
    """A `SliceEncoder` around a network that takes normalised RGB and returns a raster of tokens.

    The entry's options ``mean`` and ``std`` (one number or three) are the training's normalisation of values in 0..1;
    ``study_mean`` and ``study_std`` are the study's where it differs. ``bytes_per_pixel``: memory that one input pixel
    takes at the peak. ``weights_bytes``: memory that the weights take.
    """

    def __init__(
        self,
        item: Entry,
        network: nn.Module,
        device: torch.device,
        precision: torch.dtype,
        sha256: str,
        normalisation: str = "trained",
    ):
        self.id, self.stride, self.pixels = item.id, item.stride, item.pixels
        self.channels = getattr(network, "channels", item.channels)
        self.multiple = item.options.get("multiple", item.stride)
        self.bytes_per_pixel = item.options.get("bytes_per_pixel", 3000)
        self.weights_sha256 = sha256
        self.device, self.precision = device, precision
        network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        if precision != torch.float32:
            kept = network.float32_layers() if hasattr(network, "float32_layers") else []
            kept = {module for layer in kept for module in layer.modules()}
            for module in network.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in kept:
                    module.to(precision)
        use_onednn(network)
        self.weights_bytes = sum(value.nbytes for value in (*network.parameters(), *network.buffers()))
        self._network = network
        study = normalisation == "study"
        self._mean, self._std = (
            torch.tensor(
                item.options.get(f"study_{name}" if study else name, item.options[name]),
                dtype=torch.float32,
                device=device,
            ).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )

    @torch.inference_mode()
    def __call__(self, slices: Tensor) -> Tensor:
        x = (slices.to(self.device, torch.float32) - self._mean) / self._std
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self._network(x).float()


def load_encoder(
    id: str,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
    *,
    layers: Sequence[int] = (),
    normalisation: str = "trained",
    trusted: bool = False,
) -> SliceEncoder | VolumeEncoder:
    """The encoder ``id`` on ``device``, with its weights checked. Nothing is fetched.

    ``id``: of the catalogue, or the path of your own model: a transformers folder, or a TorchScript file, which holds
    code and runs only when you trust it: by ``trusted`` this once, by `consent.trust` from now on.
    ``precision``: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (what the device does fast and accurately).
    ``layers``: transformer blocks, counted from 0 or as -1 from the last, whose outputs are fused instead of the last
    one's. ``normalisation``: of the input as each model was ``trained``, or as in the ``study``.
    Raises `InputError` for an unknown id, precision or layer, `WeightsError` for absent or wrong weights.
    """
    target = torch.device(device)
    if path := own_model(id):
        from .custom import load_own

        return load_own(path, target, precision, layers, trusted)
    item = entry(id)
    _refuse_anatomy(item)
    dtype = choose_precision(precision, target, item)
    if item.family == "mind":
        from .mind import Mind

        return Mind(item.id, **item.options, device=target)
    layers = chosen_layers(item, layers)
    path, sha256 = store.ensure(item)
    network = build_network(item, path, layers)
    return NetworkEncoder(item, network, target, dtype, sha256, normalisation)


def require(id: str, layers: Sequence[int] = ()) -> None:
    """Raise, before any long work, what `load_encoder` would: for an unknown encoder or layer, for weights that are
    not here and cannot be fetched on the way, for a program of the user's own that is not trusted."""
    if path := own_model(id):
        trust.require(path)
        if path.is_file():
            numbered(path.name, layers, 0)
        return
    item = entry(id)
    _refuse_anatomy(item)
    store.require(item)
    chosen_layers(item, layers)


def _refuse_anatomy(item: Entry) -> None:
    """Raise `InputError` for an anatomy network, whose features have names and are used elsewhere."""
    if item.names_anatomy:
        raise InputError(
            f"{item.id} is an anatomy network and no encoder; choose it as such: --anatomy {item.id}, or the setting "
            f"anatomy={item.id}."
        )


def fingerprint(id: str) -> str:
    """Names the state of the encoder's files; it changes when one of them does. Nothing is read."""
    path = own_model(id) or store.installed(entry(id))
    if path is None:
        return ""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return str([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def build_network(item: Entry, path: Path, layers: Sequence[int] = ()) -> nn.Module:
    """The network of an entry with the weights in ``path``. Raises `WeightsError` for keys that do not fit."""
    if item.names_anatomy:
        from .anatomy_loading import build_anatomy

        return build_anatomy(item, path)
    return _NETWORKS[item.family](item, path, layers)


def chosen_layers(item: Entry, layers: Sequence[int]) -> tuple[int, ...]:
    """``layers`` of the encoder, counted from 0, ascending. Raises `InputError` for those that it does not have."""
    if item.family == "mind":
        return ()
    if item.family == "sam":
        from .sam import SIZES

        return numbered(item.id, layers, SIZES[item.options["size"]]["depth"])
    return numbered(item.id, layers, item.options.get("network", {}).get("depth", 0))


def numbered(id: str, layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """``layers`` of a network of ``depth`` blocks, counted from 0, ascending; ``depth`` 0 gives its output only."""
    if layers and not depth:
        raise InputError(f"The encoder {id} gives its last layer only; leave the setting encoder_layers empty.")
    absent = [str(n) for n in layers if not -depth <= n < depth]
    if absent:
        raise InputError(f"The encoder {id} has the layers 0 to {depth - 1} and not {', '.join(absent)}.")
    return tuple(sorted({n % depth for n in layers}))


def choose_precision(name: str, device: torch.device, item: Entry | None = None) -> torch.dtype:
    """The number type by its name; ``auto`` is float32 on CPU and MPS, on CUDA what the encoder's entry prefers."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        preferred = item.options.get("cuda_precision", "bfloat16") if item else "bfloat16"
        return PRECISIONS[preferred] if torch.cuda.is_bf16_supported() else torch.float16
    if name not in PRECISIONS:
        raise InputError(f"The precision must be auto, {', '.join(PRECISIONS)}, not {name!r}.")
    return PRECISIONS[name]


def _tiny_vit(item: Entry, path: Path, layers: Sequence[int]) -> nn.Module:
    from .tiny_vit import TinyViT

    network = TinyViT(item.options["stem_stride"])
    state = below(read_checkpoint(path), "image_encoder.")
    # MobileSAM's checkpoint still has the classifier of its training.
    unused = ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")
    load_strictly(network, {name: value for name, value in state.items() if name not in unused}, path)
    return network.eval().fold()


def _sam(item: Entry, path: Path, layers: Sequence[int]) -> nn.Module:
    from .sam import build_sam

    return build_sam(path, item.options, layers)


def _transformers(item: Entry, path: Path, layers: Sequence[int]) -> nn.Module:
    from .vit import build_vit

    return build_vit(path, item.options, layers)


_NETWORKS = {
    "tiny_vit": _tiny_vit,
    "sam": _sam,
    "dinov2": _transformers,
    "dinov3": _transformers,
    "clip": _transformers,
}
