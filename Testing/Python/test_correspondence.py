"""Images found in one another without a starting point: parts, other contrast, turned patients, known affine maps."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_grid, rotation
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.encoders.mind import Mind
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.images import conversion, transforms
from FoundationRegLib.numerics import block_matching as co
from FoundationRegLib.registration import linear
from scipy import ndimage

torch = pytest.importorskip("torch")

WHOLE = make_grid((40, 36, 36), (3.0, 3.0, 3.0))
PLACES = np.random.default_rng(0).uniform(-22, 22, (60, 3))


def moved(matrix):
    """Looks the phantom up where ``matrix``, fixed to moving points, took it from."""
    back = np.linalg.inv(matrix)
    return lambda points: points @ back[:3, :3].T + back[:3, 3]


def rigid(angles=(0, 0, 0), shift=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(*angles), shift
    return matrix


def mean_error(found, truth, places=PLACES):
    ours, theirs = (places @ matrix[:3, :3].T + matrix[:3, 3] for matrix in (found, truth))
    return np.linalg.norm(ours - theirs, axis=1).mean()


def inverted(values):
    return np.where(values > 20, 700 - values, 0).astype(np.float32)


def described(values, grid):
    grey = torch.as_tensor(values / 700)
    return co.describe(grey, torch.as_tensor(values > 50), grid, Mind())


def test_correlation_at_every_shift_equals_the_sum_over_the_overlap():
    random = torch.Generator().manual_seed(0)
    sides = [
        co.Description(
            torch.randn(2, *shape, generator=random), torch.rand(shape, generator=random).round(), make_grid(shape)
        )
        for shape in ((4, 5, 3), (6, 4, 5))
    ]
    sides = [co.Description(s.features * s.weight, s.weight, s.grid) for s in sides]
    score, overlap, first = co.correlate(*sides)
    fixed, moving = sides
    z, y, x = np.array((1, -1, 2)) - first
    # Fixed index n meets moving index n + shift.
    a = (slice(0, 4), slice(1, 5), slice(0, 3))
    b = (slice(1, 5), slice(0, 4), slice(2, 5))
    shared = (fixed.weight[a] * moving.weight[b]).numpy()
    f, m = fixed.features[(slice(None), *a)].numpy() * shared, moving.features[(slice(None), *b)].numpy() * shared
    assert float(score[z, y, x]) == pytest.approx((f * m).sum() / np.sqrt((f**2).sum() * (m**2).sum()), abs=1e-4)
    least = min(float(fixed.weight.sum()), float(moving.weight.sum()))
    assert float(overlap[z, y, x]) == pytest.approx(shared.sum() / least, abs=1e-4)


def test_lattice_covers_an_oblique_grid_along_the_patients_axes(grid):
    made = co.lattice(grid, 4.0)
    np.testing.assert_allclose(made.direction, np.eye(3)[:, ::-1])
    np.testing.assert_allclose(made.spacing, 4.0)
    inside = made.indices(grid.corners())
    assert (inside > -0.51).all() and (inside < np.array(made.shape) - 0.49).all()


def test_right_angles_are_the_24_rotations_of_a_cube():
    turns = co.right_angles()
    assert len({tuple(turn.ravel()) for turn in turns}) == 24
    np.testing.assert_array_equal(turns[0], np.eye(3))
    for turn in turns:
        np.testing.assert_allclose(turn @ turn.T, np.eye(3))
        assert np.linalg.det(turn) == pytest.approx(1)


@pytest.mark.parametrize("contrast", [lambda v: v, inverted], ids=["same", "inverted"])
def test_a_slab_is_found_far_away_in_the_whole_body(phantom, contrast):
    truth = rigid(shift=(52.0, -130.0, 318.0))
    slab = make_grid((10, 30, 34), (3.0, 3.0, 3.0), center=(3.0, 0.0, 18.0))
    body = co.lattice(WHOLE, 3.0)
    body = co.Grid(body.shape, truth @ body.affine)
    fixed = described(phantom.on(slab), slab)
    moving = described(contrast(phantom.on(body, moved(truth))), body)
    best, second = co.search(fixed, moving, 2)
    assert mean_error(best.matrix, truth) < 3.0
    assert best.score > 1.2 * second.score
    assert best.overlap > 0.9
    assert co.agreement(fixed, moving, best.matrix) == pytest.approx(best.score, rel=0.1)


def test_affine_map_is_refined_below_a_node(phantom):
    truth = rigid((6, -4, 5), (7.0, -5.0, 6.0))
    truth[:3, :3] = truth[:3, :3] @ np.diag([1.08, 0.94, 1.05])
    fixed, moving = described(phantom.on(WHOLE), WHOLE), described(phantom.on(WHOLE, moved(truth)), WHOLE)
    found = co.refine(fixed, moving, np.eye(4))
    assert mean_error(np.eye(4), truth) > 8
    assert mean_error(found, truth) < 2.0
    kept_rigid = co.refine(fixed, moving, np.eye(4), affine=False)[:3, :3]
    np.testing.assert_allclose(kept_rigid.T @ kept_rigid, np.eye(3), atol=1e-9)


def turned_patient(phantom, truth):
    """Fixed image, and one of another contrast whose patient lies as ``truth`` says, upright in its own voxels."""
    grid = co.Grid(WHOLE.shape, rigid(shift=truth[:3, 3]) @ WHOLE.affine)
    values = inverted(phantom.on(grid, moved(truth)))
    return conversion.image_from_array(phantom.on(WHOLE), WHOLE), conversion.image_from_array(values, grid)


@pytest.mark.parametrize("start", ["features", "auto"])
def test_a_patient_turned_by_ninety_degrees_is_found(phantom, start):
    truth = rigid((90, 0, 0), (60.0, -40.0, 30.0)) @ rigid((5, 3, -4))
    sides = [linear.prepare(each) for each in turned_patient(phantom, truth)]
    found, _ = linear.align_linearly(*sides, linear.start_transform(*sides, start))
    assert mean_error(transforms.affine_matrix(found), truth) < 2.0


def test_slants_are_turns_by_as_many_degrees_and_all_different():
    turns = co.slants(rotation(90, 0, 0), 24.0)
    assert len({tuple(turn.round(9).ravel()) for turn in turns}) == 26
    single = co.slants(rotation(90, 0, 0), 24.0, about=1)
    assert [co.degrees_between(rotation(90, 0, 0), turn) for turn in single] == pytest.approx([24.0] * 6)
    for turn in turns:
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    stretched = rigid((20, -10, 5))
    stretched[:3, :3] = stretched[:3, :3] @ np.diag([1.2, 0.9, 1.1])
    assert co.degrees_between(co.rotation_of(stretched), rotation(20, -10, 5)) < 3


@pytest.mark.parametrize("start", ["features", "auto"])
def test_part_of_a_patient_who_lies_askew_is_found(phantom, start):
    truth = rigid((25, -20, 25), (30.0, -25.0, 40.0))
    lower = make_grid((22, 36, 36), (3.0, 3.0, 3.0), center=(0.0, 0.0, -14.0))
    grid = co.Grid(lower.shape, truth @ lower.affine)
    moving = conversion.image_from_array(inverted(phantom.on(grid, moved(truth))), grid)
    sides = [linear.prepare(each) for each in (conversion.image_from_array(phantom.on(WHOLE), WHOLE), moving)]
    places = PLACES * (1, 1, 0.6) + (0, 0, -14)
    begun = linear.start_transform(*sides, start)
    found, _ = linear.align_linearly(*sides, begun)
    assert mean_error(np.eye(4), truth, places) > 50
    assert mean_error(transforms.affine_matrix(found), truth, places) < 2.0


def test_a_right_place_agrees_as_well_however_the_patient_lies(phantom):
    agreements = []
    for angles in ((0, 0, 0), (28, -22, 30)):
        truth = rigid(angles, (20.0, 10.0, -15.0))
        grid = co.Grid(WHOLE.shape, truth @ WHOLE.affine)
        moving = conversion.image_from_array(inverted(phantom.on(grid, moved(truth))), grid)
        sides = [linear.prepare(each) for each in (conversion.image_from_array(phantom.on(WHOLE), WHOLE), moving)]
        agreements.append(linear.DescriptorPair(*sides).agreement(truth))
    assert agreements[1] == pytest.approx(agreements[0], rel=0.07)


def test_empty_space_around_does_not_change_what_is_found(phantom):
    slab = make_grid((14, 30, 34), (3.0, 3.0, 3.0), center=(3.0, 0.0, 18.0))
    fixed, moving = described(phantom.on(slab), slab), described(phantom.on(WHOLE), WHOLE)
    wide = WHOLE.padded((7, 0, 3), (2, 9, 0))
    padding = (3, 0, 0, 9, 7, 2)
    around = co.Description(
        torch.nn.functional.pad(moving.features, padding), torch.nn.functional.pad(moving.weight, padding), wide
    )
    plain, padded = (co.search(fixed, other, 1)[0] for other in (moving, around))
    np.testing.assert_allclose(plain.matrix, padded.matrix, atol=1e-9)
    assert (plain.score, plain.overlap) == pytest.approx((padded.score, padded.overlap), rel=1e-3)


def test_auto_places_a_slab_that_aligned_centres_miss(phantom):
    truth = rigid(shift=(40.0, -60.0, 200.0))
    slab = make_grid((12, 34, 36), (3.0, 3.0, 3.0), center=(0.0, 0.0, -24.0))
    body = co.Grid(WHOLE.shape, truth @ WHOLE.affine)
    fixed = conversion.image_from_array(phantom.on(slab), slab)
    moving = conversion.image_from_array(inverted(phantom.on(body, moved(truth))), body)
    places = PLACES * (1, 1, 0.3) + (0, 0, -24)
    for start in ("auto", "features"):
        sides = linear.prepare(fixed), linear.prepare(moving)
        found, _ = linear.align_linearly(*sides, linear.start_transform(*sides, start))
        assert mean_error(transforms.affine_matrix(found), truth, places) < 3.0


def test_mutual_information_is_believed_where_descriptors_do_not_disagree(phantom):
    truth = rigid((4, 0, 3), (5.0, 4.0, -3.0))
    sides = [
        linear.prepare(conversion.image_from_array(phantom.on(WHOLE, move), WHOLE)) for move in (None, moved(truth))
    ]
    assert isinstance(linear.start_transform(*sides, "auto"), sitk.TranslationTransform)


def test_nothing_in_common_falls_back_and_cancel_is_heard(phantom):
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=WHOLE.shape), 1).astype(np.float32)
    sides = [
        linear.prepare(conversion.image_from_array(values, WHOLE)) for values in (phantom.on(WHOLE), 300 + 100 * noise)
    ]
    matrix = transforms.affine_matrix(linear.start_transform(*sides, "features"))
    assert np.isfinite(matrix).all() and np.linalg.det(matrix[:3, :3]) > 0
    with pytest.raises(Cancelled):
        linear.start_transform(*sides, "features", progress=Progress(should_cancel=lambda: True))
