"""The failure score on phantoms that are registered right, wrong, mirrored and to another phantom."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import Phantom, make_grid, rotation
from FoundationRegLib.images.conversion import image_from_array
from FoundationRegLib.images.transforms import affine_matrix
from FoundationRegLib.numerics.agreement import Agreement, shifted
from FoundationRegLib.numerics.filters import smooth
from FoundationRegLib.registration import linear, trust
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.settings import Settings

torch = pytest.importorskip("torch")

FIXED = make_grid((36, 52, 46), (3.0, 2.0, 2.5))
MOVING = make_grid((52, 60, 56), (2.0, 2.0, 2.0), turn=(8, 0, 0))
TRUTH = np.array([7.0, -6.0, 5.0])
MIRROR = np.array([-1.0, 1.0, 1.0])


def inverted(values):
    """Another contrast, inside the body only."""
    return np.where(values > 20, 700 - values, 0)


def seen(phantom, grid, move=None, contrast=lambda values: values):
    noise = np.random.default_rng(5).normal(0, 8, grid.shape)
    return image_from_array((contrast(phantom.on(grid, move)) + noise).astype(np.float32), grid)


def shift(vector):
    return sitk.TranslationTransform(3, np.asarray(vector, float).tolist())


@pytest.fixture(scope="module")
def fixed(phantom):
    return seen(phantom, FIXED)


@pytest.fixture(scope="module", params=[lambda values: values, inverted], ids=["same", "inverted"])
def witness(request, phantom, fixed):
    """The phantom and itself, moved by TRUTH."""
    moving = seen(phantom, MOVING, lambda points: points - TRUTH, request.param)
    return trust.Witness(linear.prepare(fixed), linear.prepare(moving))


def score(witness, transform):
    return trust.failure_score(witness.evidence(transform))


def test_the_pull_is_the_shift_that_both_searches_find():
    """Smooth random features: in place, a node off, a node off in one half only, and unrelated."""
    generator = torch.Generator().manual_seed(2)

    def features():
        values = torch.randn(6, 20, 22, 24, generator=generator)
        for _ in range(2):
            values = smooth(values)
        return values / values.std()

    still, weight = features(), torch.ones(20, 22, 24)
    moved = shifted(still, (0, 0, 1))
    half = torch.where(torch.arange(22).reshape(1, 1, -1, 1) < 11, still, moved)
    found = [Agreement(still, other, weight, weight).pull() for other in (still, moved, half, features())]
    assert found[0] < 0.01 and found[1] == pytest.approx(1, abs=0.15)
    assert found[2] > 0.7 and found[3] < 0.5
    assert Agreement(still, moved, weight, 0 * weight).pull() == 2


def test_what_the_moving_image_lacks_is_told():
    whole, part = (trust.Trust(0.1, evidence={"covered": share}) for share in (0.9, 0.36))
    assert trust.warnings_of(whole) == []
    assert "only 36% of the fixed body" in trust.warnings_of(part)[0]


def test_right_looks_right_and_wrong_looks_wrong(witness):
    right = score(witness, shift(TRUTH))
    assert trust.Trust(right).verdict == "right" and right < 0.2
    for wrong in ((22, 0, 0), (0, -20, 8), (-13, 14, 0)):
        assert score(witness, shift(TRUTH + wrong)) > right + 0.3
    turned = sitk.Euler3DTransform((0, 0, 0), 0.0, 0.0, 0.6, TRUTH.tolist())
    assert score(witness, turned) > right + 0.3
    assert trust.Trust(score(witness, shift(TRUTH + np.array([0, 30, 0])))).verdict == "wrong"


def test_the_score_grows_with_the_error(witness):
    scores = [score(witness, shift(TRUTH + np.array([mm, 0, 0]))) for mm in (0, 2, 5, 8)]
    assert scores == sorted(scores)


def test_one_side_that_is_off_is_seen(witness):
    """The rest, which is right, hides it from a mean: half of the body, 10 mm off."""
    grid = make_grid((24, 26, 24), (6.0, 5.0, 5.0))
    side = 1 / (1 + np.exp(-grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))[..., :1] / 5))
    field = image_from_array(TRUTH + side * np.array([0.0, 10, 0]), grid)
    half = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    right, wrong = (witness.evidence(transform) for transform in (shift(TRUTH), half))
    assert right["pull"] < 0.4 and wrong["pull"] > 1
    assert trust.failure_score(wrong) > trust.failure_score(right) + 0.3


def test_a_mirrored_phantom_looks_wrong_and_is_reported(phantom, fixed):
    moving = seen(phantom, MOVING, lambda points: (points - TRUTH) * MIRROR)
    sides = linear.prepare(fixed), linear.prepare(moving)
    assert score(trust.Witness(*sides), shift(TRUTH)) > 0.5
    result = register(fixed, moving, Settings.from_preset("fast"))
    assert any("left and right" in warning for warning in result.warnings)
    assert result.trust.verdict == "wrong"
    # Reported, never mirrored.
    points = np.array([result.linear.TransformPoint(p) for p in ((0.0, 0, 0), (1.0, 0, 0), (0.0, 1, 0), (0.0, 0, 1))])
    assert np.linalg.det(points[1:] - points[0]) > 0


def test_an_unmirrored_phantom_is_not_reported(phantom, fixed):
    moving = seen(phantom, MOVING, lambda points: points - TRUTH)
    result = register(fixed, moving, Settings.from_preset("fast"))
    assert not any("left and right" in warning for warning in result.warnings)
    assert result.trust.verdict == "right" and result.trust.kept == "after"
    assert result.record["trust"]["score"] == pytest.approx(result.trust.score, abs=1e-3)
    assert result.quality.startswith("This looks right")


class NearlySymmetric(Phantom):
    """A phantom whose sides differ little, as those of a head do."""

    def __call__(self, points):
        points = np.asarray(points, float)
        return 0.6 * super().__call__(points) + 0.4 * super().__call__(points * MIRROR)


@pytest.mark.parametrize("mirror", [MIRROR, np.ones(3)], ids=["mirrored", "upright"])
def test_a_mirrored_header_is_found_where_sides_are_alike_and_the_patient_is_tilted(mirror):
    body = NearlySymmetric()
    tilt = rotation(0, 12, 0)
    sides = linear.prepare(seen(body, FIXED)), linear.prepare(seen(body, MOVING, lambda points: points @ tilt * mirror))
    found, _ = linear.align_linearly(*sides, linear.start_transform(*sides))
    assert linear.DescriptorPair(*sides).is_mirrored(affine_matrix(found)) == (mirror[0] < 0)


def test_another_phantom_is_never_handed_over_silently(fixed):
    other = seen(Phantom(seed=77), MOVING, lambda points: points - TRUTH)
    result = register(fixed, other, Settings.from_preset("fast"))
    assert result.trust.verdict != "right"
    assert any(result.trust.sentence in warning for warning in result.warnings)


def test_an_alignment_without_support_leaves_the_images_as_they_lie(fixed):
    sides = linear.prepare(fixed), linear.prepare(seen(Phantom(seed=77), MOVING))
    found, facts = trust.keep_supported(*sides, shift([25, 0, 0]), {"kept": "rigid", "warnings": []}, None)
    assert facts["rest"] == "before" and facts["kept"] == "start" and facts["support"] < 0.15
    assert found.TransformPoint((1.0, 2.0, 3.0)) == pytest.approx((1, 2, 3))
    assert "left out" in facts["warnings"][-1]
    chosen = shift([2, 0, 0])
    found, facts = trust.keep_supported(*sides, shift([25, 0, 0]), {"kept": "rigid"}, chosen)
    assert found is chosen and facts["rest"] == "linear"


def test_a_start_that_shows_nothing_is_no_refuge(fixed):
    """Where the images do not meet as they lie, what was found stays, with a warning."""
    random = np.random.default_rng(3)
    noise = image_from_array(random.normal(300, 60, MOVING.shape).astype(np.float32), MOVING)
    noise.SetOrigin(np.add(noise.GetOrigin(), (400.0, 0.0, 0.0)).tolist())
    sides = linear.prepare(fixed), linear.prepare(noise)
    found, facts = trust.keep_supported(*sides, shift([400, 0, 0]), {"kept": "start"}, None)
    assert found.TransformPoint((0.0, 0.0, 0.0))[0] == pytest.approx(400) and facts["warnings"]


class Judge:
    """A witness whose evidence is the score itself."""

    def __init__(self, scores, covered=1.0):
        self.scores, self.covered = scores, covered

    def evidence(self, transform):
        return {"covered": self.covered, "is": self.scores[transform]}


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setattr(trust, "failure_score", lambda evidence: evidence["is"])

    def choose(after, linear, before, guided=False, covered=1.0, **facts):
        names = {"after": "after", "linear": "linear", "before": "before"}
        judge = Judge({"after": after, "linear": linear, "before": before}, covered)
        return trust.choose(names, {"witness": judge, **facts}, guided)

    return choose


def test_what_is_worse_than_its_start_is_not_the_result(judged):
    assert judged(0.05, 0.1, 0.6).kept == "after"
    assert judged(0.2, 0.1, 0.6).kept == "after"
    assert judged(0.9, 0.3, 0.6).kept == "linear"
    assert judged(0.9, 0.8, 0.2).kept == "before"
    assert judged(0.9, 0.8, 0.2, guided=True).kept == "after"
    assert judged(0.9, 0.8, 0.2, covered=0.0).kept == "after"
    assert judged(0.98, 0.97, 0.97, rest="before").kept == "before"
    found = judged(0.9, 0.8, 0.2)
    assert found.score == 0.2 and "you get the start instead" in trust.warnings_of(found)[0]


def test_boxes_are_not_undone_and_bend_nothing_that_nothing_speaks_for(judged):
    assert judged(0.9, 0.3, 0.2, boxed=True).kept == "after"
    assert judged(0.9, 0.95, 0.2, boxed=True, rest="linear").kept == "linear"
    assert judged(0.9, 0.95, 0.2, boxed=True, rest="linear", guided=True).kept == "after"
