"""Reading, geometry, resampling, composing and writing, against SimpleITK itself and analytic maps."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_grid, smooth_noise
from FoundationRegLib.errors import InputError
from FoundationRegLib.images import conversion, reading, resampling, transforms, writing


def to_file(path, array=None, direction=None):
    array = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8) if array is None else array
    volume = sitk.GetImageFromArray(array, isVector=False)
    if direction is not None:
        volume.SetDirection(np.asarray(direction, float).ravel().tolist())
    sitk.WriteImage(volume, str(path))
    return path


def an_image(grid, seed=0):
    return conversion.image_from_array(smooth_noise(grid.shape, 2, seed).astype(np.float32), grid)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_every_format_is_read_with_its_voxels(tmp_path, name):
    read = reading.read_image(to_file(tmp_path / name), "fixed image")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).ravel(), np.arange(336))


def test_grid_gives_the_points_that_simpleitk_gives(grid):
    volume = an_image(grid)
    for z, y, x in ((0, 0, 0), (3, 11, 7), (grid.shape[0] - 1, 2, 5)):
        np.testing.assert_allclose(grid.points((z, y, x)), volume.TransformIndexToPhysicalPoint((x, y, z)), atol=1e-9)
    assert conversion.grid_of(volume) == grid


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none.nii.gz", "fixed image .* does not exist"),
        (lambda p: to_file(p / "a.mha", np.zeros((5, 6), np.uint8)), "2 dimensions"),
        (lambda p: to_file(p / "a.mha", np.zeros((3, 5, 6, 7), np.uint8)), "4 dimensions"),
        (lambda p: to_file(p / "a.mha", np.zeros((3, 6, 7), np.uint8)), "at least 4"),
        (lambda p: (p / "a.nii.gz").write_bytes(b"no image") and p / "a.nii.gz", "no image that can be read"),
        (lambda p: (p / "a.jpg").write_bytes(b"x") and p / "a.jpg", "no image that can be read"),
        (lambda p: p, "without DICOM"),
    ],
)
def test_unusable_files_get_one_plain_sentence(tmp_path, make, words):
    with pytest.raises(InputError, match=words) as error:
        reading.read_image(make(tmp_path), "fixed image")
    assert "\n" not in str(error.value)


def test_colour_and_complex_images_are_refused(tmp_path):
    colour = sitk.GetImageFromArray(np.zeros((6, 6, 6, 3), np.uint8), isVector=True)
    with pytest.raises(InputError, match="colours"):
        reading.read_image(colour, "moving image")
    with pytest.raises(InputError, match="complex"):
        reading.read_image(sitk.Image((6, 6, 6), sitk.sitkComplexFloat32), "moving image")


def test_a_fourth_dimension_of_one_is_dropped(tmp_path):
    array = np.random.default_rng(0).normal(size=(1, 6, 7, 8)).astype(np.float32)
    volume = sitk.GetImageFromArray(array, isVector=False)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(reading.read_image(volume, "fixed image")), array[0])


@pytest.mark.parametrize(("skew", "outcome"), [(0.0, "silent"), (0.01, "warned"), (0.2, "refused")])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz"])
def test_axes_off_perpendicular_are_repaired_when_slightly_so(tmp_path, name, skew, outcome):
    path = tmp_path / name
    if name.endswith("nrrd"):
        to_file(path, direction=[[1, skew, 0], [0, 1, 0], [0, 0, 1]])
    else:
        nibabel = pytest.importorskip("nibabel")
        matrix = np.diag([1.0, 1, 1, 1])
        matrix[0, 1] = skew
        nibabel.save(nibabel.Nifti1Image(np.ones((6, 7, 8), np.float32), matrix), path)
    warnings = []
    if outcome == "refused":
        with pytest.raises(InputError, match="perpendicular"):
            reading.read_image(path, "fixed image", warnings)
        return
    direction = np.array(reading.read_image(path, "fixed image", warnings).GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-9)
    assert len(warnings) == (outcome == "warned")


def write_series(folder, count, uid, description):
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n in range(count):
        piece = sitk.GetImageFromArray(np.full((1, 8, 9), 10 * n + 1, np.int16))
        piece.SetOrigin((0, 0, 2.5 * n))
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": uid,
            "0020|000d": "1.2.3",
            "0008|0018": f"{uid}.{n + 1}",
            "0008|103e": description,
            "0020|0032": f"0\\0\\{2.5 * n}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(n + 1),
        }.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{count - n}.dcm"))
        writer.Execute(piece)


def test_the_largest_dicom_series_is_read_in_order_and_named(tmp_path):
    write_series(tmp_path, 6, "1.2.3.4", "thorax")
    write_series(tmp_path, 4, "1.2.3.5", "scout")
    warnings = []
    read = reading.read_image(tmp_path, "moving image", warnings)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read)[:, 0, 0], 10 * np.arange(6) + 1)
    assert read.GetSpacing()[2] == pytest.approx(2.5)
    assert len(warnings) == 1 and "thorax" in warnings[0] and "moving image" in warnings[0]


def test_few_broken_voxels_are_repaired_and_many_are_an_error():
    array = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 20, 20)).copy()
    array[3, 4, 5], array[10, 10, 10] = np.nan, np.inf
    repaired, warnings = reading.repair(sitk.GetImageFromArray(array), "fixed image")
    values = sitk.GetArrayFromImage(repaired)
    assert abs(values[3, 4, 5] - 3) <= 1 and abs(values[10, 10, 10] - 10) <= 1
    assert len(warnings) == 1 and "2 voxels" in warnings[0]
    array[:2] = np.nan
    with pytest.raises(InputError, match="10 %"):
        reading.repair(sitk.GetImageFromArray(array), "fixed image")


def test_constant_images_are_refused():
    with pytest.raises(InputError, match="same value"):
        reading.repair(sitk.Image((6, 6, 6), sitk.sitkInt16), "moving image")


def test_resampling_through_a_transform_samples_the_phantom_there(phantom, grid):
    moving_grid = make_grid((60, 64, 62), (2.0, 2.0, 2.0), turn=(5, 10, 0), flip=(2,))
    moving = conversion.image_from_array(phantom.on(moving_grid), moving_grid)
    transform = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.1, -0.05, 0.2, (4.0, -3.0, 2.0))
    values = resampling.resample_to_grid(moving, grid, transform, antialias=False)
    matrix = transforms.affine_matrix(transform)
    expected = phantom.on(grid, lambda p: p @ matrix[:3, :3].T + matrix[:3, 3])
    inside = resampling.validity(moving, grid, transform)
    assert inside.mean() > 0.6
    assert np.abs(values - expected)[inside].mean() < 0.02 * expected.max()
    np.testing.assert_array_equal(values[~inside], conversion.default_background(moving))


def test_antialiasing_keeps_what_the_coarse_grid_can_show_and_drops_the_rest():
    fine = make_grid((48, 48, 48), (1.0, 1.0, 1.0))
    slow = np.sin(2 * np.pi * np.indices(fine.shape)[2] / 32).astype(np.float32)
    stripes = np.where(np.indices(fine.shape)[2] % 4 < 2, 1.0, -1.0).astype(np.float32)
    coarse = fine.with_spacing(5.0)
    both = conversion.image_from_array(slow + stripes, fine)
    error = resampling.resample_to_grid(both, coarse) - resampling.resample_to_grid(
        conversion.image_from_array(slow, fine), coarse, antialias=False
    )
    assert np.abs(error[2:-2, 2:-2, 2:-2]).mean() < 0.25
    labels = conversion.image_from_array((stripes > 0).astype(np.uint8), fine)
    assert set(np.unique(resampling.resample_to_grid(labels, coarse, interpolator="nearest"))) <= {0.0, 1.0}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_blocks_of_voxels_stay_where_they_are_also_where_the_last_is_not_full(share):
    fine = make_grid((23, 41, 31), (1.0, 0.5, 0.75), turn=(10, -20, 30), flip=(1,))
    coarse = fine.with_spacing(3.0)
    slope = np.array([0.3, -0.2, 0.1])
    points = fine.points(np.moveaxis(np.indices(fine.shape), 0, -1))
    blocks = resampling.binned(conversion.image_from_array((points @ slope).astype(np.float32), fine), coarse, share)
    made = conversion.grid_of(blocks)
    assert made.shape == ((8, 7, 8) if share == 1 else (23, 14, 16))
    expected = made.points(np.moveaxis(np.indices(made.shape), 0, -1)) @ slope
    inner = (slice(None, -1),) * 3
    np.testing.assert_allclose(sitk.GetArrayFromImage(blocks)[inner], expected[inner], atol=1e-4)
    flat = conversion.image_from_array(np.full(fine.shape, 7, np.int16), fine)
    values = resampling.resample_to_grid(flat, coarse, background=0.0)
    assert values[resampling.validity(flat, coarse)] == pytest.approx(7, abs=1e-4)


def test_field_image_and_displacement_undo_each_other_and_point_in_space(grid):
    u = np.zeros((3, *grid.shape), np.float32)
    u[1] = 2.0
    field = transforms.field_image(u, grid)
    np.testing.assert_allclose(sitk.GetArrayFromImage(field)[3, 4, 5], 2.0 * grid.direction[:, 1], atol=1e-6)
    np.testing.assert_allclose(transforms.displacement_of(field), u, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "composite", "none"])
def test_composed_field_is_the_linear_map_after_the_displacement_up_to_the_last_voxel(grid, kind):
    working = grid.padded(-4, -5).with_spacing(4.0)
    u = np.stack([smooth_noise(working.shape, 3, n) for n in range(3)]) * 2
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, -0.1, (5.0, -4.0, 3.0))
    bump = transforms.to_field_transform(sitk.TranslationTransform(3, (0.0, 1.0, 0.0)), grid.padded(20, 20))
    linear = {"linear": euler, "composite": sitk.CompositeTransform([euler, bump]), "none": None}[kind]
    composed = transforms.compose_field(linear, u, working, grid)
    last = np.array(grid.shape) - 1
    for index in (np.zeros(3), last, last // 2, last * (0, 1, 1), last * (1, 0, 0.5) // 1):
        point = grid.points(index)
        place = np.clip(working.indices(point), 0, np.array(working.shape) - 1)
        low = np.minimum(place.astype(int), np.array(working.shape) - 2)
        t = place - low
        corners = [(k >> 2 & 1, k >> 1 & 1, k & 1) for k in range(8)]
        weight = [np.prod([t[n] if c[n] else 1 - t[n] for n in range(3)]) for c in corners]
        moved = sum(w * u[(slice(None), *(low + c))] for w, c in zip(weight, corners, strict=True))
        expected = point + working.direction @ moved
        expected = expected if linear is None else np.array(linear.TransformPoint(expected.tolist()))
        np.testing.assert_allclose(composed.TransformPoint(point.tolist()), expected, atol=1e-4)


def test_composed_field_on_a_working_grid_with_other_axes():
    fixed, working = make_grid((20, 22, 24)), make_grid((30, 30, 30), (3.0, 3.0, 3.0), turn=(30, 20, 10))
    u = np.stack([smooth_noise(working.shape, 5, n) for n in range(3)])
    composed = transforms.compose_field(None, u, working, fixed)
    expected = sitk.DisplacementFieldTransform(transforms.field_image(u, working))
    for index in ((5, 6, 7), (10, 10, 10), (15, 8, 12)):
        point = fixed.points(index).tolist()
        np.testing.assert_allclose(composed.TransformPoint(point), expected.TransformPoint(point), atol=1e-3)


def test_a_lattice_that_misses_the_last_voxels_is_refused():
    grid = make_grid()
    u = np.zeros((3, *grid.shape))
    with pytest.raises(ValueError, match="cover"):
        transforms.compose_field(None, u, grid, grid, lattice=grid.padded(0, -1))


def test_flattening_any_transform_keeps_its_points(grid):
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, -0.1, (5.0, -4.0, 3.0))
    flat = transforms.to_field_transform(euler, grid)
    for index in ((0, 0, 0), (9, 8, 7), np.array(grid.shape) - 1):
        point = grid.points(index).tolist()
        np.testing.assert_allclose(flat.TransformPoint(point), euler.TransformPoint(point), atol=1e-6)


def test_warp_keeps_the_pixel_type_and_fills_ct_with_air():
    grid = make_grid((10, 10, 10))
    moving = conversion.image_from_array(np.linspace(-1000, 1000, 1000).reshape(10, 10, 10).astype(np.int16), grid)
    warped = resampling.warp(moving, sitk.TranslationTransform(3, (500.0, 0.0, 0.0)), moving)
    assert warped.GetPixelID() == sitk.sitkInt16
    assert set(np.unique(sitk.GetArrayFromImage(warped))) == {-1000}
    labels = sitk.Cast(moving > 0, sitk.sitkUInt8)
    assert (
        sitk.GetArrayFromImage(
            resampling.warp(labels, sitk.TranslationTransform(3, (500.0, 0, 0)), moving, "nearest")
        ).max()
        == 0
    )


def test_overlap_fraction_of_a_known_shift():
    volume = an_image(make_grid((20, 20, 20), (2.0, 2.0, 2.0)))
    assert resampling.overlap_fraction(volume, volume) == 1
    half = sitk.TranslationTransform(3, (20.0, 0.0, 0.0))
    assert resampling.overlap_fraction(volume, volume, half) == pytest.approx(0.5, abs=0.05)
    assert resampling.overlap_fraction(volume, volume, sitk.TranslationTransform(3, (100.0, 0.0, 0.0))) == 0


def test_affine_matrix_of_a_composite_agrees_with_its_points():
    composite = sitk.CompositeTransform(
        [
            sitk.Euler3DTransform((9.0, 8.0, 7.0), 0.3, 0.2, 0.1, (1.0, 2.0, 3.0)),
            sitk.ScaleTransform(3, (1.1, 0.9, 1.2)),
        ]
    )
    matrix, point = transforms.affine_matrix(composite), np.array([12.0, -34.0, 56.0])
    np.testing.assert_allclose(
        matrix[:3, :3] @ point + matrix[:3, 3], composite.TransformPoint(point.tolist()), atol=1e-8
    )
    again = transforms.affine_transform(matrix)
    np.testing.assert_allclose(
        again.TransformPoint(point.tolist()), composite.TransformPoint(point.tolist()), atol=1e-8
    )


@pytest.mark.parametrize("name", ["t.h5", "t.tfm", "t.nii.gz", "t.nrrd", "t.mha"])
def test_written_transforms_are_read_back(tmp_path, grid, name):
    grid = grid.with_spacing(12.0)
    u = np.stack([smooth_noise(grid.shape, 1, n) for n in range(3)])
    transform = transforms.compose_field(None, u, grid, grid)
    writing.write_transform(transform, tmp_path / name)
    again = reading.read_transform(tmp_path / name)
    point = grid.points((1.3, 1.2, 1.1)).tolist()
    np.testing.assert_allclose(again.TransformPoint(point), transform.TransformPoint(point), atol=1e-4)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "none.h5", "does not exist"),
        (lambda p: sitk.WriteTransform(sitk.Euler2DTransform(), str(p / "a.tfm")) or p / "a.tfm", "2-D"),
        (lambda p: (p / "a.h5").write_bytes(b"x") and p / "a.h5", "cannot be read"),
        (lambda p: (p / "a.xfm").write_bytes(b"x") and p / "a.xfm", "unknown extension"),
        (lambda p: to_file(p / "a.nrrd"), "no displacement field"),
    ],
)
def test_unusable_transform_files_get_one_plain_sentence(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        reading.read_transform(make(tmp_path))


def test_images_are_written_whole_or_not_at_all(tmp_path):
    volume = an_image(make_grid((6, 7, 8)))
    writing.write_image(volume, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))), sitk.GetArrayFromImage(volume)
    )
    for target, words in ((tmp_path / "a.png", "extensions"), (tmp_path / "no" / "a.mha", "no such folder")):
        with pytest.raises(InputError, match=words):
            writing.write_image(volume, target)
    (tmp_path / "taken.mha").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        writing.write_image(volume, tmp_path / "taken.mha")
    assert sorted(os.listdir(tmp_path)) == ["a.nii.gz", "taken.mha"]


WRITE_ON_A_FULL_DISK = """
import resource, signal, sys
import numpy as np, SimpleITK as sitk
from FoundationRegLib.images import writing
from FoundationRegLib.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
volume = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(40, 40, 40)))
field = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(20, 20, 20, 3)), isVector=True)
for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.tfm"):
    try:
        if name.endswith("tfm"):
            writing.write_transform(sitk.DisplacementFieldTransform(sitk.Image(field)), f"{sys.argv[1]}/{name}")
        else:
            writing.write_image(volume, f"{sys.argv[1]}/{name}")
    except InputError as error:
        assert "disk not full" in str(error)
    else:
        raise SystemExit(f"{name} was written")
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of file size are POSIX")
def test_a_full_disk_is_an_input_error_and_leaves_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    command = [sys.executable, "-c", WRITE_ON_A_FULL_DISK, str(tmp_path)]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    assert not list(tmp_path.iterdir())


def test_hdf5_is_not_begun_on_a_disk_without_room(tmp_path, monkeypatch):
    room = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: room)
    writing.write_transform(sitk.Euler3DTransform(), tmp_path / "small.h5")
    large = sitk.DisplacementFieldTransform(sitk.Image((40, 40, 40), sitk.sitkVectorFloat64))
    with pytest.raises(InputError, match="disk is full"):
        writing.write_transform(large, tmp_path / "large.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["small.h5"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs folder permissions that bind")
def test_a_folder_without_permission_is_an_input_error(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(InputError, match="writable"):
            writing.write_image(an_image(make_grid((6, 7, 8))), tmp_path / "a.mha")
    finally:
        tmp_path.chmod(stat.S_IRWXU)
