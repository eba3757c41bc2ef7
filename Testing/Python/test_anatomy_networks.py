"""Anatomy networks: each against a direct statement of its layers; frames, tiles, files and class lists."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_grid
from FoundationRegLib.encoders import loading
from FoundationRegLib.encoders.anatomy import AnatomyNetwork, Frame, certain_volume
from FoundationRegLib.encoders.anatomy_loading import load_anatomy, require_anatomy
from FoundationRegLib.encoders.loading import build_network
from FoundationRegLib.encoders.meshnet import MeshNet, build_meshnet, describe_tfjs
from FoundationRegLib.encoders.obelisk import TciaHybrid, build_obelisk, sampled
from FoundationRegLib.encoders.pdd import PddFeatures, build_pdd
from FoundationRegLib.errors import InputError, WeightsError
from FoundationRegLib.weights import acquisition, store, trust
from FoundationRegLib.weights.catalogue import catalogue
from scipy import ndimage, special

_WEIGHTS = [parent / "shared" / "weights" for parent in Path(__file__).parents]
PUBLISHED = next((place for place in _WEIGHTS if place.is_dir()), None)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    trust._given.clear()
    yield
    trust._given.clear()


# MeshNet


def slow_convolution(x, kernel, bias, step):
    """``x`` (D, H, W, in) under ``kernel`` (d, h, w, in, out), dilated by ``step``, zeros outside, voxel by voxel."""
    reach = step * (kernel.shape[0] // 2)
    padded = np.pad(x, [(reach, reach)] * 3 + [(0, 0)])
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for place in np.ndindex(*x.shape[:3]):
        for tap in np.ndindex(*kernel.shape[:3]):
            out[place] += padded[tuple(p + step * t for p, t in zip(place, tap, strict=True))] @ kernel[tap]
    return out + bias


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * 0.5 * (1 + special.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize(("activation", "normalised"), [("relu", False), ("elu", False), ("gelu", True)])
def test_meshnet_is_what_its_file_says_layer_by_layer(tmp_path, activation, normalised):
    random = np.random.default_rng(0)
    network = {"channels": 3, "dilations": [1, 2], "classes": 4, "activation": activation, "normalised": normalised}
    x = random.normal(size=(5, 4, 6, 1))
    arrays, y, inputs = [], x, 1
    for step in network["dilations"]:
        kernel, bias = random.normal(size=(3, 3, 3, inputs, 3)), random.normal(size=3)
        arrays += [kernel] if normalised else [kernel, bias]
        y, inputs = slow_convolution(y, kernel, 0 if normalised else bias, step), 3
        if normalised:
            y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
        y = ACTIVATIONS[activation](y)
    kernel, bias = random.normal(size=(1, 1, 1, 3, 4)), random.normal(size=4)
    expected = slow_convolution(y, kernel, bias, 1)
    file = tmp_path / "model.bin"
    file.write_bytes(b"".join(array.astype("<f4").tobytes() for array in (*arrays, kernel, bias)))
    with torch.inference_mode():
        made = build_meshnet(file, network)(torch.from_numpy(x[..., 0]).float()[None, None])[0]
    np.testing.assert_allclose(made.movedim(0, -1).numpy(), expected, atol=2e-4)


def test_meshnet_refuses_a_file_of_another_length_or_with_broken_numbers(tmp_path):
    network = {"channels": 3, "dilations": [1], "classes": 2}
    file = tmp_path / "model.bin"
    for content, message in (
        (b"\0" * 4 * 91, "holds 91 numbers; this network has 92"),
        (b"abc", "no float32"),
        (np.full(92, np.nan, "<f4").tobytes(), "not finite"),
    ):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            build_meshnet(file, network)


def tfjs(path, **changes):
    """A model.json of two layers and an output, as TensorFlow.js writes it."""

    def layer(kind, name, **config):
        return {"class_name": kind, "config": {"name": name, **config}}

    hidden = {"filters": 5, "kernel_size": [3, 3, 3], "use_bias": True}
    layers = [
        layer("InputLayer", "input"),
        layer("Conv3D", "a", dilation_rate=[1, 1, 1], **hidden),
        layer("Activation", "b", activation="elu"),
        layer("Conv3D", "c", dilation_rate=[4, 4, 4], **hidden),
        layer("Activation", "d", activation="elu"),
        layer("Conv3D", "output", filters=7, kernel_size=[1, 1, 1], dilation_rate=[1, 1, 1], use_bias=True),
    ]
    shapes = [[3, 3, 3, 1, 5], [5], [3, 3, 3, 5, 5], [5], [1, 1, 1, 5, 7], [7]]
    weights = [{"name": str(n), "shape": shape, "dtype": "float32", **changes} for n, shape in enumerate(shapes)]
    content = {
        "modelTopology": {"model_config": {"config": {"layers": layers}}},
        "weightsManifest": [{"paths": ["model.bin"], "weights": weights}],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_model_json_tells_the_network_and_its_file(tmp_path):
    network, file = describe_tfjs(tfjs(tmp_path / "model.json"))
    expected = {"channels": 5, "dilations": [1, 4], "classes": 7, "activation": "elu", "normalised": False}
    assert (network, file) == (expected, "model.bin")
    with pytest.raises(WeightsError, match="another kind of network"):
        describe_tfjs(tfjs(tmp_path / "model.json", quantization={"dtype": "uint8"}))
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"no model\.json of a MeshNet"):
        describe_tfjs(tmp_path / "model.json")


# OBELISK and PDD-net


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.dtype != torch.float32:
            continue
        scale = 0.1 if "offset" in name else (value[0].numel() ** -0.5 if value.ndim > 1 else 0.2)
        noise = torch.randn(value.shape, generator=generator) * scale
        value.copy_(noise.abs() + 0.5 if "var" in name else noise + ("batch" in name and name.endswith("weight")))
    return network.eval()


def test_sampling_at_offsets_agrees_with_interpolation_by_scipy():
    image, offsets = torch.rand(1, 2, 6, 7, 8), torch.randn(1, 5, 1, 1, 3) * 0.2
    size = (3, 4, 5)
    made = sampled(image, offsets, size).reshape(2, 5, *size)
    ends = np.array(image.shape[2:]) - 1
    for n, offset in enumerate(offsets[0, :, 0, 0].numpy()):
        nodes = np.stack(np.meshgrid(*(np.linspace(-1, 1, k) for k in size), indexing="ij"), -1) + offset[::-1]
        places = np.moveaxis((nodes + 1) / 2 * ends, -1, 0)
        for channel in range(2):
            padded = np.pad(image[0, channel].numpy(), 1)
            expected = ndimage.map_coordinates(padded, places + 1, order=1, mode="constant")
            np.testing.assert_allclose(made[channel, n], expected, atol=1e-5)


def normed(s, name, x):
    values = [s[f"{name}.{part}"].view(1, -1, 1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")]
    mean, var, weight, bias = values
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def test_obelisk_is_what_its_paper_says_layer_by_layer(tmp_path):
    network = randomised(TciaHybrid())
    torch.save(network.state_dict(), tmp_path / "w.pth")
    s, x = network.state_dict(), torch.rand(1, 1, 16, 16, 16)

    def act(y):
        return torch.where(y > 0, y, 0.025 * y)

    def block(name, y, stride=1):
        y = F.conv3d(y, s[f"conv{name}.weight"], s[f"conv{name}.bias"], stride, padding=1)
        return act(normed(s, f"batch{name}", y))

    def dense(n, y, groups):
        y = act(F.conv3d(y, s[f"linear{n}a.weight"], groups=groups))
        for letter, norm in (("b", "a"), ("c", "b"), ("d", "c")):
            new = act(F.conv3d(normed(s, f"batch{n}{norm}", y), s[f"linear{n}{letter}.weight"]))
            y = torch.cat((y, new), 1)
        return act(F.conv3d(normed(s, f"batch{n}d", y), s[f"linear{n}e.weight"]))

    def grow(y, n):
        return F.interpolate(y, size=(n, n, n), mode="trilinear", align_corners=False)

    blur = F.avg_pool3d(x, 3, 1, 1)
    a = block("0", x)
    b = block("11", block("1", a, 2))
    y = block("3", block("22", block("2", b, 2)))
    near = grow(dense(1, sampled(blur, s["offset1"], (4, 4, 4)), 2), 8)
    far = grow(dense(2, sampled(F.avg_pool3d(blur, 3, 1, 1), s["offset2"], (2, 2, 2)), 4), 4)
    y = grow(block("6bU", torch.cat((y, far), 1)), 8)
    y = grow(block("6U", torch.cat((y, near, b), 1)), 16)
    y = F.conv3d(block("7U", torch.cat((y, a), 1)), s["conv77U.weight"], s["conv77U.bias"])
    with torch.inference_mode():
        made = build_obelisk(tmp_path / "w.pth", "tcia-hybrid")(x)
    torch.testing.assert_close(made, y, atol=1e-4, rtol=1e-4)
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        build_obelisk(tmp_path / "w.pth", "tcia-hybrid")


@pytest.mark.parametrize(("width", "groups"), [(96, 1), (48, 4)])
def test_pdd_features_are_what_the_paper_says_layer_by_layer(tmp_path, width, groups):
    network = randomised(PddFeatures(width, groups, 24))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    s, x = network.state_dict(), torch.rand(1, 1, 18, 15, 21)
    y = F.conv3d(F.avg_pool3d(x, 3, 2, 1), s["layer0.weight"], stride=2, padding=2)
    y = F.relu(normed(s, "batch0", y))
    ends = [part.view(1, -1, 1, 1, 3) for part in s["offsets"]]
    y = sampled(y, ends[0], (6, 5, 7)) - sampled(y, ends[1], (6, 5, 7))
    y = F.relu(normed(s, "batch1", F.conv3d(y, s["layer1.weight"], groups=groups)))
    y = F.relu(normed(s, "batch2", F.conv3d(y, s["layer2.weight"], padding=1)))
    expected = F.conv3d(y, s["layer3.weight"], s["layer3.bias"])
    with torch.inference_mode():
        torch.testing.assert_close(build_pdd(tmp_path / "w.pth")(x), expected, atol=1e-4, rtol=1e-4)


# Frames and tiles


def test_a_frame_turns_the_image_into_the_networks_axes(grid):
    body = np.zeros(grid.shape, bool)
    body[4:20, 10:30, 8:25] = True
    frame = Frame("LIA", spacing=2.0)
    (made,) = frame.grids(grid, body)
    np.testing.assert_allclose(made.direction, [[1, 0, 0], [0, 0, -1], [0, -1, 0]], atol=1e-12)
    np.testing.assert_allclose(made.spacing, 2.0)
    inside = made.indices(grid.points(np.argwhere(body)))
    assert inside.min() > 0 and (inside < np.array(made.shape) - 1).all(), "all of the body, with a margin"


def test_a_network_that_sees_a_part_is_offered_parts_along_the_body():
    grid = make_grid(shape=(100, 40, 40), spacing=(4.0, 8.0, 8.0))
    made = Frame("LAI", size=(12, 10, 20), length=170.0).grids(grid, np.ones(grid.shape, bool))
    assert len(made) > 3 and {part.shape for part in made} == {(12, 10, 20)}
    heights = sorted(part.corners()[:, 2].min() for part in made)
    assert heights[0] == pytest.approx(grid.corners()[:, 2].min())
    assert max(part.corners()[:, 2].max() for part in made) == pytest.approx(grid.corners()[:, 2].max())
    assert all(part.extent[2] == pytest.approx(170) for part in made)


def test_frames_scale_grey_values():
    values = np.linspace(0, 100, 101)
    np.testing.assert_allclose(Frame("LPS", spacing=1, percentiles=(0, 50)).scaled([25, 75], values), [0.5, 1])
    np.testing.assert_allclose(Frame("LPS", spacing=1, window=(-1024, 0), clip=False).scaled([1024], values), [2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": "LLA", "spacing": 1}, "three letters"),
        ({"axes": "LPS"}, "spacing or size"),
        ({"axes": "LPS", "spacing": 1, "window": [5, 5]}, "must rise"),
        ({"axes": "LPS", "spacing": 1, "kind": "us"}, "mr, ct or empty"),
        ({"axes": "LPS", "spacing": 1, "zoom": 2}, "cannot be the frame"),
    ],
)
def test_a_frame_that_cannot_be_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Frame.from_dict(values)


def test_tiles_give_what_the_whole_gives():
    torch.manual_seed(0)
    network = MeshNet(4, [1, 2, 4], 5)
    wrapped = AnatomyNetwork("small", network, Frame("LPS", spacing=1), "abcde", "", reach=7, values_per_voxel=12)
    volume = torch.rand(70, 40, 36)
    whole = wrapped.probabilities(volume)
    assert len(wrapped._tiles(volume.shape, 1e-5)) > 1
    torch.testing.assert_close(wrapped.probabilities(volume, memory_gb=1e-5), whole, atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.float().sum(0), torch.ones(volume.shape), atol=5e-3, rtol=0)
    with torch.inference_mode():
        expected = network(volume[None, None])[0].softmax(0)
    torch.testing.assert_close(whole.float(), expected, atol=1e-3, rtol=0)


def test_volume_counts_by_certainty():
    probabilities = torch.zeros(2, 2, 2, 2)
    probabilities[1] = 0.4
    probabilities[1, 0, 0, 0] = 0.9
    assert certain_volume(probabilities, make_grid((2, 2, 2), (10, 10, 10))) == pytest.approx(0.9)


# Networks by name, and your own


def test_the_catalogues_anatomy_networks_are_complete_and_no_encoders():
    items = [item for item in catalogue().values() if item.names_anatomy]
    assert {item.family for item in items} == {"meshnet", "obelisk"}
    for item in items:
        assert len(item.options["classes"]) == item.channels == len(set(item.options["classes"]))
        assert item.weights.bytes and len(item.weights.sha256) == 64
        Frame.from_dict(item.options["frame"])
        with pytest.raises(InputError, match=f"anatomy network and no encoder.*--anatomy {item.id}"):
            loading.require(item.id)
    with pytest.raises(WeightsError, match="not on this computer"):
        require_anatomy("brainchop-50")
    with pytest.raises(InputError, match="no anatomy network 'brain'"):
        require_anatomy("brain")


class Stripes(torch.nn.Module):
    """Logits of three classes that depend on the grey value alone."""

    def forward(self, x):
        return torch.cat((1 - 2 * x, 1 - (2 * x - 1).abs() * 2, 2 * x - 1), 1) * 8


def own_network(tmp_path, **changes):
    torch.jit.script(Stripes()).save(str(tmp_path / "network.pt"))
    frame = {"axes": "RAS", "spacing": 3.0, "window": [0, 600]}
    content = {"file": "network.pt", "classes": ["background", "dim", "bright"], "frame": frame, **changes}
    (tmp_path / "own.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "own.json"


def test_your_own_network_runs_when_it_is_trusted(tmp_path):
    path = own_network(tmp_path)
    for use in (require_anatomy, load_anatomy):
        with pytest.raises(InputError, match="is TorchScript"):
            use(str(path))
    trust.trust(tmp_path / "network.pt")
    require_anatomy(str(path))
    network = load_anatomy(str(path))
    probabilities = network.probabilities(torch.tensor([0.0, 0.5, 1.0]).expand(2, 2, 3))
    assert network.classes == ("background", "dim", "bright")
    assert probabilities.argmax(0)[0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["background"]}, "must be a list of names"),
        ({"classes": ["a", "b", "b"]}, "different names"),
        ({"file": "missing.pt"}, "does not exist"),
        ({"frame": {"axes": "RAS"}}, "spacing or size"),
        ({"extra": 1}, "needs file, classes and frame"),
    ],
)
def test_a_wrong_description_is_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        require_anatomy(str(own_network(tmp_path, **changes)))


def test_a_class_list_of_another_length_is_noticed(tmp_path):
    path = own_network(tmp_path, classes=["background", "one"])
    trust.trust(tmp_path / "network.pt")
    with pytest.raises(InputError, match=r"gave \(1, 3, 4, 4, 4\).*2 classes"):
        load_anatomy(str(path)).probabilities(torch.zeros(4, 4, 4))


@pytest.mark.skipif(PUBLISHED is None, reason="the published weights are not here")
@pytest.mark.parametrize(
    ("id", "file"),
    [
        ("brainchop-50", "brainchop/model30chan50cls"),
        ("brainchop-18", "brainchop/model18cls/model.bin"),
        ("brainchop-104", "brainchop/model21_104class/group1-shard1of1.bin"),
        ("brainchop-mindgrab", "brainchop/mindgrab/model.bin"),
        ("obelisk-tcia", "obelisk/obeliskhybrid_tcia_fold1.pth"),
    ],
)
def test_published_networks_are_imported_and_give_probabilities(id, file):
    acquisition.import_file(id, PUBLISHED / file, build_network)
    assert store.status(id)["ready"] and store.status(id)["hash"] == "published"
    network = load_anatomy(id)
    made = network.probabilities(torch.rand(16, 16, 16))
    assert made.shape[0] == len(network.classes)
    torch.testing.assert_close(made.float().sum(0), torch.ones(16, 16, 16), atol=1e-2, rtol=0)
    names = PUBLISHED / Path(file).parent / "colormap.json"
    if names.exists():
        published = json.loads(names.read_text(encoding="utf-8"))["labels"]
        assert [name.rstrip("*") for name in published[1:]] == list(network.classes[1:])


@pytest.mark.skipif(PUBLISHED is None, reason="the published weights are not here")
@pytest.mark.parametrize("name", ["dense_reg_feat_v01", "dense_reg_mind2_feat_epoch2999"])
def test_published_pdd_features_load(name):
    with torch.inference_mode():
        assert build_pdd(PUBLISHED / "pdd" / f"{name}.pth")(torch.rand(1, 1, 12, 12, 12)).shape == (1, 24, 4, 4, 4)
