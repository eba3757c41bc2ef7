"""The result of one pair and one variant, by the same `register` that every other way in calls."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import SimpleITK as sitk

from ..cohort.job import Options, limit_threads
from ..cohort.report import PICTURE
from ..core.progress import Progress
from ..images.conversion import grid_of
from ..images.preprocessing import foreground_mask, intensity_kind
from ..images.reading import read_image, read_transform
from ..images.writing import write_image, write_transform
from ..registration.pipeline import register
from ..reporting import views
from ..settings import Settings
from .result_files import plain, write_results

# Points at which there and back again is measured.
_CONSISTENCY_POINTS = 2000
_GAP_PIXELS = 4


def register_into(
    files: dict[str, str], settings: dict[str, Any], options: Options, folder: Path, progress: Progress, cache
) -> dict[str, Any]:
    """Register a pair and write into ``folder`` what ``options.keep`` asks for. Returns the plain record."""
    chosen = Settings.from_dict(settings)
    limit_threads(chosen.threads or 1)
    extras = {name: path for name, path in files.items() if name not in ("fixed", "moving")}
    share = 0.45 if options.backwards else 0.9
    with progress.stage("register", share):
        result = register(files["fixed"], files["moving"], chosen, progress=progress, cache=cache, **extras)
    # Nobody asks or corrects here: the features' memory is free for the way back.
    result.workspace = None
    scores = dict(result.metrics["after"])
    if result.uncertainty is not None:
        scores["uncertainty_mm"] = mean_uncertainty(result)
    if options.backwards:
        with progress.stage("back", share):
            scores["inverse_consistency_mm"] = inverse_consistency(result, files, chosen, progress)
    with progress.stage("write", 0.1):
        initial = read_transform(files["initial_transform"]) if "initial_transform" in files else None
        write_files(result, files, folder, options.keep, initial, progress)
    return plain(
        {
            "fixed": files["fixed"],
            "moving": files["moving"],
            "quality": result.quality,
            "warnings": result.warnings,
            "metrics": {**result.metrics, "after": scores},
            "record": result.record,
        }
    )


def write_files(result, files: dict[str, str], folder: Path, keep: str, initial, progress: Progress) -> None:
    """The picture of every result, and what else is kept of it."""
    (folder / PICTURE).write_bytes(_jpeg(picture(result, initial)))
    if keep in ("transform", "images"):
        write_transform(result.transform, folder / "transform.h5")
    if keep == "images":
        write_image(result.warped, folder / "warped.nii.gz")
    elif keep == "all":
        write_results(result, files["fixed"], files["moving"], folder, _Inside(folder), progress, initial)


def _jpeg(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    values = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    matplotlib.image.imsave(stream, values, format="jpg", pil_kwargs={"quality": 88})
    return stream.getvalue()


class _Inside:
    """Stands where `write_results` expects `Outputs`: the folder is already a temporary one."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.places: list[Path] = []

    def path(self, place: Path) -> Path:
        self.places.append(Path(place))
        return self._folder / Path(place).name

    def drop(self, place: Path) -> None:
        pass


def picture(result, initial: sitk.Transform | None = None) -> np.ndarray:
    """RGB (rows, columns, 3) in 0..1: three planes side by side, both images in one before (above) and after."""
    windows = views.grey_window(result.fixed), views.grey_window(result.moving)
    rows: list[list[np.ndarray]] = [[], []]
    for plane in views.planes_of(result.fixed):
        fixed = views.grey(plane.sample(result.fixed), windows[0])
        for row, transform in zip(rows, (initial, result.transform), strict=True):
            row.append(views.composite(fixed, views.grey(plane.sample(result.moving, transform), windows[1])))
    height = max(one.shape[0] for one in rows[0])
    return np.concatenate([_side_by_side(row, height) for row in rows])[:-_GAP_PIXELS]


def _side_by_side(pictures: list[np.ndarray], height: int) -> np.ndarray:
    """``pictures`` in the middle of black rows of ``height``, with gaps to the right and below."""
    padded = []
    for one in pictures:
        above = (height - one.shape[0]) // 2
        below = height - one.shape[0] - above + _GAP_PIXELS
        padded.append(np.pad(one, [(above, below), (0, _GAP_PIXELS), (0, 0)]))
    return np.concatenate(padded, axis=1)[:, :-_GAP_PIXELS]


def mean_uncertainty(result) -> float:
    """Mean of the estimated error in mm over the fixed image's foreground."""
    body = body_of(result.fixed)
    values = sitk.GetArrayViewFromImage(result.uncertainty)
    return float(values[body].mean() if body.any() else values.mean())


def body_of(image: sitk.Image) -> np.ndarray:
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    return foreground_mask(array, intensity_kind(array), grid_of(image).spacing)


def inverse_consistency(result, files: dict[str, str], settings: Settings, progress: Progress) -> float:
    """Mean distance in mm from home of points of the fixed foreground that went to the moving image and back again
    with the registration of the swapped images (Christensen and Johnson, IEEE Trans. Med. Imaging 20, 2001)."""
    swapped = {"fixed": "moving", "moving": "fixed"}
    extras = {}
    for name, path in files.items():
        parts = name.split("_")
        if len(parts) == 2 and (parts[1] == "mask" or parts[0] == "exclude"):
            extras["_".join(swapped.get(part, part) for part in parts)] = path
    if "initial_transform" in files:
        given = read_transform(files["initial_transform"])
        if given.IsLinear():
            extras["initial_transform"] = given.GetInverse()
    back = register(files["moving"], files["fixed"], settings, progress=progress, **extras)
    places = np.argwhere(body_of(result.fixed))
    chosen = places[:: max(1, len(places) // _CONSISTENCY_POINTS)]
    points = grid_of(result.fixed).points(chosen)
    inside = grid_of(read_image(files["moving"], "moving image"))
    gone = np.array([result.transform.TransformPoint(p) for p in points.tolist()])
    indices = inside.indices(gone)
    there = ((indices >= 0) & (indices <= np.array(inside.shape) - 1)).all(axis=1)
    home = np.array([back.transform.TransformPoint(p) for p in gone[there].tolist()]).reshape(-1, 3)
    return float(np.linalg.norm(home - points[there], axis=1).mean()) if len(home) else float("nan")
