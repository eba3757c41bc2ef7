"""How good a transform is: overlap of labels, distance of surfaces and landmarks, folding, shared information."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

from ..errors import InputError
from ..images.conversion import grid_of
from ..images.resampling import antialiased, binned, resample_to_grid, warp
from ..images.transforms import affine_matrix

Scores = dict[str, float | dict[int, float]]

_NMI_SPACING_MM, _NMI_BINS = 2.0, 48
# The Jacobian is worked out in slabs of so many voxels, since it takes some 100 bytes for each.
_SLAB_VOXELS = 4_000_000


def dice(a: np.ndarray, b: np.ndarray, labels=None) -> dict[int, float]:
    """Dice coefficient of each label of two integer arrays; by default of the labels in both, without 0."""
    count_a, count_b, both = _counts(a), _counts(b), _counts(a[a == b])
    labels = sorted(set(count_a) & set(count_b)) if labels is None else labels
    return {
        int(k): 2 * both.get(k, 0) / (count_a.get(k, 0) + count_b.get(k, 0))
        if count_a.get(k, 0) + count_b.get(k, 0)
        else float("nan")
        for k in labels
    }


def _counts(values: np.ndarray) -> dict[int, int]:
    """Voxels of each label other than 0."""
    values = values.ravel()
    if values.size and values.min() >= 0 and values.max() < 1_000_000:
        counts = np.bincount(values)
        found = np.flatnonzero(counts)
        return {int(k): int(counts[k]) for k in found if k}
    return {int(k): int(n) for k, n in zip(*np.unique(values, return_counts=True), strict=True) if k}


def hd95(a: np.ndarray, b: np.ndarray, spacing) -> float:
    """95th percentile of the distances in mm between the surfaces of two masks (D, H, W), both directions pooled.

    ``spacing`` is (z, y, x) in mm. Surface voxels have a face neighbour outside the mask or beyond the array. nan when
    a mask is empty.
    """
    if not a.any() or not b.any():
        return float("nan")
    surfaces = [_surface(mask) * np.asarray(spacing, float) for mask in (a, b)]
    pairs = (surfaces, surfaces[::-1])
    return float(np.percentile(np.concatenate([cKDTree(b).query(a, workers=-1)[0] for a, b in pairs]), 95))


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices (n, 3) of the surface voxels of ``mask``."""
    box = ndimage.find_objects(mask.view(np.uint8) if mask.dtype == bool else mask.astype(np.uint8))[0]
    part = mask[box].astype(bool)
    return np.argwhere(part ^ ndimage.binary_erosion(part)) + [s.start for s in box]


def target_registration_error(fixed_points, moving_points, transform: sitk.Transform) -> np.ndarray:
    """Distance (n,) in mm of each LPS fixed point, taken through ``transform``, from its moving point.

    Raises `InputError` when the counts differ.
    """
    fixed_points, moving_points = (np.asarray(p, float).reshape(-1, 3) for p in (fixed_points, moving_points))
    if len(fixed_points) != len(moving_points):
        raise InputError(
            f"There are {len(fixed_points)} fixed but {len(moving_points)} moving points; they must pair up row by row."
        )
    moved = np.array([transform.TransformPoint(p) for p in fixed_points.tolist()]).reshape(-1, 3)
    return np.linalg.norm(moved - moving_points, axis=1)


def jacobian(transform: sitk.Transform, image: sitk.Image, border: bool = True) -> sitk.Image:
    """Determinant of the Jacobian of ``transform`` at each voxel of ``image``, float32; at most 0 where it folds.

    Central differences, one-sided at the border; without ``border``, which is quicker, its voxels mean nothing.
    """
    if transform.IsLinear():
        determinant = sitk.Image(image.GetSize(), sitk.sitkFloat32) + float(
            np.linalg.det(affine_matrix(transform)[:3, :3])
        )
        determinant.CopyInformation(image)
        return determinant
    depth, height, width = grid_of(image).shape
    step = max(1, _SLAB_VOXELS // (height * width))
    determinant = np.empty((depth, height, width), np.float32)
    for first in range(0, depth, step):
        # With a slice more on either side, if there is one, differences at the cut are central.
        low, high = max(first - 1, 0), min(first + step + 1, depth)
        found = _determinant(transform, image[:, :, low:high], border)
        determinant[first : first + step] = found[first - low : first - low + step]
    result = sitk.GetImageFromArray(determinant)
    result.CopyInformation(image)
    return result


def _determinant(transform: sitk.Transform, image: sitk.Image, border: bool) -> np.ndarray:
    """Determinant of the Jacobian of ``transform`` at the voxels (D, H, W) of ``image``, as of `jacobian`."""
    # ITK's filter takes derivatives along the image's axes but components along LPS ones. Both agree on an image
    # without direction, of which `transform` sees the voxels turned about the origin to where they lie.
    direction = sitk.AffineTransform(3)
    direction.SetMatrix(image.GetDirection())
    direction.SetCenter(image.GetOrigin())
    field = sitk.TransformToDisplacementField(
        sitk.CompositeTransform([transform, direction]), sitk.sitkVectorFloat32, image.GetSize(), image.GetOrigin(),
        image.GetSpacing(),
    )  # fmt: skip
    sign = np.float32(np.sign(np.linalg.det(grid_of(image).direction[:, ::-1])))
    if not border:
        return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)) * sign
    # By odd reflection its border differences become one-sided.
    vectors = sitk.GetArrayViewFromImage(field)
    padded = sitk.GetImageFromArray(np.pad(vectors, [(1, 1)] * 3 + [(0, 0)], "reflect", reflect_type="odd"), True)
    padded.SetSpacing(image.GetSpacing())
    return sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(padded)[1:-1, 1:-1, 1:-1]) * sign


def folded_percent(determinant: sitk.Image) -> float:
    """Share of voxels in percent where the Jacobian ``determinant`` is not positive; border voxels do not count."""
    return 100 * float((_inner(determinant) <= 0).mean())


def sd_log_jacobian(determinant: sitk.Image) -> float:
    """Standard deviation of the logarithm of the Jacobian ``determinant``; border voxels do not count."""
    return float(np.log(np.clip(_inner(determinant), 1e-6, None), dtype=np.float64).std())


def _inner(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image)[1:-1, 1:-1, 1:-1]


def normalized_mutual_information(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """(H(a) + H(b)) / H(a, b) of the grey values inside ``mask``: 1 is unrelated, 2 is identical; nan when empty.

    Studholme et al., Pattern Recognition 32 (1999).
    """
    if mask is not None:
        a, b = a[mask], b[mask]
    if a.size == 0:
        return float("nan")
    binned = []
    for values in (a, b):
        low, high = np.percentile(values, [0.5, 99.5])
        level = (values - low) * ((_NMI_BINS - 1) / max(float(high - low), 1e-12))
        binned.append(np.clip(np.rint(level), 0, _NMI_BINS - 1).astype(np.int64).ravel())
    joint = np.bincount(binned[0] * _NMI_BINS + binned[1], minlength=_NMI_BINS**2).reshape(_NMI_BINS, _NMI_BINS)
    together = _entropy(joint)
    return float((_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together) if together > 0 else 2.0


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


class Similarity:
    """Normalised mutual information of ``fixed`` and ``moving`` seen through transforms, at 2 mm or coarser.

    Counted where both images are and, with ``mask`` (fixed side), inside of it. Both images are blurred to that
    resolution once.
    """

    def __init__(self, fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image | None = None):
        grid = grid_of(fixed)
        self._grid = grid = grid.with_spacing([max(_NMI_SPACING_MM, s) for s in grid.spacing])
        self._fixed = resample_to_grid(binned(fixed, grid), grid, background=float("nan"))
        self._inside = ~np.isnan(self._fixed)
        if mask is not None:
            self._inside &= resample_to_grid(mask, grid, interpolator="nearest", background=0) > 0
        self._moving = antialiased(binned(moving, grid), grid)

    def of(self, transform: sitk.Transform) -> float:
        """The value for one ``transform``, fixed to moving points."""
        seen = resample_to_grid(self._moving, self._grid, transform, background=float("nan"), antialias=False)
        return normalized_mutual_information(self._fixed, seen, self._inside & ~np.isnan(seen))


def similarity(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, mask: sitk.Image | None = None
) -> float:
    """`Similarity` of ``fixed`` and ``moving`` for one ``transform``."""
    return Similarity(fixed, moving, mask).of(transform)


def common_labels(fixed_labels: sitk.Image, moving_labels: sitk.Image) -> list[int]:
    """Label values other than 0 that both images hold. Raises `InputError` when there are none."""
    found = [set(_counts(_integers(image))) for image in (fixed_labels, moving_labels)]
    if not found[0] & found[1]:
        texts = [", ".join(map(str, sorted(values)[:5])) or "none" for values in found]
        raise InputError(
            f"The labels have no value in common: {texts[0]} in the fixed, {texts[1]} in the moving image."
        )
    return sorted(found[0] & found[1])


def _integers(image: sitk.Image) -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    # Voxels that are no number hold no label.
    return np.rint(np.nan_to_num(array, posinf=0, neginf=0)).astype(np.int64) if array.dtype.kind == "f" else array


def evaluate(
    fixed: sitk.Image,
    moving: sitk.Image,
    transform: sitk.Transform,
    fixed_labels: sitk.Image | None = None,
    moving_labels: sitk.Image | None = None,
    fixed_points: np.ndarray | None = None,
    moving_points: np.ndarray | None = None,
    mask: sitk.Image | None = None,
) -> Scores:
    """Scores of ``transform`` (fixed to moving points).

    Keys: ``nmi``, ``folded_percent``, ``sd_log_jacobian``; with labels ``dice`` (mean), ``dice_per_label`` and
    ``hd95_mm`` (mean); with points (n, 3) in LPS mm ``tre_mm`` (mean) and ``tre_p95_mm``. ``mask`` is on the fixed side
    and limits ``nmi`` only. Raises `InputError` when labels or points do not match.
    """
    references = (fixed_labels, moving_labels, fixed_points, moving_points)
    return evaluate_each(fixed, moving, {"": transform}, *references, mask=mask)[""]


def evaluate_each(
    fixed: sitk.Image,
    moving: sitk.Image,
    transforms: dict[str, sitk.Transform],
    fixed_labels: sitk.Image | None = None,
    moving_labels: sitk.Image | None = None,
    fixed_points: np.ndarray | None = None,
    moving_points: np.ndarray | None = None,
    mask: sitk.Image | None = None,
    compare: Callable[[], Similarity] | None = None,
) -> dict[str, Scores]:
    """The scores of `evaluate` for several ``transforms`` by name, which share what is the same for all of them.

    ``compare``: gives the `Similarity` of these images and ``mask``, where it may be there already.
    """

    def score(transform: sitk.Transform) -> Scores:
        scores = jacobian_scores(transform, fixed)
        if fixed_labels is not None and moving_labels is not None:
            scores |= label_scores(fixed_labels, moving_labels, transform)
        if fixed_points is not None and moving_points is not None:
            errors = target_registration_error(fixed_points, moving_points, transform)
            scores |= {"tre_mm": float(errors.mean()), "tre_p95_mm": float(np.percentile(errors, 95))}
        return scores

    # Much of it is done by one core alone, so that several go at a time.
    with ThreadPoolExecutor(min(len(transforms) + 1, os.cpu_count() or 1)) as pool:
        blurred = pool.submit(compare or (lambda: Similarity(fixed, moving, mask)))
        scores = pool.map(score, transforms.values())
        shared = pool.map(blurred.result().of, transforms.values())
        return {name: {"nmi": nmi, **found} for name, found, nmi in zip(transforms, scores, shared, strict=True)}


def jacobian_scores(transform: sitk.Transform, image: sitk.Image) -> Scores:
    """``folded_percent`` and ``sd_log_jacobian`` of `evaluate` at the voxels of ``image``."""
    if transform.IsLinear():
        mirrored = np.linalg.det(affine_matrix(transform)[:3, :3]) <= 0
        return {"folded_percent": 100.0 * mirrored, "sd_log_jacobian": 0.0}
    if isinstance(transform, sitk.DisplacementFieldTransform) and "torch" in sys.modules:
        from ..numerics.jacobian import stretch  # where torch has to be loaded first, ITK is as quick

        field = transform.GetDisplacementField()
        found = stretch(sitk.GetArrayViewFromImage(field), grid_of(field), grid_of(image))
        if found is not None:
            return {"folded_percent": 100.0 * found[0], "sd_log_jacobian": found[1]}
    determinant = jacobian(transform, image, border=False)
    return {"folded_percent": folded_percent(determinant), "sd_log_jacobian": sd_log_jacobian(determinant)}


def label_scores(fixed_labels: sitk.Image, moving_labels: sitk.Image, transform: sitk.Transform) -> dict:
    """``dice``, ``dice_per_label`` and ``hd95_mm`` of `evaluate`, on the lattice of ``fixed_labels``.

    A label that leaves the fixed image counts with the image's diagonal as its Hausdorff distance.
    """
    labels = common_labels(fixed_labels, moving_labels)
    a, b = _integers(fixed_labels), _integers(warp(moving_labels, transform, fixed_labels, "nearest"))
    per_label = dice(a, b, labels)
    spacing = fixed_labels.GetSpacing()[::-1]
    order = {label: n + 1 for n, label in enumerate(labels)}
    boxes_a, boxes_b = (ndimage.find_objects(_renumbered(x, order), len(order)) for x in (a, b))
    diagonal = float(np.linalg.norm(np.array(a.shape) * spacing))
    distances = []
    for label, box_a, box_b in zip(labels, boxes_a, boxes_b, strict=True):
        if box_a is None or box_b is None:
            # It left the image, or never lay in it: farther away than anything in the image can be.
            distances.append(diagonal)
            continue
        box = tuple(slice(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(box_a, box_b, strict=True))
        distances.append(hd95(a[box] == label, b[box] == label, spacing))
    hausdorff = float(np.mean(distances)) if distances else float("nan")
    return {"dice": float(np.mean(list(per_label.values()))), "dice_per_label": per_label, "hd95_mm": hausdorff}


def _renumbered(values: np.ndarray, order: dict[int, int]) -> np.ndarray:
    """``values`` with each key of ``order`` replaced by its number and everything else by 0."""
    keys = np.array(sorted(order))
    place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    numbers = np.array([order[int(k)] for k in keys], np.int32)
    return np.where(keys[place] == values, numbers[place], 0)
