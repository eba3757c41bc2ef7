"""Predicted regions: found in any orientation, believed or not, measured, a start, and written down."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import make_grid, rotation
from FoundationRegLib.app import cli
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.encoders.anatomy import AnatomyNetwork, Frame
from FoundationRegLib.images.conversion import grid_of, image_from_array
from FoundationRegLib.registration import pipeline
from FoundationRegLib.registration.regions import (
    RegionPair,
    Regions,
    predict,
    region_scores,
    region_start,
    unlike_warning,
)
from FoundationRegLib.settings import Settings
from FoundationRegLib.weights import store, trust

# Centres of five balls in LPS mm, and their grey values; no rotation maps them onto themselves.
BALLS = {(-20, 0, 0): 200, (16, 10, 5): 400, (0, -22, 8): 600, (5, 16, -20): 800, (0, 0, 26): 1000}
NAMES = ("background", "one", "two", "three", "four", "five")


def balls_on(grid, move=None):
    """Label image of the balls, 1 to 5."""
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    points = points if move is None else move(points)
    labels = np.zeros(grid.shape, np.uint8)
    for number, centre in enumerate(BALLS, 1):
        labels[np.linalg.norm(points - centre, axis=-1) < 9] = number
    return labels


def image_of(labels, grid):
    return image_from_array((200.0 * labels + 20).astype(np.float32), grid)


class Levels(torch.nn.Module):
    """Logits of six classes by the grey value alone: 20 is the background, then steps of 200."""

    def forward(self, x):
        levels = torch.arange(6, dtype=x.dtype, device=x.device).view(1, 6, 1, 1, 1)
        return -30.0 * (x * 5 - levels).abs()


def network(**frame):
    frame = {"axes": "RAS", "spacing": 2.0, "window": (20, 1020), **frame}
    return AnatomyNetwork("levels", Levels(), Frame(**frame), NAMES, "abc")


def test_regions_lie_where_they_are_in_any_orientation(grid):
    labels = balls_on(grid)
    found = predict(image_of(labels, grid), network(kind="mr"))
    assert found.rejection == "" and found.certainty > 0.9 and found.names == NAMES[1:]
    made = sitk.GetArrayFromImage(found.labels)
    assert grid_of(found.labels) == grid
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    for number, centre in enumerate(BALLS, 1):
        # At their rims, brighter balls pass through the grey values of darker ones.
        core, around = (np.linalg.norm(points - centre, axis=-1) < radius for radius in (6, 12))
        assert (made[core] == number).mean() > 0.95
        assert (made[around & (labels == 0)] != number).mean() > 0.9 or number == 1
    assert found.volumes["five"] == pytest.approx((made == 5).sum() * np.prod(grid.spacing) / 1000), "millilitres"


@pytest.mark.parametrize(
    ("frame", "rejection"),
    [
        ({"kind": "ct"}, "it knows CT, and the image looks like MR"),
        ({"extent": (300, 400)}, "it knows anatomy of 300 to 400 mm"),
        ({"window": (5000, 6000)}, "it finds none of its structures"),
    ],
)
def test_what_a_network_cannot_know_is_not_believed(frame, rejection):
    grid = make_grid()
    found = predict(image_of(balls_on(grid), grid), network(**frame))
    assert rejection in found.rejection
    pair = RegionPair("levels", "", found, found)
    assert not pair.believed and "not believed" in pair.warnings[0] and len(pair.warnings) == 2
    assert region_scores(pair, {"before": sitk.Transform(3, sitk.sitkIdentity)}) == {}
    assert region_start(pair, sitk.Transform(3, sitk.sitkIdentity)) is None


def test_an_uncertain_network_is_not_believed():
    class Vague(Levels):
        def forward(self, x):
            return super().forward(x) * 0.02

    grid = make_grid()
    vague = AnatomyNetwork("vague", Vague(), network().frame, NAMES, "")
    assert "sure of them by" in predict(image_of(balls_on(grid), grid), vague).rejection


def turned_pair(degrees=(70, 0, 20), shift=(12.0, -5.0, 8.0)):
    """Regions of a fixed image and of a moving one in which the balls are turned and shifted, and the true matrix."""
    turn = rotation(*degrees)
    fixed, moving = make_grid((40, 50, 50), (2.5, 2.0, 2.0)), make_grid((60, 60, 60), (2.0, 2.0, 2.0))
    labels = balls_on(fixed), balls_on(moving, lambda points: (points - shift) @ turn)
    sides = [Regions(NAMES[1:], image_from_array(a, g), 0.9) for a, g in zip(labels, (fixed, moving), strict=True)]
    return RegionPair("levels", "", *sides), turn, np.array(shift)


def test_centroids_of_regions_find_a_turn():
    pair, turn, shift = turned_pair()
    start = region_start(pair, sitk.Transform(3, sitk.sitkIdentity))
    for point in np.eye(3) * 20:
        np.testing.assert_allclose(start.TransformPoint(point.tolist()), turn @ point + shift, atol=1.0)
    assert region_start(pair, start) is None, "nothing to gain over the same start"


def test_overlap_is_measured_per_structure():
    pair, _, _ = turned_pair((0, 0, 0), (4.0, 0, 0))
    right = sitk.TranslationTransform(3, (4.0, 0, 0))
    scores = region_scores(pair, {"before": sitk.Transform(3, sitk.sitkIdentity), "after": right})
    # Two balls of radius 9 mm whose centres lie 4 mm apart share 1 - 3/4 x + x^3/16 of their volume, x = 4/9.
    expected = 1 - 0.75 * (4 / 9) + (4 / 9) ** 3 / 16
    assert scores["before"]["predicted_dice"] == pytest.approx(expected, abs=0.05)
    assert scores["after"]["predicted_dice"] > 0.9
    assert set(scores["after"]["predicted_dice_per_structure"]) == set(NAMES[1:])


def test_regions_that_do_not_meet_are_warned_of():
    pair, _, _ = turned_pair((0, 0, 0), (4.0, 0, 0))
    places = {"right": (4.0, 0, 0), "far off": (0, 0, 60.0)}
    scores = region_scores(pair, {name: sitk.TranslationTransform(3, shift) for name, shift in places.items()})
    assert unlike_warning(pair, scores["right"]) is None and unlike_warning(pair, {}) is None
    assert "levels names hardly meet" in unlike_warning(pair, scores["far off"])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The description of a trusted network of the user's own."""
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    torch.jit.script(Levels()).save(str(tmp_path / "network.pt"))
    frame = {"axes": "RAS", "spacing": 2.0, "window": [20, 1020]}
    content = {"file": "network.pt", "classes": list(NAMES), "frame": frame}
    (tmp_path / "levels.json").write_text(json.dumps(content), encoding="utf-8")
    trust.trust(tmp_path / "network.pt")
    yield tmp_path / "levels.json"
    trust._given.clear()


def shifted_images(tmp_path):
    grid = make_grid((30, 36, 36), (3.0, 2.5, 2.5))
    for side, shift in (("fixed", (0.0, 0, 0)), ("moving", (5.0, 0, 0))):
        image = image_of(balls_on(grid, lambda points, shift=shift: points - shift), grid)
        sitk.WriteImage(image, str(tmp_path / f"{side}.nii.gz"))
    return tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"


FAST = {"encoders": "mind", "iterations": 2, "levels": "2", "search_range_mm": 0, "affine": "false"}


def test_register_predicts_and_measures_without_any_label(tmp_path, own):
    settings = Settings.from_preset("default", anatomy=str(own), **FAST)
    result = pipeline.register(*shifted_images(tmp_path), settings)
    assert result.regions.believed and result.record["anatomy"]["network"] == "levels"
    before, after = (result.metrics[when]["predicted_dice"] for when in ("before", "after"))
    assert before < 0.7 and after > before + 0.1
    assert "dice" not in result.metrics["after"], "predictions are no labels of the user's"


def test_regions_of_earlier_images_are_not_taken_for_these(tmp_path, own):
    """As in Slicer's worker, which keeps a cache between registrations."""
    settings, cache = Settings.from_preset("default", anatomy=str(own), **FAST), Cache()
    fixed, moving = (sitk.ReadImage(str(path)) for path in shifted_images(tmp_path))
    first = pipeline.register(fixed, moving, settings, cache=cache).regions
    other = pipeline.register(moving, fixed, settings, cache=cache).regions
    again = pipeline.register(fixed, moving, settings, cache=cache).regions
    labels = [sitk.GetArrayFromImage(regions.fixed.labels) for regions in (first, other, again)]
    assert (labels[0] != labels[1]).any() and (labels[0] == labels[2]).all()


def test_the_command_line_writes_predicted_regions_and_removes_old_ones(tmp_path, own, capsys):
    fixed, moving = shifted_images(tmp_path)
    options = [part for key, value in FAST.items() if key != "encoders" for part in ("--set", f"{key}={value}")]
    command = ["register", str(fixed), str(moving), "-e", "mind", "-o", str(tmp_path / "out"), *options]
    assert cli.main([*command, "--anatomy", str(own)]) == 0
    out = tmp_path / "out"
    names = json.loads((out / "predicted_names.json").read_text(encoding="utf-8"))
    assert names["network"] == "levels" and names["names"]["3"] == "three" and "Predicted" in names["note"]
    labels = sitk.ReadImage(str(out / "moving_predicted.nii.gz"))
    assert set(np.unique(sitk.GetArrayViewFromImage(labels))) == set(range(6))
    record = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert set(record["metrics"]["after"]["predicted_dice_per_structure"]) == set(NAMES[1:])
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Region (predicted)" in report and "not drawn by a person" in report
    assert "predicted regions" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert not list(out.glob("*predicted*")), "an earlier run's regions would be taken for this one's"


def test_an_unknown_network_is_refused_before_any_work(tmp_path, capsys):
    fixed, moving = shifted_images(tmp_path)
    assert cli.main(["register", str(fixed), str(moving), "-o", str(tmp_path / "out"), "--anatomy", "brain"]) == 2
    assert "There is no anatomy network 'brain'" in capsys.readouterr().err
    one = [
        "register",
        str(fixed),
        str(moving),
        "-o",
        str(tmp_path / "out"),
        "--fixed-box",
        *["-9", "-9", "-9", "9", "9", "9"],
    ]
    assert cli.main(one) == 2
    assert "--fixed-box and --moving-box" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
