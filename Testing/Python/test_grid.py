"""The lattice's arithmetic."""

import numpy as np
import pytest
from conftest import make_grid
from FoundationRegLib.core.grid import Grid


def test_points_and_indices_undo_each_other(grid):
    index = np.random.default_rng(0).uniform(-5, 50, (20, 3))
    np.testing.assert_allclose(grid.indices(grid.points(index)), index, atol=1e-9)


def test_spacing_direction_and_origin_are_what_the_grid_was_made_of(grid):
    again = Grid.from_axes(grid.shape, grid.spacing, grid.origin, grid.direction)
    np.testing.assert_allclose(again.affine, grid.affine, atol=1e-12)
    np.testing.assert_allclose(grid.direction.T @ grid.direction, np.eye(3), atol=1e-12)


def test_one_step_along_an_array_axis_is_one_spacing(grid):
    for axis in range(3):
        step = grid.points(np.eye(3)[axis]) - grid.origin
        np.testing.assert_allclose(step, grid.spacing[axis] * grid.direction[:, axis], atol=1e-12)


def test_center_lies_between_the_corners(grid):
    np.testing.assert_allclose(grid.corners().mean(axis=0), grid.center, atol=1e-9)
    assert len(np.unique(grid.corners().round(6), axis=0)) == 8


@pytest.mark.parametrize("spacing", [1.7, 5.0, (6.0, 1.0, 2.5)])
def test_other_spacing_keeps_the_first_corner_and_covers_the_whole(grid, spacing):
    other = grid.with_spacing(spacing)
    np.testing.assert_allclose(other.points([-0.5] * 3), grid.points([-0.5] * 3), atol=1e-9)
    assert (other.extent >= grid.extent - 1e-3).all() and (other.extent < grid.extent + other.spacing).all()


def test_same_spacing_is_the_same_grid(grid):
    assert grid.with_spacing(grid.spacing) == grid


def test_padding_and_cropping_undo_each_other(grid):
    padded = grid.padded((1, 2, 3), (4, 5, 6))
    assert padded.shape == tuple(np.add(grid.shape, (5, 7, 9)))
    np.testing.assert_allclose(padded.points((1, 2, 3)), grid.origin, atol=1e-9)
    assert padded.padded((-1, -2, -3), (-4, -5, -6)) == grid


def test_grids_differ_by_shape_place_or_axes():
    one = make_grid()
    assert one == make_grid()
    assert one != make_grid(shape=(36, 44, 41), center=one.center)
    assert one != make_grid(center=(2.1, -1, 3))
    assert one != make_grid(flip=(0,))
    assert one != "grid"


def test_the_affine_cannot_be_changed_afterwards(grid):
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 1
