"""The price of a field and the solve under it: against SciPy, autograd and sparse direct solvers."""

import numpy as np
import pytest
import torch
from FoundationRegLib.numerics import filters, regularisation
from FoundationRegLib.numerics.regularisation import Regulariser
from scipy import ndimage
from scipy.sparse import block_diag, bmat, diags, identity, kron
from scipy.sparse.linalg import spsolve

SHAPE = (6, 7, 8)


def generated(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_negative_laplacian_agrees_with_scipy():
    u = np.random.default_rng(0).normal(size=(3, 7, 9, 8)).astype(np.float32)
    expected = -np.stack([ndimage.laplace(component, mode="nearest") for component in u])
    np.testing.assert_allclose(regularisation.negative_laplacian(torch.from_numpy(u)).numpy(), expected, atol=1e-5)


def priced(u, regulariser):
    """The price itself, written out; ``ease`` counts between two nodes with its mean."""
    ease = torch.ones(SHAPE) if regulariser.node_weight is None else regulariser.node_weight
    price = 0.0
    for axis in (0, 1, 2):
        count = SHAPE[axis]
        between = (ease.narrow(axis, 0, count - 1) + ease.narrow(axis, 1, count - 1)) / 2
        price = price + regulariser.diffusion * (between * u.diff(dim=axis + 1).square()).sum()
    return price + regulariser.bending * (ease * regularisation.negative_laplacian(u).square()).sum()


@pytest.mark.parametrize("eased", [False, True])
def test_regulariser_is_the_gradient_of_its_price(eased):
    regulariser = Regulariser(diffusion=0.7, bending=0.4, node_weight=generated(*SHAPE).abs() if eased else None)
    u = generated(3, *SHAPE, seed=1).requires_grad_(True)
    (expected,) = torch.autograd.grad(0.5 * priced(u, regulariser), u)
    torch.testing.assert_close(regulariser.gradient(u.detach()), expected, rtol=1e-4, atol=1e-4)
    doubled = regulariser.scaled(2).gradient(u.detach())
    torch.testing.assert_close(doubled, 2 * expected, rtol=1e-4, atol=1e-4)


def test_diagonal_is_what_an_impulse_sees_of_itself():
    impulse = torch.zeros(3, 7, 7, 7)
    impulse[1, 3, 3, 3] = 1
    regulariser = Regulariser(diffusion=0.7, bending=0.4)
    assert regulariser.diagonal() == pytest.approx(float(regulariser.gradient(impulse)[1, 3, 3, 3]), rel=1e-6)


def test_strain_energy_of_a_linear_field_is_the_square_of_its_matrix():
    matrix = np.random.default_rng(1).normal(size=(3, 3))
    u = torch.from_numpy(np.einsum("ab,bdhw->adhw", matrix, np.indices(SHAPE)).astype(np.float32))
    energy = regularisation.strain_energy(u)[1:-1, 1:-1, 1:-1]
    torch.testing.assert_close(energy, torch.full_like(energy, float((matrix**2).sum())), rtol=1e-4, atol=1e-4)


def test_what_strains_most_is_eased_and_an_even_strain_is_not():
    shape = (20, *SHAPE[1:])
    mask = torch.ones(shape, dtype=torch.bool)
    even = torch.from_numpy(np.einsum("ab,bdhw->adhw", 0.3 * np.eye(3), np.indices(shape)).astype(np.float32))
    regulariser = Regulariser(1.0, 1.0, sliding=1.0)
    ease = regulariser.reweighted(even, mask).node_weight[2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(ease, torch.ones_like(ease), atol=0.1, rtol=0)
    torn = even.clone()
    torn[2, 10:] += 4.0
    ease = regulariser.reweighted(torn, mask).node_weight
    assert float(ease[9:11].mean()) < 0.4 < 0.9 < float(ease[5].mean())
    partly = Regulariser(1.0, 1.0, sliding=0.5).reweighted(torn, mask).node_weight
    assert float(ease[9:11].mean()) < float(partly[9:11].mean()) < 0.8
    assert Regulariser(1.0, 1.0).reweighted(torn, mask).node_weight is None


def test_mixed_prices_add_up():
    a, b = Regulariser(0.3, 1.0, sliding=1.0), Regulariser(0.6, 0.1)
    u = generated(3, *SHAPE)
    expected = 0.75 * a.gradient(u) + 0.25 * b.gradient(u)
    torch.testing.assert_close(a.interpolated(b, 0.25).gradient(u), expected, rtol=1e-4, atol=1e-4)
    assert a.interpolated(b, 0.25).sliding == 0.75
    assert (a.interpolated(b, 0.0), a.interpolated(b, 1.0)) == (a, b)


def test_the_price_is_the_same_on_a_lattice_of_half_the_resolution():
    """A smooth field in coarse nodes costs what it costs in fine ones, each fine node standing for an eighth."""
    steps = np.stack(np.meshgrid(*[np.arange(n) + 0.5 for n in (48, 40, 56)], indexing="ij"))
    fine = torch.from_numpy(np.cos(steps * np.pi / 24).astype(np.float32))
    coarse = filters.halved(fine) / 2
    inner = np.s_[:, 4:-4, 4:-4, 4:-4]
    for regulariser in (Regulariser(1.0, 0.0), Regulariser(0.0, 1.0)):
        a, b = regulariser.gradient(fine), regulariser.coarser().gradient(coarse)
        # The gradient is per node: a coarse node's displacement counts half as much and moves eight nodes.
        torch.testing.assert_close(b[inner], 2 * filters.halved(a)[inner], rtol=0.05, atol=5e-4)


def sparse_regulariser(shape, diffusion, bending, ease):
    """Half the Hessian of the price of one component as a SciPy matrix."""
    total, weighted = 0, 0
    flat = ease.ravel()
    for axis, count in enumerate(shape):
        forward = diags([-np.ones(count - 1), np.ones(count - 1)], [0, 1], shape=(count - 1, count))
        parts = [identity(n) for n in shape]
        parts[axis] = forward
        gradient = kron(kron(parts[0], parts[1]), parts[2])
        parts[axis] = abs(forward) / 2
        between = kron(kron(parts[0], parts[1]), parts[2]) @ flat
        total = total + gradient.T @ gradient
        weighted = weighted + gradient.T @ diags(between) @ gradient
    return diffusion * weighted + bending * total @ diags(flat) @ total


@pytest.mark.parametrize("eased", [False, True])
@pytest.mark.parametrize(
    ("shape", "steps", "tolerance"),
    [((5, 6, 4), (200,), 1e-4), ((9, 12, 10), (6, 12, 24), 0.1), ((9, 12, 10), (150, 20), 1e-3)],
    ids=["one lattice, converged", "as used", "two lattices, converged"],
)
def test_solve_agrees_with_a_sparse_direct_solver(shape, steps, tolerance, eased):
    rng = np.random.default_rng(2)
    roots = rng.normal(size=(4, 3, *shape))
    full = np.einsum("kadhw,kbdhw->abdhw", roots, roots)
    curvature = np.stack([full[a, b] for a in range(3) for b in range(a, 3)]).astype(np.float32)
    pull = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 1, 1, 1)).astype(np.float32)
    ease = rng.uniform(0.2, 1.5, size=shape) if eased else np.ones(shape)
    price = block_diag([sparse_regulariser(shape, 0.3, 1.0, ease)] * 3)
    data = bmat([[diags(full[a, b].ravel()) for b in range(3)] for a in range(3)])
    expected = spsolve((data + price).tocsc(), pull.ravel()).reshape(pull.shape)
    regulariser = Regulariser(0.3, 1.0, node_weight=torch.from_numpy(ease.astype(np.float32)) if eased else None)
    found = regularisation.solve(torch.from_numpy(curvature), torch.from_numpy(pull), regulariser, steps).numpy()
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
