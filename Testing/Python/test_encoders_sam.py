"""The SAM family agrees with segment-anything's own encoder, from files in the published layouts."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from FoundationRegLib.encoders import sam
from FoundationRegLib.encoders.loading import build_network, load_encoder
from FoundationRegLib.encoders.sam import SIZES, build_sam, new_vit, relative_positions, resized_positions
from FoundationRegLib.errors import WeightsError
from FoundationRegLib.weights import acquisition, store
from FoundationRegLib.weights.catalogue import catalogue

if importlib.util.find_spec("segment_anything") is None:
    pytest.skip("segment-anything is not installed", allow_module_level=True)


def randomised(network, seed=0):
    """Weights as strong as those of a trained network; the tables of positions are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        scale = 0.3 if "pos" in name else value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1
        value.copy_(torch.randn(value.shape, generator=generator) * scale + ("norm" in name and "weight" in name))
    return network.eval()


@pytest.fixture(scope="module")
def small(monkeypatch_module):
    """A SAM of two windowed and two global blocks, small enough for a test, with a size of its own."""
    monkeypatch_module.setitem(
        SIZES, "small", {"embed_dim": 96, "depth": 4, "num_heads": 3, "global_attn_indexes": (1, 3)}
    )
    return randomised(new_vit("small"))


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def published(path, vit, prefix="image_encoder.", **others):
    """A file as published: the encoder under a prefix, next to other parts of the model."""
    torch.save({**{prefix + name: value for name, value in vit.state_dict().items()}, **others}, path)
    return path


def original_at(vit, size, pixels):
    """segment-anything's encoder for another input size: the position table resized, relative tables as trained."""
    original = new_vit(size, pixels)
    state = dict(vit.state_dict())
    table = F.interpolate(state["pos_embed"].permute(0, 3, 1, 2), (pixels // 16,) * 2, mode="bilinear")
    state["pos_embed"] = table.permute(0, 2, 3, 1)
    for module, other in zip(original.modules(), vit.modules(), strict=True):
        if hasattr(module, "rel_pos_h"):
            module.rel_pos_h, module.rel_pos_w = other.rel_pos_h, other.rel_pos_w
    original.load_state_dict(state)
    return original.eval()


@torch.inference_mode()
@pytest.mark.parametrize("pixels", [1024, 256, 464])
def test_features_are_those_of_the_original_network(small, tmp_path, pixels):
    path = published(tmp_path / "sam.pth", small, **{"mask_decoder.x": torch.zeros(1)})
    encoder = build_sam(path, {"size": "small"})
    picture = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    expected = original_at(small, "small", pixels)(picture)
    assert encoder(picture).shape == (1, 256, pixels // 16, pixels // 16) == expected.shape
    assert (encoder(picture) - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_half_precision_stays_within_two_percent(small, tmp_path):
    encoder = build_sam(published(tmp_path / "sam.pth", small), {"size": "small"})
    picture = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    expected = encoder(picture)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(picture).float()
    assert (half - expected).norm() / expected.norm() < 2e-2


@torch.inference_mode()
def test_attention_in_rows_of_queries_changes_nothing(small, monkeypatch):
    x = torch.randn(2, 20, 12, 96)
    whole = sam.attend(small.blocks[1].attn, x)
    monkeypatch.setattr(sam, "_BIAS_VALUES", (3 * 2 * 3 * 12 * 240,))
    assert torch.allclose(sam.attend(small.blocks[1].attn, x), whole, atol=1e-5)


@torch.inference_mode()
def test_any_rectangle_of_patches_can_be_encoded(small, tmp_path):
    encoder = build_sam(published(tmp_path / "sam.pth", small), {"size": "small"})
    assert encoder(torch.rand(2, 3, 160, 240)).shape == (2, 256, 10, 15)


def test_position_tables_keep_one_scale_for_both_axes():
    table = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 8, 1)
    assert torch.equal(resized_positions(table, 4, 8)[0, :, 0, 0], table[0, :4, 0, 0])
    relative = torch.arange(-7.0, 8.0)[:, None]
    assert torch.equal(relative_positions(relative, 5, 8)[..., 0], torch.arange(5.0)[:, None] - torch.arange(5.0))


@torch.inference_mode()
def test_sslsam_is_the_encoder_alone_behind_module(small, tmp_path):
    path = published(tmp_path / "ssl.pth", small, prefix="module.")
    picture = torch.rand(1, 3, 64, 64)
    expected = build_sam(published(tmp_path / "sam.pth", small), {"size": "small"})(picture)
    assert torch.equal(build_sam(path, {"size": "small", "layout": "encoder"})(picture), expected)


@torch.inference_mode()
def test_mri_core_is_read_from_a_dino_teacher_and_ends_before_the_neck(tmp_path, small):
    vit = randomised(new_vit("small", use_rel_pos=False))
    teacher = {}
    for name, value in vit.state_dict().items():
        if name.startswith("neck.") or name == "pos_embed":
            continue
        parts = name.replace("mlp.lin", "mlp.fc").split(".")
        if parts[0] == "blocks":
            parts.insert(1, "0")
        teacher["backbone." + ".".join(parts)] = value
    gamma = torch.rand(96)
    teacher["backbone.blocks.0.1.ls1.gamma"] = gamma
    teacher["backbone.pos_embed"] = torch.randn(1, 1 + 14 * 14, 96)
    teacher["backbone.cls_token"] = torch.zeros(1, 1, 96)
    teacher["dino_head.last_layer.weight"] = torch.zeros(3, 3)
    torch.save({"teacher": teacher}, tmp_path / "mri_core.pth")
    encoder = build_sam(tmp_path / "mri_core.pth", {"size": "small", "layout": "dino", "neck": False})
    vit.blocks[1].attn.proj.weight *= gamma[:, None]
    vit.blocks[1].attn.proj.bias *= gamma
    table = teacher["backbone.pos_embed"][:, 1:].view(1, 14, 14, 96).permute(0, 3, 1, 2)
    vit.pos_embed.copy_(F.interpolate(table, (64, 64), mode="bilinear").permute(0, 2, 3, 1))
    picture = torch.rand(1, 3, 1024, 1024)
    x = vit.patch_embed(picture) + vit.pos_embed
    for block in vit.blocks:
        x = block(x)
    assert encoder.channels == 96
    assert (encoder(picture) - x.permute(0, 3, 1, 2)).abs().max() < 1e-4


@torch.inference_mode()
def test_several_layers_can_be_fused(small, tmp_path):
    encoder = build_sam(published(tmp_path / "sam.pth", small), {"size": "small"}, layers=(1, 3))
    tokens = encoder(torch.rand(1, 3, 64, 64))
    assert tokens.shape == (1, 192, 4, 4) and encoder.channels == 192
    assert tokens.unflatten(1, (2, 96)).mean(2).abs().max() < 1e-5


def test_wrong_files_are_refused_with_their_keys_named(small, tmp_path):
    state = {"image_encoder." + name: value for name, value in small.state_dict().items()}
    missing = {name: value for name, value in state.items() if "blocks.2.attn.qkv" not in name}
    surplus = {**state, "image_encoder.blocks.9.norm1.weight": torch.zeros(96)}
    misshapen = {**state, "image_encoder.neck.0.weight": torch.zeros(2, 2)}
    for content, name in (
        (missing, "missing: blocks.2.attn.qkv.weight"),
        (surplus, "surplus: blocks.9.norm1.weight"),
        (misshapen, "shape: neck.0.weight"),
        ({"visual.proj": torch.zeros(2)}, "image_encoder"),
    ):
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(WeightsError, match=name):
            build_sam(tmp_path / "wrong.pth", {"size": "small"})


@pytest.mark.parametrize(("size", "tensors"), [("vit_b", 177), ("vit_l", 345), ("vit_h", 457)])
def test_sizes_are_those_of_the_published_models(size, tensors):
    with torch.device("meta"):
        vit = new_vit(size)
    assert len(vit.state_dict()) == tensors


@pytest.mark.slow
@torch.inference_mode()
def test_the_full_vit_b_agrees_with_the_original_at_1024(tmp_path):
    vit = randomised(new_vit("vit_b"))
    encoder = build_sam(published(tmp_path / "sam_vit_b.pth", vit), {"size": "vit_b"})
    picture = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    expected = vit(picture)
    assert (encoder(picture) - expected).abs().max() < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert (encoder(picture).float() - expected).norm() / expected.norm() < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("size", ["vit_l", "vit_h"])
@torch.inference_mode()
def test_the_larger_ones_agree_with_the_original_away_from_1024(size, tmp_path):
    vit = randomised(new_vit(size))
    picture = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    expected = original_at(vit, size, 256)(picture)
    path = published(tmp_path / "sam.pth", vit, **{"mask_decoder.x": torch.zeros(1)})
    del vit
    encoder = build_sam(path, {"size": size})
    assert (encoder(picture) - expected).abs().max() < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert (encoder(picture).float() - expected).norm() / expected.norm() < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("id", ["sslsam", "mri-core"])
@torch.inference_mode()
def test_the_relatives_agree_by_way_of_import_and_load(id, tmp_path, monkeypatch):
    """The encoder alone behind ``module.``, as SSLSAM comes; MRI-CORE in SAM's layout, before the neck."""
    item = catalogue()[id]
    vit = randomised(new_vit("vit_b"))
    path = published(tmp_path / "file.pth", vit, prefix="module." if id == "sslsam" else "image_encoder.")
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    acquisition.import_file(id, path, build_network)
    gray = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(item.options[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    plain = original_at(vit, "vit_b", 256)
    if id == "mri-core":
        plain.neck = torch.nn.Identity()
    expected = plain((gray - mean).expand(-1, 3, -1, -1) / std)
    encoder = load_encoder(id)
    assert encoder.channels == item.channels and (encoder(gray) - expected).abs().max() < 1e-4
