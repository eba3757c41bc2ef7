"""The inverse of any transform at single points."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from .transforms import affine_matrix

TOLERANCE_MM = 1e-3


def inverse_points(transform: sitk.Transform, points) -> tuple[np.ndarray, np.ndarray]:
    """Points y (n, 3) with ``transform`` (y) = ``points`` (n, 3), all LPS mm, and which of them were found (n,).

    Newton's method with halved steps, started from the inverse of the affine map nearest to ``transform``. A point is
    not found where the transform folds or does not reach it; y is then the nearest try.
    """
    points = np.asarray(points, float).reshape(-1, 3)
    if transform.IsLinear():
        back = np.linalg.inv(affine_matrix(transform))
        return points @ back[:3, :3].T + back[:3, 3], np.ones(len(points), bool)
    back = np.linalg.inv(nearest_affine(transform, points))
    guess = points @ back[:3, :3].T + back[:3, 3]
    misses = points - _moved(transform, guess)
    for _ in range(50):
        open_ = np.flatnonzero(np.linalg.norm(misses, axis=1) > TOLERANCE_MM)
        if not open_.size:
            break
        steps = _newton_steps(transform, guess[open_], misses[open_])
        improved = np.zeros(open_.size, bool)
        for length in (1.0, 0.5, 0.25, 0.125):
            rows = open_[~improved]
            if not rows.size:
                break
            tries = guess[rows] + length * steps[~improved]
            missed = points[rows] - _moved(transform, tries)
            better = np.linalg.norm(missed, axis=1) < np.linalg.norm(misses[rows], axis=1)
            guess[rows[better]], misses[rows[better]] = tries[better], missed[better]
            improved[np.flatnonzero(~improved)[better]] = True
        if not improved.any():
            break
    return guess, np.linalg.norm(misses, axis=1) <= 0.01


def _moved(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(point) for point in points.tolist()]).reshape(-1, 3)


def _newton_steps(transform: sitk.Transform, points: np.ndarray, misses: np.ndarray) -> np.ndarray:
    width = 0.25  # mm; well inside a voxel, so that the slope is that of one cell of a linearly interpolated field
    slopes = [(_moved(transform, points + width * e) - _moved(transform, points - width * e)) for e in np.eye(3)]
    jacobians = np.stack(slopes, axis=-1) / (2 * width)
    return np.einsum("nij,nj->ni", np.linalg.pinv(jacobians), misses)


def nearest_affine(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    """(4, 4) least-squares fit of ``transform`` over its field, or around ``points`` when it has none."""
    if isinstance(transform, sitk.DisplacementFieldTransform) or transform.GetName() == "DisplacementFieldTransform":
        field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        last = np.array(field.GetSize()) - 1
        share = np.stack(np.meshgrid(*[np.linspace(0.05, 0.95, 6)] * 3), -1).reshape(-1, 3)
        places = np.array([field.TransformContinuousIndexToPhysicalPoint(p) for p in (share * last).tolist()])
    else:
        middle = points.mean(0)
        places = middle + 100.0 * np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 3), -1).reshape(-1, 3)
    ones = np.ones((len(places), 1))
    fit = np.linalg.lstsq(np.hstack([places, ones]), _moved(transform, places), rcond=None)[0]
    matrix = np.eye(4)
    matrix[:3] = fit.T
    return matrix
