"""What a user can choose about encoders, through `register`: layers, normalisation, precision, memory, own models."""

import sys
import threading

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.encoders.loading import build_network, load_encoder
from FoundationRegLib.encoders.vit import VisionTransformer
from FoundationRegLib.errors import InputError, WeightsError
from FoundationRegLib.registration import encoding, pipeline
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.slicer.client.process import WorkerProcess
from FoundationRegLib.weights import acquisition, store, trust
from FoundationRegLib.weights.catalogue import Entry, Weights, catalogue
from known_pairs import MIND, SHIFT, a_pair, error_mm, shifted
from test_encoders_own import Slices, Volumes, saved
from test_worker import wait_for

NETWORK = {"width": 48, "depth": 3, "heads": 3, "patch": 8, "table": 6}
QUICK = MIND.replace(encoders="small", iterations=1, slice_gap_mm=20.0)


@pytest.fixture(scope="module")
def pair(phantom):
    return a_pair(phantom, shifted)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A small DINOv2 with random weights in its published layout, taken in like a real one; nothing is trusted."""
    monkeypatch.setattr(trust, "_given", {})
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    options = {"network": NETWORK, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "study_mean": 0.0}
    item = Entry("small", "Small", "dinov2", 48, 8, 64, Weights("manual", "small.pth", page="https://example.org"),
                 options={**options, "study_std": 1.0})  # fmt: skip
    monkeypatch.setitem(catalogue(), "small", item)
    import_random(tmp_path, 0)
    return item


def import_random(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    state = VisionTransformer(**NETWORK).state_dict()
    for name, value in state.items():
        one = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + one)
    torch.save(state, folder / "random.pth")
    store.remove("small")
    acquisition.import_file("small", folder / "random.pth", build_network)


def pictures(result, name="small"):
    return np.stack([result.features[name][side].astype(float) for side in ("fixed", "moving")])


def mean_difference(first, second):
    """Of pictures, in units of 0..255, whatever the sign of a component."""
    a, b = pictures(first), pictures(second)
    flipped = np.where(b > 0, 255 - b, 0)
    each = [min(np.abs(a[..., n] - other[..., n]).mean() for other in (b, flipped)) for n in range(3)]
    return float(np.mean(each))


def test_three_planes_are_encoded_and_change_what_is_found(pair):
    one = register(*pair, QUICK)
    three = register(*pair, QUICK.replace(planes="axial,coronal,sagittal"))
    assert mean_difference(one, three) > 1
    assert not np.array_equal(*(sitk.GetArrayFromImage(found.warped) for found in (one, three)))


def test_another_weight_is_searched_with_at_once(pair):
    settings = QUICK.replace(encoders=[["small", 5.0], ["mind", 1.0]], search_range_mm=20.0)
    cache = Cache()
    register(*pair, settings, cache=cache)
    stages, shown = [""], []
    progress = Progress(lambda event: stages.append(event.stage), lambda made: shown.append((stages[-1], made)))
    lighter = settings.replace(encoders=[["small", 0.01], ["mind", 1.0]])
    register(*pair, lighter, cache=cache, progress=progress)
    at_once = [made for stage, made in shown if stage == "align"]
    assert [made.stage for made in at_once][:1] == ["search"], "before anything else is looked up"
    # Against the shift that is known; a node of the search is 8 mm wide.
    misses = []
    for made in at_once:
        points = made.grid.points(np.moveaxis(np.indices(made.grid.shape), 0, -1))
        body = np.linalg.norm(points, axis=-1) < 20
        misses.append(np.linalg.norm(made.displacement[body] - SHIFT, axis=-1).mean())
    assert misses[0] < 5 and misses[-1] < misses[0], misses


def test_layers_normalisation_and_precision_are_those_of_the_settings(pair):
    usual = register(*pair, QUICK)
    assert usual.record["weights_sha256"] == {"small": store.verify("small")}
    last = register(*pair, QUICK.replace(encoder_layers="-1"))
    assert mean_difference(usual, last) == 0, "the last block's normalised output is the network's own"
    for precision in ("bfloat16", "float16"):
        half = register(*pair, QUICK.replace(encoder_precision=precision))
        assert 0 < mean_difference(usual, half) < 4
    for change in ({"encoder_layers": "0,1"}, {"encoder_normalisation": "study"}):
        other = register(*pair, QUICK.replace(**change))
        assert mean_difference(usual, other) > 4 and other.record["settings"]["encoders"] == [["small", 1.0]]


def test_what_is_chosen_arrives_at_the_network(pair, monkeypatch):
    """The features that `register` asks for are those of the layers and the normalisation, computed by hand."""
    made = []

    def spy(*arguments, **options):
        made.append(load_encoder(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(encoding, "load_encoder", spy)
    register(*pair, QUICK.replace(encoder_layers="2,0", encoder_normalisation="study"))
    network = VisionTransformer(**NETWORK).eval()
    network.load_state_dict(torch.load(store.installed(catalogue()["small"]), weights_only=True))
    kept, x = [], torch.rand(1, 1, 48, 48)
    for number in (0, 2):
        network.blocks[number].register_forward_hook(lambda _m, _i, output: kept.append(network.norm(output)))
    with torch.inference_mode():
        network(x.expand(-1, 3, -1, -1))
        expected = torch.cat(kept, -1)[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
        assert (made[0](x) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("threads", [1, 2])
def test_encoders_are_loaded_once_beside_the_linear_stage(pair, monkeypatch, threads):
    loaded_in, real = [], load_encoder

    def spy(*arguments, **options):
        loaded_in.append(threading.current_thread())
        return real(*arguments, **options)

    monkeypatch.setattr(encoding, "load_encoder", spy)
    cache = Cache()
    first = register(*pair, QUICK.replace(threads=threads), cache=cache)
    register(*pair, QUICK.replace(threads=threads, slice_gap_mm=25.0), cache=cache)
    assert len(loaded_in) == 1 and (loaded_in[0] is threading.main_thread()) == (threads == 1)
    assert first.record["weights_sha256"] == {"small": store.verify("small")}


def test_what_loading_beside_the_linear_stage_raises_arrives(pair, monkeypatch):
    def broken(*_arguments, **_options):
        raise WeightsError("The file is damaged.")

    monkeypatch.setattr(encoding, "load_encoder", broken)
    with pytest.raises(WeightsError, match="damaged"):
        register(*pair, QUICK.replace(threads=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_layers": "3"}, "layers 0 to 2 and not 3"),
        ({"encoder_layers": "0,-4"}, "and not -4"),
        ({"encoders": "medsam-lite", "encoder_layers": "1"}, "last layer only"),
        ({"encoders": "sam-b", "encoder_layers": "12"}, "layers 0 to 11"),
    ],
)
def test_layers_that_do_not_exist_are_refused_before_long_work(pair, monkeypatch, change, words):
    monkeypatch.setattr(pipeline, "read_inputs", lambda *a, **k: pytest.fail("the work began"))
    monkeypatch.setattr(store, "require", lambda item: None)
    with pytest.raises(InputError, match=words):
        register(*pair, QUICK.replace(**change))


@pytest.mark.parametrize(
    "change",
    [{"encoder_layers": (0,)}, {"encoder_normalisation": "study"}, {"encoder_precision": "bfloat16"}, "weights"],
)
def test_a_warm_cache_never_serves_features_of_other_choices(pair, change, tmp_path):
    cache = Cache()
    register(*pair, QUICK, cache=cache)
    if change == "weights":
        import_random(tmp_path, 1)
    changed = QUICK if change == "weights" else QUICK.replace(**change)
    warm, fresh = register(*pair, changed, cache=cache), register(*pair, changed)
    assert mean_difference(warm, fresh) == 0


def test_masks_weights_and_smoothness_encode_nothing_anew(pair, monkeypatch):
    cache, encoded = Cache(), []
    real = encoding.encode_shared
    monkeypatch.setattr(encoding, "encode_shared", lambda *a, **k: encoded.append(1) or real(*a, **k))
    both = QUICK.replace(encoders="small,mind")
    register(*pair, both, cache=cache)
    lesion = pair[0] * 0
    lesion[10:14, 10:14, 10:14] = 1
    register(*pair, both.replace(smoothness=3.0), cache=cache)
    register(*pair, both.replace(encoders="small=0.5,mind"), cache=cache)
    register(*pair, both, exclude_fixed=lesion, cache=cache)
    assert len(encoded) == 1


def test_a_small_memory_limit_changes_the_time_and_not_the_result(pair):
    assert mean_difference(register(*pair, QUICK), register(*pair, QUICK.replace(memory_gb=0.001))) < 0.5


@pytest.mark.parametrize("kind", ["slices", "volumes"])
def test_a_program_of_ones_own_registers_only_after_the_yes(pair, tmp_path, monkeypatch, kind):
    path = saved(Slices(1) if kind == "slices" else Volumes(), tmp_path / "my model.pt")
    settings = MIND.replace(encoders=[str(path)], slice_gap_mm=4.0)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "read_inputs", lambda *a, **k: pytest.fail("the work began"))
        patch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the program was run"))
        with pytest.raises(InputError, match="program"):
            register(*pair, settings)
    digest = trust.trust(path)
    found = register(*pair, settings)
    assert found.record["weights_sha256"] == {str(path): digest} and set(found.features) == {"my_model.pt"}
    assert error_mm(found.transform, shifted).mean() < 0.5 * np.linalg.norm(shifted(np.zeros(3)))


def test_the_worker_honours_a_yes_that_was_given_elsewhere(pair, tmp_path):
    path = saved(Slices(1), tmp_path / "model.pt")
    environment = {"FOUNDATIONREG_MODELS": str(tmp_path / "models"), "OMP_NUM_THREADS": "1"}
    process = WorkerProcess([sys.executable, "-P", "-m", "FoundationRegLib.worker"], environment)
    try:
        folder = process.run_folder()
        images = {}
        for side, image in zip(("fixed", "moving"), pair, strict=True):
            sitk.WriteImage(image, str(folder / f"{side}.nrrd"))
            images[side] = str(folder / f"{side}.nrrd")
        values = {**images, "settings": QUICK.replace(encoders=[str(path)]).to_dict(), "folder": str(folder)}
        refused = wait_for(process, process.send("register", **values), seconds=120)[-1]
        assert refused["kind"] == "InputError" and "program" in refused["message"]
        digest = trust.trust(path)
        answer = wait_for(process, process.send("register", **values), seconds=120)[-1]
        assert answer["event"] == "result", answer
        assert answer["record"]["weights_sha256"] == {str(path): digest}
    finally:
        process.kill()


def test_a_transformers_folder_of_ones_own_needs_no_yes(pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=8
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "own")
    found = register(*pair, QUICK.replace(encoders=[str(tmp_path / "own")], encoder_layers="0,1"))
    assert len(found.record["weights_sha256"][str(tmp_path / "own")]) == 64
