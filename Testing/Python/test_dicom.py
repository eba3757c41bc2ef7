"""DICOM series: where each slice lies is checked against an analytic volume, never taken from ITK's series reader."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import slice_bytes, write_series
from FoundationRegLib.errors import InputError
from FoundationRegLib.images.dicom import read_dicom_folder

SHAPE, SPACING = (11, 20, 24), (3.0, 1.5, 1.0)


def ramp(points):
    """Grey values that rise linearly with LPS mm, so that linear interpolation must give them exactly."""
    return 3 * points[..., 0] + 5 * points[..., 1] + 7 * points[..., 2]


def series(folder, depths=None, axes=(1, 0, 0, 0, 1, 0), beside=0.0, keep=None, **options):
    """A series that samples `ramp`: slices at ``depths`` mm along the normal, each shifted down its columns by
    ``beside`` mm per mm of depth."""
    depths = SPACING[0] * np.arange(SHAPE[0]) if depths is None else np.asarray(depths, float)
    along, down = np.array(axes[:3], float), np.array(axes[3:], float)
    normal = np.cross(along, down)
    origin = np.array([10.0, -20.0, 30.0])
    positions = [origin + d * normal + beside * d * down for d in depths]
    rows, columns = np.arange(SHAPE[1]) * SPACING[1], np.arange(SHAPE[2]) * SPACING[2]
    plane = rows[:, None, None] * down + columns[None, :, None] * along
    volume = np.round([ramp(p + plane) for p in positions])
    paths = write_series(folder, volume, positions, axes=axes, spacing=SPACING[1:], **options)
    for n, path in enumerate(paths):
        if keep is not None and n not in keep:
            path.unlink()
    return paths


def read(folder):
    warnings = []
    return read_dicom_folder(folder, "The fixed image", warnings), warnings


def error(image, margin=0):
    """The largest difference of ``image`` from `ramp` at its own voxels' places, ``margin`` voxels from its border."""
    array = sitk.GetArrayFromImage(image).astype(float)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in image.GetSize()], indexing="ij"), -1).reshape(-1, 3)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    points = indices * np.array(image.GetSpacing()) @ direction.T + np.array(image.GetOrigin())
    wanted = ramp(points).reshape(image.GetSize()).transpose(2, 1, 0)
    inside = tuple(slice(m, n - m) for m, n in zip((0, margin, margin), array.shape, strict=True))
    return np.abs(array - wanted)[inside].max()


OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)


@pytest.mark.parametrize("axes", [(1, 0, 0, 0, 1, 0), OBLIQUE, (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, -1, 0)])
def test_an_even_series_lies_where_its_positions_say(tmp_path, axes):
    series(tmp_path, axes=axes)
    image, warnings = read(tmp_path)
    assert warnings == [] and image.GetSize() == SHAPE[::-1]
    assert np.allclose(image.GetSpacing(), SPACING[::-1])
    assert error(image) <= 0.51
    assert np.linalg.det(np.array(image.GetDirection()).reshape(3, 3)) == pytest.approx(1)


def test_a_missing_slice_is_filled_in_and_named(tmp_path):
    series(tmp_path, keep=[n for n in range(11) if n != 4])
    image, warnings = read(tmp_path)
    assert image.GetSize() == SHAPE[::-1] and error(image) <= 1.01
    assert len(warnings) == 2 and "lacks a slice between slice003.dcm and slice005.dcm" in warnings[0]


def test_a_wide_gap_is_refused_with_its_slices(tmp_path):
    series(tmp_path, depths=[0, 3, 6, 9, 37, 40, 43])
    with pytest.raises(InputError, match=r"lacks slices between slice003.dcm and slice004.dcm \(28 mm instead of 3"):
        read(tmp_path)


def test_uneven_distances_are_resampled(tmp_path):
    series(tmp_path, depths=[0, 3, 6, 9, 11, 14, 18, 21, 24.5, 27, 30])
    image, warnings = read(tmp_path)
    assert image.GetSize() == SHAPE[::-1] and error(image) <= 1.01
    assert "uneven distances (2 to 4 mm)" in warnings[0]


def test_rounded_positions_are_even(tmp_path):
    series(tmp_path, depths=np.round(np.arange(11) * 2.4783, 2))
    image, warnings = read(tmp_path)
    assert warnings == [] and image.GetSpacing()[2] == pytest.approx(2.478, abs=1e-3)


@pytest.mark.parametrize("degrees", [12.0, -20.0])
def test_a_tilted_gantry_is_resampled(tmp_path, degrees):
    series(tmp_path, beside=np.tan(np.radians(degrees)))
    image, warnings = read(tmp_path)
    assert f"tilted by {abs(degrees):.1f} degrees" in warnings[0]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.allclose(direction, np.eye(3))
    array = sitk.GetArrayFromImage(image)
    assert array.shape[1] == SHAPE[1] + int(np.ceil(30 * abs(np.tan(np.radians(degrees))) / SPACING[1]))
    # What no slice covers is background; the middle of each slice is the ramp.
    for n in range(SHAPE[0]):
        row = 3 * n * np.tan(np.radians(degrees)) / SPACING[1] - min(0, round(
            (image.GetOrigin()[1] + 20) / SPACING[1]))  # fmt: skip
        middle = int(row + SHAPE[1] // 2)
        point = image.TransformIndexToPhysicalPoint((12, middle, n))
        assert array[n, middle, 12] == pytest.approx(ramp(np.array(point)), abs=1.01)


def test_copies_are_left_out(tmp_path):
    paths = series(tmp_path)
    (tmp_path / "again.dcm").write_bytes(paths[5].read_bytes())
    image, warnings = read(tmp_path)
    assert image.GetSize() == SHAPE[::-1] and error(image) <= 0.51
    assert "holds one slice twice" in warnings[0]


def test_two_slices_in_one_place_are_refused(tmp_path):
    series(tmp_path)
    (tmp_path / "other.dcm").write_bytes(slice_bytes(np.ones(SHAPE[1:]), (10, -20, 45), spacing=SPACING[1:], number=40))
    with pytest.raises(InputError, match=r"two different slices in one place \(slice005.dcm and other.dcm\)"):
        read(tmp_path)


def test_all_in_one_place_is_refused(tmp_path):
    series(tmp_path, depths=[0] * 11)
    with pytest.raises(InputError, match="one place"):
        read(tmp_path)


def test_a_garbage_file_is_named(tmp_path):
    series(tmp_path)
    (tmp_path / "slice011.dcm").write_bytes(b"garbage" * 100)
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    (tmp_path / "readme.txt").write_text("text")
    image, warnings = read(tmp_path)
    assert image.GetSize() == SHAPE[::-1]
    assert len(warnings) == 1 and "one file that cannot be read as DICOM (slice011.dcm)" in warnings[0]


def test_a_cut_slice_is_refused_by_name(tmp_path):
    paths = series(tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    try:
        _, warnings = read(tmp_path)
    except InputError as refusal:
        assert "slice003.dcm" in str(refusal)
    else:
        assert any("slice003.dcm" in text for text in warnings)


@pytest.mark.parametrize(("tag", "words"), [((0x20, 0x32), "ImagePositionPatient"), ((0x28, 0x30), "PixelSpacing")])
def test_slices_without_a_place_are_refused(tmp_path, tag, words):
    series(tmp_path, without=[tag])
    with pytest.raises(InputError, match=words):
        read(tmp_path)


def test_a_localizer_in_the_series_is_left_out(tmp_path):
    series(tmp_path)
    scout = slice_bytes(np.ones(SHAPE[1:]), axes=(0, 1, 0, 0, 0, -1), spacing=SPACING[1:], number=99)
    (tmp_path / "scout.dcm").write_bytes(scout)
    image, warnings = read(tmp_path)
    assert image.GetSize() == SHAPE[::-1] and "one image of another size or orientation" in warnings[0]


def test_the_largest_of_several_series_is_named(tmp_path):
    series(tmp_path)
    for n in range(3):
        (tmp_path / f"b{n}.dcm").write_bytes(slice_bytes(np.ones((8, 8)), (0, 0, n), series="9.9", number=n + 1))
    image, warnings = read(tmp_path)
    assert image.GetSize() == SHAPE[::-1]
    assert 'holds 2 DICOM series (11, 3 files); the largest "phantom" was taken' in warnings[0]
