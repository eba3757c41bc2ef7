"""From an encoded slice and a box to the mask of what the box holds: SAM's prompt encoder and mask decoder.

Kirillov et al., Segment Anything (ICCV 2023); Ma et al., MedSAM (Nature Communications 2024), whose Lite checkpoint
holds these parts beside its image encoder. The corners of the box become two tokens; two rounds of attention let them
and the learned output tokens ask the image, and the image them; the first mask token's answer, as a filter over the
upsampled image, is the mask. Prompts other than boxes, and the further masks for ambiguous points, are left out.

Names of the submodules are those of the published checkpoints.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights.checkpoints import below, load_strictly, read_checkpoint
from .tiny_vit import ChannelNorm

WIDTH, HEADS, MLP_WIDTH, ROUNDS, MASK_TOKENS = 256, 8, 2048, 2, 4
# Parts of the checkpoint that only points, earlier masks and ambiguous prompts need.
_UNUSED = (
    "prompt_encoder.point_embeddings.0.", "prompt_encoder.point_embeddings.1.", "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.mask_downscaling.", *(f"mask_decoder.output_hypernetworks_mlps.{n}." for n in (1, 2, 3)),
)  # fmt: skip


class Attention(nn.Module):
    """Attention with heads whose inner width may be narrower than the tokens'."""

    def __init__(self, inner: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Tokens (B, n, WIDTH) that ask, and (B, m, WIDTH) that answer, to (B, n, WIDTH)."""
        parts = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in parts]
        return self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2))


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class _BlockPerceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(WIDTH, MLP_WIDTH), nn.Linear(MLP_WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class Round(nn.Module):
    """Tokens among themselves, tokens to the image, an MLP, the image to the tokens."""

    def __init__(self, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = Attention(WIDTH)
        self.cross_attn_token_to_image, self.cross_attn_image_to_token = Attention(WIDTH // 2), Attention(WIDTH // 2)
        self.mlp = _BlockPerceptron()
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, token_places: Tensor, image_places: Tensor):
        # In the first round the tokens are still nothing but their places.
        q = tokens if self.first else tokens + token_places
        answer = self.self_attn(q, q, tokens)
        tokens = self.norm1(answer if self.first else tokens + answer)
        k = image + image_places
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_places, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(k, tokens + token_places, tokens))
        return tokens, image


class _Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Round(n == 0) for n in range(ROUNDS))
        self.final_attn_token_to_image = Attention(WIDTH // 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor, image_places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        places, asked = tokens, tokens
        for layer in self.layers:
            asked, image = layer(asked, image, places, image_places)
        answer = self.final_attn_token_to_image(asked + places, image + image_places, image)
        return self.norm_final_attn(asked + answer), image


class _Places(nn.Module):
    """Random spatial frequencies that tell where a point lies."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, WIDTH // 2))

    def forward(self, points: Tensor) -> Tensor:
        """(..., 2) as (x, y) in 0..1 to (..., WIDTH)."""
        angles = 2 * math.pi * ((2 * points - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat((angles.sin(), angles.cos()), -1)


class _PromptEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pe_layer = _Places()
        # Numbers 2 and 3 of four: a box's first and second corner.
        self.point_embeddings = nn.ModuleDict({"2": nn.Embedding(1, WIDTH), "3": nn.Embedding(1, WIDTH)})
        self.no_mask_embed = nn.Embedding(1, WIDTH)


class _MaskDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = _Transformer()
        self.iou_token, self.mask_tokens = nn.Embedding(1, WIDTH), nn.Embedding(MASK_TOKENS, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, WIDTH // 4, 2, stride=2),
            ChannelNorm(WIDTH // 4),
            nn.GELU(),
            nn.ConvTranspose2d(WIDTH // 4, WIDTH // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleDict({"0": Perceptron(WIDTH, WIDTH, WIDTH, WIDTH // 8)})
        self.iou_prediction_head = Perceptron(WIDTH, WIDTH, WIDTH, MASK_TOKENS)


class BoxDecoder(nn.Module):
    """Tokens of one slice and boxes on it to the boxes' masks."""

    def __init__(self):
        super().__init__()
        self.prompt_encoder, self.mask_decoder = _PromptEncoder(), _MaskDecoder()

    def forward(self, tokens: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, 4 H, 4 W) of the masks and the decoder's own guess (n,) at their intersection over union.

        ``tokens`` (1, WIDTH, H, W): of the image encoder. ``boxes`` (n, 4): left, top, right and bottom in 0..1 of the
        slice that was encoded, from face to face.
        """
        prompts, decoder = self.prompt_encoder, self.mask_decoder
        count, (height, width) = len(boxes), tokens.shape[-2:]
        corners = prompts.pe_layer(boxes.view(-1, 2, 2))
        corners = corners + torch.cat([prompts.point_embeddings[n].weight for n in "23"])
        fixed = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight)).expand(count, -1, -1)
        y, x = ((torch.arange(n, device=tokens.device) + 0.5) / n for n in (height, width))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        image_places = prompts.pe_layer(grid).view(1, -1, WIDTH)
        image = (tokens.flatten(2).transpose(1, 2) + prompts.no_mask_embed.weight).expand(count, -1, -1)
        found, image = decoder.transformer(image, image_places, torch.cat((fixed, corners), 1))
        fine = decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (height, width)))
        filters = decoder.output_hypernetworks_mlps["0"](found[:, 1])
        return torch.einsum("nc,nchw->nhw", filters, fine), decoder.iou_prediction_head(found[:, 0])[:, 0]


def build_box_decoder(path: Path) -> BoxDecoder:
    """The decoder in the checkpoint ``path`` of MedSAM-Lite. Raises `WeightsError` when it has none."""
    state = read_checkpoint(path)
    parts = {
        f"{part}{name}": value
        for part in ("prompt_encoder.", "mask_decoder.")
        for name, value in below(state, part).items()
        if not f"{part}{name}".startswith(_UNUSED)
    }
    decoder = BoxDecoder()
    load_strictly(decoder, parts, path)
    return decoder.eval().requires_grad_(False)
