"""The inverse of a whole transform against points taken through SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.images.conversion import image_from_array
from FoundationRegLib.registration.inverse import inverse_transform
from scipy import ndimage

AXES = np.eye(3)[:, ::-1]
FIXED = Grid.from_axes((30, 36, 34), (6.0, 5.0, 5.0), (-90.0, -90.0, -85.0), AXES)
MOVING = Grid.from_axes((40, 46, 44), (4.0, 4.0, 4.0), (-60.0, -110.0, -70.0), AXES)
ANGLE = np.deg2rad(20)
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])


def transform(largest_mm):
    """Turned by 20 degrees and shifted, under a smooth deformation of at most ``largest_mm``."""
    random = np.random.default_rng(0)
    u = np.stack([ndimage.gaussian_filter(random.standard_normal(FIXED.shape), 4) for _ in range(3)], -1)
    u *= largest_mm / np.abs(u).max()
    points = FIXED.points(np.moveaxis(np.indices(FIXED.shape), 0, -1).reshape(-1, 3)).reshape(*FIXED.shape, 3)
    moved = (points + u) @ TURN.T + np.array([30.0, -20.0, 10.0])
    return sitk.DisplacementFieldTransform(image_from_array(moved - points, FIXED))


def test_points_come_back_through_the_inverse():
    there = transform(8.0)
    back, failed = inverse_transform(there, MOVING, 4.0)
    assert failed == 0
    points = np.random.default_rng(1).uniform(-40, 40, (200, 3))
    again = [back.TransformPoint(there.TransformPoint(point)) for point in points.tolist()]
    assert np.linalg.norm(np.array(again) - points, axis=1).max() < 0.15


def test_the_inverse_covers_the_moving_image():
    field = inverse_transform(transform(4.0), MOVING, 4.0)[0].GetDisplacementField()
    inside = [field.TransformPhysicalPointToContinuousIndex(corner) for corner in MOVING.corners().tolist()]
    assert np.min(inside) >= -0.5 and (np.max(inside, axis=0) <= np.array(field.GetSize()) - 0.5).all()


@pytest.mark.parametrize(("largest_mm", "folds"), [(10.0, False), (80.0, True)])
def test_the_share_without_an_inverse_is_told(largest_mm, folds):
    _, failed = inverse_transform(transform(largest_mm), MOVING, 4.0)
    assert (failed > 0.01) == folds
