"""The commands batch, compare and sequence with real registrations of small volumes; the features that runs share."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from cli_steps import refused
from fakes import SHIFT, blob_image
from FoundationRegLib.app import cli
from FoundationRegLib.cohort.sequence import Sequence4D
from FoundationRegLib.cohort.sharing import MeasuredCache
from FoundationRegLib.cohort.variants import chosen_variants, every_variant
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.errors import InputError
from FoundationRegLib.features.extraction import encode_shared
from FoundationRegLib.features.raster import FeatureRaster
from FoundationRegLib.features.store import FeatureStore

QUICK = (
    *("--workers", "0", "--set", "iterations=2", "--set", "levels=2", "--set", "start=none"),
    *("--set", "rigid=false", "--set", "affine=false"),
)


def rows_of(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_batch_writes_every_pair_and_says_with_its_exit_code_that_one_failed(pair, capsys):
    (pair / "broken.nii.gz").write_bytes(b"no image")
    table = pair / "cohort.csv"
    table.write_text("id,fix_volume,mov_volume\ngood,fixed.nii.gz,moving.nii.gz\nbad,fixed.nii.gz,broken.nii.gz\n")
    out = pair / "out"
    assert cli.main(["batch", str(table), "-o", str(out), "-e", "mind", *QUICK]) == 1
    printed, errors = capsys.readouterr()
    assert "as the images lie" in printed and "1 of 2 results are missing" in errors
    good, bad = rows_of(out)
    assert bad["status"] == "failed" and "broken.nii.gz" in bad["reason"] and "read" in bad["reason"]
    assert float(good["nmi"]) > float(good["nmi_before"])
    folder = out / "pairs" / good["folder"]
    assert {"transform.h5", "warped.nii.gz", "jacobian.nii.gz", "report.html", "preview.jpg", "result.json"} == {
        path.name for path in folder.iterdir()
    }
    transform = sitk.ReadTransform(str(folder / "transform.h5"))
    np.testing.assert_allclose(transform.TransformPoint((0.0, 0.0, 0.0)), SHIFT, atol=1.0)
    assert "good" in (out / "report.html").read_text(encoding="utf-8")

    table.write_text("id,fix_volume,mov_volume\ngood,fixed.nii.gz,moving.nii.gz\n")
    before = (folder / "result.json").stat().st_mtime_ns
    assert cli.main(["batch", str(table), "-o", str(out), "-e", "mind", *QUICK, "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0]["event"] == "progress" and said[0]["found"] == 1 and said[-1]["event"] == "result"
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_compare_without_labels_measures_similarity_and_the_way_back(pair, capsys):
    arguments = ["compare", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind"]
    assert cli.main([*map(str, arguments), "--keep", "scores", *QUICK]) == 0
    assert "NMI" in capsys.readouterr().out
    (row,) = rows_of(pair / "out")
    assert 0 <= float(row["inverse_consistency_mm"]) < 2 and float(row["uncertainty_mm"]) > 0
    files = {path.name for path in (pair / "out" / "pairs").rglob("*") if path.is_file()}
    assert files == {"preview.jpg", "result.json"}


def series(path, shifts, as_list=False):
    """A sequence of blobs at ``shifts``: 4-D, or as Slicer writes it, a list of volumes."""
    frames = [blob_image(center=shift) for shift in shifts]
    if not as_list:
        sitk.WriteImage(sitk.JoinSeries(frames, 3.0, 7.0), str(path))
        return frames
    image = sitk.Compose(frames)
    sitk.WriteImage(image, str(path))
    header, _, data = path.read_bytes().partition(b"\n\n")
    path.write_bytes(header.replace(b"kinds: vector", b"kinds: list") + b"\n\n" + data)
    return frames


@pytest.mark.parametrize("name", ["series.nii.gz", "series.seq.nrrd"])
def test_a_sequence_becomes_transforms_and_one_warped_sequence(tmp_path, name):
    shifts = [(3.0, -2.0, 1.0), (0.0, 0.0, 0.0), (-2.0, 1.0, 1.5)]
    frames = series(tmp_path / name, shifts, as_list=name.endswith("nrrd"))
    out = tmp_path / "out"
    arguments = ["sequence", tmp_path / name, "-o", out, "--frame", 1, "-e", "mind", "-q", *QUICK]
    assert cli.main([*map(str, arguments)]) == 0
    for n, shift in enumerate(shifts):
        transform = sitk.ReadTransform(str(out / "transforms" / f"frame{n:03d}.h5"))
        np.testing.assert_allclose(transform.TransformPoint((0.0, 0.0, 0.0)), shift, atol=1.0)
    warped = sitk.ReadImage(str(out / "warped.nii.gz"))
    assert warped.GetSize() == (*frames[0].GetSize(), 3)
    assert np.allclose(warped.GetSpacing()[:3], frames[0].GetSpacing())
    if name.endswith(".nii.gz"):
        assert warped.GetSpacing()[3] == 7.0
    volumes = sitk.GetArrayFromImage(warped)
    fixed = sitk.GetArrayFromImage(frames[1])
    np.testing.assert_array_equal(volumes[1], fixed)
    inside = np.s_[4:-4, 4:-4, 4:-4]
    for n in (0, 2):
        before = np.abs(sitk.GetArrayFromImage(frames[n]) - fixed)[inside].mean()
        assert np.abs(volumes[n] - fixed)[inside].mean() < 0.4 * before
    assert not (out / "frames").exists() and [row["id"] for row in rows_of(out)] == ["frame000", "frame002"]


def test_what_is_no_sequence_is_refused(tmp_path, capsys):
    sitk.WriteImage(blob_image(), str(tmp_path / "one.nii.gz"))
    sitk.WriteImage(sitk.Compose([blob_image()] * 3), str(tmp_path / "vectors.nrrd"))
    series(tmp_path / "two.nii.gz", [(0, 0, 0), (1, 0, 0)])
    for name in ("one.nii.gz", "vectors.nrrd"):
        assert "holds one volume" in refused(capsys, "sequence", tmp_path / name, "-o", tmp_path / "out")
    assert "frames 0 to 1" in refused(capsys, "sequence", tmp_path / "two.nii.gz", "-o", tmp_path / "o", "--frame", 2)
    with pytest.raises(InputError, match="does not exist"):
        Sequence4D.read(tmp_path / "gone.nii.gz")
    assert not (tmp_path / "out").exists()


def test_bad_arguments_of_a_batch(pair, capsys):
    table = pair / "cohort.csv"
    assert "does not exist" in refused(capsys, "batch", table, "-o", pair / "out")
    table.write_text("fixed,moving\nfixed.nii.gz,moving.nii.gz\n")
    assert "no preset 'x'" in refused(capsys, "batch", table, "-o", pair / "out", "--preset", "x")
    assert "given twice" in refused(capsys, "batch", table, "-o", pair / "out", "-e", "mind", "-e", "mind")
    assert "nothere" in refused(capsys, "batch", table, "-o", pair / "out", "-e", "nothere")
    assert "negative" in refused(capsys, "batch", table, "-o", pair / "out", "-e", "mind", "--workers", "-1")
    assert "leave --preset" in refused(capsys, "batch", table, "-o", pair / "out", "-e", "mind", "--all-encoders")
    assert "device" in refused(capsys, "batch", table, "-o", pair / "out", "-e", "mind", "--device", "nothing")
    assert not (pair / "out").exists()


def test_variants_of_presets_and_encoders():
    made = chosen_variants(["foundation", "brain"], ["mind", "preset"], {"threads": 1})
    assert [v.name for v in made] == ["foundation with mind", "foundation", "brain with mind", "brain"]
    assert made[0].settings["encoders"] == [["mind", 1.0]] and made[1].settings["encoders"][0][0] == "medsam-lite"
    assert made[3].settings["search_range_mm"] == 20.0
    (combined,) = chosen_variants(encoders=["medsam-lite=0.15,mind"])
    assert combined.settings["encoders"] == [["medsam-lite", 0.15], ["mind", 1.0]]


def test_everything_that_is_installed_begins_with_mind_alone(monkeypatch):
    from FoundationRegLib.weights import store

    monkeypatch.setattr(store, "status", lambda item: {"ready": item.id in ("mind", "medsam-lite")})
    made = every_variant({"threads": 1})
    assert made[0].settings["encoders"] == [["mind", 1.0]]
    encoders = {name for v in made for name, _ in v.settings["encoders"]}
    assert encoders == {"mind", "medsam-lite"}
    contents = [str({**v.settings, "preset": ""}) for v in made]
    assert len(set(contents)) == len(contents), "nothing is registered twice"
    names = {v.name for v in made}
    assert {"mind (preset default)", "medsam-lite", "medsam-lite=0.15,mind (preset foundation)"} <= names
    assert "preset study" in names
    assert "preset study" not in {v.name for v in every_variant(without=["preset study"])}
    with pytest.raises(InputError, match="preset study"):
        every_variant(without=["nothing"])


# Features that runs share


class Counting:
    """A slice encoder that counts the slices it sees."""

    id, channels, stride, multiple, pixels, weights_sha256 = "counting", 3, 8, 8, 32, "0" * 64

    def __init__(self):
        self.slices = 0

    def __call__(self, slices):
        self.slices += len(slices)
        pooled = torch.nn.functional.avg_pool2d(slices, self.stride)
        return torch.cat([pooled, pooled**2, torch.sin(5 * pooled)], 1)


def test_an_image_in_many_pairs_is_encoded_once(tmp_path):
    grid = Grid.from_axes((12, 32, 32), (4.0, 2.0, 2.0), (0, 0, 0), np.eye(3))
    generator = np.random.default_rng(0)
    fixed, *others = (generator.random(grid.shape, np.float32) for _ in range(3))
    masks = (np.ones(grid.shape, bool),) * 2
    encoder, plain = Counting(), Counting()

    def encode(encoder, moving, store=None, **more):
        return encode_shared((fixed, moving), masks, grid, encoder, 2, store=store, **more)

    first = encode(encoder, others[0], FeatureStore(tmp_path))
    both = encoder.slices
    second = encode(encoder, others[1], FeatureStore(tmp_path))
    assert encoder.slices == both * 3 // 2, "the second time only the moving image was encoded"
    encode(encoder, others[1], FeatureStore(tmp_path))
    assert encoder.slices == both * 3 // 2
    for moving, made in ((others[0], first), (others[1], second)):
        for raster, expected in zip(made, encode(plain, moving), strict=True):
            assert torch.equal(raster.values, expected.values)
            assert all((a == b).all() for a, b in zip(raster.positions, expected.positions, strict=True))
    for change in ({"pixels": 16}, {"slice_gap_mm": 20.0}, {"label": "other layers"}, {"subtract_empty": True}):
        before = encoder.slices
        encode(encoder, others[0], FeatureStore(tmp_path), **change)
        assert encoder.slices > before, f"{change} makes other features"


def test_the_store_stays_within_its_limit_and_survives_damage(tmp_path):
    grid = Grid.from_axes((4, 4, 4), (1.0, 1.0, 1.0), (0, 0, 0), np.eye(3))
    positions = tuple(np.arange(4.0) for _ in range(3))
    values = torch.zeros(4, 4, 4, 100, dtype=torch.float16)
    store = FeatureStore(tmp_path, limit_gb=5e-5)
    for n in range(8):
        store.put(f"key{n}", FeatureRaster(values + n, positions, grid))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 6e4
    assert store.get("key0", grid, torch.device("cpu")) is None
    assert float(store.get("key7", grid, torch.device("cpu")).values.mean()) == 7
    (tmp_path / "key7.safetensors").write_bytes(b"damaged")
    assert store.get("key7", grid, torch.device("cpu")) is None
    file = tmp_path / "file"
    file.touch()
    FeatureStore(file / "below").put("key", FeatureRaster(values, positions, grid))  # a disk that refuses is no fault


def test_encoders_outlive_the_cache_of_one_pair(monkeypatch):
    from FoundationRegLib.cohort import sharing

    monkeypatch.setattr(sharing, "_encoders", {})
    key = ("encoder", "small")
    assert MeasuredCache().find(key) is None
    MeasuredCache().get(key, lambda: "loaded")
    assert MeasuredCache().find(key) == "loaded" == MeasuredCache().get(key, lambda: pytest.fail("loaded again"))


def test_a_cache_counts_what_it_saved_also_inside_of_others(monkeypatch):
    from FoundationRegLib.cohort import sharing

    now = [0.0]
    monkeypatch.setattr(sharing.time, "monotonic", lambda: now[0])

    def work(seconds):
        now[0] += seconds
        return seconds

    cache = MeasuredCache()
    cache.get(("a",), lambda: work(3.0))
    assert cache.saved == 0
    cache.get(("b",), lambda: cache.get(("a",), lambda: work(100.0)) + work(2.0))
    assert cache.saved == 3.0
    cache.get(("b",), lambda: work(100.0))
    assert cache.saved == 3.0 + 5.0, "b alone would have taken both"
    cache.drop_own()
    cache.get(("a",), lambda: work(4.0))
    assert cache.saved == 8.0
