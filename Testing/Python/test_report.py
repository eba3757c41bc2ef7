"""The report: right places, right orientation, nothing that needs a network."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_grid, rotation
from fakes import SHIFT, blob_image, fake_register
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.images import conversion
from FoundationRegLib.reporting import report, views
from FoundationRegLib.settings import Settings
from PIL import Image

AXES = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "left-handed": np.diag([1.0, -1.0, 1.0]),
    "sagittal slices": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "oblique": rotation(18, -12, 9),
}


def spot(point, grid):
    """Image on ``grid`` with one bright blob at the LPS ``point``."""
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    return conversion.image_from_array(np.exp(-(((points - point) / 3.0) ** 2).sum(-1)).astype(np.float32), grid)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name, center in (("fixed", (0, 0, 0)), ("moving", SHIFT)):
        sitk.WriteImage(blob_image(center=center, direction=AXES["oblique"]), str(folder / f"{name}.nii.gz"))
    names = [str(folder / f"{name}.nii.gz") for name in ("fixed", "moving")]
    return fake_register(*names, Settings(), progress=Progress())


@pytest.fixture(scope="module")
def page(result):
    return report.render(result, "a<b>.nii.gz", "second & last.nii.gz")


# Slices


@pytest.mark.parametrize("axes", AXES)
def test_slices_follow_the_radiological_convention(axes):
    fixed = blob_image(size=(40, 44, 36), direction=AXES[axes])
    left_anterior_superior = np.array([9.0, -8.0, 10.0])
    marked = spot(left_anterior_superior, conversion.grid_of(fixed))
    expected = {"axial": ("right", "top"), "coronal": ("right", "top"), "sagittal": ("left", "top")}
    for plane in views.planes_of(fixed, center=left_anterior_superior):
        picture = plane.sample(marked)
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        side = "right" if column > picture.shape[1] / 2 else "left"
        level = "top" if row < picture.shape[0] / 2 else "bottom"
        assert (side, level) == expected[plane.name], plane.name
        # The letters say the same: the marker lies towards L, A and S.
        top, bottom, left, right = plane.letters
        assert (top if level == "top" else bottom) in "LAS" and (left if side == "left" else right) in "LAS"
        assert picture.max() > 0.8, "the slice goes through the marker"


@pytest.mark.parametrize("axes", AXES)
def test_slices_keep_physical_proportions(axes):
    fixed = blob_image(size=(40, 20, 12), spacing=(0.5, 1.0, 5.0), direction=AXES[axes])
    grid = conversion.grid_of(fixed)
    along = np.abs(views.anatomical_axes(grid).T @ grid.direction)  # LPS axis, array axis
    extent = along @ grid.extent if axes != "oblique" else None
    for plane in views.planes_of(fixed):
        assert np.allclose(plane.grid.spacing, plane.grid.spacing[0])
        if extent is not None:
            rows, columns = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}[plane.name]
            assert plane.size[0] / plane.size[1] == pytest.approx(extent[rows] / extent[columns], rel=0.02)


def test_slice_values_are_those_of_simpleitk(result):
    plane = views.planes_of(result.fixed)[1]
    picture, points = plane.sample(result.moving, result.transform), plane.points()
    rng = np.random.default_rng(0)
    for row, column in rng.integers(80, np.array(plane.size) - 80, (20, 2)):
        place = result.transform.TransformPoint(points[row, column].tolist())
        assert picture[row, column] == pytest.approx(result.moving.EvaluateAtPhysicalPoint(place), abs=0.01)
        np.testing.assert_allclose(plane.pixels(points[row, column]), [column, row], atol=1e-9)


def test_center_of_interest_lies_in_the_bright_part():
    grid = make_grid(shape=(40, 50, 60), turn=(15, 5, -10))
    np.testing.assert_allclose(views.center_of_interest(spot((12.0, -9.0, 20.0), grid)), (12, -9, 20), atol=3)


def test_equal_images_are_grey_and_unequal_ones_coloured():
    values = np.linspace(0, 1, 12).reshape(3, 4)
    same = views.composite(values, values)
    np.testing.assert_allclose(same, views.rgb(values), atol=1e-12)
    only_fixed = views.composite(values, np.zeros_like(values))
    assert (only_fixed[-1, -1, 2] - only_fixed[-1, -1, 0]) > 0.5, "fixed is blue"


def test_checkerboard_takes_squares_from_both_in_turn():
    board = views.checkerboard(np.full((8, 8), 0.5), np.zeros((8, 8)), 4).max(-1) > 0
    assert board[:4, :4].all() and board[4:, 4:].all() and not board[:4, 4:].any() and not board[4:, :4].any()


def test_deformation_leaves_out_the_linear_part(result):
    for plane in views.planes_of(result.fixed):
        inside = views.residual_points(plane, result.transform, result.linear) - plane.points()
        center = np.s_[plane.size[0] // 2, plane.size[1] // 2]
        np.testing.assert_allclose(inside[center], 0, atol=1e-4)
        moved = views.residual_points(plane, result.transform, sitk.TranslationTransform(3)) - plane.points()
        np.testing.assert_allclose(moved[center], SHIFT, atol=1e-4)


def test_folds_stand_out_in_the_jacobian_picture():
    picture = report.jacobian_picture(np.array([[-0.5, 0.0, 1.0, 2.0, 0.5]]), np.ones((1, 5)))[0]
    np.testing.assert_allclose(picture[:2], [report.FOLD_COLOUR] * 2)
    assert np.ptp(picture[2]) < 0.03, "no change of volume is white"
    assert picture[3, 0] > picture[3, 2] and picture[4, 2] > picture[4, 0], "growing is red, shrinking is blue"


# The page


class Reader(HTMLParser):
    """Collects attributes and checks that every element is closed."""

    empty = ("meta", "img", "input", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.empty:
            self.open.append(tag)
        values = dict(attributes)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_no_network(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and reader.links == []
    assert len(reader.sources) > 30 and all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r"@import|url\(|https?://", page)


def test_every_embedded_picture_can_be_decoded(page):
    for source in set(re.findall(r'src="data:image/png;base64,([^"]+)"', page)):
        picture = Image.open(io.BytesIO(base64.b64decode(source)))
        picture.load()
        assert min(picture.size) > 50


def test_names_and_sentences_are_escaped(page):
    assert "a&lt;b&gt;.nii.gz" in page and "<b>.nii.gz" not in page
    assert "second &amp; last.nii.gz" in page
    assert "repaired &lt;gently&gt;" in page


def test_page_shows_what_was_found(page, result):
    assert result.quality in page
    assert "Normalised mutual information" in page and "1.100" in page
    assert "mind, fixed" in page and "mind, moving" in page
    assert "&#34;smoothness&#34;: 1.0" in page and "Uncertainty" not in page and "Loss by iteration" in page


def test_uncertainty_is_shown_when_there_is_one(result):
    from dataclasses import replace

    with_map = replace(result, uncertainty=sitk.Abs(result.fixed) + 1.0)
    assert "Estimated error (relative)" in report.render(with_map)


def test_a_bare_result_can_be_shown_too(result):
    from dataclasses import replace

    bare = replace(result, loss={}, features={}, feature_grid=None, record={}, warnings=[], metrics={})
    page = report.render(bare)
    assert "What the encoders see" not in page and "Loss by iteration" not in page


def test_better_and_worse_metrics_are_told_apart():
    before = {"dice": 0.4, "tre_mm": 5.0, "hd95_mm": 3.0, "nmi": float("nan"), "folded_percent": 0.0}
    after = {"dice": 0.6, "tre_mm": 6.0, "hd95_mm": 3.001, "nmi": 1.2, "folded_percent": 0.1}
    rows = {row["title"]: row for row in report.metric_rows({"before": before, "after": after})}
    verdicts = [row["verdict"] for row in rows.values()]
    assert verdicts == ["worse", "better", "", "", ""]
    assert rows["Dice overlap, mean over labels"]["after"] == "0.600"
    assert rows["Normalised mutual information"]["before"] == "–"


def test_report_file_is_utf8_text(result, tmp_path):
    report.write_report(result, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
