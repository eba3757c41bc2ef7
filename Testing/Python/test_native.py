"""Compiled kernels: the same numbers as torch's, whatever the sizes and threads; and how they are built and found."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import make_grid
from FoundationRegLib.encoders.mind import Mind
from FoundationRegLib.evaluation import metrics
from FoundationRegLib.images.conversion import image_from_array
from FoundationRegLib.native import build, kernels, library
from FoundationRegLib.numerics import fields, filters, sampling, search
from FoundationRegLib.numerics.data_term import DataTerm, FeaturePair, standardised
from FoundationRegLib.numerics.mutual_information import information_by_motion
from FoundationRegLib.numerics.regularisation import Regulariser, solve, strain_energy
from scipy import ndimage


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """A folder with the libraries, built once."""
    folder = tmp_path_factory.mktemp("kernels")
    try:
        build.build(folder)
    except build.BuildError as error:
        pytest.skip(str(error).splitlines()[0])
    return folder


@pytest.fixture(params=list(build.variants()))
def variant(request, libraries, monkeypatch):
    """Each library that this processor can run, in use."""
    capability = torch.backends.cpu.get_cpu_capability()
    if request.param != "DEFAULT" and capability in ("DEFAULT", "NO AVX"):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(library, "_folders", lambda: [libraries])
    monkeypatch.setattr(library, "variants", lambda: {request.param: {}})
    monkeypatch.setattr(library, "_looked", False)
    monkeypatch.delenv("FOUNDATIONREG_NATIVE", raising=False)
    assert library.in_use() == request.param.lower()
    return request.param


@pytest.fixture
def threads():
    """Torch with as many threads as the test asks for, and as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def smooth_noise(*shape, sigma=1.5, seed=0):
    rng = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(rng.normal(size=shape), (0, sigma, sigma, sigma)[-len(shape) :])
    return torch.from_numpy((values / values.std()).astype(np.float32))


def both(function, threads):
    """What ``function`` gives with the kernels, in one thread and the same in three, and with torch alone."""
    found = {}
    for count in (1, 3):
        threads(count)
        found[count] = function()
    for one, three in zip(found[1], found[3], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(three)), "threads must not change the result"
    with library.without():
        return zip(found[1], function(), strict=True)


@pytest.mark.parametrize("channels", [1, 3, 6, 12, 17])
@pytest.mark.parametrize(("shape", "stride", "every"), [((14, 22, 18), 2, 2), ((7, 5, 9), 1, 1), ((24, 8, 12), 4, 2)])
def test_the_data_term_is_that_of_torch(variant, channels, shape, stride, every, threads):
    """Also at the faces, beyond which the shift leads, and where nodes, rows and planes have no weight."""
    pairs = [FeaturePair(*(smooth_noise(count, *shape, seed=n + count) for n in (0, 1))) for count in (channels, 2)]
    weight, landing = (smooth_noise(1, *shape, seed=n)[0].clamp_min(0) for n in (3, 4))
    weight[:, :1], weight[3:6, :, -3:] = 0, 0
    # The nearest voxel of a place in the middle between two is a matter of rounding.
    landing = torch.ones_like(landing) if channels > 1 else landing.clamp_min(0.5)
    shift = 2 * smooth_noise(3, *(n // every for n in shape), seed=5)
    for found, expected in both(lambda: DataTerm(1, pairs, weight, landing, stride).linearised(shift), threads):
        found, expected = torch.as_tensor(found), torch.as_tensor(expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_field_that_is_not_a_number_crashes_nothing(variant):
    pair = FeaturePair(smooth_noise(6, 8, 8, 8), smooth_noise(6, 8, 8, 8, seed=1))
    weight, shift = torch.ones(8, 8, 8), torch.full((3, 8, 8, 8), float("nan"))
    shift[:, :4] = 1e30
    curvature, _, _ = DataTerm(1, [pair], weight, weight, 2).linearised(shift)
    assert curvature.shape == (6, 4, 4, 4)


def test_features_are_packed_by_voxel_once(variant):
    features = smooth_noise(6, 5, 4, 3)
    packed = kernels.by_voxel(features)
    assert packed.shape == (5, 4, 3, 8) and packed[..., 6:].abs().max() == 0
    seen = packed[..., :6].movedim(-1, 0)
    assert torch.equal(seen, features) and kernels.by_voxel(seen).data_ptr() == packed.data_ptr()
    packed[..., 7] = 1.0
    assert kernels.by_voxel(seen)[..., 6:].abs().max() == 0, "what lies beside the channels must not count"


@pytest.mark.parametrize("shape", [(7, 5, 9), (1, 6, 7), (2, 1, 3), (40, 3, 20)])
def test_local_means_are_those_of_scipy(variant, shape, threads):
    volumes = smooth_noise(2, *shape)
    expected = ndimage.uniform_filter(volumes.numpy(), (0, *(3 if n > 1 else 0 for n in shape)), mode="nearest")
    threads(2)
    np.testing.assert_allclose(filters.smooth(volumes).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("channels", "shape", "radius"), [(6, (8, 9, 7), 3), (1, (1, 6, 7), 2), (12, (2, 5, 21), 2)])
def test_costs_and_choices_are_those_of_torch(variant, channels, shape, radius, threads):
    fixed, moving = (smooth_noise(channels, *shape, sigma=1, seed=n) for n in (0, 1))
    weight = (smooth_noise(1, *shape, seed=2)[0] > -0.5).float()
    offsets = search.candidates(search._within(weight, radius))

    def found():
        cost = search.cost_volume(fixed, moving, offsets, weight)
        return cost, search.coupled_convex(cost, offsets, weight)

    (cost, expected_cost), (field, expected_field) = both(found, threads)
    torch.testing.assert_close(cost, expected_cost, rtol=1e-4, atol=1e-4)
    # Two candidates may cost the same but for rounding.
    assert float(((field - expected_field).abs() > 1e-4).float().mean()) < 0.02


@pytest.mark.parametrize("shape", [(9, 11, 7), (1, 11, 7), (9, 11, 1), (1, 1, 1), (5, 3, 600)])
def test_samples_and_warps_are_those_of_scipy(variant, shape, threads):
    volume, displacement = smooth_noise(3, *shape), 4 * smooth_noise(3, *shape, seed=1)
    spacing = (2.0, 1.0, 0.5)
    places = np.indices(shape) + displacement.numpy() / np.array(spacing).reshape(3, 1, 1, 1)
    expected = np.stack([ndimage.map_coordinates(c, places, order=1, mode="nearest") for c in volume.numpy()])
    threads(2)
    np.testing.assert_allclose(fields.warp(volume, displacement, spacing).numpy(), expected, atol=2e-4)
    size = np.maximum(np.array(shape) - 1, 1).reshape(3, 1, 1, 1)
    grid = torch.from_numpy(np.moveaxis(2 * places / size - 1, 0, -1)[..., ::-1].astype(np.float32))
    np.testing.assert_allclose(sampling.sample_at(volume, grid).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(12, 10, 14), (1, 9, 8), (3, 2, 1)])
def test_flows_are_those_of_torch(variant, shape, threads):
    """In as many squarings as the velocity asks for, and none."""
    for factor in (0.0, 0.5, 6.0):
        velocity = factor * smooth_noise(3, *shape, sigma=2.5)
        for found, expected in both(lambda v=velocity: [fields.exponential(v, (2.0, 1.0, 1.5))], threads):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 30, 34), (9, 1, 6), (2, 3, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_is_that_of_torch(variant, shape, weighted, threads):
    curvature, right = 0.1 * smooth_noise(6, *shape), smooth_noise(3, *shape, seed=1)
    curvature[[0, 3, 5]] = curvature[[0, 3, 5]].abs() + 1
    weight = 0.1 + smooth_noise(1, *shape, seed=2)[0].abs() if weighted else None
    energy = Regulariser(0.5, 0.7, node_weight=weight)
    for found, expected in both(lambda: [solve(curvature, right, energy)], threads):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 10, 14), (7, 1, 9)])
def test_halves_and_strains_are_those_of_torch(variant, shape, threads):
    field, weight = smooth_noise(3, *shape), 0.1 + smooth_noise(1, *shape, seed=2)[0].abs()

    def found():
        gradients = [Regulariser(0.5, 0.7, node_weight=values).gradient(field) for values in (None, weight)]
        return filters.halved(field), strain_energy(field), *gradients

    for compiled, expected in both(found, threads):
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"binomial": True, "mirrored": True}, {}, {"radius": 2, "dilation": 1}])
@pytest.mark.parametrize("shape", [(9, 12, 7), (20, 1, 5)])
def test_mind_is_that_of_torch(variant, options, shape, threads):
    volume = 100 * smooth_noise(1, *shape, sigma=1)
    volume[..., :2] = 0
    for found, expected in both(lambda: [Mind(**options)(volume[None])], threads):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_features_are_standardised_as_by_torch(variant, threads):
    fixed, moving = (3 * smooth_noise(6, 40, 35, 29, seed=n) + 50 for n in (0, 1))
    mask = smooth_noise(1, 40, 35, 29, seed=2)[0] > 0
    for found, expected in both(lambda: standardised(fixed, moving, mask), threads):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        assert kernels.by_voxel(found).data_ptr() == found.data_ptr(), "they are not packed again"


def test_a_search_stops_when_it_is_told_to(variant):
    fixed = smooth_noise(2, 6, 6, 6)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.cost_volume(fixed, fixed, search.candidates((2, 2, 2)), torch.ones(6, 6, 6), stop)


@pytest.mark.parametrize("shape", [(9, 12, 7), (1, 30, 20), (4, 6, 5)])
def test_mutual_information_and_its_slopes_are_those_of_torch(variant, shape, threads):
    """Also where points leave the volume, in the flat half voxel at its faces, and for more than one piece of them."""
    rng = np.random.default_rng(2)
    volume = smooth_noise(1, *shape)[0].sub_(-2).div_(4).clamp_(0, 1)
    size = np.array(shape[::-1])
    offsets = rng.uniform(-0.6 * size, 0.6 * size, (9000, 3))
    motion = np.c_[np.eye(3) + 0.05 * rng.normal(size=(3, 3)), (size - 1) / 2]
    values = np.clip(np.sin(offsets[:, 1] / 3) + 0.2 * rng.normal(size=len(offsets)), -1, 1) / 2 + 0.5
    compared = both(lambda: information_by_motion(values, offsets, volume)(torch.from_numpy(motion)), threads)
    (found, expected), (inside, share), (slopes, theirs) = compared
    assert found == pytest.approx(expected, rel=1e-5) and found > 0.01
    assert inside == pytest.approx(share, abs=2e-4) and 0.3 < share < 0.9
    torch.testing.assert_close(slopes, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_points_that_all_leave_the_volume_tell_nothing(variant):
    found, inside, slopes = information_by_motion(np.ones(5), np.zeros((5, 3)), torch.ones(3, 3, 3))(
        torch.tensor([[1.0, 0, 0, 50], [0, 1, 0, float("nan")], [0, 0, 1, 0]], dtype=torch.float64)
    )
    assert (found, inside) == (0, 0) and not slopes.any()


@pytest.mark.parametrize(("turn", "flip"), [((0, 0, 0), ()), ((20, -15, 30), (1,))])
def test_folding_and_stretches_are_those_of_itk(variant, turn, flip, threads):
    """Of voxels finer than the nodes, along the nodes' axes, whose first slices are not the nodes'."""
    nodes = make_grid((9, 10, 12), (3.0, 4.0, 3.5), turn=turn, flip=flip)
    voxels = nodes.with_spacing((1.25, 2.5, 1.75), (15, 11, 19))
    vectors = 5 * np.stack([smooth_noise(1, *nodes.shape, seed=n)[0].numpy() for n in range(3)], -1)
    transform = sitk.DisplacementFieldTransform(image_from_array(vectors.astype(float), nodes))
    volume = image_from_array(np.zeros(voxels.shape, np.float32), voxels)
    names = ("folded_percent", "sd_log_jacobian")
    compared = both(lambda: [metrics.jacobian_scores(transform, volume)[name] for name in names], threads)
    (folded, expected), (deviation, theirs) = compared
    assert 0.5 < expected < 60 and folded == pytest.approx(expected, abs=0.1)
    assert deviation == pytest.approx(theirs, rel=1e-3)


def test_gradients_and_other_numbers_are_left_to_torch(variant):
    values = smooth_noise(2, 5, 5, 5).requires_grad_()
    assert not kernels.usable(values) and kernels.usable(values.detach())
    assert not kernels.usable(values.detach().double())


def test_kernels_can_be_switched_off(variant, monkeypatch):
    monkeypatch.setenv("FOUNDATIONREG_NATIVE", "0")
    monkeypatch.setattr(library, "_looked", False)
    assert library.library() is None and library.in_use() == "none"


def test_other_sources_have_other_names(tmp_path, monkeypatch):
    before = build.library_name("AVX2")
    for path in build.sources():
        shutil.copy(path, tmp_path)
    (tmp_path / "search.cpp").write_text("int nothing;", encoding="utf-8")
    monkeypatch.setattr(build, "resource_path", lambda *_: tmp_path)
    build.fingerprint.cache_clear()
    try:
        assert build.library_name("AVX2") != before
    finally:
        monkeypatch.undo()
        build.fingerprint.cache_clear()


def test_without_a_compiler_one_sentence_says_so(tmp_path, monkeypatch):
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(build.Path(build.__file__).parents[2])}
    command = [sys.executable, "-m", "FoundationRegLib.native.build", "--output", str(tmp_path / "made")]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("There is no C++ compiler on this computer")
    assert subprocess.run([*command, "--optional"], env=environment, capture_output=True).returncode == 0
    assert not (tmp_path / "made").exists()


def test_a_compiler_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(build.BuildError, match="did not build the kernels"):
        build.build(tmp_path, [shutil.which("false") or sys.executable])
    assert list(tmp_path.iterdir()) == []
