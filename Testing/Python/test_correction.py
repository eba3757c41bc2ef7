"""Corrections and questions in the library: a phantom whose true map is known."""

import numpy as np
import pytest
import torch
from conftest import make_grid
from FoundationRegLib.errors import InputError
from FoundationRegLib.evaluation import metrics
from FoundationRegLib.images.conversion import image_from_array
from FoundationRegLib.interaction.preference import preference
from FoundationRegLib.numerics import local_flows
from FoundationRegLib.numerics.fields import exponential
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.settings import Settings
from test_module_real import TURNED, bend, unbend


@pytest.fixture(scope="module")
def registration(phantom):
    fixed, moving = make_grid(), make_grid(**TURNED)
    images = image_from_array(phantom.on(fixed), fixed), image_from_array(700 - phantom.on(moving, unbend), moving)
    seen = []

    def on_found(result):
        seen.append((result.transform, dict(result.metrics), result.quality))

    made = register(*images, Settings.from_preset(encoders="mind", search_range_mm=12.0), on_found=on_found)
    assert seen == [(made.transform, {}, "")] and made.quality and made.metrics["after"]["nmi"] > 1
    return made


def body_points(count, seed=0, inside=0.8):
    points = np.random.default_rng(seed).normal(size=(20 * count, 3)) * 22
    return points[np.linalg.norm(points / (40, 34, 46), axis=1) < inside][:count]


def through(transform, points):
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def test_the_fold_test_sees_what_central_differences_do_not():
    u = torch.zeros(3, 6, 6, 6)
    u[2, :, :, 3] = 1.5
    least = local_flows.least_determinant(u, 1.0)
    # From node 3 to node 4 the map goes back by half a voxel, and nowhere else.
    assert torch.allclose(least[:, :, 3], torch.tensor(-0.5)) and (least[:, :, [0, 1, 4]] == 1).all()


def test_a_flow_passes_landmarks_smoothly_and_ends_at_its_reach():
    shape, spacing = (24, 26, 28), 3.0
    starts, ends = (
        torch.tensor([[10.0, 12.0, 13.0], [13.0, 14.0, 16.0]]),
        torch.tensor([[12.0, 12.0, 14.0], [13.0, 16.0, 16.0]]),
    )
    reaches = torch.tensor([8.0, 8.0])
    velocity, misses = local_flows.through_landmarks(torch.zeros(3, *shape), starts, ends, reaches, spacing)
    u = exponential(velocity, (spacing,) * 3)
    assert misses.max() < 0.05
    assert torch.allclose(local_flows.values_at(u, starts) / spacing + starts, ends, atol=0.02)
    assert local_flows.least_determinant(u, spacing).min() > 0.1
    far = local_flows.segment_distances(local_flows.node_places(shape, u), starts, ends).amin(0) > 8
    assert velocity[:, far].abs().max() == 0


def test_a_correction_moves_a_wrong_place_and_nothing_far_away(registration):
    corrections, place = registration.corrections(), np.array([4.0, -6.0, 8.0])
    wrong = bend(place) + np.array((4.0, -3.0, 0.0))
    previews = []
    made = corrections.add(place, wrong, on_preview=previews.append)
    assert len(previews) == 1 and previews[0].residuals[0] < 0.5 and made.residuals[0] < 0.5
    assert np.linalg.norm(through(made.transform, place[None])[0] - wrong) == pytest.approx(made.residuals[0], abs=1e-6)
    points = body_points(2000, inside=1.0)
    far = points[np.linalg.norm(points - place, axis=1) >= 40]
    change = through(made.transform, far) - through(registration.transform, far)
    assert len(far) > 50 and np.linalg.norm(change, axis=1).max() < 0.2
    assert metrics.folded_percent(metrics.jacobian(made.transform, registration.fixed)) == 0
    # The user contradicts the images here, and is told so.
    assert made.conflicts[0]


def test_right_corrections_of_a_spoilt_field_bring_the_neighbours_along(registration):
    place = np.array([-8.0, 6.0, 4.0])
    corrections = registration.corrections()
    spoilt = corrections.add(place, bend(place) + np.array((6.0, 0.0, 4.0)))
    near = place + body_points(200, 3) * 0.25
    wrong = np.linalg.norm(through(spoilt.transform, near) - bend(near), axis=1).mean()
    mended = corrections.move(0, moving=bend(place))
    right = np.linalg.norm(through(mended.transform, near) - bend(near), axis=1).mean()
    assert wrong > 2.0 and right < 0.6 and not mended.conflicts[0]


def test_undo_and_redo_give_the_very_fields(registration):
    corrections = registration.corrections()
    fields = [corrections.current.displacement]
    for n, place in enumerate(body_points(10, 7, 0.6)):
        fields.append(
            corrections.add(place, through(registration.transform, place[None])[0] + (0, 2, n % 3)).displacement
        )
    for expected in fields[-2:4:-1]:
        assert corrections.undo().displacement is expected
    assert len(corrections.pairs) == 5
    for expected in fields[6:8]:
        assert corrections.redo().displacement is expected
    switched = corrections.switch(0, False)
    assert switched.residuals[0] > 0.5 and max(switched.residuals[1:]) < 0.5
    for _ in range(7):
        emptied = corrections.remove(0)
    assert not emptied.pairs and torch.equal(emptied.displacement, registration.workspace.found.displacement)


def test_nothing_folds_after_fifty_random_corrections(registration):
    random, corrections = np.random.default_rng(5), registration.corrections()
    places = body_points(50, 11, 0.8)
    for place in places:
        corrections.add(place, through(corrections.current.transform, place[None])[0] + random.normal(size=3) * 4)
    made = corrections.current
    least = local_flows.least_determinant(made.displacement, registration.workspace.spacing)
    assert least.min() > 0
    assert metrics.folded_percent(metrics.jacobian(made.transform, registration.fixed)) == 0
    for miss, note in zip(made.residuals, made.conflicts, strict=True):
        assert miss < 0.5 or note


def test_a_long_correction_takes_more_room_and_says_so(registration):
    corrections, place = registration.corrections(), np.array([-14.0, 3.0, 2.0])
    made = corrections.add(place, through(registration.transform, place[None])[0] + (28.0, 0.0, 0.0))
    assert made.remarks[0].startswith("It is 2") and "mm away move too" in made.remarks[0]
    assert made.residuals[0] < 0.5 or made.conflicts[0]
    assert local_flows.least_determinant(made.displacement, registration.workspace.spacing).min() > 0
    stated = float(made.remarks[0].split("up to ")[1].split()[0])
    points = body_points(3000, inside=1.3)
    far = points[np.linalg.norm(points - place, axis=1) > stated + 1]
    change = np.linalg.norm(through(made.transform, far) - through(registration.transform, far), axis=1)
    assert len(far) and change.max() < 0.2
    assert corrections.add((5.0, 0.0, 0.0), bend(np.array((5.0, 0.0, 0.0)))).remarks[1] == ""


def test_the_images_are_asked_about_the_place_that_was_named(registration):
    random = np.random.default_rng(5)
    places = body_points(20, 3, 0.6)
    right = [preference(registration.workspace, place, bend(place)) for place in places]
    steps = random.normal(size=(20, 3))
    steps *= 10 / np.linalg.norm(steps, axis=1, keepdims=True)
    wrong = [preference(registration.workspace, p, bend(p) + s) for p, s in zip(places, steps, strict=True)]
    assert max(one.doubt for one in right) < 0.3 and all(one.clear for one in right)
    assert np.mean([one.doubt > 0.5 for one in wrong]) > 0.7
    assert np.median([abs(one.distance_mm - 10) for one in wrong]) < 3


def test_contradicting_pairs_are_marked(registration):
    place = np.array([10.0, 4.0, -6.0])
    corrections = registration.corrections()
    corrections.add(place, bend(place) + np.array((5.0, 0.0, 0.0)))
    made = corrections.add(place + 0.5, bend(place) - (5.0, 0.0, 0.0))
    assert any(made.conflicts) and local_flows.least_determinant(made.displacement, 4.0).min() > 0


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (((900.0, 0, 0), (0, 0, 0)), "The fixed point of pair 1 lies outside of the fixed image"),
        (((0.0, 0, 0), (0, 0, 900.0)), "The moving point of pair 1 lies outside of the moving image"),
        (((0.0, 0, 0), (0, float("nan"), 0)), "must be x, y and z"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(registration, pair, sentence):
    corrections = registration.corrections()
    with pytest.raises(InputError, match=sentence):
        corrections.add(*pair)
    assert not corrections.pairs


def test_the_probe_finds_the_known_place_in_both_directions(registration):
    places = body_points(25, 2, 0.6)
    errors = [np.linalg.norm(registration.correspondence(place).match - bend(place)) for place in places]
    back = [np.linalg.norm(registration.correspondence(bend(place), side="moving").match - place) for place in places]
    # Nodes are 4 mm apart.
    assert np.median(errors) < 1.6 and np.median(back) < 1.6
    found = registration.correspondence(places[0])
    goal = np.array(registration.transform.TransformPoint(places[0].tolist()))
    np.testing.assert_allclose(found.transform, goal)
    assert found.distance_mm == pytest.approx(np.linalg.norm(found.match - goal))
    assert found.similarity_at_match >= found.similarity_at_transform > 0.5 and found.expected_error_mm > 0
    # The map is where it says: its highest value within the search's range lies at the match.
    peak = found.grid.points(np.unravel_index(found.similarity.argmax(), found.similarity.shape))
    assert (found.similarity.max() <= 1 and np.linalg.norm(peak - found.match) < 4) or found.similarity.max() > 0.9


def test_a_question_that_cannot_be_answered_is_refused(registration):
    with pytest.raises(InputError, match="were not encoded with"):
        registration.correspondence((0, 0, 0), "dinov2-small")
    with pytest.raises(InputError, match="outside of the moving image"):
        registration.correspondence((0, 0, 900), side="moving")
    workspace, registration.workspace = registration.workspace, None
    with pytest.raises(InputError, match="features of this registration are gone"):
        registration.corrections()
    registration.workspace = workspace


@pytest.fixture(scope="module")
def coarse(phantom):
    """A registration on a grid twice as coarse as the images."""
    fixed, moving = make_grid(), make_grid(**TURNED)
    images = image_from_array(phantom.on(fixed), fixed), image_from_array(700 - phantom.on(moving, unbend), moving)
    return register(*images, Settings.from_preset(encoders="mind", search_range_mm=12.0, finest_spacing_mm=4.0))


def test_a_region_is_refined_on_a_finer_grid_and_the_rest_stays(coarse):
    low, high = np.array([-26.0, -22.0, -26.0]), np.array([26.0, 22.0, 26.0])
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), -1).reshape(-1, 3)
    corrections = coarse.corrections()
    made = corrections.refine_here(corners)
    assert made.transform.GetDisplacementField().GetSpacing()[0] < coarse.workspace.spacing - 1
    points = body_points(4000, 9)
    before, after = (through(t, points) for t in (coarse.transform, made.transform))
    inside = ((points > low) & (points < high)).all(1)
    assert np.abs(after - before)[~inside].max() < 1e-3
    core = ((points > low + 8) & (points < high - 8)).all(1)
    errors = [np.linalg.norm(found[core] - bend(points[core]), axis=1).mean() for found in (before, after)]
    assert errors[1] < 0.97 * errors[0], errors
    assert metrics.folded_percent(metrics.jacobian(made.transform, coarse.fixed)) == 0
    # Corrections go on from there, through the region, and undo brings back what was.
    place = np.array([3.0, -4.0, 5.0])
    corrected = corrections.add(place, bend(place) + np.array((3.0, 0.0, 0.0)))
    assert corrected.residuals[0] < 0.5 and corrected.regions == made.regions
    assert corrections.undo() is made and corrections.undo().transform is coarse.transform


def test_a_region_that_cannot_be_refined_is_refused(coarse):
    with pytest.raises(InputError, match="must cover at least"):
        coarse.corrections().refine_here([[0, 0, 0], [5, 5, 5]])
    with pytest.raises(InputError, match="must cover at least"):
        coarse.corrections().refine_here([[900, 0, 0], [990, 90, 90]])
