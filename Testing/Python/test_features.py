"""Features stand where the anatomy is, on every plane and grid, and the shared basis is numpy's."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.encoders.base import SliceEncoder, VolumeEncoder
from FoundationRegLib.errors import Cancelled, InputError, OutOfMemory
from FoundationRegLib.features import batching, extraction
from FoundationRegLib.features.extraction import SharedPCA, encode, encode_shared, foreground_box, resample_features
from FoundationRegLib.features.raster import token_weights
from FoundationRegLib.features.slicing import plane_axes


class Pooling:
    """A stand-in encoder whose token is the mean of its patch and the mean's square: its place can be read off."""

    id, channels, stride, multiple, pixels, weights_sha256 = "pooling", 2, 4, 8, 64, "0"

    def __init__(self):
        self.batches = []

    def __call__(self, slices):
        self.batches.append(slices.shape)
        mean = torch.nn.functional.avg_pool2d(slices, 4)
        return torch.cat([mean, mean**2], 1)


class VolumePooling:
    id, channels, stride, multiple, weights_sha256 = "volume-pooling", 1, 2, 4, "0"

    def __call__(self, volume):
        return torch.nn.functional.avg_pool3d(volume, 2)


def rotation(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


AXES = np.eye(3)[:, ::-1]  # array axes z, y, x point to S, P, L
GRIDS = {
    "plain": Grid.from_axes((20, 30, 26), (3.0, 1.5, 2.0), (-20, 10, 5), AXES),
    "flipped": Grid.from_axes((20, 30, 26), (3.0, 1.5, 2.0), (30, 50, 60), AXES * [-1, 1, -1]),
    "permuted": Grid.from_axes((26, 20, 30), (2.0, 3.0, 1.5), (-20, 10, 5), np.eye(3)[:, [0, 2, 1]]),
    "oblique": Grid.from_axes((20, 30, 26), (3.0, 1.5, 2.0), (-20, 10, 5), rotation(0.3) @ AXES),
}


def ramp(grid, axis):
    """An image in 0..1 that rises linearly along one patient axis, and the function behind it."""
    points = grid.points(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    low, high = points[..., axis].min(), points[..., axis].max()
    return ((points[..., axis] - low) / (high - low)).astype(np.float32)


def inner(array, margin=0.2):
    """Without the border, where half of a patch lies outside the image."""
    cut = [slice(int(np.ceil(n * margin)), n - int(np.ceil(n * margin))) for n in array.shape[-3:]]
    return array[(..., *cut)]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_every_token_stands_at_the_centre_of_its_patch(name, plane):
    grid = GRIDS[name]
    for axis in range(3):
        image = ramp(grid, axis)
        raster = encode(image, grid, Pooling(), plane, slice_gap_mm=7, mask=np.ones(grid.shape, bool))
        placed = resample_features(raster, grid)[0].numpy()
        assert np.abs(inner(placed) - inner(image)).max() < 2e-3


def test_features_are_placed_on_another_lattice_at_the_right_points():
    grid = GRIDS["oblique"]
    image = ramp(grid, 0)
    raster = encode(image, grid, Pooling(), slice_gap_mm=7, mask=np.ones(grid.shape, bool))
    other = grid.with_spacing((4.0, 2.5, 3.1)).padded((-1, -2, -2), (-1, -2, -2))
    placed = resample_features(raster, other)[0].numpy()
    points = grid.indices(other.points(np.stack(np.meshgrid(*map(np.arange, other.shape), indexing="ij"), -1)))
    step = image[0, 0, 1] - image[0, 0, 0], image[0, 1, 0] - image[0, 0, 0], image[1, 0, 0] - image[0, 0, 0]
    expected = image[0, 0, 0] + points @ np.array(step[::-1])
    assert np.abs(inner(placed) - inner(expected)).max() < 2e-3
    with pytest.raises(InputError, match="parallel"):
        resample_features(raster, GRIDS["plain"])


@pytest.mark.parametrize("name", ["flipped", "permuted"])
def test_pictures_show_the_patient_the_same_way_up_however_the_array_is_stored(name):
    class Recorder(Pooling):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __call__(self, slices):
            self.seen.append(slices)
            return super().__call__(slices)

    stored = GRIDS[name]
    rng = np.random.default_rng(0)
    image = rng.random(stored.shape, dtype=np.float32)
    order, _ = plane_axes(stored, "axial")
    flips = [order[n] for n in range(3) if stored.direction[(2, 1, 0)[n], order[n]] < 0]
    standard = np.ascontiguousarray(np.flip(image, flips).transpose(order))
    corner = np.array([stored.shape[a] - 1 if a in flips else 0 for a in range(3)])
    plain = Grid.from_axes(standard.shape, stored.spacing[list(order)], stored.points(corner), AXES)
    for plane in ("axial", "coronal", "sagittal"):
        recorders = Recorder(), Recorder()
        for recorder, array, grid in zip(recorders, (image, standard), (stored, plain), strict=True):
            encode(array, grid, recorder, plane, slice_gap_mm=1000, mask=np.ones(grid.shape, bool))
        first, second = (sorted(r.seen, key=torch.sum) for r in recorders)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True)), plane


def test_coronal_pictures_have_the_head_on_top():
    grid = GRIDS["plain"]
    seen = []

    class Recorder(Pooling):
        def __call__(self, slices):
            seen.append(slices)
            return super().__call__(slices)

    encode(ramp(grid, 2), grid, Recorder(), "coronal", slice_gap_mm=1000)
    middle = seen[0][0, 0].mean(1)
    assert middle[20] > middle[40]


def test_slices_reach_from_the_first_to_the_last_one_with_foreground():
    grid = GRIDS["plain"]
    mask = np.zeros(grid.shape, bool)
    mask[4:18] = True
    raster = encode(ramp(grid, 0), grid, Pooling(), slice_gap_mm=7.0, mask=mask)
    slices = raster.positions[0]
    assert slices[0] == 4 and slices[-1] == 17
    assert np.diff(slices).max() * 3.0 <= 9.0 and len(slices) == 7


def test_a_single_slice_is_enough():
    grid = Grid.from_axes((1, 30, 26), (3.0, 1.5, 2.0), (0, 0, 0), AXES)
    raster = encode(ramp(grid, 0), grid, Pooling())
    assert resample_features(raster, grid).shape == (2, 1, 30, 26)
    assert (
        np.abs(
            inner(resample_features(raster, grid)[0].numpy(), 0.0)[0, 6:-6, 6:-6] - ramp(grid, 0)[0, 6:-6, 6:-6]
        ).max()
        < 2e-3
    )


def test_pixels_are_square_and_the_longer_side_has_the_wanted_number():
    grid = GRIDS["plain"]  # rows 45 mm, columns 52 mm
    encoder = Pooling()
    encode(ramp(grid, 0), grid, encoder, pixels=128)
    assert encoder.batches[0][2:] == (112, 128)


def test_the_box_uses_all_pixels_for_the_anatomy():
    grid = GRIDS["plain"]
    mask = np.zeros(grid.shape, bool)
    mask[5:9, 10:20, 8:18] = True
    box = foreground_box([mask], grid, margin_mm=2.0)
    assert box == (slice(4, 10), slice(8, 22), slice(7, 19))
    image = ramp(grid, 1)
    raster = encode(image, grid, Pooling(), mask=mask, box=box, slice_gap_mm=3)
    assert len(raster.positions[2]) == 16 and raster.positions[2][0] > 6.5 and raster.positions[2][-1] < 18.5
    placed = resample_features(raster, grid)[0].numpy()
    assert np.abs(placed - image)[mask].max() < 2e-3


def test_what_an_empty_slice_gives_can_be_taken_away():
    class Biased(Pooling):
        def __call__(self, slices):
            made = super().__call__(slices)
            return made + torch.arange(made.shape[-1])

    grid = GRIDS["plain"]
    image = ramp(grid, 0)
    clean = encode(image, grid, Pooling())
    biased = encode(image, grid, Biased(), subtract_empty=True)
    assert torch.allclose(clean.values.float(), biased.values.float(), atol=2e-3)


def test_volume_encoders_see_the_whole_volume_and_keep_their_places():
    grid = Grid.from_axes((19, 30, 26), (3.0, 1.5, 2.0), (0, 0, 0), AXES)
    assert isinstance(VolumePooling(), VolumeEncoder) and not isinstance(VolumePooling(), SliceEncoder)
    for axis in range(3):
        raster = encode(ramp(grid, axis), grid, VolumePooling())
        assert np.abs(inner(resample_features(raster, grid)[0].numpy()) - inner(ramp(grid, axis))).max() < 2e-3


@pytest.fixture
def two_rasters():
    """Two images' rasters with anisotropic random tokens, and their masks."""
    rng = np.random.default_rng(3)
    grid = GRIDS["plain"]
    mixing = torch.from_numpy(rng.normal(size=(12, 12)) * np.linspace(3, 0.1, 12)).float()
    rasters, masks = [], []
    for seed in range(2):
        raster = encode(ramp(grid, 0), grid, Pooling(), slice_gap_mm=9)
        shape = (*raster.values.shape[:3], 12)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        rasters.append(type(raster)((noise @ mixing + 5 * seed + 100).half(), raster.positions, grid))
        mask = np.zeros(grid.shape, bool)
        mask[:, 5:25, 3 + seed : 20] = True
        masks.append(mask)
    return rasters, masks


def test_the_shared_basis_is_that_of_numpys_svd(two_rasters):
    rasters, _ = two_rasters
    rows = np.concatenate([r.values.double().numpy().reshape(-1, 12) for r in rasters])
    mean = rows.mean(0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    pca = SharedPCA.fit(rasters, 4)
    assert np.allclose(pca.mean.numpy(), mean, atol=1e-3)
    assert np.allclose(pca.explained, (singular**2 / (singular**2).sum())[:4], rtol=1e-4)
    mine = pca.basis.double().numpy()
    cosine = np.abs((mine / np.linalg.norm(mine, axis=0) * directions[:4].T).sum(0))
    assert np.allclose(cosine, 1, atol=1e-6)
    expected = (rows - mean) @ directions[:4].T
    expected *= np.sign(directions[:4].T[np.abs(directions[:4]).argmax(1), range(4)])
    expected /= np.sqrt((expected**2).mean())
    projected = np.concatenate([pca.project(r).values.numpy().reshape(-1, 4) for r in rasters])
    assert np.allclose(projected, expected, atol=2e-3)


def test_projected_features_are_centred_and_have_unit_mean_square_inside_the_masks(two_rasters):
    rasters, masks = two_rasters
    pca = SharedPCA.fit(rasters, 5, masks)
    total, square, weight = 0, 0, 0
    for raster, mask in zip(rasters, masks, strict=True):
        w = token_weights(mask, raster.positions)[..., None].double()
        values = pca.project(raster).values.double()
        total, square, weight = total + (w * values).sum((0, 1, 2)), square + (w * values**2).sum(), weight + w.sum()
    assert (total / weight).abs().max() < 1e-3
    assert abs(square / weight / 5 - 1) < 1e-3


def test_fitting_twice_gives_the_same_bits(two_rasters):
    rasters, masks = two_rasters
    first, second = (SharedPCA.fit(rasters, 4, masks) for _ in range(2))
    assert torch.equal(first.basis, second.basis) and torch.equal(first.mean, second.mean)


def test_masks_that_hold_no_token_are_refused(two_rasters):
    rasters, masks = two_rasters
    with pytest.raises(InputError, match="foreground"):
        SharedPCA.fit(rasters, 4, [np.zeros_like(m) for m in masks])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_full_memory_halves_what_goes_at_a_time_and_keeps_the_order(device, monkeypatch):
    """Threads on the CPU, batches elsewhere; the device itself is not touched."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    running, seen, taken = [], [], []
    limit = 2

    def work(jobs):
        running.extend(jobs)
        time.sleep(0.05)
        crowd = len(running)
        for job in jobs:
            running.remove(job)
        if crowd > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(len(jobs))
        return [torch.tensor(float(job)) for job in jobs]

    batching.run(range(7), work, lambda job, made: taken.append((job, int(made))), 5, torch.device(device), Progress())
    assert taken == [(n, n) for n in range(7)]
    assert seen[-4:] == [1, 1, 1, 1] if device == "cpu" else seen == [2, 2, 2, 1]
    limit = 0
    with pytest.raises(OutOfMemory, match="fewer encoder pixels"):
        batching.run([0], work, lambda *_: None, 5, torch.device(device), Progress())


class Patches(Pooling):
    """Twelve fixed linear features of each patch."""

    channels = 12
    kernel = (
        torch.randn(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        * torch.linspace(2, 0.1, 12)[:, None, None, None]
    )

    def __call__(self, slices):
        self.batches.append(len(slices))
        return torch.nn.functional.conv2d(slices, self.kernel, stride=4)


@pytest.mark.parametrize("memory_gb", [0.0, 1e-6], ids=["tokens kept", "encoded twice"])
def test_images_get_the_components_of_numpys_svd_of_all_their_tokens(memory_gb):
    rng = np.random.default_rng(5)
    grids = {name: GRIDS[name] for name in ("flipped", "permuted")}
    for grid in grids.values():
        images = [rng.random(grid.shape, dtype=np.float32) for _ in range(2)]
        masks = [np.ones(grid.shape, bool), np.ones(grid.shape, bool)]
        masks[1][:, 4:] = False
        encoder = Patches()
        found = encode_shared(images, masks, grid, encoder, 4, "coronal", slice_gap_mm=7, memory_gb=memory_gb)
        slices = sum(encoder.batches)
        rasters = [
            encode(i, grid, encoder, "coronal", slice_gap_mm=7, mask=m) for i, m in zip(images, masks, strict=True)
        ]
        assert slices == (sum(encoder.batches) - slices) * (1 if memory_gb == 0 else 2)
        rows = np.concatenate([r.values.double().numpy().reshape(-1, 12) for r in rasters])
        weights = np.concatenate(
            [token_weights(m, r.positions).numpy().ravel() for m, r in zip(masks, rasters, strict=True)]
        )
        mean = np.average(rows, 0, weights)
        _, _, directions = np.linalg.svd((rows - mean) * np.sqrt(weights)[:, None], full_matrices=False)
        expected = (rows - mean) @ directions[:4].T
        expected *= np.sign(directions[:4].T[np.abs(directions[:4]).argmax(1), range(4)])
        expected /= np.sqrt(np.average((expected**2).mean(1), weights=weights))
        values = np.concatenate([r.values.numpy().reshape(-1, 4) for r in found])
        assert np.abs(values - expected).max() < 5e-3
        for raster, other in zip(found, rasters, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(raster.positions, other.positions, strict=True))


def test_slices_of_both_images_go_in_one_queue_after_one_empty_slice(monkeypatch):
    grid, rng = GRIDS["plain"], np.random.default_rng(6)
    images = [rng.random(grid.shape, dtype=np.float32) for _ in range(2)]
    masks = [np.ones(grid.shape, bool), np.zeros(grid.shape, bool)]
    masks[1][4:9] = True
    queues, real = [], batching.run
    monkeypatch.setattr(batching, "run", lambda jobs, *rest: queues.append(len(jobs)) or real(jobs, *rest))
    found = encode_shared(images, masks, grid, Patches(), 4, slice_gap_mm=3, subtract_empty=True)
    shown = [raster.values.shape[0] for raster in found]
    assert queues == [sum(shown) + 1] and shown[0] > shown[1] > 1
    alone = [
        encode(i, grid, Patches(), slice_gap_mm=3, mask=m, subtract_empty=True)
        for i, m in zip(images, masks, strict=True)
    ]
    basis = SharedPCA.fit(alone, 4, masks)
    for raster, other in zip(found, alone, strict=True):
        assert torch.equal(raster.values, basis.project(other).values)


MEMORY = """
import sys, numpy as np, torch
from pathlib import Path
from FoundationRegLib.features.extraction import encode_shared
from FoundationRegLib.core.grid import Grid
class Wide:
    id, channels, stride, multiple, pixels, weights_sha256, bytes_per_pixel = "wide", 512, 4, 4, 128, "", 600
    def __call__(self, slices):
        return torch.nn.functional.avg_pool2d(slices, 4) * torch.arange(512.0)[:, None, None]
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3
grid = Grid((100, 64, 64), np.eye(4))
images = [np.random.default_rng(n).random(grid.shape, np.float32) for n in range(2)]
masks = [np.ones(grid.shape, bool)] * 2
encode_shared([i[:2] for i in images], [m[:2] for m in masks], Grid((2, 64, 64), np.eye(4)), Wide(), 3)
before = peak()
encode_shared(images, masks, grid, Wide(), 3, slice_gap_mm=1.0, memory_gb=float(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of peak memory")
def test_the_memory_limit_bounds_what_tokens_take():
    """100 slices of two images have 200 MB of tokens at half precision."""

    def megabytes(limit_gb):
        command = [sys.executable, "-c", MEMORY, str(limit_gb)]
        folder = Path(extraction.__file__).parents[2]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
        return float(done.stdout)

    assert megabytes(1.0) > 100
    assert megabytes(0.1) < 60


def test_the_memory_limit_bounds_how_many_slices_go_at_a_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    class Crowd(Pooling):
        bytes_per_pixel, weights_bytes = 1000, 4_000_000

        def __init__(self):
            super().__init__()
            self.running, self.most, self.lock = 0, 0, threading.Lock()

        def __call__(self, slices):
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.02)
            with self.lock:
                self.running -= 1
            return super().__call__(slices)

    def most(memory_gb):
        encoder = Crowd()
        encode(ramp(GRIDS["plain"], 0), GRIDS["plain"], encoder, slice_gap_mm=3, memory_gb=memory_gb)
        return encoder.most

    # A picture of 56 x 64 pixels takes 3.6 MB; the weights take 4 MB, and half of the rest is for pictures.
    assert most(0.0) > 3 and most(0.0195) == 2 and most(0.012) == 1 and most(0.001) == 1


def test_running_out_of_main_memory_says_what_to_do():
    class Hungry(Pooling):
        def __call__(self, slices):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    with pytest.raises(OutOfMemory, match="fewer encoder pixels"):
        encode(ramp(GRIDS["plain"], 0), GRIDS["plain"], Hungry())


def test_other_errors_of_the_encoder_are_not_swallowed():
    class Broken(Pooling):
        def __call__(self, slices):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        encode(ramp(GRIDS["plain"], 0), GRIDS["plain"], Broken())


def test_the_user_can_stop_between_slices_and_threads_are_as_before():
    class Slow(Pooling):
        def __call__(self, slices):
            time.sleep(0.05)
            return super().__call__(slices)

    encoder, threads = Slow(), torch.get_num_threads()
    progress = Progress(should_cancel=lambda: len(encoder.batches) >= 2)
    with pytest.raises(Cancelled):
        encode(ramp(GRIDS["plain"], 0), GRIDS["plain"], encoder, slice_gap_mm=3, progress=progress)
    assert len(encoder.batches) < 12
    assert torch.get_num_threads() == threads


def test_an_unknown_plane_or_a_wrong_shape_is_said_plainly():
    grid = GRIDS["plain"]
    with pytest.raises(InputError, match="axial, coronal, sagittal"):
        encode(ramp(grid, 0), grid, Pooling(), "oblique")
    with pytest.raises(InputError, match="voxels"):
        encode(ramp(grid, 0)[1:], grid, Pooling())
