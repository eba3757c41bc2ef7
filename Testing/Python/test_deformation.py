"""Displacement fields against analytic ones and against SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import make_grid, smooth_noise
from FoundationRegLib.images import conversion, resampling, transforms
from FoundationRegLib.numerics import fields

SPACING = (3.0, 2.0, 2.5)
SHAPE = (24, 30, 28)


def smooth_field(amplitude_mm, seed=0, shape=SHAPE, sigma=5):
    return torch.from_numpy(
        amplitude_mm * np.stack([smooth_noise(shape, sigma, seed + n) for n in range(3)]).astype(np.float32)
    )


def linear_field(matrix, offset, shape=SHAPE, spacing=SPACING):
    """u(x) = matrix x + offset with x in mm along the array axes."""
    x = torch.from_numpy(np.indices(shape).astype(np.float32)) * torch.tensor(spacing).reshape(3, 1, 1, 1)
    matrix = torch.tensor(matrix, dtype=torch.float32)
    return torch.einsum("nm,mdhw->ndhw", matrix, x) + torch.tensor(offset).reshape(3, 1, 1, 1)


def inner(values, margin=6):
    return values[..., margin:-margin, margin:-margin, margin:-margin]


def test_zero_displacement_reproduces_the_volume():
    volume = torch.from_numpy(smooth_noise((2, *SHAPE), 1, 0).astype(np.float32))
    warped = fields.warp(volume, torch.zeros(3, *SHAPE), SPACING)
    assert torch.allclose(warped, volume, atol=1e-4)


def test_warp_by_whole_voxels_shifts_the_right_axis_in_the_right_direction():
    volume = torch.arange(np.prod(SHAPE), dtype=torch.float32).reshape(1, *SHAPE)
    u = torch.zeros(3, *SHAPE)
    u[0], u[1], u[2] = 2 * SPACING[0], -1 * SPACING[1], 3 * SPACING[2]
    warped = fields.warp(volume, u, SPACING, padding="zeros")
    torch.testing.assert_close(warped[:, :-2, 1:, :-3], volume[:, 2:, :-1, 3:], rtol=1e-5, atol=0.01)
    assert (warped[:, -2:] == 0).all()


def test_warp_agrees_with_simpleitk(grid):
    values = smooth_noise(grid.shape, 2, 3).astype(np.float32)
    u = smooth_field(2.0, shape=grid.shape)
    ours = fields.warp(torch.from_numpy(values)[None], u, grid.spacing)[0].numpy()
    moving = conversion.image_from_array(values, grid)
    transform = sitk.DisplacementFieldTransform(transforms.field_image(u, grid))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, moving, transform, sitk.sitkLinear))
    np.testing.assert_allclose(inner(ours), inner(theirs), atol=2e-3)


def test_compose_of_linear_fields_is_the_product_of_their_matrices():
    first, second = np.diag([0.02, -0.01, 0.03]), np.array([[0, 0.02, 0], [-0.02, 0, 0], [0, 0.01, 0]])
    u, v = linear_field(second, [1.0, 0.5, -1.0]), linear_field(first, [0.5, 0.0, 1.0])
    composed = fields.compose(u, v, SPACING)
    product = (np.eye(3) + second) @ (np.eye(3) + first) - np.eye(3)
    offset = (np.eye(3) + second) @ np.array([0.5, 0.0, 1.0]) + np.array([1.0, 0.5, -1.0])
    expected = linear_field(product, offset.astype(np.float32))
    torch.testing.assert_close(inner(composed), inner(expected), atol=1e-3, rtol=0)


def test_inverse_undoes_the_field_and_tells_the_residual():
    u = smooth_field(2.0)
    v, residual = fields.inverse(u, SPACING, tolerance_mm=1e-3)
    there_and_back = fields.compose(u, v, SPACING).norm(dim=0)
    assert residual <= 1e-3
    assert float(there_and_back.max()) == pytest.approx(residual, abs=1e-6)
    back_and_there = fields.compose(v, u, SPACING).norm(dim=0)
    assert float(inner(back_and_there).max()) < 0.2


def test_inverse_agrees_with_simpleitk():
    grid = make_grid(SHAPE, SPACING)
    u = smooth_field(1.5)
    ours, _ = fields.inverse(u, SPACING, tolerance_mm=1e-3)
    theirs = sitk.InvertDisplacementField(
        transforms.field_image(u, grid), 50, maxErrorToleranceThreshold=1e-3, meanErrorToleranceThreshold=1e-4
    )
    assert np.abs(inner(ours.numpy() - transforms.displacement_of(theirs))).max() < 0.05


def test_inverse_of_a_folded_field_is_reported():
    _, residual = fields.inverse(smooth_field(12.0, sigma=2), SPACING)
    assert residual > 0.5


def test_jacobian_of_a_linear_field_is_its_determinant_up_to_the_border():
    matrix = np.array([[0.1, 0.2, -0.1], [0.05, -0.2, 0.1], [0.3, 0.1, 0.15]])
    jacobian = fields.jacobian_determinant(linear_field(matrix, [0.0, 1.0, 2.0]), SPACING)
    np.testing.assert_allclose(jacobian.numpy(), np.linalg.det(np.eye(3) + matrix), atol=1e-3)


def test_jacobian_agrees_with_simpleitk():
    u = smooth_field(6.0)
    ours = fields.jacobian_determinant(u, SPACING).numpy()
    # ITK's filter disregards directions, so it is right on axial grids only.
    field = transforms.field_image(u, make_grid(SHAPE, SPACING))
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    np.testing.assert_allclose(inner(ours, 1), inner(theirs, 1), atol=1e-3)


def test_jacobian_of_one_slice_is_finite():
    assert torch.isfinite(fields.jacobian_determinant(smooth_field(1.0, shape=(1, 9, 9)), SPACING)).all()


def test_folding_of_known_fields():
    mirrored = linear_field(np.diag([-2.0, 0, 0]), [0.0, 0, 0])
    assert fields.folded_percent(mirrored, SPACING) == 100
    doubled = linear_field(np.diag([1.0, 0, 0]), [0.0, 0, 0])
    assert fields.folded_percent(doubled, SPACING) == 0
    half = torch.cat([mirrored[:, : SHAPE[0] // 2], doubled[:, SHAPE[0] // 2 :]], dim=1)
    assert 45 < fields.folded_percent(half, SPACING) < 60


def test_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    generator = 0.3 * np.array([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 0.2]])
    values, vectors = np.linalg.eig(generator)
    expected = (vectors @ np.diag(np.exp(values)) @ np.linalg.inv(vectors)).real - np.eye(3)
    middle = (np.array(SHAPE) - 1) / 2 * SPACING
    velocity = linear_field(generator, (-generator @ middle).astype(np.float32))
    u = fields.exponential(velocity, SPACING, steps=8)
    truth = linear_field(expected, (-expected @ middle).astype(np.float32))
    assert (inner(u - truth, 9).norm(dim=0).max() / inner(truth, 9).norm(dim=0).max()) < 0.01


def test_exponentials_of_opposite_velocities_undo_each_other_and_never_fold():
    velocity = smooth_field(4.0, sigma=4)
    forward, back = (fields.exponential(s * velocity, SPACING) for s in (1, -1))
    assert float(inner(fields.compose(forward, back, SPACING)).norm(dim=0).mean()) < 0.15
    assert fields.folded_percent(forward, SPACING) == 0


def test_logarithm_finds_the_velocity_of_a_flow_and_gives_up_where_there_is_none():
    u = fields.exponential(smooth_field(2.0, sigma=6), SPACING)
    missed = [float((fields.exponential(v, SPACING) - u).norm(dim=0).mean()) for v in (u, fields.logarithm(u, SPACING))]
    assert missed[0] > 0.5 and missed[1] < 0.1 * missed[0]
    folded = smooth_field(60.0, sigma=2)
    assert torch.isfinite(fields.logarithm(folded, SPACING)).all()


def test_resize_keeps_millimetres_and_physical_places():
    u = linear_field(np.diag([0.1, 0.05, -0.1]), [1.0, 2.0, 3.0])
    coarse = fields.resize(u, (12, 15, 14))
    x = (torch.from_numpy(np.indices((12, 15, 14)).astype(np.float32)) + 0.5) * 2 - 0.5
    x = x * torch.tensor(SPACING).reshape(3, 1, 1, 1)
    slope, offset = (torch.tensor(v).reshape(3, 1, 1, 1) for v in ([0.1, 0.05, -0.1], [1.0, 2.0, 3.0]))
    torch.testing.assert_close(coarse, slope * x + offset, atol=1e-3, rtol=0)


def test_resample_between_turned_grids_keeps_the_vectors_in_space(grid):
    source = make_grid((40, 48, 44), (3.5, 2.5, 2.5))
    u = smooth_field(5.0, shape=source.shape, sigma=8)
    ours = transforms.field_image(fields.resample(u, source, grid), grid)
    field = transforms.field_image(u, source)
    theirs = sitk.Resample(field, ours, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear)
    inside = resampling.validity(field, grid)
    assert inside.mean() > 0.5
    difference = sitk.GetArrayFromImage(ours) - sitk.GetArrayFromImage(theirs)
    assert np.abs(difference[inside]).max() < 0.01


def test_gradients_flow_through_warp_and_exponential():
    velocity = smooth_field(1.0).requires_grad_()
    volume = torch.from_numpy(smooth_noise((1, *SHAPE), 2, 1).astype(np.float32))
    fields.warp(volume, fields.exponential(velocity, SPACING), SPACING).square().mean().backward()
    assert float(velocity.grad.abs().max()) > 0
