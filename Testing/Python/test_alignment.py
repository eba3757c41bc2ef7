"""Known shifts, rotations and affine maps recovered within stated millimetres."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_grid, smooth_noise
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled, InputError
from FoundationRegLib.images import conversion, resampling, transforms
from FoundationRegLib.numerics.mutual_information import mutual_information
from FoundationRegLib.registration import linear

torch = pytest.importorskip("torch")

FIXED = make_grid((30, 44, 40), (3.5, 2.5, 3.0))
MOVING = make_grid((52, 60, 56), (2.5, 2.0, 2.0), turn=(15, -5, 10), flip=(0,), center=(5.0, 4.0, -6.0))
BODY_POINTS = np.random.default_rng(0).uniform(-22, 22, (60, 3))


def a_pair(phantom, truth, contrast=lambda v: v):
    """Fixed image, and a moving one of which ``truth`` (fixed to moving) is the registration."""
    back = np.linalg.inv(transforms.affine_matrix(truth))
    fixed = conversion.image_from_array(phantom.on(FIXED), FIXED)
    values = phantom.on(MOVING, lambda p: p @ back[:3, :3].T + back[:3, 3])
    return fixed, conversion.image_from_array(contrast(values).astype(np.float32), MOVING)


def mean_error(found, truth):
    places = [[np.array(t.TransformPoint(p)) for p in BODY_POINTS.tolist()] for t in (found, truth)]
    return np.linalg.norm(np.subtract(*places), axis=1).mean()


def run(fixed, moving, start="auto", **options):
    sides = linear.prepare(fixed), linear.prepare(moving)
    return linear.align_linearly(*sides, linear.start_transform(*sides, start), **options)


def inverted(values):
    """Another contrast: bright where it was dark, inside the body only."""
    return np.where(values > 20, 700 - values, 0)


@pytest.mark.parametrize("contrast", [lambda v: v, inverted], ids=["same", "inverted"])
def test_rigid_motion_is_recovered_below_a_millimetre(phantom, contrast):
    truth = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.15, -0.1, 0.2, (9.0, -7.0, 6.0))
    found, record = run(*a_pair(phantom, truth, contrast), affine=False)
    assert record["kept"] == "rigid"
    assert mean_error(found, truth) < 1.0
    matrix = transforms.affine_matrix(found)[:3, :3]
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-5)


def test_affine_map_is_recovered_below_a_millimetre(phantom):
    truth = sitk.AffineTransform(3)
    truth.SetMatrix((1.1, 0.08, 0.0, -0.05, 0.92, 0.04, 0.0, 0.06, 1.05))
    truth.SetTranslation((4.0, -5.0, 6.0))
    found, record = run(*a_pair(phantom, truth))
    assert record["kept"] == "affine" and record["nmi"]["affine"] > record["nmi"]["start"]
    assert mean_error(found, truth) < 1.0


def test_images_that_lie_far_apart_are_found_by_auto(phantom):
    truth = sitk.TranslationTransform(3, (400.0, -300.0, 250.0))
    fixed, _ = a_pair(phantom, sitk.TranslationTransform(3))
    far = conversion.image_from_array(phantom.on(MOVING), MOVING)
    far.SetOrigin(np.add(far.GetOrigin(), (400.0, -300.0, 250.0)).tolist())
    assert resampling.overlap_fraction(fixed, far) == 0
    found, _ = run(fixed, far)
    assert mean_error(found, truth) < 1.0


def test_starts_without_optimisation(phantom):
    fixed, moving = a_pair(phantom, sitk.TranslationTransform(3, (6.0, 0.0, -5.0)))
    grids = conversion.grid_of(fixed), conversion.grid_of(moving)
    none, geometry, mass = (linear.start_transform(fixed, moving, start) for start in ("none", "geometry", "mass"))
    assert np.array(none.TransformPoint((1.0, 2.0, 3.0))) == pytest.approx((1, 2, 3))
    assert geometry.TransformPoint(grids[0].center.tolist()) == pytest.approx(grids[1].center.tolist())
    assert np.array(mass.GetParameters()) == pytest.approx((6, 0, -5), abs=2)
    with pytest.raises(InputError, match="start"):
        linear.start_transform(fixed, moving, "sideways")


def test_a_given_transform_is_kept_exactly_even_when_it_bends(phantom):
    bend = np.stack([smooth_noise(FIXED.shape, 6, n) for n in range(3)]) * 3
    wide = FIXED.padded(8, 8)
    given = transforms.compose_field(sitk.TranslationTransform(3, (3.0, 2.0, -4.0)), bend, FIXED, wide)
    fixed = conversion.image_from_array(phantom.on(FIXED), FIXED)
    assert linear.start_transform(fixed, fixed, initial=given) is given
    found, _ = linear.align_linearly(fixed, fixed, given, rigid=False, affine=False)
    assert found is given
    moved, record = linear.align_linearly(fixed, fixed, given, affine=False)
    if record["kept"] == "rigid":
        rigid = moved.GetNthTransform(1)
        for point in BODY_POINTS[:5].tolist():
            assert moved.TransformPoint(point) == pytest.approx(given.TransformPoint(rigid.TransformPoint(point)))
    assert record["nmi"]["rigid"] > record["nmi"]["start"] and record["kept"] == "rigid"


def test_aligned_images_stay_where_they_are(phantom):
    fixed, moving = a_pair(phantom, sitk.TranslationTransform(3))
    found, _ = run(fixed, moving)
    assert mean_error(found, sitk.TranslationTransform(3)) < 0.5


def test_unrelated_images_never_become_less_similar(phantom):
    fixed, _ = a_pair(phantom, sitk.TranslationTransform(3))
    noise = conversion.image_from_array(smooth_noise(MOVING.shape, 1, 9).astype(np.float32), MOVING)
    _, record = run(fixed, noise)
    assert record["nmi"][record["kept"]] >= record["nmi"]["start"]


def test_images_that_share_nothing_leave_the_start_with_a_warning(phantom):
    fixed, moving = a_pair(phantom, sitk.TranslationTransform(3))
    apart = sitk.TranslationTransform(3, (1000.0, 0.0, 0.0))
    found, record = linear.align_linearly(fixed, moving, apart)
    assert found is apart and record["kept"] == "start" and record["warnings"]


def test_masks_limit_what_is_compared(phantom):
    truth = sitk.TranslationTransform(3, (5.0, -4.0, 3.0))
    fixed, moving = a_pair(phantom, truth)
    # Half of the fixed image shows something that moved elsewhere.
    array, mask = sitk.GetArrayFromImage(fixed), np.ones(FIXED.shape, np.uint8)
    array[:, :, 26:] = np.roll(array, 9, axis=1)[:, :, 26:]
    mask[:, :, 26:] = 0
    side = linear.prepare(conversion.image_from_array(array, FIXED), conversion.image_from_array(mask, FIXED))
    assert side.chosen
    found, _ = linear.align_linearly(side, moving, sitk.TranslationTransform(3), affine=False)
    assert mean_error(found, truth) < 1.0


def test_the_same_seed_gives_the_same_transform(phantom):
    pair = a_pair(phantom, sitk.TranslationTransform(3, (5.0, -4.0, 3.0)))
    one, two = (run(*pair, seed=3)[0] for _ in range(2))
    assert one.GetParameters() == two.GetParameters()


def test_cancel_stops_the_optimisation(phantom):
    calls = []

    def soon():
        calls.append(1)
        return len(calls) > 8

    with pytest.raises(Cancelled):
        run(*a_pair(phantom, sitk.TranslationTransform(3, (5.0, 0.0, 0.0))), progress=Progress(should_cancel=soon))
    assert len(calls) == 9


def test_mutual_information_of_known_pairs_and_its_gradient():
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.uniform(size=20000)).double()
    other = torch.from_numpy(random.uniform(size=20000)).double()
    assert mutual_information(values, other) < 0.05
    assert mutual_information(values, 1 - values) > 2
    moving = (values * 0.8 + 0.1).requires_grad_()
    few, some = values[:300], moving[:300]
    assert torch.autograd.gradcheck(lambda m: mutual_information(few, m, 8), some.detach().requires_grad_(), atol=1e-6)
