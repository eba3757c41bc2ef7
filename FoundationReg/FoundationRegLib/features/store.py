"""Features of images on disk, found again by what they were made from: several runs and processes share a folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..core.files import replacing
from ..core.grid import Grid
from .raster import FeatureRaster

_SUFFIX = ".safetensors"


class FeatureStore:
    """Rasters in ``folder``, by a hash of their content's origin; the longest unused ones go beyond ``limit_gb``.

    Any number of processes may use one folder at a time, also over a network: a raster appears as a whole or not at
    all. What cannot be written or read counts as absent, since it can be made again. ``found`` and ``made`` count.
    """

    def __init__(self, folder: str | Path, limit_gb: float = 10.0):
        self.folder, self.limit = Path(folder), limit_gb * 1e9
        self.found = self.made = 0

    def get(self, key: str, grid: Grid, device: torch.device) -> FeatureRaster | None:
        """The raster of ``key``, whose positions are relative to ``grid``."""
        path = self._path(key)
        try:
            parts = load_file(path, device=str(device))
            os.utime(path)
        except (OSError, SafetensorError):
            return None
        self.found += 1
        positions = tuple(parts[f"positions{axis}"].cpu().numpy() for axis in range(3))
        return FeatureRaster(parts["values"], positions, grid)

    def put(self, key: str, raster: FeatureRaster) -> None:
        self.made += 1
        path = self._path(key)
        parts = {f"positions{axis}": torch.from_numpy(np.array(p, float)) for axis, p in enumerate(raster.positions)}
        parts["values"] = raster.values.contiguous()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(raster.values.nbytes)
            with replacing(path) as temporary:
                save_file(parts, temporary)
        except (OSError, SafetensorError):
            return

    def _path(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)

    def _make_room(self, size: int) -> None:
        """Delete the longest unused rasters until ``size`` bytes more fit within the limit."""
        files = []
        for entry in os.scandir(self.folder):
            try:
                facts = entry.stat()
            except FileNotFoundError:
                continue
            if entry.name.endswith(_SUFFIX):
                files.append((facts.st_mtime_ns, facts.st_size, entry.path))
        used = sum(bytes for _, bytes, _ in files)
        for _, bytes, path in sorted(files):
            if used + size <= self.limit:
                break
            Path(path).unlink(missing_ok=True)
            used -= bytes


def content_key(image: Tensor, grid: Grid, *facts: object) -> str:
    """Hash of ``image``, where it lies, and the ``facts`` that decide its features."""
    digest = hashlib.sha256(np.ascontiguousarray(image.cpu().numpy()).tobytes())
    digest.update(np.ascontiguousarray(grid.affine).tobytes())
    digest.update(repr((tuple(grid.shape), facts)).encode())
    return digest.hexdigest()
