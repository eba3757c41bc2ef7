"""MeshNet: a brain in named regions from a chain of dilated 3-D convolutions, as brainchop publishes it.

Fedorov et al., End-to-end learning of brain tissue segmentation from imperfect labeling (IJCNN 2017); Masoud et al.,
Brainchop (JOSS 8, 2023). Every layer keeps the size of the volume; the dilations grow and shrink again, so that a
thousand weights per channel see tens of millimetres around. The weights are TensorFlow.js files: plain little-endian
float32 in the order of the layers, kernels as (depth, height, width, in, out). They are only read, as numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError

ACTIVATIONS = {"elu": F.elu, "relu": F.relu, "gelu": F.gelu}
# A normalised layer's epsilon, as in brainchop.
_EPSILON = 1e-5


class MeshNet(nn.Module):
    """(1, 1, D, H, W) to the classes' logits (1, classes, D, H, W), for any size.

    ``normalised``: each layer's channels are brought to mean 0 and deviation 1 over the whole volume after the
    convolution, which then has no bias; such a network cannot be run in tiles.
    """

    def __init__(
        self, channels: int, dilations: Sequence[int], classes: int, activation: str = "relu", normalised: bool = False
    ):
        super().__init__()
        inputs = [1, *[channels] * (len(dilations) - 1)]
        self.layers = nn.ModuleList(
            nn.Conv3d(width, channels, 3, padding=step, dilation=step, bias=not normalised)
            for width, step in zip(inputs, dilations, strict=True)
        )
        self.output = nn.Conv3d(channels, classes, 1)
        self.activation, self.normalised, self.classes = activation, normalised, classes
        # Voxels around a tile that its result depends on.
        self.reach = None if normalised else sum(dilations)
        self.values_per_voxel = 3 * channels

    def features(self, x: Tensor) -> Tensor:
        """(1, channels, D, H, W): what the last layer tells the classes apart by."""
        act = ACTIVATIONS[self.activation]
        for layer in self.layers:
            x = layer(x)
            if self.normalised:
                x = F.instance_norm(x, eps=_EPSILON)
            x = act(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x))


def build_meshnet(path: Path, network: dict[str, Any]) -> MeshNet:
    """The network described by ``network`` (arguments of `MeshNet`) with the float32 numbers of ``path``.

    Raises `WeightsError` when their count differs.
    """
    made = MeshNet(**network)
    load_numbers(made, read_numbers(path), path)
    return made.eval()


def read_numbers(path: Path) -> np.ndarray:
    """All of the file as float32. Raises `WeightsError` when it cannot be that."""
    content = Path(path).read_bytes()
    if len(content) % 4:
        raise WeightsError(f"The file {path} holds {len(content)} bytes, which are no float32 numbers.")
    numbers = np.frombuffer(content, "<f4")
    if not np.isfinite(numbers).all():
        raise WeightsError(f"The file {path} holds numbers that are not finite.")
    return numbers


@torch.no_grad()
def load_numbers(network: MeshNet, numbers: np.ndarray, path: Path) -> None:
    """Copy ``numbers`` into the layers, kernel then bias, first layer first. Raises `WeightsError`."""
    wanted = sum(value.numel() for value in network.parameters())
    if len(numbers) != wanted:
        raise WeightsError(f"The file {path} holds {len(numbers)} numbers; this network has {wanted}.")
    place = 0
    for layer in (*network.layers, network.output):
        outputs, inputs, *kernel = layer.weight.shape
        count = layer.weight.numel()
        values = numbers[place : place + count].reshape(*kernel, inputs, outputs)
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, (4, 3), (0, 1)))))
        place += count
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(numbers[place : place + outputs].copy()))
            place += outputs


def describe_tfjs(path: Path) -> tuple[dict[str, Any], str]:
    """The arguments of `MeshNet` and the name of the file of weights, from a TensorFlow.js ``model.json``.

    Raises `WeightsError` for any other network than a chain of 3x3x3 convolutions of one width that ends in a 1x1x1.
    """
    try:
        model = json.loads(Path(path).read_text(encoding="utf-8"))
        layers = model["modelTopology"]["model_config"]["config"]["layers"]
        (group,) = model["weightsManifest"]
        (file,) = group["paths"]
        convolutions = [layer["config"] for layer in layers if layer["class_name"] == "Conv3D"]
        activations = {layer["config"]["activation"] for layer in layers if layer["class_name"] == "Activation"}
        *hidden, last = convolutions
        (activation,), (channels,) = activations, {layer["filters"] for layer in hidden}
        shapes = [tuple(weight["shape"]) for weight in group["weights"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is no model.json of a MeshNet: {error}") from None
    network = {
        "channels": channels,
        "dilations": [layer["dilation_rate"][0] for layer in hidden],
        "classes": last["filters"],
        "activation": activation,
        "normalised": not hidden[0].get("use_bias", True),
    }
    plain = {"InputLayer", "Conv3D", "Activation"} >= {layer["class_name"] for layer in layers}
    quantised = any("quantization" in weight for weight in group["weights"])
    if not plain or quantised or activation not in ACTIVATIONS or shapes != _shapes(network):
        raise WeightsError(f"{path} describes another kind of network than a MeshNet with float32 weights.")
    return network, file


def _shapes(network: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the arrays in a file of weights, in its order."""
    made, inputs = [], 1
    for _ in network["dilations"]:
        made.append((3, 3, 3, inputs, network["channels"]))
        made += [] if network["normalised"] else [(network["channels"],)]
        inputs = network["channels"]
    return [*made, (1, 1, 1, inputs, network["classes"]), (network["classes"],)]
