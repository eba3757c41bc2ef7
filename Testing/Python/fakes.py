"""A `registration.register` that takes no time, for tests of what lies around it."""

import numpy as np
import SimpleITK as sitk
from FoundationRegLib.evaluation import metrics
from FoundationRegLib.images import conversion, reading, resampling, transforms
from FoundationRegLib.registration.result import Registration

SHIFT = (3.0, -2.0, 1.0)


def blob_image(size=(26, 24, 20), spacing=(1.0, 1.2, 1.5), center=(0.0, 0.0, 0.0), dtype=np.float32, direction=None):
    """A bright egg with an inner structure, so that no two axes look alike; the origin makes (0, 0, 0) the middle."""
    made = sitk.Image(list(size), sitk.sitkUInt8)
    made.SetSpacing(spacing)
    if direction is not None:
        made.SetDirection(np.asarray(direction, float).ravel().tolist())
    middle = np.array(made.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size]))
    made.SetOrigin((-middle).tolist())
    grid = conversion.grid_of(made)
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1)) - center
    egg = np.exp(-((points / (8.0, 6.5, 7.5)) ** 2).sum(-1))
    core = np.exp(-(((points - (2.5, -1.5, 1.0)) / 2.0) ** 2).sum(-1))
    return conversion.image_from_array((1000 * (egg - 0.6 * core)).astype(dtype), grid)


class FakeRegistration(Registration):
    def jacobian(self):
        return metrics.jacobian(self.transform, self.fixed)

    def inverse(self):
        return transforms.to_field_transform(self.linear.GetInverse(), conversion.grid_of(self.moving))


def fake_register(fixed, moving, settings=None, *, progress=None, moving_labels=None, **others):
    """Finds a constant shift whatever the images are."""
    fixed, moving = reading.read_image(fixed, "fixed image"), reading.read_image(moving, "moving image")
    with progress.stage("encode", 0.5):
        progress.update(0.5)
    with progress.stage("refine", 0.5):
        progress.update(0.5)
    grid = conversion.grid_of(fixed)
    shift = sitk.TranslationTransform(3, SHIFT)
    transform = transforms.to_field_transform(shift, grid)
    scores = {"nmi": 1.1, "folded_percent": 0.0, "sd_log_jacobian": float("nan"), "dice_per_label": {1: 0.5}}
    rgb = np.random.default_rng(0).integers(0, 255, (*grid.shape, 3), np.uint8)
    return FakeRegistration(
        fixed=fixed,
        moving=moving,
        transform=transform,
        linear=shift,
        metrics={"before": {"nmi": 1.0}, "after": scores},
        record={"settings": settings.to_dict(), "seconds": {"encode": 1.0, "refine": np.float32(2.0)}, "seed": 0},
        quality="The images are well aligned.",
        loss={"4 mm": [1.0, 0.5, 0.25]},
        features={"mind": {"fixed": rgb, "moving": rgb[::-1]}},
        feature_grid=grid,
        warped_labels=resampling.warp(reading.read_image(moving_labels, "labels"), transform, fixed, "nearest")
        if moving_labels
        else None,
        warnings=["The moving image was repaired <gently>."],
    )
