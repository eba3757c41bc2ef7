"""The image encoder of Segment Anything and of its medical relatives, from their original checkpoints.

Layers come from the package ``segment-anything`` (Kirillov et al., Segment Anything, ICCV 2023). What runs them is
here: torch's fused attention with the decomposed relative positions as a bias, made for a few rows of queries at a
time, and position tables that are resized to any input.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, WeightsError
from ..weights.checkpoints import below, load_strictly, read_checkpoint

PATCH = 16
WINDOW = 14
TRAINED_PIXELS = 1024
NECK_CHANNELS = 256
SIZES: dict[str, dict[str, Any]] = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
}
# The bias of one attention call stays below this many numbers, on the CPU and on others.
_BIAS_VALUES = (1 << 26, 1 << 28)


def segment_anything_layers() -> ModuleType:
    """The module ``segment_anything.modeling.image_encoder``, loaded without the package around it, which asks for
    torchvision. Raises `InputError` when the package is not installed."""
    name = "_foundationreg_segment_anything"
    if f"{name}.image_encoder" in sys.modules:
        return sys.modules[f"{name}.image_encoder"]
    found = importlib.util.find_spec("segment_anything")
    if found is None or not found.submodule_search_locations:
        raise InputError("Encoders of the SAM family need the Python package segment-anything; please install it.")
    package = ModuleType(name)
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "modeling")]
    sys.modules[name] = package
    return importlib.import_module(f"{name}.image_encoder")


class SamEncoder(nn.Module):
    """(B, 3, H, W) to (B, channels, H / 16, W / 16) for any H and W that are multiples of 16.

    ``vit`` is segment-anything's ImageEncoderViT. ``neck``: whether its last two convolutions (to 256 channels) follow.
    ``layers``: blocks (from 0) whose outputs are normalised and fused instead of the last one's.
    """

    def __init__(self, vit: nn.Module, neck: bool = True, layers: Sequence[int] = ()):
        super().__init__()
        self.vit, self.neck, self.layers = vit, neck and not layers, tuple(layers)
        width = vit.pos_embed.shape[-1]
        self.channels = NECK_CHANNELS if self.neck else width * max(1, len(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.vit.patch_embed(x)
        x = x + resized_positions(self.vit.pos_embed, x.shape[1], x.shape[2])
        kept = []
        for number, block in enumerate(self.vit.blocks):
            x = run_block(block, x)
            if number in self.layers:
                kept.append(F.layer_norm(x, x.shape[-1:]))
        if self.layers:
            x = torch.cat(kept, -1)
        x = x.permute(0, 3, 1, 2)
        return self.vit.neck(x) if self.neck else x


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """One transformer block of segment-anything on ``x`` (B, H, W, C)."""
    layers = segment_anything_layers()
    y = block.norm1(x)
    if block.window_size > 0:
        y, padded = layers.window_partition(y, block.window_size)
        y = attend(block.attn, y)
        y = layers.window_unpartition(y, block.window_size, padded, x.shape[1:3])
    else:
        y = attend(block.attn, y)
    x = x + y
    return x + block.mlp(block.norm2(x))


def attend(attn: nn.Module, x: Tensor) -> Tensor:
    """Self-attention among the tokens of ``x`` (B, H, W, C), with decomposed relative positions (Li et al., MViTv2)."""
    batch, height, width, channels = x.shape
    heads = attn.num_heads
    qkv = attn.qkv(x).view(batch, height * width, 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if not attn.use_rel_pos:
        y = F.scaled_dot_product_attention(q, k, v)
        return attn.proj(y.transpose(1, 2).reshape(x.shape))
    longer = max(height, width)
    raster = q.reshape(batch, heads, height, width, -1)
    vertical = torch.einsum("bnhwc,hkc->bnhwk", raster, relative_positions(attn.rel_pos_h, height, longer).to(q.dtype))
    horizontal = torch.einsum("bnhwc,wkc->bnhwk", raster, relative_positions(attn.rel_pos_w, width, longer).to(q.dtype))
    limit = _BIAS_VALUES[x.device.type != "cpu"]
    rows = max(1, limit // (batch * heads * width * height * width))
    parts = []
    for queries in range(0, height, rows):
        part = slice(queries, min(queries + rows, height))
        bias = q.new_empty(batch, heads, part.stop - part.start, width, height, width)
        torch.add(vertical[:, :, part, :, :, None], horizontal[:, :, part, :, None, :], out=bias)
        bias = bias.view(batch, heads, -1, height * width)
        parts.append(F.scaled_dot_product_attention(raster[:, :, part].flatten(2, 3), k, v, attn_mask=bias))
    return attn.proj(torch.cat(parts, 2).transpose(1, 2).reshape(x.shape))


def relative_positions(table: Tensor, size: int, longer: int) -> Tensor:
    """Vectors (size, size, C) for query and key positions along one axis, of a table for -(n - 1) ... n - 1.

    The table is resized to a picture whose longer side has ``longer`` tokens, so that both axes keep one scale.
    """
    if 2 * longer - 1 != table.shape[0]:
        table = F.interpolate(table.float().T[None], size=2 * longer - 1, mode="linear")[0].T
    middle = table.shape[0] // 2
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps + middle]


def resized_positions(table: Tensor, height: int, width: int) -> Tensor:
    """The position table (1, n, n, C) for a picture of other size: resized to its longer side, then cut off below or at
    the right, where SAM's own preparation pads."""
    longer = max(height, width)
    if longer != table.shape[1]:
        size = (longer, longer)
        table = F.interpolate(table.float().permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
        table = table.permute(0, 2, 3, 1)
    return table[:, :height, :width]


def build_sam(path: Path, options: Mapping[str, Any], layers: Sequence[int] = ()) -> SamEncoder:
    """The encoder of a checkpoint. Raises `WeightsError` for keys that are missing, surplus or misshapen.

    Options: ``size`` (a key of `SIZES`), ``neck``, ``layout``: ``sam`` (whole model, ``image_encoder.`` prefix),
    ``encoder`` (the encoder alone, perhaps behind ``module.``) or ``dino`` (teacher of a DINOv2 training).
    """
    state = read_checkpoint(path)
    layout, neck = options.get("layout", "sam"), options.get("neck", True)
    if layout == "dino" and not any(name.startswith("image_encoder.") for name in state):
        state = from_dino_teacher(state)
    elif any(name.startswith("image_encoder.") for name in state):
        state = below(state, "image_encoder.")
    elif layout == "encoder":
        state = {name.removeprefix("module.").removeprefix("image_encoder."): value for name, value in state.items()}
    else:
        raise WeightsError(f"The file {path} holds no image encoder of SAM: no key begins with image_encoder.")
    relative = any("rel_pos" in name for name in state)
    vit = new_vit(options["size"], use_rel_pos=relative or layout == "sam")
    if not neck:
        vit.neck = nn.Identity()
        state = {name: value for name, value in state.items() if not name.startswith("neck.")}
    load_strictly(vit, state, path)
    return SamEncoder(vit, neck, layers)


def new_vit(size: str, pixels: int = TRAINED_PIXELS, use_rel_pos: bool = True) -> nn.Module:
    """segment-anything's own ImageEncoderViT of that size, with arbitrary weights."""
    return segment_anything_layers().ImageEncoderViT(
        img_size=pixels,
        patch_size=PATCH,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=use_rel_pos,
        window_size=WINDOW,
        out_chans=NECK_CHANNELS,
        **SIZES[size],
    )


def from_dino_teacher(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MRI-CORE's layout (the teacher of a DINOv2 training with SAM's blocks) in SAM's names.

    Blocks are numbered behind their chunk, the MLP's layers are called fc, the position table has a class
    token in front, layer scales are multiplied into the layers they follow. The training's own heads are left out.
    """
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.").removeprefix("backbone.")
        if name.startswith(("dino_head.", "ibot_head.", "cls_token", "mask_token", "norm.")):
            continue
        parts = name.split(".")
        if parts[0] == "blocks" and parts[2].isdigit():
            del parts[1]
        renamed[".".join(parts).replace("mlp.fc", "mlp.lin")] = value
    for name in [name for name in renamed if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        gamma = renamed.pop(name)
        block, last = name[: -len(".ls1.gamma")], "attn.proj" if ".ls1." in name else "mlp.lin2"
        renamed[f"{block}.{last}.weight"] = renamed[f"{block}.{last}.weight"] * gamma[:, None]
        renamed[f"{block}.{last}.bias"] = renamed[f"{block}.{last}.bias"] * gamma
    table = renamed.get("pos_embed")
    if table is not None and table.ndim == 3:
        side = int((table.shape[1] - 1) ** 0.5)
        table = table[:, 1:].view(1, side, side, -1).permute(0, 3, 1, 2).float()
        wanted = (TRAINED_PIXELS // PATCH,) * 2
        renamed["pos_embed"] = F.interpolate(table, wanted, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return renamed
