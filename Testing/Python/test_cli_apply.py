"""The commands apply and evaluate, against SimpleITK."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from cli_steps import files_below, refused, write
from fakes import SHIFT
from FoundationRegLib.app import cli
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.images import conversion


def moved_by(offset):
    return sitk.AffineTransform(np.eye(3).ravel().tolist(), offset)


def test_apply_resamples_an_image_like_simpleitk(pair):
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(pair / "t.tfm"))
    arguments = ["apply", pair / "t.tfm", pair / "moving.nii.gz", "-r", pair / "fixed.nii.gz", "-o", pair / "w.nii.gz"]
    assert cli.main([str(a) for a in arguments]) == 0
    fixed, moving = (sitk.ReadImage(str(pair / f"{side}.nii.gz")) for side in ("fixed", "moving"))
    background = float(sitk.GetArrayViewFromImage(moving).min())
    expected = sitk.Resample(moving, fixed, sitk.TranslationTransform(3, SHIFT), sitk.sitkLinear, background)
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(pair / "w.nii.gz")))
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(expected), atol=1e-3)


def test_apply_keeps_labels_whole(pair):
    labels = (np.indices((16, 18, 20)).sum(0) % 5 * 7).astype(np.int16)
    write(pair / "labels.nrrd", labels)
    sitk.WriteTransform(moved_by((0.4, 0.3, 0.2)), str(pair / "t.tfm"))
    arguments = [
        "apply",
        pair / "t.tfm",
        pair / "labels.nrrd",
        "-r",
        pair / "labels.nrrd",
        "-o",
        pair / "w.nrrd",
        "--labels",
    ]
    assert cli.main([str(a) for a in arguments]) == 0
    result = sitk.ReadImage(str(pair / "w.nrrd"))
    assert result.GetPixelID() == sitk.sitkInt16 and set(np.unique(sitk.GetArrayFromImage(result))) <= set(
        np.unique(labels)
    )


def curved_field():
    """A field transform that rotates, shifts and bends, over a 60 mm cube around (0, 0, 0)."""
    grid = Grid.from_axes((31, 31, 31), (2.0, 2.0, 2.0), (-30.0, -30.0, -30.0), np.eye(3)[:, ::-1])
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.1, -0.2, 0.3, (12.0, -9.0, 5.0))
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    bent = points + 2.5 * np.sin(points[..., [1, 2, 0]] / 9.0)
    moved = np.array([turn.TransformPoint(p) for p in bent.reshape(-1, 3).tolist()]).reshape(points.shape)
    return sitk.DisplacementFieldTransform(conversion.image_from_array(moved - points, grid))


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json"])
def test_apply_takes_moving_points_to_the_fixed_side_and_back(tmp_path, suffix):
    from FoundationRegLib.images.landmarks import Points, read_points, write_points

    transform = curved_field()
    sitk.WriteTransform(transform, str(tmp_path / "t.h5"))
    fixed = np.random.default_rng(0).uniform(-18, 18, (40, 3))
    moving = np.array([transform.TransformPoint(p) for p in fixed.tolist()])
    write_points(Points(moving), tmp_path / f"moving{suffix}")
    there = ["apply", tmp_path / "t.h5", tmp_path / f"moving{suffix}", "-o", tmp_path / f"fixed{suffix}"]
    assert cli.main([str(a) for a in there]) == 0
    np.testing.assert_allclose(read_points(tmp_path / f"fixed{suffix}").array, fixed, atol=0.005)
    back = ["apply", tmp_path / "t.h5", tmp_path / f"fixed{suffix}", "-o", tmp_path / f"again{suffix}", "--inverse"]
    assert cli.main([str(a) for a in back]) == 0
    np.testing.assert_allclose(read_points(tmp_path / f"again{suffix}").array, moving, atol=0.01)


def test_apply_says_which_points_have_no_way_back(tmp_path, capsys):
    sitk.WriteTransform(curved_field(), str(tmp_path / "t.h5"))
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n0,0,0\n5000,0,0\n")
    grid = Grid.from_axes((9, 9, 9), (2.0, 2.0, 2.0), (-8.0, -8.0, -8.0), np.eye(3)[:, ::-1])
    squeeze = np.zeros((9, 9, 9, 3))
    squeeze[..., 0] = -grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))[..., 0]  # everything onto x = 0
    sitk.WriteTransform(
        sitk.DisplacementFieldTransform(conversion.image_from_array(squeeze, grid)), str(tmp_path / "fold.h5")
    )
    (tmp_path / "q.csv").write_text("x,y,z\n3,0,0\n")
    arguments = ["apply", tmp_path / "fold.h5", tmp_path / "q.csv", "-o", tmp_path / "r.csv"]
    assert cli.main([str(a) for a in arguments]) == 0
    assert "1 of 1 points lie where the transform has no inverse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.h5", "{moving}", "-r", "{fixed}", "-o", "{out}.nii.gz"], "The transform none.h5 does not exist."),
        (["{fixed}", "{moving}", "-r", "{fixed}", "-o", "{out}.nii.gz"], "is no displacement field"),
        (["{t}", "{moving}", "-o", "{out}.nii.gz"], "needs --reference"),
        (["{t}", "{moving}", "-r", "{fixed}", "-o", "{out}.csv"], "cannot be written as"),
        (["{t}", "{points}", "-o", "{out}.nii.gz"], "cannot be written as"),
        (["{t}", "{points}", "-o", "{out}.csv", "--labels"], "--labels is for images"),
    ],
)
def test_apply_refuses_what_it_cannot_do(pair, capsys, arguments, sentence):
    sitk.WriteTransform(moved_by(SHIFT), str(pair / "t.tfm"))
    (pair / "p.csv").write_text("x,y,z\n1,2,3\n")
    before = files_below(pair)
    places = {"fixed": pair / "fixed.nii.gz", "moving": pair / "moving.nii.gz", "out": pair / "out"}
    places |= {"t": pair / "t.tfm", "points": pair / "p.csv"}
    assert sentence in refused(capsys, "apply", *[a.format(**places) for a in arguments])
    assert files_below(pair) == before


def test_evaluate_measures_a_known_shift(pair, capsys):
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(pair / "t.tfm"))
    points = np.random.default_rng(0).uniform(-5, 5, (9, 3))
    for name, array in (("fixed", points), ("moving", points + SHIFT)):
        with open(pair / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("x", "y", "z"), *array.tolist()])
    arguments = ["evaluate", pair / "fixed.nii.gz", pair / "moving.nii.gz", "--transform", pair / "t.tfm", "--json"]
    arguments += ["--fixed-points", pair / "fixed.csv", "--moving-points", pair / "moving.csv"]
    assert cli.main([str(a) for a in arguments]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["before"]["tre_mm"] == pytest.approx(np.linalg.norm(SHIFT))
    assert scores["after"]["tre_mm"] == pytest.approx(0, abs=1e-9)
    assert scores["after"]["nmi"] > scores["before"]["nmi"] and scores["after"]["folded_percent"] == 0
    assert cli.main([str(a) for a in arguments if a != "--json"]) == 0
    assert "Target registration error" in capsys.readouterr().out


def test_evaluate_wants_both_sides(pair, capsys):
    (pair / "p.csv").write_text("x,y,z\n1,2,3\n")
    said = refused(capsys, "evaluate", pair / "fixed.nii.gz", pair / "moving.nii.gz", "--fixed-points", pair / "p.csv")
    assert "--moving-points" in said
