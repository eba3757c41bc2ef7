"""Your own models: transformers folders without their code, TorchScript only when trusted."""

import json

import pytest
import torch
from FoundationRegLib.encoders import load_encoder
from FoundationRegLib.encoders.base import SliceEncoder, VolumeEncoder
from FoundationRegLib.errors import InputError, WeightsError


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


def test_torchscript_runs_only_when_trusted(tmp_path):
    path = saved(Volumes(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="only if you trust"):
        load_encoder(str(path))


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
    assert load_encoder(str(tmp_path), layers=(0, 1))(x).shape == (1, 96, 4, 4)


def test_code_in_a_transformers_folder_is_never_run(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil",
                                                      "AutoConfig": "evil.Config"}}))  # fmt: skip
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(WeightsError, match="cannot read the model"):
        load_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_called_like_an_encoder_does_not_replace_it(tmp_path, monkeypatch):
    (tmp_path / "mind").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_encoder("mind").channels == 12
    with pytest.raises(InputError, match="There is no encoder"):
        load_encoder("no/such/model.pt")
