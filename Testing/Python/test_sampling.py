"""Reading volumes between their voxels, and work side by side in threads."""

import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from FoundationRegLib.numerics import sampling
from FoundationRegLib.numerics.parallel import each, in_threads
from scipy import ndimage

SHAPES = [(9, 11, 7), (1, 11, 7), (9, 1, 7), (9, 11, 1), (1, 1, 1), (40, 3, 5)]


@pytest.fixture
def threads():
    """Torch with as many threads as the test asks for, and as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def scattered(shape, count=(6, 10, 12), seed=0):
    """A volume of three channels and places (z, y, x) in voxels, some of them outside."""
    rng = np.random.default_rng(seed)
    volume = rng.random((3, *shape), dtype=np.float32)
    places = rng.uniform(-2.0, np.array(shape) + 1.0, (*count, 3))
    return volume, places


def grid_of_places(places, shape):
    """As `grid_sample` wants them: x, y, z from -1 to 1."""
    return torch.from_numpy(2 * places / np.maximum(np.array(shape) - 1, 1) - 1).float().flip(-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most_rows", [1 << 12, 1])
def test_samples_are_those_of_scipy(shape, most_rows, monkeypatch, threads):
    """Whether planes are stacked or would be too many, in any number of threads and pieces."""
    monkeypatch.setattr(sampling, "_MOST_ROWS", most_rows)
    monkeypatch.setattr(sampling, "_GROUP", 200)
    volume, places = scattered(shape)
    inside = np.clip(np.moveaxis(places, -1, 0), 0, np.array(shape).reshape(3, 1, 1, 1) - 1.0)
    expected = np.stack([ndimage.map_coordinates(c, inside, order=1, mode="nearest") for c in volume])
    for count in (1, 2):
        threads(count)
        found = sampling.sample_at(torch.from_numpy(volume), grid_of_places(places, shape))
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_the_nearest_voxel_is_that_of_scipy():
    shape = (9, 11, 7)
    volume, places = scattered(shape)
    # Away from the middle between two voxels, where rounding decides.
    places = np.where(np.abs(places % 1 - 0.5) < 0.01, np.floor(places), places)
    index = np.clip(np.rint(places).astype(int), 0, np.array(shape) - 1)
    expected = volume[:, index[..., 0], index[..., 1], index[..., 2]]
    found = sampling.sample_at(torch.from_numpy(volume), grid_of_places(places, shape), "nearest")
    np.testing.assert_array_equal(found.numpy(), expected)


def test_a_view_of_a_volume_is_read_like_a_copy():
    volume, places = scattered((9, 11, 7))
    turned = torch.from_numpy(volume).transpose(1, 3)
    grid = grid_of_places(places[..., ::-1].copy(), turned.shape[1:])
    torch.testing.assert_close(sampling.sample_at(turned, grid), sampling.sample_at(turned.clone(), grid))


def test_zeros_outside_and_gradients_are_those_of_grid_sample():
    volume, places = scattered((9, 11, 7))
    volume, grid = torch.from_numpy(volume), grid_of_places(places, (9, 11, 7))
    expected = F.grid_sample(volume[None], grid[None], "bilinear", "zeros", align_corners=True)[0]
    torch.testing.assert_close(sampling.sample_at(volume, grid, padding="zeros"), expected)
    for which in (volume, grid):
        which.requires_grad_()
        (found,) = torch.autograd.grad(sampling.sample_at(volume, grid).square().sum(), which)
        direct = F.grid_sample(volume[None], grid[None], "bilinear", "border", align_corners=True)
        (expected,) = torch.autograd.grad(direct.square().sum(), which)
        torch.testing.assert_close(found, expected)
        which.requires_grad_(False)


def test_pieces_run_at_the_same_time_and_come_back_in_order(threads):
    threads(2)
    together = threading.Barrier(2, timeout=20)

    def piece(number):
        together.wait()
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert each(piece, range(4)) == [(n, 1, False) for n in range(4)]
    assert torch.get_num_threads() == 2
    assert in_threads([torch.is_grad_enabled]) == [True]


def test_the_error_of_a_piece_is_raised_and_threads_are_as_before(threads):
    threads(2)
    done = []

    def piece(number):
        if number == 0:
            raise RuntimeError("out of memory")
        time.sleep(0.002)
        done.append(number)

    with pytest.raises(RuntimeError, match="out of memory"):
        each(piece, range(200))
    assert len(done) < 199, "pieces that have not begun are dropped"
    assert torch.get_num_threads() == 2
