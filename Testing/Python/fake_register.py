"""A stand-in for `registration.register` that takes no time, for tests of what happens around it.

``settings.seed`` chooses what it does. Run as a program it is a worker with this register.
"""

import os
import subprocess
import sys
import time

import numpy as np
import SimpleITK as sitk
from FoundationRegLib.app import worker
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.core.progress import Preview
from FoundationRegLib.errors import InputError
from FoundationRegLib.registration.result import Registration

QUICK, SLOW, BAD_INPUT, BUG, DIE, NOISE, CHILD, UNTIL_FINISH, NO_CHECKS, FOLDED = range(10)


def shift_field(fixed: sitk.Image, shift) -> sitk.Image:
    """A displacement field over ``fixed`` with the same LPS vector everywhere."""
    array = np.broadcast_to(np.asarray(shift, float), (*fixed.GetSize()[::-1], 3)).copy()
    field = sitk.GetImageFromArray(array, isVector=True)
    field.CopyInformation(fixed)
    return field


def grid_of(image: sitk.Image) -> Grid:
    direction = np.reshape(image.GetDirection(), (3, 3))[:, ::-1]
    return Grid.from_axes(image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin(), direction)


def gradient(image: sitk.Image) -> sitk.Image:
    """An image like ``image`` that grows from 1 to 4 along its first axis."""
    array = np.broadcast_to(np.linspace(1, 4, image.GetSize()[0], dtype=np.float32), image.GetSize()[::-1]).copy()
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return made


def summary(value):
    """How many voxels of an image are not 0; other values as they are."""
    return int(np.count_nonzero(sitk.GetArrayViewFromImage(value))) if isinstance(value, sitk.Image) else value


def voxels_in_boxes(images, boxes, settings=None, device=None, progress=None, sides=("fixed", "moving")):
    """Masks of all voxels within the boxes: a decoder that finds each box full."""
    from FoundationRegLib.features.box_masks import voxels_within
    from FoundationRegLib.registration.boxes import bounds_on

    masks = []
    for image, box, side in zip(images, boxes, sides, strict=True):
        array = np.zeros(image.GetSize()[::-1], np.uint8)
        array[voxels_within(bounds_on(grid_of(image), box, side), array.shape)] = 1
        mask = sitk.GetImageFromArray(array)
        mask.CopyInformation(image)
        masks.append(mask)
    return tuple(masks)


def regions_of(fixed, moving, settings):
    """What a network sees: the lower half of each image is its first structure, a corner its second. As
    brainchop-18 it does not believe itself in the moving image."""
    from FoundationRegLib.registration.regions import RegionPair, Regions

    sides = []
    for image in (fixed, moving):
        array = np.zeros(image.GetSize()[::-1], np.uint8)
        array[: array.shape[0] // 2] = 1
        array[-6:, -7:, -8:] = 2
        labels = sitk.GetImageFromArray(array)
        labels.CopyInformation(image)
        sides.append(Regions(("spleen", "left kidney", "liver"), labels, 0.9))
    if settings.anatomy == "brainchop-18":
        sides[1] = Regions(sides[1].names, sides[1].labels, 0.3, "it finds none of its structures")
    return RegionPair(settings.anatomy, "abc", *sides)


def register(fixed, moving, settings=None, *, initial_transform=None, progress=None, cache=None, **others):
    """Answer a shift of ``smoothness`` mm along LPS x, composed with the initial transform."""
    action, shift = settings.seed, (settings.smoothness, 0.0, 0.0)
    if action == BAD_INPUT:
        raise InputError("The fixed image is empty.")
    if action == BUG:
        raise ZeroDivisionError("a bug")
    if action == NOISE:
        print("a library prints")
        os.write(1, b'{"event": "result", "id": 1}\n')
        subprocess.run([sys.executable, "-c", "print('a child prints')"], check=True)
    if action == CHILD:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        progress.update(0.5, f"child {child.pid}")
    if action == NO_CHECKS:
        progress.update(0.5, "busy")
        time.sleep(60)
    reused = cache is not None and "features" in cache._entries
    features = cache.get("features", lambda: "made once") if cache is not None else None
    grid = grid_of(fixed).with_spacing(8.0)
    for step in range({QUICK: 3, NOISE: 3, FOLDED: 3}.get(action, 600)):
        with progress.stage(("align", "encode", "refine")[step % 3], 0.3 if step < 3 else 0.0):
            progress.update(0.5)
            if progress.wants_previews:
                field = np.broadcast_to(np.float32(shift), (*grid.shape, 3)).copy()
                progress.preview(Preview("refine", grid, field))
            if progress.finish_early():
                break
            if action == DIE:
                print("the last words", file=sys.stderr, flush=True)
                os._exit(7)
            time.sleep(0.02)
    field = shift_field(fixed, shift)
    if initial_transform is not None:
        chain = sitk.CompositeTransform([initial_transform, sitk.DisplacementFieldTransform(field)])
        field = sitk.TransformToDisplacementField(
            chain, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
        )
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    labels = others.get("moving_labels")
    regions = regions_of(fixed, moving, settings) if settings.anatomy else None
    predicted = [{"predicted_dice_per_structure": {"spleen": d}} if regions else {} for d in (0.4, 0.8)]
    boxed = others.get("fixed_box") is not None and others.get("moving_box") is not None
    rgb = {
        side: np.random.default_rng(0).integers(0, 255, (*grid.shape, 3), dtype=np.uint8)
        for side in ("fixed", "moving")
    }
    return Registration(
        fixed,
        moving,
        transform,
        sitk.TranslationTransform(3),
        {"before": {"nmi": 1.05, **predicted[0]},
         "after": {"nmi": 1.25, "folded_percent": 0.4 if action == FOLDED else 0.0, **predicted[1]}},
        {"settings": settings.to_dict(), "reused": reused, "initial": initial_transform is not None,
         "given": {key: summary(value) for key, value in others.items()}, "features": features},
        "No voxel is folded; points move by 3 mm on average.",
        loss={"4 mm": [3.0, 2.0, 1.5], "2 mm": [1.4, 1.3]},
        features={"mind": rgb},
        feature_grid=grid,
        uncertainty=gradient(fixed),
        regions=regions,
        warnings=regions.warnings if regions else [],
        box_masks=voxels_in_boxes((fixed, moving), (others["fixed_box"], others["moving_box"])) if boxed else None,
        warped_labels=None if labels is None else sitk.Resample(labels, fixed, transform, sitk.sitkNearestNeighbor, 0),
    )  # fmt: skip


def download(encoder, build, accept_licence, progress):
    """Put an empty file where the weights of ``encoder`` belong."""
    from FoundationRegLib.weights import store
    from FoundationRegLib.weights.catalogue import entry

    progress.update(0.5)
    path = store.models_folder() / encoder / entry(encoder).weights.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


if __name__ == "__main__":
    from FoundationRegLib.registration import boxes
    from FoundationRegLib.weights import acquisition, store

    acquisition.download, store.require, boxes.segment_boxes = download, lambda item: None, voxels_in_boxes
    sys.exit(worker.main(register=register))
