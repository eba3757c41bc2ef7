"""Nothing goes wrong without a word: what comes in is heeded, refused or said."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fakes import blob_image
from FoundationRegLib.core import memory
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.errors import InputError, OutOfMemory, WeightsError
from FoundationRegLib.evaluation import metrics
from FoundationRegLib.images.landmarks import Points, read_points, write_points
from FoundationRegLib.images.reading import read_image, read_transform, repair
from FoundationRegLib.numerics import devices
from FoundationRegLib.registration import deformable, pipeline, preparation
from FoundationRegLib.registration.content import content_hash
from FoundationRegLib.registration.inputs import Inputs, read_inputs
from FoundationRegLib.settings import Settings
from FoundationRegLib.weights import acquisition, store

QUICK = Settings(encoders="mind", levels=(2, 1), iterations=2, start="none", rigid=False, affine=False,
                 search_range_mm=6.0, device="cpu")  # fmt: skip
ADAM = QUICK.replace(optimizer="adam", diffeomorphic=False, sliding=False, grey_values=False, levels=(2,))


def field_transform(origin=(0.0, 0.0, 0.0), spacing=1.0):
    vectors = np.zeros((6, 6, 6, 3))
    vectors[2:4, 2:4, 2:4] = 2.0
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.SetOrigin(origin)
    field.SetSpacing((spacing,) * 3)
    return sitk.DisplacementFieldTransform(field)


# Reading


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_voxels_that_are_no_numbers_reach_repair_in_every_format(tmp_path, name):
    array = sitk.GetArrayFromImage(blob_image())
    array[5, 6, 7], array[8, 9, 10] = np.nan, np.inf
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name))
    read = read_image(tmp_path / name, "fixed image")
    assert (~np.isfinite(sitk.GetArrayFromImage(read))).sum() == (1 if name.startswith("a.nii") else 2) + (
        name.startswith("a.nii")
    )
    repaired, warnings = repair(read, "fixed image")
    assert "2 voxels that are not numbers" in warnings[0]
    assert sitk.GetArrayFromImage(repaired)[5, 6, 7] == pytest.approx(array[5, 6, 6], rel=0.5)


def test_values_that_overflow_are_no_numbers(tmp_path):
    array = sitk.GetArrayFromImage(blob_image()).astype(np.float64)
    array[3, 3, 3] = 1e300
    _, warnings = repair(sitk.GetImageFromArray(array), "fixed image")
    assert "1 voxels that are not numbers" in warnings[0]


def test_files_are_read_by_their_content_whatever_they_are_called(tmp_path):
    array = sitk.GetArrayFromImage(blob_image())
    sitk.WriteImage(blob_image(), str(tmp_path / "a.nii"))
    content = (tmp_path / "a.nii").read_bytes()
    sitk.WriteImage(blob_image(), str(tmp_path / "a.nrrd"))
    names = {"plain.nii.gz": content, "packed.nii": gzip.compress(content), "scan": content,
             "other.nii": (tmp_path / "a.nrrd").read_bytes()}  # fmt: skip
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / name, "image")), array)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_a_name_that_is_no_text_can_be_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/scan\xff.nii"
    sitk.WriteImage(blob_image(), str(tmp_path / "a.nii"))
    os.rename(tmp_path / "a.nii", path)
    assert read_image(os.fsdecode(path), "image").GetSize() == blob_image().GetSize()
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(InputError, match="cut off"):
        read_image(os.fsdecode(path), "image")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.SetSpacing((1e-9, 1, 1)), "voxels of 1e-09"),
        (lambda i: i.SetSpacing((1, 1e9, 1)), "voxels of"),
        (lambda i: i.SetOrigin((float("nan"), 0, 0)), "origin that cannot be"),
        (lambda i: i.SetOrigin((0, 1e300, 0)), "origin that cannot be"),
    ],
)
def test_geometry_in_memory_that_cannot_be_is_refused(change, words):
    image = blob_image()
    change(image)
    with pytest.raises(InputError, match=words):
        read_image(image, "fixed image")


def test_libraries_print_nothing_beside_our_sentence(tmp_path):
    sitk.WriteTransform(field_transform(), str(tmp_path / "t.h5"))
    content = bytearray((tmp_path / "t.h5").read_bytes())
    content[500:5000] = b"\xff" * 4500
    (tmp_path / "t.h5").write_bytes(content)
    sitk.WriteImage(blob_image(), str(tmp_path / "a.nii"))
    command = [sys.executable, "-m", "FoundationRegLib.app.cli", "evaluate", "a.nii", "a.nii", "--transform", "t.h5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    outcome = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == 2 and outcome.stdout == ""
    assert outcome.stderr.startswith("foundationreg: The transform t.h5 ") and outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "parameters", "fixed"),
    [
        ("BSplineTransform", "0 0 0", "100000 100000 100000 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"),
        ("AffineTransform", "0 0 0 0 0 0 0 0 0 0 0 0", "0 0 0"),
        ("AffineTransform", "1 0 0 0 1 0 0 0 1 1e300 0 0", "0 0 0"),
        ("AffineTransform", "nan 0 0 0 1 0 0 0 1 0 0 0", "0 0 0"),
    ],
)
def test_transforms_that_cannot_be_are_refused(tmp_path, kind, parameters, fixed):
    (tmp_path / "t.tfm").write_text(
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}_double_3_3\nParameters: {parameters}\n"
        f"FixedParameters: {fixed}\n"
    )
    with pytest.raises(InputError, match=r"The transform .*t\.tfm "):
        read_transform(tmp_path / "t.tfm")


def test_a_singular_initial_transform_in_memory_is_refused():
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((1, 0, 0, 0, 1, 0, 0, 0, 0))
    with pytest.raises(InputError, match="initial transform is singular"):
        read_inputs(blob_image(), blob_image(), initial_transform=transform)


@pytest.mark.parametrize(
    "text", ["x,y,z\n" + "1" * 140_000 + ",2,3\n", 'x,y,z\n"' + "a" * 140_000, "x,y,z\n1e300,0,0\n"]
)
def test_landmark_cells_without_bounds_are_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"The points file .*a\.csv "):
        read_points(tmp_path / "a.csv")


def test_deeply_nested_landmarks_are_refused(tmp_path):
    (tmp_path / "a.mrk.json").write_text('{"markups":' + "[" * 200_000)
    with pytest.raises(InputError, match="does not hold points"):
        read_points(tmp_path / "a.mrk.json")


def test_labels_that_a_spreadsheet_would_run_are_written_as_text(tmp_path):
    labels = ('=HYPERLINK("http://x")', "+1+1", "-A1", "@SUM(A1)", "\tx", "plain")
    write_points(Points(np.zeros((6, 3)), labels), tmp_path / "a.csv")
    cells = [row.split(",")[0].strip('"') for row in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert [cell[0] for cell in cells] == ["'", "'", "'", "'", "'", "p"]


# What is given is heeded


@pytest.mark.parametrize(
    ("guides", "words"),
    [
        ({"fixed_points": np.zeros((1, 3)), "moving_points": np.zeros((1, 3)), "guide_with_points": True}, "landmarks"),
        ({"moving_mask": blob_image() > 100}, "mask of the moving image"),
        ({"exclude_moving": blob_image() > 900}, "mask of the moving image"),
    ],
)
def test_adam_refuses_what_it_would_drop(guides, words):
    with pytest.raises(InputError, match=f"adam cannot be guided by .*{words}"):
        pipeline.register(blob_image(), blob_image(), ADAM, **guides)


@pytest.mark.parametrize("name", ["sliding", "grey_values"])
def test_adam_refuses_settings_that_it_does_not_know(name):
    with pytest.raises(InputError, match=f"set {name}=false"):
        ADAM.replace(**{name: True})


def test_two_initial_fields_in_different_places_have_two_keys():
    def key(transform):
        return content_hash(transform)

    fields = [field_transform(), field_transform(origin=(1, 0, 0)), field_transform(spacing=2.0)]
    shift = sitk.TranslationTransform(3, (1.0, 0.0, 0.0))
    composites = [sitk.CompositeTransform([field, shift]) for field in fields]
    composites.append(sitk.CompositeTransform([fields[0], sitk.TranslationTransform(3, (2.0, 0.0, 0.0))]))
    keys = [key(transform) for transform in (*fields, *composites, None)]
    assert len(set(keys)) == len(keys)
    assert key(field_transform()) == keys[0]
    with pytest.raises(TypeError):  # what cannot be told apart must not share a key
        content_hash(Inputs(blob_image(), blob_image()))


def test_uncertainty_is_smaller_where_landmarks_hold_the_field():
    fixed = blob_image()
    point = np.array([[0.0, 0.0, 0.0]])
    maps = {}
    for guided in (False, True):
        result = pipeline.register(
            fixed, blob_image(center=(1.0, 0, 0)), QUICK, fixed_points=point, guide_with_points=guided,
            moving_points=point + np.array([1.0, 0, 0]),
        )  # fmt: skip
        maps[guided] = result.uncertainty[fixed.TransformPhysicalPointToIndex((0.0, 0.0, 0.0))]
    assert maps[True] < 0.97 * maps[False]


def test_uncertainty_is_of_the_features_that_refined(monkeypatch):
    seen = {}
    original = deformable.posterior_deviation

    def watch(pairs, *arguments):
        seen["pairs"], seen["moving weight"] = len(pairs), arguments[4]
        return original(pairs, *arguments)

    monkeypatch.setattr(deformable, "posterior_deviation", watch)
    monkeypatch.setattr(deformable, "_grey_weights", lambda *_: (1.0, 0.5))
    pipeline.register(blob_image(), blob_image(center=(1.0, 0, 0)), QUICK)
    assert seen["pairs"] == 3 and seen["moving weight"] is not None


def test_a_label_that_leaves_the_image_makes_the_distance_worse():
    array = np.zeros((20, 20, 20), np.uint8)
    array[4:8, 4:8, 4:8], array[12:16, 12:16, 12:16] = 1, 2
    labels = sitk.GetImageFromArray(array)
    small = metrics.label_scores(labels, labels, sitk.TranslationTransform(3, (1.0, 0.0, 0.0)))
    gone = metrics.label_scores(labels, labels, sitk.TranslationTransform(3, (13.0, 0.0, 0.0)))
    assert gone["dice_per_label"][2] == 0
    assert small["hd95_mm"] == pytest.approx(1.0)
    # Label 1 is 13 mm off in the image, label 2 has left it and counts with the diagonal.
    assert gone["hd95_mm"] > (20 * 3**0.5) / 2 > small["hd95_mm"]


# The same input, the same result


def test_a_warm_process_keeps_no_threads_of_an_earlier_run():
    before = torch.get_num_threads()
    with devices.cpu_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), devices.cpu_threads(1):
        raise ZeroDivisionError
    pipeline.register(blob_image(), blob_image(), QUICK.replace(threads=1))
    assert torch.get_num_threads() == before


def test_the_working_grid_does_not_depend_on_what_is_free(monkeypatch):
    properties = type("Properties", (), {"total_memory": 2_000_000_000})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: pytest.fail("asked what is free"))
    settings = Settings(encoders="mind")
    voxels = preparation.working_voxels(settings, torch.device("cuda"))
    assert 200_000 <= voxels < preparation.working_voxels(settings.replace(memory_gb=4), torch.device("cuda"))


def test_operations_of_a_device_are_held_against_the_cpu(monkeypatch):
    assert devices.wrong_operations("cpu") == ()
    assert set(devices.wrong_operations("meta")) == set(devices._OPERATIONS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for wrong, chosen in (((), "mps"), (("3-D sampling, nearest",), "cpu")):
        monkeypatch.setattr(devices, "wrong_operations", lambda device, wrong=wrong: wrong)
        assert devices.choose_device("auto").type == chosen


# Memory

TEXTS = {
    "torch on the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "torch on Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory"),
    "torch on CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "torch on MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB)"),
    "ITK": RuntimeError("sitk::ERROR: itkImportImageContainer.hxx:191: Failed to allocate memory for image."),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "numpy": np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype(float)),
}  # fmt: skip


@pytest.mark.parametrize("who", TEXTS)
def test_running_out_of_memory_is_known_and_backed_off_from(monkeypatch, who):
    assert memory.is_out_of_memory(TEXTS[who])
    original, tries = pipeline.deform, []

    def short(pair, *arguments):
        tries.append(np.prod(pair.grid.shape))
        if tries[-1] == tries[0]:
            raise TEXTS[who]
        return original(pair, *arguments)

    monkeypatch.setattr(pipeline, "deform", short)
    monkeypatch.setattr(pipeline, "METHOD", type("Constants", (), {"least_voxels": 10})())
    result = pipeline.register(blob_image(), blob_image(), QUICK, cache=Cache())
    assert tries[-1] < tries[0]
    assert any("memory" in warning for warning in result.warnings)

    def hopeless(*arguments):
        raise TEXTS[who]

    monkeypatch.setattr(pipeline, "deform", hopeless)
    with pytest.raises(OutOfMemory):
        pipeline.register(blob_image(), blob_image(), QUICK)


def test_other_errors_are_no_lack_of_memory():
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), OSError("out of memory")):
        assert not memory.is_out_of_memory(error)


def test_the_computers_memory_is_what_the_system_says():
    if sys.platform == "linux":
        with open("/proc/meminfo") as file:
            total = int(file.readline().split()[1]) * 1024
        assert 0 < memory.total_memory() <= total * 1.01


# Downloads and licences


def test_register_fetches_nothing_unless_told(tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDATIONREG_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def download(id, build, accept_licence=False, progress=None):
        asked.append((id, accept_licence))
        raise WeightsError("no network here")

    monkeypatch.setattr(acquisition, "download", download)
    settings = QUICK.replace(encoders="medsam-lite,mind")
    with pytest.raises(WeightsError, match="foundationreg encoders download medsam-lite"):
        pipeline.register(blob_image(), blob_image(), settings)
    assert not asked and not (tmp_path / "models").exists()
    with pytest.raises(WeightsError, match="no network here"):
        pipeline.register(blob_image(), blob_image(), settings, download=True)
    assert asked == [("medsam-lite", True)]


@pytest.mark.parametrize(
    "text", ["[]", '{"sha256": 3, "licence_accepted": [], "checked": "x"}', "[" * 100_000, "\udcff"]
)
def test_a_malformed_record_stops_nothing(tmp_path, monkeypatch, text):
    monkeypatch.setenv("FOUNDATIONREG_MODELS", str(tmp_path))
    (tmp_path / "medsam-lite").mkdir()
    (tmp_path / "medsam-lite" / store.RECORD).write_text(text, encoding="utf-8", errors="surrogateescape")
    state = store.status("medsam-lite")
    assert not state["licence_accepted"] and state["sha256"] == ""
    store.write_record(store.entry("medsam-lite"), sha256="abc")
    assert json.loads((tmp_path / "medsam-lite" / store.RECORD).read_text()) == {"sha256": "abc"}


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_a_report_names_files_whose_names_are_no_text(tmp_path, fake_registration):
    from FoundationRegLib.app import cli

    for name in (b"fixed\xff.nii", b"moving\xfe.nii"):
        sitk.WriteImage(blob_image(), str(tmp_path / "a.nii"))
        os.rename(tmp_path / "a.nii", os.fsencode(tmp_path) + b"/" + name)
    images = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in (b"fixed\xff.nii", b"moving\xfe.nii")]
    assert cli.main(["register", *images, "-e", "mind", "-o", str(tmp_path / "out")]) == 0
    assert "fixed\ufffd.nii" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
