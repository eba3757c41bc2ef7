"""The refinement: its equations against autograd, and known deformations recovered."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import smooth_noise
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.native import library
from FoundationRegLib.numerics import adam, data_term, filters, gauss_newton
from FoundationRegLib.numerics.data_term import FeaturePair
from FoundationRegLib.numerics.fields import exponential, folded_percent, jacobian_determinant, resize, warp
from FoundationRegLib.numerics.regularisation import Regulariser
from scipy import ndimage

SHAPE = (24, 28, 26)
NODES = tuple(n // 2 for n in SHAPE)
SPACING = 2.0
SMALL = (16, 18, 14)
INNER = np.s_[..., 4:-4, 4:-4, 4:-4]


def smooth_field(amplitude, seed=0, shape=SHAPE, sigma=5):
    noise = np.stack([smooth_noise(shape, sigma, seed + n) for n in range(3)])
    noise -= noise.mean(axis=(1, 2, 3), keepdims=True)
    return (amplitude * noise / np.abs(noise).max()).astype(np.float32)


def texture(channels=4, sigma=2, seed=20, shape=SHAPE):
    return np.stack([smooth_noise(shape, sigma, seed + n) for n in range(channels)]).astype(np.float32)


def seen_through(moving, voxels):
    """Channels of ``moving`` at x + ``voxels``, by SciPy's cubic splines."""
    places = np.indices(voxels.shape[1:]) + voxels
    return np.stack([ndimage.map_coordinates(c, places, order=3, mode="nearest") for c in moving]).astype(np.float32)


def warped_pair(voxels, **options):
    moving = texture(shape=voxels.shape[1:], **options)
    return FeaturePair(torch.from_numpy(seen_through(moving, voxels)), torch.from_numpy(moving))


def refined(pair, start=None, weight=None, **options):
    shape = pair.fixed.shape[1:]
    start = torch.zeros(3, *(n // 2 for n in shape)) if start is None else start
    options = {
        "nodes": tuple(n // 2 for n in shape), "regulariser": Regulariser(0.02, 0.02), "iterations": 12
    } | options  # fmt: skip
    weight = torch.ones(shape) if weight is None else weight
    return gauss_newton.gauss_newton([pair], start, SPACING, weight, **options)


@pytest.mark.parametrize("diffeomorphic", [False, True])
def test_smooth_warp_is_recovered_to_a_tenth_of_a_voxel(diffeomorphic):
    truth = smooth_field(1.8)
    field_mm, losses = refined(warped_pair(truth), diffeomorphic=diffeomorphic)
    if diffeomorphic:
        field_mm = exponential(field_mm, (SPACING * 2,) * 3)
    voxels = resize(field_mm, SHAPE).numpy() / SPACING
    error = np.linalg.norm(voxels - truth, axis=0)[INNER]
    assert np.linalg.norm(truth, axis=0)[INNER].mean() > 0.5, "the case must be worth solving"
    assert error.mean() < 0.1 and np.percentile(error, 95) < 0.25
    assert losses[-1] < 0.05 * losses[0]


def test_start_is_refined_and_not_thrown_away():
    """A shift of four voxels is out of reach of a start at zero in few steps, but not of one that is nearly right."""
    truth = np.zeros((3, *SHAPE), np.float32)
    truth[1] = 4.0
    start = torch.zeros(3, 6, 7, 5)
    start[1] = 3.6 * SPACING
    field_mm, _ = refined(warped_pair(truth), start, iterations=4)
    # Near the far end of y the fixed image shows what lies outside of the moving one.
    error = (resize(field_mm, SHAPE).numpy() / SPACING - truth)[:, 4:-4, 4:-10, 4:-4]
    assert np.abs(error).max() < 0.1


def linear_pair(channels=5):
    """Features that are linear in space, so that the energy is quadratic, with another residual in each channel."""
    generator = torch.Generator().manual_seed(3)
    slopes = torch.randn(channels, 3, generator=generator)
    steps = torch.from_numpy(np.indices(SHAPE).astype(np.float32))
    moving = torch.einsum("cn,ndhw->cdhw", slopes, steps)
    return FeaturePair(moving + torch.randn(channels, 1, 1, 1, generator=generator), moving)


def sampled(volume, voxels):
    """``volume`` at x + ``voxels`` by grid_sample called directly."""
    places = torch.from_numpy(np.indices(SHAPE).astype(np.float32)) + voxels
    scaled = [2 * places[n] / (SHAPE[n] - 1) - 1 for n in (2, 1, 0)]
    return F.grid_sample(volume[None], torch.stack(scaled, -1)[None], padding_mode="border", align_corners=True)[0]


@pytest.mark.parametrize("every", [1, 2])
def test_pull_and_curvature_are_the_derivatives_of_the_energy(every):
    """A node's energy: half the weighted mean over its voxels of |fixed - moving(x + u)|^2 per channel and noise."""
    pair = linear_pair()
    weight = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    nodes = tuple(n // every for n in SHAPE)
    at = torch.full((3, *nodes), 0.2, requires_grad=True)

    def squared(displacement):
        voxels = displacement * every
        for axis in (1, 2, 3):
            voxels = voxels.repeat_interleave(every, axis)
        return (pair.fixed - sampled(pair.moving, voxels)).square().sum(0) * weight

    with torch.no_grad():
        noise = squared(at).sum() / weight.sum() / len(pair.fixed)
    energy = 0.5 * (squared(at) / (len(pair.fixed) * noise)).sum() / every**3
    (gradient,) = torch.autograd.grad(energy, at, create_graph=True)
    fine = (at.detach() * every).repeat_interleave(every, 1).repeat_interleave(every, 2).repeat_interleave(every, 3)
    curvature, pull, loss = data_term.DataTerm(1, [pair], weight, torch.ones(SHAPE), every).linearised(fine)
    assert loss == pytest.approx(float(noise), rel=1e-4)
    torch.testing.assert_close(pull[INNER], -gradient.detach()[INNER], rtol=2e-3, atol=2e-3)
    number = 0
    for a in range(3):
        # Nodes do not share voxels: the sum's derivative is that of each node by itself.
        (row,) = torch.autograd.grad(gradient[a].sum(), at, retain_graph=True)
        for b in range(a, 3):
            torch.testing.assert_close(curvature[number][INNER], row[b][INNER], rtol=2e-3, atol=2e-3)
            number += 1


@pytest.fixture
def torch_alone():
    """Without the compiled kernels."""
    with library.without():
        yield


def test_blocks_do_not_change_the_equations(monkeypatch, torch_alone):
    """However the lattice is cut, and whatever is left out because it has no weight."""
    pair, weight = warped_pair(smooth_field(1.0)), torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    weight[:, :7], weight[:, :, 21:], weight[11:15] = 0, 0, 0
    shift = torch.from_numpy(smooth_field(0.7, seed=9))

    def equations():
        return data_term.DataTerm(1, [pair], weight, torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)), 2)

    monkeypatch.setattr(data_term, "_blocks", lambda weight, *_: [tuple(slice(0, n) for n in weight.shape)])
    whole = equations().linearised(shift)
    monkeypatch.undo()
    assert equations().blocks == [(slice(0, 24), slice(6, 28), slice(0, 22))]
    monkeypatch.setattr(data_term, "_BLOCK", (2, 32, 128))
    assert len(equations().blocks) == 11, "planes 12 and 13 are empty"
    for size in ((2, 32, 128), (6, 8, 10)):
        monkeypatch.setattr(data_term, "_BLOCK", size)
        for a, b in zip(whole, equations().linearised(shift), strict=True):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("every", [2, 4])
def test_a_shift_on_the_nodes_is_that_on_the_voxels(every, monkeypatch):
    """Block by block the same as PyTorch makes of all of it."""
    monkeypatch.setattr(data_term, "_BLOCK", (8, 4, 12))
    shape = (24, 28, 28)
    pair = FeaturePair(*(torch.from_numpy(texture(seed=n, shape=shape)) for n in (20, 40)))
    coarse = torch.from_numpy(smooth_field(2.0, seed=9, shape=tuple(n // every for n in shape), sigma=2))
    fine = F.interpolate(coarse[None], size=shape, mode="trilinear", align_corners=False)[0]
    term = data_term.DataTerm(1, [pair], torch.ones(shape), torch.ones(shape), every)
    for a, b in zip(term.linearised(coarse), term.linearised(fine), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-4)


def test_sample_agrees_with_scipy_however_many_threads():
    moving, shift = texture(), smooth_field(3.0)
    places = np.indices(SHAPE) + shift
    expected = np.stack([ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in moving])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found = warp(torch.from_numpy(moving), torch.from_numpy(shift), (1.0, 1.0, 1.0))
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


def test_standardised_features_have_mean_zero_and_power_one_inside_of_the_mask():
    rng = np.random.default_rng(0)
    mask = torch.from_numpy(rng.random(SHAPE) < 0.4)
    features = [torch.from_numpy((7 * rng.normal(size=(3, *SHAPE)) + shift).astype(np.float32)) for shift in (10, 14)]
    fixed, moving = data_term.standardised(*features, mask)
    both = torch.cat([fixed[:, mask], moving[:, mask]], 1)
    torch.testing.assert_close(both.mean(1), torch.zeros(3), atol=1e-3, rtol=0)
    assert float(both.square().mean()) == pytest.approx(1, rel=1e-3)
    scaled = data_term.standardised(*(1000 * f + 5 for f in features), mask)
    torch.testing.assert_close(scaled[0], fixed, atol=1e-3, rtol=1e-3)


def test_the_way_back_is_the_inverse():
    """Exchanging the images turns the velocity round, since both are compared both ways."""
    pair = warped_pair(smooth_field(1.8))
    there, _ = refined(pair, diffeomorphic=True, moving_weight=torch.ones(SHAPE))
    back, _ = refined(FeaturePair(pair.moving, pair.fixed), diffeomorphic=True, moving_weight=torch.ones(SHAPE))
    assert float(there.abs().max()) > 1.0, "the case must move"
    torch.testing.assert_close(there, -back, atol=1e-3, rtol=1e-3)


def test_a_lesion_that_only_one_image_has_does_not_bend_the_field():
    truth = smooth_field(1.0)
    clean = warped_pair(truth)
    distance = np.linalg.norm(np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2, axis=0)
    lesion = torch.from_numpy((3 / (1 + np.exp(2 * (distance - 4)))).astype(np.float32))
    pair = FeaturePair(clean.fixed, clean.moving + clean.moving.std() * lesion)
    errors = {}
    for robust in (False, True):
        field, _ = refined(pair, diffeomorphic=True, robust=robust, regulariser=Regulariser(0.1, 0.3))
        found = resize(exponential(field, (SPACING * 2,) * 3), SHAPE).numpy() / SPACING
        errors[robust] = np.linalg.norm(found - truth, axis=0)[distance < 6].mean()
    assert errors[False] > 0.8, "the lesion must be worth ignoring"
    assert errors[True] < 0.4 * errors[False]


def test_only_a_region_far_beyond_the_noise_loses_its_say():
    noise = torch.from_numpy(np.random.default_rng(0).exponential(size=(20, 20, 20)).astype(np.float32))
    mass = torch.ones_like(noise)
    assert float(data_term.outlier_weight(noise, mass).mean()) > 0.97
    noise[5:10, 5:10, 5:10] += 9.0
    kept = data_term.outlier_weight(noise, mass)
    assert float(kept[6:9, 6:9, 6:9].max()) < 0.02 < 0.97 < float(kept[13:].mean())
    torch.testing.assert_close(data_term.outlier_weight(0.3 * noise, 0.3 * mass), kept)


def test_sliding_sides_are_told_apart():
    """Two halves slide along a plane: with `sliding` a stiff field is sharper there."""
    truth = np.zeros((3, *SHAPE), np.float32)
    truth[2, :, :14], truth[2, :, 14:] = 1.5, -1.5
    errors = {}
    for sliding in (0.0, 1.0):
        field, _ = refined(warped_pair(truth), regulariser=Regulariser(3.0, 10.0, sliding), diffeomorphic=True)
        found = resize(exponential(field, (SPACING * 2,) * 3), SHAPE).numpy() / SPACING
        errors[sliding] = np.abs(found[2] - truth[2])[4:-4, 8:-8, 4:-4].mean()
    assert errors[1.0] < 0.8 * errors[0.0]


def test_a_wide_neighbourhood_is_as_good_on_blocks():
    image = torch.from_numpy(texture(channels=1, shape=(40, 44, 48))[0])
    found = filters.local_normalised(image, 8.0)[0].numpy()
    mean = ndimage.gaussian_filter(image.numpy(), 8.0, mode="nearest")
    spread = ndimage.gaussian_filter(image.numpy() ** 2, 8.0, mode="nearest") - mean**2
    expected = (image.numpy() - mean) / np.sqrt(spread + 0.1 * spread.mean())
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_what_is_not_seen_does_not_count_in_a_neighbourhood():
    """An image cut short is normalised as normalised convolution by scipy does it, and nothing like a dark one."""
    image = torch.from_numpy(2 + texture(channels=1, shape=(40, 44, 48))[0])
    seen = torch.ones_like(image)
    seen[:18] = 0

    def local(values):
        return ndimage.gaussian_filter((seen * values).numpy(), 8.0, mode="nearest")

    share = local(torch.ones_like(image)).clip(1e-3)
    mean = local(image) / share
    spread = local(image.square()) / share - mean**2
    inside = seen.numpy() > 0
    expected = (image.numpy() - mean) / np.sqrt(spread + 0.1 * spread[inside].mean())
    found = filters.local_normalised(image * seen, 8.0, seen)[0].numpy()
    dark = filters.local_normalised(image * seen, 8.0)[0].numpy()
    errors = [np.abs(values - expected)[inside].mean() for values in (found, dark)]
    assert errors[0] < 0.2 * errors[1] and np.corrcoef(found[inside], expected[inside])[0, 1] > 0.99
    assert not found[~inside].any()


def violent_pair():
    """Two textures that have nothing to do with each other: whatever fits one to the other tears."""
    return FeaturePair(*(torch.from_numpy(texture(seed=seed, shape=SMALL)) for seed in (1, 50)))


def test_diffeomorphic_result_never_folds_where_a_displacement_does():
    regulariser, node_mm = Regulariser(0.03, 0.1), (2 * SPACING,) * 3
    plain, _ = refined(violent_pair(), regulariser=regulariser)
    velocity, _ = refined(violent_pair(), regulariser=regulariser, diffeomorphic=True)
    assert folded_percent(plain, node_mm) > 5, "the case must be violent"
    assert float(jacobian_determinant(exponential(velocity, node_mm), node_mm)[1:-1, 1:-1, 1:-1].min()) > 0


def test_what_the_weight_leaves_out_cannot_pull():
    truth = smooth_field(1.0)
    pair = warped_pair(truth)
    weight = torch.ones(SHAPE)
    weight[8:16, 8:16, 8:16] = 0
    spoiled = pair.fixed.clone()
    # One voxel inside of the excluded part, since slopes look at neighbours.
    spoiled[:, 9:15, 9:15, 9:15] = 50.0
    clean, _ = refined(pair, weight=weight)
    other, _ = refined(FeaturePair(spoiled, pair.moving), weight=weight)
    torch.testing.assert_close(clean, other, atol=1e-4, rtol=1e-4)


def test_moving_weight_counts_where_the_field_lands():
    pair = warped_pair(smooth_field(1.0))
    nowhere, _ = refined(pair, moving_weight=torch.zeros(SHAPE))
    everywhere, _ = refined(pair, moving_weight=torch.ones(SHAPE))
    assert float(nowhere.abs().max()) < 1e-3
    torch.testing.assert_close(everywhere, refined(pair)[0])


def test_guide_adds_its_own_pull():
    flat = FeaturePair(torch.ones(1, *SHAPE), torch.ones(1, *SHAPE))
    place = (5, 6, 7)

    def spring(displacement):
        curvature, pull = torch.zeros(6, *NODES), torch.zeros(3, *NODES)
        for n, target in zip((0, 3, 5), (0.5, -1.0, 0.25), strict=True):
            curvature[(n, *place)] = 100.0
            axis = (0, 3, 5).index(n)
            pull[(axis, *place)] = 100.0 * (target - displacement[(axis, *place)])
        return curvature, pull

    field, _ = refined(flat, landmark_term=spring, iterations=20)
    reached = field[(slice(None), *place)] / (2 * SPACING)
    torch.testing.assert_close(reached, torch.tensor([0.5, -1.0, 0.25]), atol=0.05, rtol=0)


def test_user_may_end_early_or_cancel():
    seen = []

    def each(iteration, field, loss):
        seen.append((iteration, tuple(field.shape), loss))
        return iteration == 1

    _, losses = refined(warped_pair(smooth_field(1.8)), on_iteration=each)
    assert len(losses) == 2 and [s[0] for s in seen] == [0, 1] and seen[0][1] == (3, *NODES)
    assert [s[2] for s in seen] == losses

    def stop(*_):
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        refined(warped_pair(smooth_field(1.8)), on_iteration=stop)


def test_iterations_end_when_nothing_moves():
    _, losses = refined(warped_pair(np.zeros((3, *SHAPE), np.float32)))
    assert len(losses) <= 3


def test_adam_lowers_the_loss_and_recovers_a_shift():
    truth = np.zeros((3, *SMALL), np.float32)
    truth[0], truth[2] = 0.8, -1.4
    field_mm, losses = adam.adam(
        [warped_pair(truth)], torch.zeros(3, 8, 9, 7), SPACING, torch.ones(SMALL),
        diffusion=0.05, iterations=40, rate=0.3, kernel=3, passes=2,
    )  # fmt: skip
    assert losses[-1] < 0.1 * losses[0]
    error = (field_mm.numpy() / SPACING - truth)[INNER]
    assert np.abs(error).mean() < 0.1


def test_adam_smooths_without_pulling_the_border_to_zero():
    constant = torch.full((3, *SHAPE), 2.5)
    torch.testing.assert_close(adam._smoothed(constant, kernel=7, passes=5), constant)
