"""Headers are held against what the files hold, before ITK reads them."""

import gzip
import os
import struct
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from FoundationRegLib.errors import InputError
from FoundationRegLib.images import contents
from FoundationRegLib.images.headers import check_header

NOISE = np.random.default_rng(3).random((16, 14, 12)).astype(np.float32)
NRRD = (
    b"NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 12 14 16\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\n"
    b"encoding: raw\nspace origin: (0,0,0)\n\n" + NOISE.tobytes()
)
META = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 12 14 16\n"
    b"ElementType = MET_FLOAT\nElementDataFile = LOCAL\n" + NOISE.tobytes()
)


@pytest.fixture
def image(tmp_path):
    """Writes an image under a name, and gives its path and content."""

    def make(name, array=NOISE, compress=True):
        path = tmp_path / name
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compress)
        return path, path.read_bytes()

    return make


def patched(content, *changes):
    content = bytearray(content)
    for offset, code, value in changes:
        struct.pack_into(f"<{code}", content, offset, value)
    return bytes(content)


def refusal(path, content=None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_header(path, "The fixed image x")
    text = str(caught.value)
    assert text.startswith("The fixed image x ") and text.endswith(".") and "\n" not in text
    return text


FORMATS = [("a.nii", False), ("a.nii.gz", True), ("a.nrrd", False), ("a.nrrd", True), ("a.mha", False), ("a.mha", True)]


@pytest.mark.parametrize(("name", "compress"), FORMATS)
def test_whole_files_pass_and_cut_ones_are_refused(image, name, compress):
    path, content = image(name, compress=compress)
    assert check_header(path, "The fixed image x").broken.size == 0
    for length in np.linspace(360, len(content) - 1, 12).astype(int):
        refusal(path, content[:length])


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_bits_that_tip_in_compressed_voxels_are_found(image, name):
    path, content = image(name)
    for place in np.linspace(len(content) // 2, len(content) - 20, 8).astype(int):
        refusal(path, content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(80, "f", 0.0)], "voxels of 0 mm (pixdim[1])"),
        ([(84, "f", float("nan"))], "(pixdim[2])"),
        ([(88, "f", 1e9)], "voxels of 1e+09 mm (pixdim[3])"),
        ([(80, "f", 1e-9)], "(pixdim[1])"),
        ([(254, "h", 1), (292, "f", float("nan"))], "nan in its field srow"),
        ([(254, "h", 1), (280, "f", 0.0), (296, "f", 0.0), (312, "f", 0.0)], "srow"),
        ([(252, "h", 1), (272, "f", float("inf"))], "inf in its field quatern or qoffset"),
        ([(42, "h", -16)], "(dim)"),
        ([(40, "h", 99)], "99 dimensions"),
        ([(70, "h", 9999)], "datatype 9999"),
        ([(108, "f", float("nan"))], "vox_offset"),
        ([(108, "f", 1e6)], "holds 0"),
        ([(112, "f", float("nan"))], "scl_slope"),
        ([(344, "i", int.from_bytes(b"ni1\0", "little"))], "another file"),
        ([(42, "h", 32767), (44, "h", 32767), (46, "h", 32767)], "memory here"),
    ],
)
def test_nifti_fields_that_cannot_be_are_named(image, changes, words):
    path, content = image("a.nii")
    assert words in refusal(path, patched(content, *changes))


def test_a_small_file_that_promises_much_is_refused_at_once(image, monkeypatch):
    monkeypatch.setattr(contents, "total_memory", lambda: 0)
    path, content = image("a.nii.gz", np.zeros((64, 64, 64), np.uint8))
    content = gzip.compress(patched(gzip.decompress(content), *[(n, "h", 2000) for n in (42, 44, 46)]))
    assert "promises 8,000,000,000 bytes" in refusal(path, content)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"sizes: 12 14 16", b"sizes: 2000 2000 2000", "memory|promises"),
        (b"sizes: 12 14 16", b"sizes: 12 -14 16", "sizes"),
        (b"sizes: 12 14 16", b"sizes: a b c", "no numbers"),
        (b"dimension: 3", b"dimension: 4", "dimension 4"),
        (b"type: float", b"type: block", "unknown type"),
        (b"(1,0,0)", b"(0,0,0)", "voxels of 0 mm"),
        (b"(1,0,0)", b"(nan,0,0)", "space directions"),
        (b"space origin: (0,0,0)", b"space origin: (0,nan,0)", "space origin"),
        (b"encoding: raw", b"encoding: zip", "encoding"),
        (b"encoding: raw", b"encoding: ascii", "no number|as text"),
        (b"encoding: raw", b"encoding: gzip", "holds 0"),
        (b"encoding: raw\n", b"", "no field encoding"),
        (b"encoding: raw\n", b"encoding: raw\nbyte skip: 100\n", "cut off"),
        (b"encoding: raw\n", b"encoding: raw\ndata file: nowhere.raw\n", "nowhere.raw"),
        (b"encoding: raw\n", b"encoding: raw\n" + b"#" * 5000 + b"\n", "too long"),
    ],
)
def test_nrrd_fields_that_cannot_be_are_named(tmp_path, old, new, words):
    import re

    assert old in NRRD
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        check_header(path, "The fixed image x")
    assert re.search(words, str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"NDims = 3", b"NDims = 99", "NDims"),
        (b"DimSize = 12 14 16", b"DimSize = -12 14 16", "DimSize"),
        (b"DimSize = 12 14 16", b"DimSize = 12 14", "2 sizes for 3"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = nan 1 1", "ElementSpacing"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1", "voxels of 0 mm"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 1", "1 numbers in ElementSpacing"),
        (b"Offset = 0 0 0", b"Offset = 0 inf 0", "offset"),
        (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0", "transformmatrix"),
        (b"MET_FLOAT", b"MET_NONSENSE", "unknown type"),
        (b"LOCAL", b"%s%s%s%n", "pattern"),
        (b"LOCAL", b"%d %d %d", "pattern"),
        (b"LOCAL", b"%99999999d.raw 1 16", "pattern"),
        (b"LOCAL", b"LIST", "regular|cannot be read|data file"),
        (b"LOCAL", b"nowhere.raw", "nowhere.raw"),
        (b"CompressedData = False", b"CompressedData = True", "holds 0"),
    ],
)
def test_metaimage_fields_that_cannot_be_are_named(tmp_path, old, new, words):
    import re

    assert old in META
    path = tmp_path / "a.mha"
    path.write_bytes(META.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        check_header(path, "The fixed image x")
    assert re.search(words, str(caught.value)), caught.value


def test_detached_voxels_are_counted(tmp_path):
    header = META[: META.index(b"LOCAL")]
    slices = [tmp_path / f"slice{n:02d}.raw" for n in range(16)]
    for path, plane in zip(slices, NOISE, strict=True):
        path.write_bytes(plane.tobytes())
    (tmp_path / "one.mhd").write_bytes(header + b"whole.raw\n")
    (tmp_path / "whole.raw").write_bytes(NOISE.tobytes())
    (tmp_path / "many.mhd").write_bytes(header + b"slice%02d.raw 0 15 1\n")
    for name in ("one.mhd", "many.mhd"):
        assert check_header(tmp_path / name, "The fixed image x").detached
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))), NOISE)
    slices[7].write_bytes(slices[7].read_bytes()[:-4])
    assert "cut off" in refusal(tmp_path / "many.mhd")
    (tmp_path / "whole.raw").write_bytes(NOISE.tobytes()[:-4])
    assert "cut off" in refusal(tmp_path / "one.mhd")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_voxels_that_itk_would_turn_into_zero_are_found(image, name):
    array = NOISE.copy()
    array[3, 4, 5], array[10, 0, 1] = np.nan, np.inf
    path, _ = image(name, array)
    assert check_header(path, "x").broken.tolist() == np.flatnonzero(~np.isfinite(array)).tolist()


def test_formats_are_known_by_content(image):
    kinds = {}
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        path, _ = image(name)
        other = path.with_name("other.img")
        path.rename(other)
        kinds[name] = check_header(other, "x").kind
    assert kinds == {"a.nii": "nifti", "a.nii.gz": "nifti", "a.nrrd": "nrrd", "a.mha": "meta"}


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b", b"\x1f\x8b" + b"x" * 500, b"\0" * 2000, b"NRRD0004\n"])
def test_other_files_are_refused(tmp_path, content):
    refusal(tmp_path / "a.nii", content)


@pytest.mark.skipif(not hasattr(os, "mkfifo") or sys.platform == "win32", reason="no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    assert "pipe" in refusal(tmp_path / "a.nii")
