"""Transforms between SimpleITK and arrays: matrices, displacement fields and their composition.

Transforms map fixed to moving points in LPS mm. Displacement arrays (3, D, H, W) hold millimetres along the array axes
of their `Grid`, component n along array axis n.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.grid import Grid
from .conversion import grid_of, image_from_array, itk_geometry


def affine_matrix(transform: sitk.Transform) -> np.ndarray:
    """(4, 4) matrix, LPS mm, of a linear ``transform``, which may be a composite of linear ones."""
    reach = 1000.0
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = (np.array(transform.TransformPoint((np.eye(3)[axis] * reach).tolist())) - origin) / reach
    matrix[:3, 3] = origin
    return matrix


def affine_transform(matrix: np.ndarray) -> sitk.AffineTransform:
    """The SimpleITK transform of a (4, 4) LPS ``matrix``."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.asarray(matrix, float)[:3, :3].ravel().tolist())
    transform.SetTranslation(np.asarray(matrix, float)[:3, 3].tolist())
    return transform


def field_image(displacement, grid: Grid) -> sitk.Image:
    """Vector image, float64 LPS mm, of a ``displacement`` (3, D, H, W) in mm along the array axes of ``grid``."""
    return image_from_array(np.einsum("cn,n...->...c", grid.direction, _as_array(displacement)), grid)


def displacement_of(field: sitk.Image) -> np.ndarray:
    """Displacement (3, D, H, W), float32 mm along the array axes, of a vector image in LPS mm: undoes `field_image`."""
    vectors = sitk.GetArrayViewFromImage(field)
    return np.einsum("cn,...c->n...", grid_of(field).direction, vectors).astype(np.float32)


def _as_array(displacement) -> np.ndarray:
    """``displacement``, a tensor on any device or an array, as float64."""
    if hasattr(displacement, "detach"):
        displacement = displacement.detach().cpu().numpy()
    return np.asarray(displacement, np.float64)


def to_field_transform(transform: sitk.Transform, grid: Grid) -> sitk.DisplacementFieldTransform:
    """Any ``transform`` as one displacement field with its nodes on ``grid``; ITK takes it as zero outside."""
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, *itk_geometry(grid))
    return sitk.DisplacementFieldTransform(field)


def compose_field(
    linear: sitk.Transform | None,
    displacement,
    working_grid: Grid,
    fixed: sitk.Image | Grid,
    lattice: Grid | None = None,
) -> sitk.DisplacementFieldTransform:
    """The map x -> linear(x + u(x)) as one field that covers the whole ``fixed`` image.

    u is ``displacement`` (3, D, H, W), mm along the array axes of ``working_grid``; outside of it the nearest edge
    value holds. ``linear`` is any transform. Nodes lie on ``lattice``, by default the fixed image's own voxels; a
    coarser one must reach the outermost voxel centres, since ITK moves nothing beyond a field's last node.
    """
    fixed = grid_of(fixed) if isinstance(fixed, sitk.Image) else fixed
    lattice = fixed if lattice is None else lattice
    ends = lattice.indices(fixed.points([np.zeros(3), np.array(fixed.shape) - 1.0]))
    if ends.min() < -1e-3 or (ends > np.array(lattice.shape) - 1 + 1e-3).any():
        raise ValueError("the lattice does not cover the fixed image")
    matrix = affine_matrix(linear) if linear is not None and linear.IsLinear() else np.eye(4)
    # linear(p + u) - p = (M - 1) p + t + M u; turning u commutes with interpolating it and is cheaper before.
    turned = np.einsum("cn,n...->c...", matrix[:3, :3] @ working_grid.direction, _as_array(displacement))
    moved = matrix @ lattice.affine - lattice.affine
    z, y, x = np.ogrid[tuple(slice(n) for n in lattice.shape)]
    field = np.empty((*lattice.shape, 3))
    for c, values in enumerate(_resized(turned.astype(np.float32), working_grid, lattice)):
        plane = moved[c, 1] * y + moved[c, 2] * x + moved[c, 3]
        np.add(values, moved[c, 0] * z + plane, out=field[..., c])
    deformation = sitk.DisplacementFieldTransform(image_from_array(field, lattice))
    if linear is None or linear.IsLinear():
        return deformation
    return to_field_transform(sitk.CompositeTransform([linear, deformation]), lattice)


def _resized(displacement: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """``displacement`` (3, ...) interpolated linearly at the points of ``target``; the edge value holds outside."""
    index = np.linalg.inv(source.affine) @ target.affine
    if np.abs(index[:3, :3] - np.diag(np.diag(index))[:3, :3]).max() * max(target.shape) < 1e-3:
        for axis in range(3):
            last = source.shape[axis] - 1
            place = np.clip(index[axis, axis] * np.arange(target.shape[axis]) + index[axis, 3], 0, last)
            low = np.minimum(place.astype(int), max(last - 1, 0))
            high = np.minimum(low + 1, last)
            weight = (place - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
            below, above = (np.take(displacement, k, axis=axis + 1) for k in (low, high))
            displacement = below + weight * (above - below)
        return displacement
    places = np.tensordot(index[:3, :3], np.indices(target.shape), 1) + index[:3, 3].reshape(3, 1, 1, 1)
    return np.stack([ndimage.map_coordinates(u, places, order=1, mode="nearest") for u in displacement])
