"""The inverse of a registration's transform as one displacement field over the moving image."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch

from ..core.grid import Grid
from ..images.conversion import grid_of, image_from_array
from ..images.inversion import nearest_affine
from ..images.resampling import resample_to_grid
from ..images.transforms import affine_transform, displacement_of, field_image, to_field_transform
from ..numerics.fields import compose, inverse

_TOLERANCE_MM = 0.01
# Beyond this a point counts as having no inverse.
_FAILED_MM = 0.1
# The field is continued beyond its lattice by at most so many times its size along an axis.
_LARGEST_MARGIN = 2.0
_CORRECTIONS = 2


def inverse_transform(
    transform: sitk.DisplacementFieldTransform, moving: Grid, spacing: float
) -> tuple[sitk.DisplacementFieldTransform, float]:
    """The transform from moving to fixed points over all of ``moving``, and the share (0 to 1) without an inverse.

    ``transform`` maps x to A (x + u(x)) with A, the affine map nearest to it. u is inverted on the transform's own
    lattice by `numerics.fields.inverse`; beyond it the values at its edge hold. Nodes of the result are ``spacing`` mm
    apart or, where its voxels are larger, as far as those of ``moving``. Where ``transform`` folds no inverse exists:
    such nodes are counted, and hold the nearest try.
    """
    field = transform.GetDisplacementField()
    grid = grid_of(field)
    affine = nearest_affine(transform, grid.corners())
    back = np.linalg.inv(affine)
    vectors = _without_affine(field, grid, back)
    lattice = moving.with_spacing(np.maximum(moving.spacing, spacing)).padded(1, 1)
    low, high = _margins(grid, lattice, back)
    vectors = np.pad(vectors, [(0, 0), *zip(low, high, strict=True)], mode="edge")
    grid = grid.padded(low, high)
    u = torch.from_numpy(vectors)
    v, _ = inverse(u, grid.spacing, tolerance_mm=_TOLERANCE_MM)
    failed = float((compose(u, v, grid.spacing).norm(dim=0) > _FAILED_MM).float().mean())
    undeformed = sitk.DisplacementFieldTransform(field_image(v, grid))
    # The last of a composite is applied first.
    found = to_field_transform(sitk.CompositeTransform([undeformed, affine_transform(back)]), lattice)
    for _ in range(_CORRECTIONS):
        found = _corrected(found, transform, back)
    return found, failed


def _corrected(
    found: sitk.DisplacementFieldTransform, transform: sitk.DisplacementFieldTransform, back: np.ndarray
) -> sitk.DisplacementFieldTransform:
    """``found`` with its nodes moved by what ``transform`` misses them by, where that reaches them.

    Takes away what interpolating the inverse between two lattices has added.
    """
    lattice = grid_of(found.GetDisplacementField())
    there_and_back = to_field_transform(sitk.CompositeTransform([transform, found]), lattice).GetDisplacementField()
    misses = sitk.GetArrayFromImage(there_and_back)
    # Beyond its lattice ITK takes a field as zero.
    covered = sitk.Image(transform.GetDisplacementField().GetSize(), sitk.sitkFloat32) + 1
    covered.CopyInformation(transform.GetDisplacementField())
    misses *= resample_to_grid(covered, lattice, found, background=0.0, antialias=False)[..., None] > 0.999
    vectors = sitk.GetArrayFromImage(found.GetDisplacementField()) - misses @ back[:3, :3].T
    return sitk.DisplacementFieldTransform(image_from_array(vectors, lattice))


def _without_affine(field: sitk.Image, grid: Grid, back: np.ndarray) -> np.ndarray:
    """u (3, D, H, W), float32 mm along the axes of ``grid``, of x -> A (x + u(x)); ``back`` is A's inverse."""
    displacement = np.einsum("cn,n...->c...", grid.direction, displacement_of(field).astype(np.float64))
    z, y, x = np.ogrid[tuple(slice(n) for n in grid.shape)]
    a = grid.affine
    points = np.stack([a[c, 0] * z + a[c, 1] * y + a[c, 2] * x + a[c, 3] for c in range(3)])
    moved = np.einsum("cn,n...->c...", back[:3, :3], points + displacement) + back[:3, 3].reshape(3, 1, 1, 1)
    return np.einsum("cn,c...->n...", grid.direction, moved - points).astype(np.float32)


def _margins(grid: Grid, lattice: Grid, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes by which ``grid`` has to grow before and after each axis to hold ``lattice`` taken through ``back``."""
    corners = lattice.corners() @ back[:3, :3].T + back[:3, 3]
    indices = grid.indices(corners)
    most = np.ceil(_LARGEST_MARGIN * np.array(grid.shape))
    low = np.clip(np.ceil(-indices.min(0)) + 1, 0, most)
    high = np.clip(np.ceil(indices.max(0) - np.array(grid.shape)) + 2, 0, most)
    return low.astype(int), high.astype(int)
