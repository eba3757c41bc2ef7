"""The discrete search against direct definitions and on problems whose optimum is known."""

import numpy as np
import pytest
import torch
from conftest import smooth_noise
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.numerics import search
from FoundationRegLib.numerics.fields import warp
from FoundationRegLib.numerics.filters import smooth
from scipy import ndimage

SHAPE = (11, 13, 12)


def random_features(seed, channels=6, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, *shape, generator=generator)


def smooth_field(amplitude, seed=0, shape=SHAPE, sigma=3):
    noise = np.stack([smooth_noise(shape, sigma, seed + n) for n in range(3)])
    noise -= noise.mean(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy(amplitude * noise.astype(np.float32))


def direct_costs(fixed, moving, offsets, weight):
    """The definition in `cost_volume`'s docstring, candidate by candidate, in float64 with SciPy's box filter."""
    fixed, moving, weight = (np.asarray(a, np.float64) for a in (fixed, moving, weight))
    reach = int(np.abs(offsets).max())
    padded = np.pad(moving, [(0, 0)] + [(reach, reach)] * 3, mode="edge")

    def averaged(values):
        for _ in range(2):
            values = ndimage.uniform_filter(values, 3, mode="nearest")
        return values

    costs = []
    for offset in offsets.astype(int):
        there = tuple(slice(reach + o, reach + o + n) for o, n in zip(offset, fixed.shape[1:], strict=True))
        difference = ((fixed - padded[(slice(None), *there)]) ** 2).sum(0)
        costs.append(averaged(difference * weight) / np.maximum(averaged(weight), 1e-3))
    costs = np.array(costs)
    costs -= costs.min(0)
    return costs / costs[:, weight > 0.5].mean()


def test_candidates_fill_the_ellipsoid_and_no_more():
    found = {tuple(o) for o in search.candidates((3, 2, 0)).int().tolist()}
    assert (0, 0, 0) in found and {(3, 0, 0), (-3, 0, 0), (0, 2, 0), (0, -2, 0)} <= found
    assert (3, 2, 0) not in found, "a corner is further away than was asked for"
    assert all(x == 0 and abs(z) <= 3 and abs(y) <= 2 for z, y, x in found)
    assert found == {(-z, -y, -x) for z, y, x in found}


def test_cost_volume_agrees_with_its_definition():
    fixed, moving = random_features(0), random_features(1)
    weight = torch.from_numpy((smooth_noise(SHAPE, 2, 5) > -0.3).astype(np.float32))
    offsets = search.candidates((2, 3, 1))
    expected = direct_costs(fixed, moving, offsets.numpy(), weight)
    found = search.cost_volume(fixed, moving, offsets, weight).numpy()
    # Where not a single neighbour counts, the division is by next to nothing.
    near = ndimage.maximum_filter(weight.numpy(), 5) > 0
    np.testing.assert_allclose(found[:, near], expected[:, near], rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(found[:, near].argmin(0), expected[:, near].argmin(0))


def two_shifts():
    """Fixed and moving features of which the two halves along x moved by whole nodes, the shifts and the halves."""
    shape = (12, 12, 26)
    fixed = random_features(3, shape=shape)
    moving = random_features(4, shape=shape)
    halves = (np.s_[:, 3:9, 3:9, 3:11], np.s_[:, 3:9, 3:9, 15:23])
    shifts = ((2, -1, 1), (-1, 2, -2))
    for half, shift in zip(halves, shifts, strict=True):
        there = tuple(slice(s.start + o, s.stop + o) for s, o in zip(half[1:], shift, strict=True))
        moving[(slice(None), *there)] = fixed[half]
    return fixed, moving, halves, shifts


def test_whole_node_shift_of_each_region_is_recovered_exactly():
    fixed, moving, halves, shifts = two_shifts()
    offsets = search.candidates((3, 3, 3))
    weight = torch.ones(fixed.shape[1:])
    cost = search.cost_volume(fixed, moving, offsets, weight)
    field = search.coupled_convex(cost, offsets, weight)
    for half, shift in zip(halves, shifts, strict=True):
        # Two nodes inside of the region, so that the averaged neighbourhood belongs to it as a whole.
        core = tuple(slice(s.start + 2, s.stop - 2) for s in half[1:])
        best = offsets[cost[(slice(None), *core)].argmin(0)]
        assert (best == torch.tensor(shift, dtype=torch.float32)).all()
        middle = field[(slice(None), *core)].round()
        assert (middle == torch.tensor(shift).reshape(3, 1, 1, 1)).all()


def quadratic_problem(share_of_outliers):
    """Costs whose optimum is a known linear field, except for outlying nodes whose costs are noise."""
    steps = torch.from_numpy(np.indices(SHAPE).astype(np.float32)) - torch.tensor(SHAPE).reshape(3, 1, 1, 1) / 2
    truth = torch.stack([0.3 * steps[1], 0.2 * steps[0] - 0.2 * steps[2], 0.15 * steps[1] + 0.2 * steps[2]])
    offsets = search.candidates((4, 4, 4))
    cost = (offsets.reshape(-1, 3, 1, 1, 1) - truth).square().sum(1)
    cost /= cost.mean()
    generator = torch.Generator().manual_seed(0)
    bad = torch.rand(SHAPE, generator=generator) < share_of_outliers
    cost[:, bad] = torch.rand((len(offsets), int(bad.sum())), generator=generator)
    return truth, offsets, cost


@pytest.mark.parametrize("share_of_outliers", [0.0, 0.2])
def test_coupled_convex_finds_the_known_optimum_among_outliers(share_of_outliers):
    truth, offsets, cost = quadratic_problem(share_of_outliers)
    found = search.coupled_convex(cost, offsets, torch.ones(SHAPE))
    best_alone = offsets[cost.flatten(1).argmin(0)].T.reshape(3, *SHAPE)
    error, error_alone = ((f - truth).norm(dim=0)[2:-2, 2:-2, 2:-2].mean() for f in (found, best_alone))
    assert error < 0.2
    assert error < 0.6 * error_alone


def energy(field, offsets, cost, smoothness=0.5):
    """Cost of the candidate next to each node's displacement, plus squared differences between neighbours."""
    distance = (offsets.reshape(-1, 3, 1, 1, 1) - field).square().sum(1)
    data = cost.gather(0, distance.argmin(0, keepdim=True)).mean()
    return float(data + smoothness * sum(field.diff(dim=axis).square().sum(0).mean() for axis in (1, 2, 3)))


def test_coupled_convex_lowers_the_energy():
    places = np.indices(SHAPE) + smooth_field(1.0, sigma=4).numpy()
    moving = np.stack([smooth_noise(SHAPE, 1, seed) for seed in range(6)]).astype(np.float32)
    fixed = np.stack([ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in moving])
    fixed, moving = torch.from_numpy(fixed), torch.from_numpy(moving)
    offsets, weight = search.candidates((4, 4, 4)), torch.ones(SHAPE)
    cost = search.cost_volume(fixed, moving, offsets, weight)
    alone = offsets[cost.flatten(1).argmin(0)].T.reshape(3, *SHAPE)
    found = search.coupled_convex(cost, offsets, weight)
    assert energy(found, offsets, cost) < energy(alone, offsets, cost)
    assert energy(found, offsets, cost) < energy(torch.zeros_like(found), offsets, cost)


def test_chunks_do_not_change_the_field():
    _, offsets, cost = quadratic_problem(0.1)
    whole = search.coupled_convex(cost, offsets, torch.ones(SHAPE))
    assert torch.allclose(search.coupled_convex(cost, offsets, torch.ones(SHAPE), chunk=97), whole, atol=1e-5)


def test_what_lies_outside_of_the_mask_has_no_say():
    weight = torch.zeros(SHAPE)
    weight[3:8, 3:10, 3:9] = 1
    fixed, moving = random_features(0), random_features(1)
    other = torch.where(weight > 0, fixed, random_features(9))
    offsets = search.candidates((2, 2, 2))
    fields = [
        search.coupled_convex(search.cost_volume(f, moving, offsets, weight), offsets, weight) for f in (fixed, other)
    ]
    inside = weight > 0
    assert torch.allclose(fields[0][:, inside], fields[1][:, inside], atol=1e-4)


def test_cancelling_stops_the_cost_volume():
    def check():
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        search.cost_volume(
            random_features(0), random_features(1), search.candidates((2, 2, 2)), torch.ones(SHAPE), check
        )


def test_shifts_that_contradict_each_other_meet_half_way():
    there = torch.tensor([2.0, -1.0, 0.5]).reshape(3, 1, 1, 1).expand(3, *SHAPE)
    back = torch.tensor([-1.0, 2.0, 0.5]).reshape(3, 1, 1, 1).expand(3, *SHAPE)
    assert torch.allclose(search.inverse_consistent(there, back), (there - back) / 2, atol=1e-5)


def test_a_field_and_its_inverse_are_left_alone():
    steps = torch.from_numpy(np.indices(SHAPE).astype(np.float32)) - torch.tensor(SHAPE).reshape(3, 1, 1, 1) / 2
    matrix = torch.tensor([[0.1, 0.05, 0.0], [-0.05, -0.08, 0.02], [0.0, 0.03, 0.06]])
    back = torch.linalg.inv(torch.eye(3) + matrix) - torch.eye(3)
    forward, backward = (torch.einsum("nm,mdhw->ndhw", m, steps) for m in (matrix, back))
    found = search.inverse_consistent(forward, backward, iterations=1)
    inner = np.s_[:, 2:-2, 2:-2, 2:-2]
    assert torch.allclose(found[inner], forward[inner], atol=1e-4)


def round_trip(forward, backward):
    """Largest distance from home after going there and back, with SciPy's interpolation."""
    places = np.indices(SHAPE) + forward.numpy()
    back = np.stack([ndimage.map_coordinates(b, places, order=1, mode="nearest") for b in backward.numpy()])
    return np.linalg.norm(forward.numpy() + back, axis=0)[2:-2, 2:-2, 2:-2].max()


def test_both_directions_become_inverse_to_each_other():
    forward, backward = smooth_field(1.0, 0), -smooth_field(0.7, 3)
    found = search.inverse_consistent(forward, backward), search.inverse_consistent(backward, forward)
    assert round_trip(forward, backward) > 1.0
    assert round_trip(*found) < 0.1


def test_inconsistent_nodes_take_the_mean_of_consistent_neighbours():
    z, y, x = torch.meshgrid(*(torch.arange(12.0),) * 3, indexing="ij")
    truth = torch.stack([0.2 * z, 1 - 0.1 * y, 0.3 + 0 * x])
    inconsistency, wrong = torch.zeros(12, 12, 12), truth.clone()
    inconsistency[5:8, 5:8, 5:8] = 50.0
    wrong[:, 5:8, 5:8, 5:8] += torch.tensor([9.0, -7.0, 5.0])[:, None, None, None]
    filled = search.fill_inconsistent(wrong, inconsistency, torch.ones(12, 12, 12), 3.0)
    assert (filled - truth)[:, 5:8, 5:8, 5:8].abs().max() < 0.2
    assert torch.allclose(filled[:, inconsistency == 0], truth[:, inconsistency == 0])


def test_nodes_without_weight_do_not_fill_inconsistent_ones():
    field, inconsistency, weight = torch.zeros(3, 9, 9, 9), torch.zeros(9, 9, 9), torch.ones(9, 9, 9)
    field[:, :, :, 5:], weight[:, :, 5:], inconsistency[4, 4, 4] = 8.0, 0.0, 100.0
    assert search.fill_inconsistent(field, inconsistency, weight, 3.0)[:, 4, 4, 4].abs().max() < 0.01


def bent_pair(size=30, seed=0):
    """Smooth features (8, ...), the same ones shifted by (6, 0, -4) nodes, and that shift."""
    features = torch.randn(8, size, size, size, generator=torch.Generator().manual_seed(seed))
    for _ in range(4):
        features = smooth(features)
    features = features / features.std()
    shift = torch.zeros(3, size, size, size)
    shift[0], shift[2] = 6, -4
    return features, warp(features, -shift, (1.0, 1.0, 1.0)), shift


@pytest.mark.parametrize(("room", "step"), [(1e12, 1), (2e8, 2), (5e7, 2), (1.2e7, 3)])
def test_a_search_that_memory_does_not_hold_is_coarser_and_still_right(room, step):
    fixed, moving, shift = bent_pair()
    weight = torch.ones(fixed.shape[1:])
    assert search.coarsening(weight, 10, room) == step
    found = search.search(fixed, moving, weight, 10, room)
    error = (found - shift)[:, 8:-8, 8:-8, 8:-8].norm(dim=0)
    assert error.mean() < 0.1 and error.max() < 0.75


def test_a_search_with_room_is_the_plain_one():
    fixed, moving, _ = bent_pair()
    weight = torch.ones(fixed.shape[1:])
    offsets = search.candidates((4, 4, 4))
    plain = search.coupled_convex(search.cost_volume(fixed, moving, offsets, weight), offsets, weight)
    kept = [torch.full((2, 3, 4, 5), torch.nan)]
    for _ in range(2):  # in new memory, and in that of the first
        assert torch.equal(search.search(fixed, moving, weight, 4, kept=kept), plain)
    assert torch.equal(search.search(fixed, moving, weight, 4), plain)


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8, 12])
def test_the_memory_model_counts_the_candidates(radius):
    weight = torch.ones(30, 30, 30)
    exact = 2 * 4 * weight.numel() * len(search.candidates((radius,) * 3))
    assert exact <= search.search_bytes(weight, radius) <= 1.7 * exact
