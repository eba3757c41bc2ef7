"""report.html: one self-contained page that shows a registration and says how good it is."""

from __future__ import annotations

import base64
import datetime
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from .. import __version__
from ..core.resources import resource_path
from ..evaluation.titles import METRICS, metric_text
from ..images.conversion import grid_of, image_from_array
from ..registration.result import Registration
from . import views
from .views import Plane

GRID_LINE_MM = 8.0
# The stages of `registration.register` that do not lie inside each other.
STAGES = ("load", "segment", "align", "prepare", "encode", "search", "refine", "output")
JACOBIAN_RANGE = (0.4, 1.0, 2.2)
FOLD_COLOUR = (1.0, 0.1, 0.75)


def write_report(
    result: Registration,
    path: str | Path,
    fixed_name: str = "fixed image",
    moving_name: str = "moving image",
    initial_transform: sitk.Transform | None = None,
) -> None:
    """Write the report of ``result`` to ``path``. "Before" is how the images lie, or where ``initial_transform`` (fixed
    to moving points) puts them."""
    page = render(result, fixed_name, moving_name, initial_transform)
    Path(path).write_text(page, encoding="utf-8", newline="\n")


def render(
    result: Registration,
    fixed_name: str = "fixed image",
    moving_name: str = "moving image",
    initial_transform: sitk.Transform | None = None,
) -> str:
    """The page as text. Everything in it is embedded; it opens without a network."""
    planes = views.planes_of(result.fixed)
    limit, determinant = displacement_limit(result), result.jacobian()
    slices = [slice_pictures(result, plane, initial_transform, limit, determinant) for plane in planes]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_path("Report")), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        version=__version__,
        date=datetime.datetime.now().strftime("%d %B %Y, %H:%M"),
        icon=_embedded(resource_path("Icons", "FoundationReg.png").read_bytes()),
        fixed_name=fixed_name,
        moving_name=moving_name,
        quality=result.quality,
        warnings=result.warnings,
        metrics=metric_rows(result.metrics),
        labels=label_rows(result.metrics),
        regions=label_rows(result.metrics, "predicted_dice_per_structure"),
        network=result.regions.network if result.regions else "",
        planes=[{"name": p.name, "letters": p.letters, "rows": p.size[0], "columns": p.size[1]} for p in planes],
        slices=slices,
        features=feature_pictures(result, planes),
        magnitude_limit=f"{limit:.1f}",
        jacobian_limits=JACOBIAN_RANGE,
        uncertainty=uncertainty_pictures(result, planes),
        loss=png_figure(loss_figure(result.loss)) if result.loss else None,
        seconds=seconds_rows(result.record),
        record=json.dumps(result.record, indent=2, default=str),
        fixed_facts=image_facts(result.fixed),
        moving_facts=image_facts(result.moving),
    )


def slice_pictures(
    result: Registration, plane: Plane, initial: sitk.Transform | None, limit: float, determinant: sitk.Image
) -> dict[str, str]:
    """The pictures of one plane by name, each a data URL."""
    fixed_window, moving_window = views.grey_window(result.fixed), views.grey_window(result.moving)
    fixed = views.grey(plane.sample(result.fixed), fixed_window)
    before = views.grey(plane.sample(result.moving, initial), moving_window)
    after = views.grey(plane.sample(result.moving, result.transform), moving_window)
    square = max(plane.size) // 9
    return {
        "fixed": png(views.rgb(fixed)),
        "unregistered": png(views.rgb(before)),
        "warped": png(views.rgb(after)),
        "before": png(views.composite(fixed, before)),
        "after": png(views.composite(fixed, after)),
        "checker_before": png(views.checkerboard(fixed, before, square)),
        "checker_after": png(views.checkerboard(fixed, after, square)),
        "grid": png_figure(grid_figure(result, plane, fixed, limit)),
        "jacobian": png(jacobian_picture(plane.sample(determinant), fixed)),
    }


def displacement_limit(result: Registration) -> float:
    """Upper end in mm of the colours for the deformation: its 99th percentile over the fixed image."""
    field = result.transform.GetDisplacementField()
    step = [max(1, n // 24) for n in field.GetSize()]
    coarse = field[:: step[0], :: step[1], :: step[2]]
    points = grid_of(coarse).points(np.argwhere(np.ones(coarse.GetSize()[::-1])))
    moved = points + sitk.GetArrayViewFromImage(coarse).reshape(-1, 3)
    bent = np.linalg.norm(views.undo_linear(moved, result.linear) - points, axis=1)
    return max(0.5, float(np.percentile(bent, 99)))


def grid_figure(result: Registration, plane: Plane, fixed: np.ndarray, limit: float) -> Figure:
    """A regular grid bent by the deformation (without the linear part) over the darkened fixed slice."""
    rows, columns = plane.size
    figure = Figure(figsize=(columns / 100, rows / 100), dpi=200)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(views.rgb(fixed) * 0.38, interpolation="bilinear", vmin=0, vmax=1)
    moved = views.residual_points(plane, result.transform, result.linear)
    millimetres = np.linalg.norm(moved - plane.points(), axis=-1)
    places = plane.pixels(moved)
    step = max(2, round(GRID_LINE_MM / plane.grid.spacing[1]))
    for along_rows in (True, False):
        lines = places[::step] if along_rows else places[:, ::step].swapaxes(0, 1)
        values = millimetres[::step] if along_rows else millimetres[:, ::step].T
        segments = np.stack([lines[:, :-1], lines[:, 1:]], axis=2).reshape(-1, 2, 2)
        colours = (values[:, :-1] / limit).ravel()
        axes.add_collection(LineCollection(segments, cmap="plasma", array=colours, clim=(0, 1), linewidths=0.85))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.axis("off")
    return figure


def jacobian_picture(determinant: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Local volume change in colour, blue shrinks and red grows on the way to the moving image; folds are magenta."""
    low, middle, high = np.log(JACOBIAN_RANGE)
    norm = TwoSlopeNorm(middle, low, high)
    colours = matplotlib.colormaps["RdBu_r"](norm(np.log(np.clip(determinant, 1e-3, None)).clip(low, high)))[..., :3]
    shaded = colours * (0.45 + 0.55 * fixed[..., None])
    return np.where((determinant <= 0)[..., None], FOLD_COLOUR, shaded)


def feature_pictures(result: Registration, planes: list[Plane]) -> list[dict[str, Any]]:
    """By encoder: the first three principal components of both images as red, green and blue."""
    pictures = []
    for encoder, pair in result.features.items():
        row = {"encoder": encoder}
        for side, array in pair.items():
            channels = [image_from_array(array[..., n].astype(np.float32), result.feature_grid) for n in range(3)]
            row[side] = [png(np.stack([p.sample(channel) for channel in channels], -1) / 255.0) for p in planes]
        pictures.append(row)
    return pictures


def uncertainty_pictures(result: Registration, planes: list[Plane]) -> dict[str, Any] | None:
    if result.uncertainty is None:
        return None
    limit = max(0.1, float(np.percentile(sitk.GetArrayViewFromImage(result.uncertainty), 99)))
    window = views.grey_window(result.fixed)
    pictures = []
    for plane in planes:
        fixed = views.grey(plane.sample(result.fixed), window)[..., None]
        colours = matplotlib.colormaps["viridis"]((plane.sample(result.uncertainty) / limit).clip(0, 1))[..., :3]
        pictures.append(png(colours * (0.35 + 0.65 * fixed)))
    return {"limit": f"{limit:.1f}", "pictures": pictures}


def loss_figure(loss: dict[str, list[float]]) -> Figure:
    """Loss by iteration, the levels one after the other."""
    figure = Figure(figsize=(7.4, 2.5), dpi=180, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    start = 0
    colours = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.8, len(loss)))
    for colour, (level, values) in zip(colours, loss.items(), strict=True):
        axes.plot(np.arange(start, start + len(values)), values, color=colour, lw=1.8, label=level)
        start += len(values)
    axes.set(xlabel="Iteration", ylabel="Loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ee", lw=0.8)
    axes.tick_params(color="#9aa4b2", labelcolor="#4a5568", labelsize=8)
    axes.legend(frameon=False, fontsize=8)
    return figure


def metric_rows(metrics: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Title, values before, after the linear part and after all, and ``verdict`` (better, worse or empty) of each."""
    rows = []
    for key, (title, _, decimals, more_is_better) in METRICS.items():
        before, after = (metrics.get(when, {}).get(key) for when in ("before", "after"))
        if before is None and after is None:
            continue
        verdict = ""
        if more_is_better is not None and _finite(before) and _finite(after):
            change = round(after, decimals) - round(before, decimals)
            verdict = "" if change == 0 else "better" if (change > 0) == more_is_better else "worse"
        linear = metrics.get("linear", {}).get(key)
        texts = {"before": before, "linear": linear, "after": after}
        rows.append(
            {"title": title, "verdict": verdict, **{when: metric_text(key, value) for when, value in texts.items()}}
        )
    return rows


def label_rows(metrics: dict[str, dict[str, Any]], key: str = "dice_per_label") -> list[tuple[str, float, float]]:
    """Label or predicted structure, Dice before and Dice after."""
    before, after = (metrics.get(when, {}).get(key) or {} for when in ("before", "after"))
    return [(str(label), before.get(label, float("nan")), after[label]) for label in after]


def seconds_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Main stage, its seconds, and their share in percent of the longest one's."""
    seconds = {name: float((record.get("seconds") or {}).get(name, 0.0)) for name in STAGES}
    longest = max(seconds.values()) or 1.0
    return [
        {"stage": name, "seconds": f"{s:.1f}", "share": f"{100 * s / longest:.1f}"} for name, s in seconds.items() if s
    ]


def image_facts(image: sitk.Image) -> str:
    size = " × ".join(str(n) for n in image.GetSize())
    spacing = " × ".join(f"{s:.3g}" for s in image.GetSpacing())
    return f"{size} voxels of {spacing} mm, {image.GetPixelIDTypeAsString()}"


def _finite(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def png(picture: np.ndarray) -> str:
    """Data URL of an RGB ``picture`` (rows, columns, 3) in 0..1."""
    stream = io.BytesIO()
    matplotlib.image.imsave(stream, (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), format="png")
    return _embedded(stream.getvalue())


def png_figure(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return _embedded(stream.getvalue())


def _embedded(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
