"""Your own encoder: a folder that transformers saved, or a TorchScript file, for slices or volumes.

TorchScript is code: it runs only after you said that you trust the file. A transformers folder is only data, because
code that comes with it is never run.

What a TorchScript file takes and gives is tried out: (B, 1 or 3, H, W) or (1, 1, D, H, W) in, in 0..1; out comes a
raster of the same extent with any stride, alone or as the last one of a list, tuple or dictionary. IMPACT's and
anatomix's exported models are of that kind.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, WeightsError
from ..weights import trust
from ..weights.catalogue import Entry
from ..weights.checkpoints import first_line, some
from ..weights.wheels import sha256
from .base import SliceEncoder, VolumeEncoder
from .loading import NetworkEncoder, choose_precision, numbered

_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# Sides that are tried out: multiples of every usual stride.
_TRIAL_SLICE, _TRIAL_VOLUME = 224, 64
# Voxels or pixels of the coarsest level in common networks: five poolings.
_COARSEST = 32


def load_own(
    path: Path, device: torch.device, precision: str = "auto", layers: Sequence[int] = (), trusted: bool = False
) -> SliceEncoder | VolumeEncoder:
    """The encoder in ``path``; arguments as of `loading.load_encoder`.

    Raises `InputError` when it is no encoder, or TorchScript that is trusted neither here nor by `consent.trust`.
    """
    path = trust.checked(path)
    if path.is_dir():
        return _from_folder(path, device, choose_precision(precision, device), layers)
    numbered(path.name, layers, 0)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not trusted and digest not in trust.trusted():
        trust.require(path)
        raise InputError(f"{path} changed while it was read; try again.")
    # A program that somebody exported runs in the precision that it was written for, unless asked otherwise.
    chosen = torch.float32 if precision == "auto" else choose_precision(precision, device)
    return _from_torchscript(path, content, digest, device, chosen)


class VolumeNetworkEncoder:
    """A `VolumeEncoder` around a network from (1, channels, D, H, W) to a raster of features."""

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        trial: _Trial,
        device: torch.device,
        precision: torch.dtype,
        digest: str,
    ):
        self.id, self.weights_sha256 = str(path), digest
        self.channels, self.stride, self.multiple = trial.channels, trial.stride, trial.multiple
        self.device, self.precision = device, precision
        self._network, self._inputs = network, trial.inputs

    @torch.inference_mode()
    def __call__(self, volume: Tensor) -> Tensor:
        x = volume.to(self.device, torch.float32).expand(-1, self._inputs, -1, -1, -1)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return _raster(self._network(x)).float()


class _Trial:
    """What a network makes of an empty picture: channels in and out, and its stride."""

    def __init__(self, inputs: int, size: int, made: Tensor):
        self.inputs, self.channels = inputs, made.shape[1]
        self.stride = size // made.shape[-1]
        # A network with pooling wants multiples of its coarsest level, which its output does not show.
        self.multiple = self.stride if self.stride >= 8 else math.lcm(self.stride, _COARSEST)
        sides = set(made.shape[2:])
        if len(sides) != 1 or self.stride * made.shape[-1] != size:
            raise ValueError(f"an input of side {size} became a raster of {tuple(made.shape[2:])}")


class _TorchScriptSlices(nn.Module):
    """TorchScript as a network of `NetworkEncoder`, with the number of input channels that it wants."""

    def __init__(self, module: nn.Module, trial: _Trial):
        super().__init__()
        self.module, self.inputs, self.channels = module, trial.inputs, trial.channels

    def float32_layers(self) -> list[nn.Module]:
        """Autocast alone changes the precision of a program."""
        return [self.module]

    def forward(self, x: Tensor) -> Tensor:
        return _raster(self.module(x[:, : self.inputs]))


def _from_torchscript(
    path: Path, content: bytes, digest: str, device: torch.device, precision: torch.dtype
) -> SliceEncoder | VolumeEncoder:
    """The encoder in ``content``, the very bytes that the user trusts."""
    try:
        module = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as TorchScript: {first_line(error)}") from None
    problems = []
    for inputs, dimensions in ((1, 3), (1, 2), (3, 2)):
        size = _TRIAL_VOLUME if dimensions == 3 else _TRIAL_SLICE
        try:
            with torch.inference_mode():
                made = _raster(module(torch.zeros(1, inputs, *(size,) * dimensions, device=device)))
                if made.ndim != dimensions + 2:
                    raise ValueError(f"{dimensions}-D input became a {made.ndim - 2}-D raster")
                trial = _Trial(inputs, size, made)
        except Exception as error:
            problems.append(f"{inputs} x {dimensions}-D: {first_line(error)}")
            continue
        if dimensions == 3:
            return VolumeNetworkEncoder(path, module, trial, device, precision, digest)
        options = {"mean": 0.0, "std": 1.0, "multiple": trial.multiple}
        pixels = max(256, 32 * trial.stride)
        item = Entry(str(path), path.stem, "own", trial.channels, trial.stride, pixels, options=options)
        return NetworkEncoder(item, _TorchScriptSlices(module, trial), device, precision, digest)
    raise InputError(f"{path} takes neither slices nor volumes ({'; '.join(problems)}).")


class _TransformersSlices(nn.Module):
    """A transformers vision model as a network of `NetworkEncoder`: its patch tokens as a raster."""

    def __init__(self, model: nn.Module, patch: int, layers: tuple[int, ...]):
        super().__init__()
        self.model, self.patch, self.layers = model, patch, layers
        self.channels = model.config.hidden_size * max(1, len(self.layers))
        self._options = {"interpolate_pos_encoding": True} if _takes(model, "interpolate_pos_encoding") else {}

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(pixel_values=x, output_hidden_states=bool(self.layers), **self._options)
        chosen = [output.last_hidden_state]
        if self.layers:
            chosen = [
                F.layer_norm(output.hidden_states[n + 1], output.hidden_states[n + 1].shape[-1:]) for n in self.layers
            ]
        height, width = x.shape[2] // self.patch, x.shape[3] // self.patch
        tokens = torch.cat(chosen, -1)
        if tokens.ndim == 4:
            return tokens
        return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def _from_folder(path: Path, device: torch.device, precision: torch.dtype, layers: Sequence[int]) -> SliceEncoder:
    try:
        import transformers
    except ImportError:
        raise InputError(f"The model in {path} needs the Python package transformers; please install it.") from None
    if not (path / "config.json").is_file():
        raise InputError(f"The folder {path} holds no model of transformers (config.json is missing).")
    _refuse_kernels(path)
    try:
        model, found = transformers.AutoModel.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:
        raise WeightsError(f"transformers cannot read the model in {path}: {first_line(error)}") from None
    # transformers fills what a file lacks with random numbers; of that, only the pooled summary is not used here.
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        raise WeightsError(f"The weights in {path} do not fit the model. Keys missing: {some(missing)}.")
    model = getattr(model, "vision_model", model)
    patch = getattr(model.config, "patch_size", None)
    if not isinstance(patch, int):
        raise InputError(f"The model in {path} is no vision transformer with square patches.")
    layers = numbered(path.name, layers, getattr(model.config, "num_hidden_layers", 0))
    network = _TransformersSlices(model.eval(), patch, layers)
    pixels = getattr(model.config, "image_size", None)
    pixels = pixels if isinstance(pixels, int) else 32 * patch
    options = {**_normalisation(path), "bytes_per_pixel": 1000}
    item = Entry(str(path), path.name, "own", network.channels, patch, pixels, options=options)
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    return NetworkEncoder(item, network, device, precision, sha256(files[0]) if files else "")


def _refuse_kernels(path: Path) -> None:
    """Raise `InputError` when the folder's configuration names an attention that transformers would fetch and run."""

    def named(value) -> list:
        if isinstance(value, list):
            return [found for item in value for found in named(item)]
        if not isinstance(value, dict):
            return []
        here = [v for key, v in value.items() if "attn_implementation" in key and v not in (None, "sdpa", "eager")]
        return here + [found for item in value.values() for found in named(item)]

    try:
        found = named(json.loads((path / "config.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path / 'config.json'} is not valid JSON: {error}.") from None
    if found:
        raise InputError(
            f"The model in {path} asks for the attention {found[0]!r}, which could be code from elsewhere; remove that "
            "line from its config.json."
        )


def _normalisation(path: Path) -> dict[str, list[float]]:
    """Mean and standard deviation of the model's own preparation, else ImageNet's."""
    try:
        prepared = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
        return {"mean": prepared["image_mean"], "std": prepared["image_std"]}
    except (OSError, ValueError, KeyError):
        return _IMAGENET


def _raster(output) -> Tensor:
    """The last raster (B, C, ...) in what a network returned."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)) and output:
        return _raster(output[-1])
    raise ValueError(f"it returned a {type(output).__name__} instead of a raster")


def _takes(model: nn.Module, argument: str) -> bool:
    import inspect

    return argument in inspect.signature(model.forward).parameters
