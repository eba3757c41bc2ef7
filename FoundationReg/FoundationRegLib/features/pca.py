"""One principal component basis for several images, from sums that are added up block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .raster import FeatureRaster, token_weights


class Moments:
    """Weighted sums of tokens and of their products, in float64. The tokens themselves are not kept."""

    def __init__(self):
        self._weight = 0.0
        self._shift: Tensor | None = None

    def add(self, tokens: Tensor, weights: Tensor | None = None) -> None:
        """Count ``tokens`` (..., C), each with its weight (...), those of weight zero not at all."""
        tokens = tokens.flatten(0, -2).float()
        weights = torch.ones(len(tokens)) if weights is None else weights.flatten()
        keep = weights > 0
        if not keep.any():
            return
        tokens, weights = tokens[keep.to(tokens.device)], weights[keep].to(tokens.device)
        if self._shift is None:
            # Differences from a typical token stay accurate in float32.
            self._shift = tokens.mean(0)
            self._sum = torch.zeros(tokens.shape[1], dtype=torch.float64)
            self._products = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
        tokens = tokens - self._shift.to(tokens.device)
        weighted = tokens * weights[:, None]
        self._weight += float(weights.sum())
        self._sum += weighted.sum(0).cpu().double()
        self._products += (tokens.T @ weighted).cpu().double()

    def basis(self, components: int) -> SharedPCA:
        """The principal components of what was added. Raises `InputError` when that was nothing."""
        if self._shift is None:
            raise InputError("No feature lies inside the foreground masks.")
        mean = self._sum / self._weight
        covariance = self._products / self._weight - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
        k = min(components, len(variances))
        kept, basis = variances[:k], vectors[:, :k]
        signs = torch.sign(basis.gather(0, basis.abs().argmax(0, keepdim=True)))
        scale = kept.mean().clamp(min=1e-30).rsqrt()
        return SharedPCA(
            mean=(mean + self._shift.cpu().double()).float(),
            basis=(basis * signs * scale).float(),
            explained=(kept / variances.sum().clamp(min=1e-30)).numpy(),
        )


@dataclass(frozen=True)
class SharedPCA:
    """One principal component basis for several rasters: ``(tokens - mean) @ basis``.

    ``mean`` (C), ``basis`` (C, k, columns scaled so that the features' mean square over channels is 1 over all tokens
    that were fitted; each column's largest entry is positive, so that it does not depend on the solver),
    ``explained``: share (k) of the total variance that each component holds.
    """

    mean: Tensor
    basis: Tensor
    explained: np.ndarray

    @classmethod
    def fit(
        cls,
        rasters: Sequence[FeatureRaster],
        components: int,
        masks: Sequence[np.ndarray | None] | None = None,
    ) -> SharedPCA:
        """The basis of all tokens of ``rasters``, those outside their masks left out."""
        moments = Moments()
        for raster, mask in zip(rasters, masks or [None] * len(rasters), strict=True):
            weights = token_weights(mask, raster.positions) if mask is not None else [None] * len(raster.values)
            for block, weight in zip(raster.values, weights, strict=True):
                moments.add(block, weight)
        return moments.basis(components)

    @property
    def components(self) -> int:
        return self.basis.shape[1]

    def apply(self, tokens: Tensor) -> Tensor:
        """Components (..., k), float32, of ``tokens`` (..., C)."""
        return (tokens.float() - self.mean.to(tokens.device)) @ self.basis.to(tokens.device)

    def project(self, raster: FeatureRaster) -> FeatureRaster:
        """The raster with its k components instead of the encoder's channels, float32."""
        return replace(raster, values=torch.stack([self.apply(block) for block in raster.values]))
