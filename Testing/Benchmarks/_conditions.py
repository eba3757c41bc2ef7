"""What other scanners and hands do to a moving image: placed, cropped, sliced and coloured anew, its truth with it.

Each condition takes a `Case` and gives another, whose moving points and labels fit its moving image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

# Degrees about x, y, z and a shift in mm: a patient who lies askew.
ASKEW = ((20.0, -12.0, 20.0), (30.0, -25.0, 40.0))
# Grey values, as shares of the 99.5th percentile, and what they become under another contrast.
_CONTRAST = ((0, 0.15, 0.4, 0.6, 0.8, 1), (0.2, 0.95, 0.5, 0.75, 0.3, 0.1))


@dataclass(frozen=True)
class Case:
    """A pair with its truth. ``carried``: from the moving points as they were to where they lie now."""

    name: str
    fixed: sitk.Image
    moving: sitk.Image
    fixed_labels: sitk.Image | None = None
    moving_labels: sitk.Image | None = None
    fixed_points: np.ndarray | None = None
    moving_points: np.ndarray | None = None
    carried: sitk.Transform | None = None

    def swapped(self) -> Case:
        """Fixed and moving change places."""
        return Case(
            self.name, self.moving, self.fixed, self.moving_labels, self.fixed_labels, self.moving_points,
            self.fixed_points,
        )  # fmt: skip

    def scores(self, transform: sitk.Transform) -> dict[str, float]:
        """``tre_mm`` over points and mean ``dice`` over labels, of what the moving image still shows."""
        found = {}
        if self.fixed_points is not None:
            places = [self.moving.TransformPhysicalPointToContinuousIndex(p) for p in self.moving_points.tolist()]
            shown = ((np.array(places) > -0.5) & (np.array(places) < np.array(self.moving.GetSize()) - 0.5)).all(1)
            moved = np.array([transform.TransformPoint(p) for p in self.fixed_points[shown].tolist()])
            if shown.any():
                found["tre_mm"] = float(np.linalg.norm(moved - self.moving_points[shown], axis=1).mean())
        if self.fixed_labels is not None:
            found["dice"] = self._dice(transform)
        return found

    def _dice(self, transform: sitk.Transform) -> float:
        reference, nearest = self.fixed_labels, sitk.sitkNearestNeighbor
        warped = sitk.GetArrayFromImage(sitk.Resample(self.moving_labels, reference, transform, nearest, 0))
        ones = sitk.Cast(self.moving * 0 + 1, sitk.sitkUInt8)
        seen = sitk.GetArrayFromImage(sitk.Resample(ones, reference, transform, nearest, 0)) > 0
        fixed = np.where(seen, sitk.GetArrayFromImage(reference), 0)
        known = set(np.unique(sitk.GetArrayViewFromImage(self.moving_labels))) - {0}
        known &= set(np.unique(sitk.GetArrayViewFromImage(reference)))
        overlaps = []
        for label in sorted(known):
            a, b = fixed == label, warped == label
            overlaps.append(2 * (a & b).sum() / max(1, a.sum() + b.sum()))
        return float(np.mean(overlaps)) if overlaps else 0.0


def read_case(folder: Path, prefix: str = "") -> Case:
    """The case in ``folder``, or the pair of a cohort whose file names begin with ``prefix``."""

    def image(name: str, kind=None) -> sitk.Image | None:
        path = folder / f"{prefix}{name}.nii.gz"
        return sitk.ReadImage(str(path), kind or sitk.sitkUnknown) if path.is_file() else None

    def points(name: str) -> np.ndarray | None:
        path = folder / f"{prefix}{name}_points.csv"
        return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2) if path.is_file() else None

    return Case(
        prefix.rstrip("_") or folder.name, image("fixed", sitk.sitkFloat32), image("moving", sitk.sitkFloat32),
        image("fixed_labels"), image("moving_labels"), points("fixed"), points("moving"),
    )  # fmt: skip


def placed(case: Case, angles, shift=(0.0, 0.0, 0.0)) -> Case:
    """The moving image turned about its centre by ``angles`` (degrees about x, y, z) and shifted; only its header."""
    moving = case.moving
    carry = sitk.Euler3DTransform()
    carry.SetCenter(moving.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in moving.GetSize()]))
    carry.SetRotation(*np.deg2rad(angles))
    carry.SetTranslation(shift)
    turn = np.reshape(carry.GetMatrix(), (3, 3))
    images = []
    for image in (moving, case.moving_labels):
        if image is not None:
            image = sitk.Image(image)
            image.SetOrigin(carry.TransformPoint(image.GetOrigin()))
            image.SetDirection((turn @ np.reshape(image.GetDirection(), (3, 3))).ravel().tolist())
        images.append(image)
    points = case.moving_points
    if points is not None:
        points = np.array([carry.TransformPoint(p) for p in points.tolist()])
    before = case.carried or sitk.Transform(3, sitk.sitkIdentity)
    return replace(
        case, moving=images[0], moving_labels=images[1], moving_points=points,
        carried=sitk.CompositeTransform([carry, before]),
    )  # fmt: skip


def _upright(image: sitk.Image) -> tuple[int, bool]:
    """The image's axis nearest to the body's long axis, and whether it points to the head."""
    direction = np.reshape(image.GetDirection(), (3, 3))
    axis = int(np.abs(direction[2]).argmax())
    return axis, direction[2, axis] > 0


def cropped(case: Case, low: float, high: float) -> Case:
    """What lies between two shares of the moving image's height, 0 at the feet."""
    axis, up = _upright(case.moving)
    first, last = (low, high) if up else (1 - high, 1 - low)

    def cut(image: sitk.Image | None) -> sitk.Image | None:
        if image is None:
            return None
        size, start = list(image.GetSize()), [0, 0, 0]
        count = size[axis]
        start[axis], size[axis] = int(first * count), int(last * count) - int(first * count)
        return sitk.RegionOfInterest(image, size, start)

    return replace(case, moving=cut(case.moving), moving_labels=cut(case.moving_labels))


def thick(case: Case, mm: float) -> Case:
    """Slices of about ``mm`` along the body, each the mean of those that it replaces."""
    axis, _ = _upright(case.moving)
    shrink = [1, 1, 1]
    shrink[axis] = max(1, round(mm / case.moving.GetSpacing()[axis]))
    labels = None if case.moving_labels is None else sitk.Shrink(case.moving_labels, shrink)
    return replace(case, moving=sitk.BinShrink(case.moving, shrink), moving_labels=labels)


def recoloured(case: Case, seed: int = 0) -> Case:
    """Another contrast, in which grey values neither rise nor fall with the old ones, with shading and noise."""
    values = sitk.GetArrayFromImage(case.moving).astype(np.float32)
    share = np.clip(values / np.percentile(values[values > values.min()], 99.5), 0, 1)
    body = ndimage.binary_opening(share > 0.04)
    random = np.random.default_rng(seed)
    shading = ndimage.zoom(random.uniform(0.7, 1.3, (3, 3, 3)), np.array(values.shape) / 3, order=3)
    shading = shading[tuple(slice(n) for n in values.shape)]
    values = 400 * np.where(body, np.interp(share, *_CONTRAST), 0) * shading + random.normal(0, 12, values.shape)
    moving = sitk.GetImageFromArray(values.clip(0).astype(np.float32))
    moving.CopyInformation(case.moving)
    return replace(case, moving=moving)


def header_mirrored(case: Case) -> Case:
    """The moving image as a header shows it that swaps left and right; its truth is gone."""
    direction = np.reshape(case.moving.GetDirection(), (3, 3))
    flips = [n == int(np.abs(direction[0]).argmax()) for n in range(3)]
    moving = sitk.Flip(case.moving, flips)
    moving.CopyInformation(case.moving)
    return Case(case.name, case.fixed, moving)


CONDITIONS: dict[str, Callable[[Case], Case]] = {
    "untouched": lambda case: case,
    "turned30": lambda case: placed(case, *ASKEW),
    "turned90": lambda case: placed(case, (0, 0, 90)),
    "turned180": lambda case: placed(case, (0, 0, 180)),
    "upside": lambda case: placed(case, (180, 0, 0)),
    "far": lambda case: placed(case, (0, 0, 0), (900.0, -1500.0, 700.0)),
    "upper60": lambda case: cropped(case, 0.4, 1.0),
    "lower60": lambda case: cropped(case, 0.0, 0.6),
    "upper40": lambda case: cropped(case, 0.6, 1.0),
    "thick6": lambda case: thick(case, 6.0),
    "recoloured": recoloured,
    "all": lambda case: placed(thick(recoloured(cropped(case, 0.3, 1.0)), 5.0), *ASKEW),
}


def holds(found: dict[str, float], untouched: dict[str, float]) -> bool:
    """Whether a condition's scores are at most 1.5 times the untouched error plus 0.5 mm, or 0.05 of Dice lower."""
    if "tre_mm" in found:
        return found["tre_mm"] <= 1.5 * untouched["tre_mm"] + 0.5
    return found.get("dice", 0.0) >= untouched.get("dice", 0.0) - 0.05
