"""One plain vision transformer for DINOv2, DINOv3 and the image tower of BiomedCLIP.

Oquab et al., DINOv2 (TMLR 2024); Darcet et al., Vision Transformers Need Registers (ICLR 2024); Siméoni et al., DINOv3
(2025); Zhang et al., BiomedCLIP (2023). Submodules have the names of the original .pth files; `canonical` brings the
Hugging Face, open_clip and MedCLIP-SAMv2 layouts to them. It is written here rather than taken from transformers, whose
module names change between versions, so that every layout loads strictly and nothing but torch is needed to run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights.checkpoints import load_strictly, read_checkpoint


class VisionTransformer(nn.Module):
    """(B, 3, H, W) to (B, channels, H / patch, W / patch), for any H and W that are multiples of ``patch``.

    ``table``: side of the learned position table in tokens; 0 for rotary positions (DINOv3). ``registers``: extra
    tokens that carry no place. ``hidden``: width of the MLPs, ``gated``: with a SwiGLU gate. ``scales``: learned
    layer scales. ``antialias``: how the table is resized, as the network's own code does it. ``final_norm``: whether
    the last layer norm is applied. ``layers``: blocks whose outputs are normalised and fused instead of the last one's.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        patch: int,
        table: int = 0,
        registers: int = 0,
        hidden: int = 0,
        gated: bool = False,
        scales: bool = True,
        eps: float = 1e-6,
        antialias: bool = False,
        final_norm: bool = True,
        qkv_bias: bool = True,
        layers: Sequence[int] = (),
    ):
        super().__init__()
        self.patch, self.antialias, self.final_norm, self.layers = patch, antialias, final_norm, tuple(layers)
        self.channels = width * max(1, len(self.layers))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + table * table, width)) if table else None
        if not table:
            head = width // heads
            self.register_buffer("periods", 100.0 ** (torch.arange(head // 4) * 4 / head), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden or 4 * width, gated, scales, eps, qkv_bias) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // self.patch, x.shape[3] // self.patch
        x = self.patch_embed["proj"](x).float().flatten(2).transpose(1, 2)
        rotation = None
        if self.pos_embed is None:
            rotation = self._rotation(height, width)
        else:
            x = x + self._positions(height, width)
        first = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
        extra = [first] if self.register_tokens is None else [first, self.register_tokens]
        x = torch.cat([*(token.expand(len(x), -1, -1).to(x.dtype) for token in extra), x], 1)
        kept = []
        for number, block in enumerate(self.blocks):
            x = block(x, rotation)
            if number in self.layers:
                kept.append(self.norm(x))
        if self.layers:
            x = torch.cat(kept, -1)
        elif self.final_norm:
            x = self.norm(x)
        tokens = x[:, -height * width :]
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def _positions(self, height: int, width: int) -> Tensor:
        """The position table (1, tokens, width) for a raster of other size."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (height, width) == (side, side):
            return self.pos_embed[:, 1:]
        # On the CPU, because not every device resizes like this.
        table = self.pos_embed[:, 1:].detach().cpu().float().view(1, side, side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, (height, width), mode="bicubic", antialias=self.antialias)
        return table.flatten(2).transpose(1, 2).to(self.pos_embed.device)

    def _rotation(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (tokens, head width) of the rotary positions: patch centres in -1..1 along each axis."""
        axes = [(torch.arange(n, device=self.periods.device) + 0.5) / n * 2 - 1 for n in (height, width)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
        angles = (2 * math.pi * places[:, :, None] / self.periods).flatten(1).tile(2)
        return angles.cos(), angles.sin()


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and added to what comes in."""

    def __init__(self, width: int, heads: int, hidden: int, gated: bool, scales: bool, eps: float, qkv_bias: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.mlp = GatedMlp(width, hidden) if gated else Mlp(width, hidden)
        self.ls1, self.ls2 = (LayerScale(width), LayerScale(width)) if scales else (nn.Identity(), nn.Identity())

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions on the last tokens of ``x`` (B, heads, tokens, width); class and register tokens stay."""
    extra = x.shape[2] - len(cosines)
    places = x[:, :, extra:]
    low, high = places.chunk(2, -1)
    turned = (places * cosines + torch.cat([-high, low], -1) * sines).to(x.dtype)
    return torch.cat([x[:, :, :extra], turned], 2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def build_vit(path: Path, options: Mapping[str, Any], layers: Sequence[int] = ()) -> VisionTransformer:
    """The network of a checkpoint in any of the known layouts. Raises `WeightsError` for keys that do not fit.

    ``options``: arguments of `VisionTransformer` under ``network``.
    """
    network = VisionTransformer(**options["network"], layers=layers)
    state = canonical(read_checkpoint(path))
    periods = state.pop("rope_embed.periods", None)
    if periods is not None and network.pos_embed is None and periods.shape == network.periods.shape:
        network.periods.copy_(periods)
    load_strictly(network, state, path)
    return network


_RENAMED = [
    (r"^(visual\.trunk|vision_model)\.", ""),
    (r"^embeddings\.(class_embedding|cls_token)$", "cls_token"),
    (r"^(embeddings\.register_tokens|storage_tokens|reg_token)$", "register_tokens"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?(\.projection|ding)?\.(weight|bias)$", r"patch_embed.proj.\2"),
    (r"^(encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"^(post_layernorm|layernorm)\.", "norm."),
    (r"\.(layer_norm|layernorm_)(1|before)\.", ".norm1."),
    (r"\.(layer_norm|layernorm_)(2|after)\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.(attention\.attention|attention|self_attn)\.(query|key|value|q_proj|k_proj|v_proj)\.", r".attn.\2."),
    (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.(mlp\.weights_in)\.", ".mlp.w12."),
    (r"\.(mlp\.weights_out)\.", ".mlp.w3."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]
# Left out: training helpers, and the parts of a whole CLIP beside its image tower.
_UNUSED = re.compile(
    r"^(mask_token|embeddings\.(mask_token|position_ids)|pooler\.|text|visual\.head\.|visual_projection\.|logit_scale"
    r"|logit_bias|vision_model\.embeddings\.position_ids)|bias_mask$"
)


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of `VisionTransformer`; unknown names stay, so that they are reported."""
    result = {}
    for name, value in state.items():
        if _UNUSED.search(name):
            continue
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        result[name] = value
    if "cls_token" in result:
        result["cls_token"] = result["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in result and result["pos_embed"].ndim == 2:
        result["pos_embed"] = result["pos_embed"][None]
    return _masked_key_bias(state, _merged_gate(_merged_qkv(result)))


def _merged_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate projections for queries, keys and values as one; a bias that keys lack is zero (DINOv3)."""
    for query in [name for name in state if re.search(r"\.attn\.(query|q_proj)\.", name)]:
        key, value = (
            query.replace(".query.", f".{long}.").replace(".q_proj.", f".{short}.")
            for long, short in (("key", "k_proj"), ("value", "v_proj"))
        )
        if value in state and (key in state or query.endswith(".bias")):
            q, v = state.pop(query), state.pop(value)
            k = state.pop(key) if key in state else torch.zeros_like(q)
            state[re.sub(r"\.(query|q_proj)\.", ".qkv.", query)] = torch.cat([q, k, v])
    return state


def _merged_gate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Perceptrons in DINOv3's names: gate and value side by side, or without a gate as fc1 and fc2."""
    gated = any(".mlp.gate_proj." in name for name in state)
    plain = {".mlp.up_proj.": ".mlp.fc1.", ".mlp.down_proj.": ".mlp.fc2."}
    names = {".mlp.gate_proj.": ".mlp.w1.", ".mlp.up_proj.": ".mlp.w2.", ".mlp.down_proj.": ".mlp.w3."}
    for old, new in (names if gated else plain).items():
        for name in [name for name in state if old in name]:
            state[name.replace(old, new)] = state.pop(name)
    for gate in [name for name in state if ".mlp.w1." in name]:
        if gate.replace(".w1.", ".w2.") in state:
            pair = state.pop(gate), state.pop(gate.replace(".w1.", ".w2."))
            state[gate.replace(".w1.", ".w12.")] = torch.cat(pair)
    return state


def _masked_key_bias(original: Mapping[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's original files hold a bias for keys and a mask that says it is none."""
    for name in original:
        if name.endswith(".attn.qkv.bias_mask"):
            bias = state[name.removesuffix("_mask")].clone()
            bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
            state[name.removesuffix("_mask")] = bias
    return state
