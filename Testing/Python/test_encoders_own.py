"""Your own models: transformers folders without their code, TorchScript only when trusted."""

import json

import pytest
import torch
from FoundationRegLib.encoders import loading
from FoundationRegLib.encoders.base import SliceEncoder, VolumeEncoder
from FoundationRegLib.encoders.loading import load_encoder
from FoundationRegLib.errors import InputError, WeightsError
from FoundationRegLib.weights import store, trust


class Slices(torch.nn.Module):
    """Two rasters, the second one of stride 4."""

    def __init__(self, inputs: int):
        super().__init__()
        self.inputs = inputs
        self.conv = torch.nn.Conv2d(inputs, 5, 4, 4)

    def forward(self, x):
        return [x, self.conv(x)]


class Volumes(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 16, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def saved(module, path):
    torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of weights, and nothing trusted yet."""
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    trust._given.clear()
    yield tmp_path / "models"
    trust._given.clear()


def as_a_new_process():
    trust._given.clear()
    trust._digest.cache_clear()


def test_torchscript_runs_only_after_a_yes_to_exactly_this_content(tmp_path, monkeypatch):
    path = saved(Volumes(), tmp_path / "model.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the program was run"))
    for use in (load_encoder, loading.require):
        with pytest.raises(InputError, match=r"model\.pt is TorchScript.*encoders trust"):
            use(str(path))
    monkeypatch.undo()
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    digest = trust.trust(path)
    as_a_new_process()
    assert trust.trusted()[digest]["file"] == str(path)
    loading.require(str(path))
    assert load_encoder(str(path)).weights_sha256 == digest
    copy = tmp_path / "copy.pt"
    copy.write_bytes(path.read_bytes())
    assert load_encoder(str(copy)).channels == 16, "the same content elsewhere"
    saved(Slices(1), path)
    with pytest.raises(InputError, match="is TorchScript"):
        load_encoder(str(path))


def test_a_file_that_is_exchanged_after_the_check_does_not_run(tmp_path, monkeypatch):
    path = saved(Volumes(), tmp_path / "model.pt")
    trust.trust(path)
    other = saved(Slices(1), tmp_path / "other.pt").read_bytes()
    monkeypatch.setattr(type(path), "read_bytes", lambda _: other)
    with pytest.raises(InputError, match="changed while it was read"):
        load_encoder(str(path))


def test_a_yes_can_be_taken_back_also_when_the_file_is_gone(tmp_path):
    path = saved(Volumes(), tmp_path / "model.pt")
    for _ in range(2):
        trust.trust(path)
        trust.distrust(path)
        with pytest.raises(InputError, match="is TorchScript"):
            load_encoder(str(path))
    trust.trust(path)
    path.unlink()
    trust.distrust(path)
    assert not trust.trusted()
    with pytest.raises(InputError, match="not among the trusted"):
        trust.distrust(path)


def test_a_yes_holds_in_this_process_where_the_folder_cannot_be_written(tmp_path):
    (tmp_path / "models").write_text("a file, no folder")
    path = saved(Volumes(), tmp_path / "model.pt")
    trust.trust(path)
    assert load_encoder(str(path)).channels == 16


def test_a_damaged_list_of_trusted_files_trusts_nothing(tmp_path, folder):
    path = saved(Volumes(), tmp_path / "model.pt")
    for content in ("{", "[]", '"x"'):
        folder.mkdir(exist_ok=True)
        (folder / trust.FILE).write_text(content)
        assert not trust.is_trusted(path)


def test_layers_of_a_program_cannot_be_chosen(tmp_path):
    path = saved(Volumes(), tmp_path / "model.pt")
    trust.trust(path)
    for use in (load_encoder, loading.require):
        with pytest.raises(InputError, match="last layer only"):
            use(str(path), layers=(1,))


@torch.inference_mode()
def test_a_program_keeps_its_precision_unless_asked(tmp_path):
    path = saved(Slices(1), tmp_path / "model.pt")
    x = torch.rand(1, 1, 32, 32)
    exact, half = (load_encoder(str(path), precision=p, trusted=True)(x) for p in ("auto", "bfloat16"))
    assert 0 < (exact - half).abs().max() < 2e-2


def test_the_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"1")
    first = loading.fingerprint(str(path))
    path.write_bytes(b"22")
    assert loading.fingerprint(str(path)) != first and loading.fingerprint("mind") == ""


@pytest.mark.parametrize("inputs", [1, 3])
@torch.inference_mode()
def test_a_torchscript_slice_model_gives_its_last_raster(tmp_path, inputs):
    module = Slices(inputs)
    encoder = load_encoder(str(saved(module, tmp_path / "model.pt")), trusted=True)
    assert isinstance(encoder, SliceEncoder) and (encoder.channels, encoder.stride) == (5, 4)
    x = torch.rand(2, 1, 32, 64)
    assert torch.allclose(encoder(x), module(x.expand(-1, inputs, -1, -1))[1], atol=1e-6)


@torch.inference_mode()
def test_a_torchscript_volume_model_is_a_volume_encoder(tmp_path):
    module = Volumes()
    encoder = load_encoder(str(saved(module, tmp_path / "model.pt")), trusted=True)
    assert isinstance(encoder, VolumeEncoder) and not isinstance(encoder, SliceEncoder)
    x = torch.rand(1, 1, 16, 32, 48)
    assert encoder.channels == 16 and encoder.stride == 1 and torch.allclose(encoder(x), module(x), atol=1e-6)


def test_files_that_are_no_encoders_are_said_plainly(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="TorchScript"):
        load_encoder(str(tmp_path / "broken.pt"), trusted=True)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="no TorchScript file"):
        load_encoder(str(tmp_path / "notes.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        load_encoder(str(tmp_path / "empty"))


@pytest.mark.parametrize("family", ["Dinov2", "DINOv3ViT", "ViT", "CLIPVision"])
@torch.inference_mode()
def test_a_transformers_folder_gives_the_models_patch_tokens(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16, intermediate_size=64
    )
    model = getattr(transformers, f"{family}Model")(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    encoder = load_encoder(str(tmp_path))
    assert isinstance(encoder, SliceEncoder) and (encoder.channels, encoder.stride, encoder.pixels) == (48, 16, 64)
    x = torch.rand(1, 1, 64, 64)
    expected = model(pixel_values=(x.expand(-1, 3, -1, -1) - 0.5) / 0.25).last_hidden_state[:, -16:]
    assert torch.allclose(encoder(x).flatten(2).transpose(1, 2), expected, atol=1e-5)
    assert encoder(torch.rand(1, 1, 96, 48)).shape == (1, 48, 6, 3)
    fused = load_encoder(str(tmp_path), layers=(-1, 0))(x)
    hidden = model(pixel_values=(x.expand(-1, 3, -1, -1) - 0.5) / 0.25, output_hidden_states=True).hidden_states
    both = torch.cat([torch.nn.functional.layer_norm(hidden[n][:, -16:], (48,)) for n in (1, 2)], -1)
    assert torch.allclose(fused.flatten(2).transpose(1, 2), both, atol=1e-4)
    with pytest.raises(InputError, match="layers 0 to 1 and not 2"):
        load_encoder(str(tmp_path), layers=(2,))


def test_a_transformers_folder_that_lacks_tensors_is_refused_with_their_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: encoder\.layer\.1\.mlp\.fc1\.weight"):
        load_encoder(str(tmp_path))


def test_code_in_a_transformers_folder_is_never_run(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil",
                                                      "AutoConfig": "evil.Config"}}))  # fmt: skip
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(WeightsError, match="cannot read the model"):
        load_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", [None, "vision_config"])
def test_an_attention_from_elsewhere_is_refused_before_transformers_sees_it(tmp_path, monkeypatch, where):
    """transformers would fetch such a kernel from the network and run it."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("it was read"))
    evil = {"_attn_implementation": "somebody/kernel"}
    config = {"model_type": "dinov2", **({where: evil} if where else evil)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="somebody/kernel"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_encoder(str(tmp_path))


def test_a_folder_that_is_called_like_an_encoder_does_not_replace_it(tmp_path, monkeypatch):
    (tmp_path / "mind").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_encoder("mind").channels == 6
    with pytest.raises(InputError, match="There is no encoder"):
        load_encoder("no/such/model.pt")


def test_trust_is_for_the_content_that_was_shown(tmp_path, folder):
    path = tmp_path / "model.pt"
    path.write_bytes(b"harmless")
    shown = trust.digest(path)
    assert shown[:12] in trust.question(path, shown)
    path.write_bytes(b"exchanged while the question stood")
    assert trust.trust(path, shown) == shown
    assert not trust.is_trusted(path)


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": {"file": 3}}', "[" * 100_000, "\udcff", '{"a": {}}', "null"])
def test_a_malformed_list_of_trusted_files_stops_nothing_but_itself(tmp_path, folder, text):
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    trust._given.clear()
    folder.mkdir(exist_ok=True)
    (folder / trust.FILE).write_text(text, encoding="utf-8", errors="surrogateescape")
    assert not trust.is_trusted(path)
    with pytest.raises(InputError, match="not among the trusted"):
        trust.distrust(path)
    trust.trust(path)
    assert trust.is_trusted(path)
