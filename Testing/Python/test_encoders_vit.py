"""DINOv2, DINOv3 and BiomedCLIP's tower agree with transformers' own models, from files in the published layouts."""

import pytest
import torch
from FoundationRegLib.encoders.loading import build_network, load_encoder
from FoundationRegLib.encoders.vit import VisionTransformer, build_vit
from FoundationRegLib.errors import WeightsError
from FoundationRegLib.weights import acquisition, store
from FoundationRegLib.weights.catalogue import catalogue
from FoundationRegLib.weights.checkpoints import read_checkpoint
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers")

SMALL = {"width": 96, "depth": 3, "heads": 3, "patch": 14, "table": 8}
HUGGING_FACE = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 112}


def randomised(network, seed=0):
    """Weights as strong as those of a trained network, none of them zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        one = name.endswith(("gamma", "lambda1")) or ("norm" in name and name.endswith("weight"))
        scale = 0.5 if "token" in name or "pos" in name else value.shape[-1] ** -0.5 if value.ndim > 1 else 0.1
        value.copy_(torch.randn(value.shape, generator=generator) * scale + one)
    return network.eval()


def picture(height, width, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def tokens(model, x, patch, extra, **options):
    """Patch tokens of a transformers model as a raster (B, C, h, w)."""
    output = model(pixel_values=x, **options).last_hidden_state[:, extra:]
    return output.transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))


MODELS = {
    "dinov2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**HUGGING_FACE, patch_size=14)),
        SMALL,
        1,
    ),
    "dinov2-giant": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**HUGGING_FACE, patch_size=14, use_swiglu_ffn=True)),
        {**SMALL, "gated": True, "hidden": 256},
        1,
    ),
    "dinov2-registers": (
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**HUGGING_FACE, patch_size=14, num_register_tokens=4)
        ),
        {**SMALL, "registers": 4, "antialias": True},
        5,
    ),
    "dinov3": (
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**HUGGING_FACE, patch_size=16, intermediate_size=384, num_register_tokens=4)
        ),
        {**SMALL, "patch": 16, "table": 0, "registers": 4, "eps": 1e-5},
        5,
    ),
    "dinov3-gated": (
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(
                **HUGGING_FACE,
                patch_size=16,
                intermediate_size=256,
                num_register_tokens=4,
                use_gated_mlp=True,
                hidden_act="silu",
            )
        ),
        {**SMALL, "patch": 16, "table": 0, "registers": 4, "eps": 1e-5, "gated": True, "hidden": 256},
        5,
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(8, 8), (5, 5), (11, 7)])
def test_features_are_those_of_transformers_own_model(name, size, tmp_path):
    make, network, extra = MODELS[name]
    model = randomised(make())
    model.save_pretrained(tmp_path)
    encoder = build_vit(tmp_path / "model.safetensors", {"network": network}).eval()
    patch = network["patch"]
    x = picture(size[0] * patch, size[1] * patch, 2)
    expected = tokens(model, x, patch, extra)
    assert encoder(x).shape == expected.shape
    assert (encoder(x) - expected).abs().max() < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(x).float()
    assert (half - expected).norm() / expected.norm() < 2e-2


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_biomedclips_tower_is_a_plain_vision_transformer(size, tmp_path):
    """Its open_clip file against transformers' ViT, which is what open_clip's timm tower computes."""
    network = {**SMALL, "patch": 16, "scales": False}
    config = transformers.ViTConfig(
        **{**HUGGING_FACE, "image_size": 128}, patch_size=16, intermediate_size=384, layer_norm_eps=1e-6
    )
    model = randomised(transformers.ViTModel(config, add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    own = build_vit(tmp_path / "model.safetensors", {"network": network}).eval()
    others = {
        "visual.head.proj.weight": torch.zeros(4, 96),
        "text.transformer.x": torch.zeros(1),
        "logit_scale": torch.zeros(()),
    }
    torch.save({**{f"visual.trunk.{n}": v for n, v in own.state_dict().items()}, **others}, tmp_path / "open_clip.bin")
    encoder = build_vit(tmp_path / "open_clip.bin", {"network": network}).eval()
    x = picture(size[0] * 16, size[1] * 16)
    expected = tokens(model, x, 16, 1, interpolate_pos_encoding=True)
    assert (encoder(x) - expected).abs().max() < 1e-4


@torch.inference_mode()
def test_medclip_sam_v2_has_the_layout_of_the_hugging_face_port(tmp_path):
    network = {**SMALL, "patch": 16, "scales": False}
    own = randomised(VisionTransformer(**network))
    port = {
        "text_model.x": torch.zeros(1),
        "visual_projection.weight": torch.zeros(4, 96),
        "logit_scale": torch.zeros(()),
        "vision_model.embeddings.position_ids": torch.arange(65)[None],
    }
    for name, value in own.state_dict().items():
        if name == "cls_token":
            port["vision_model.embeddings.class_embedding"] = value[0, 0]
        elif name == "pos_embed":
            port["vision_model.embeddings.position_embedding.weight"] = value[0]
        elif ".attn.qkv." in name:
            layer = name.replace("blocks.", "vision_model.encoder.layers.").replace(".attn.qkv.", ".self_attn.{}_proj.")
            port.update({layer.format(letter): part for letter, part in zip("qkv", value.chunk(3), strict=True)})
        else:
            for old, new in (
                ("patch_embed.proj", "embeddings.patch_embedding"),
                ("blocks.", "encoder.layers."),
                (".norm1", ".layer_norm1"),
                (".norm2", ".layer_norm2"),
                ("attn.proj", "self_attn.out_proj"),
            ):
                name = name.replace(old, new)
            name = name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name
            port["vision_model." + name] = value
    torch.save(port, tmp_path / "pytorch_model.bin")
    x = picture(128, 128)
    assert torch.equal(build_vit(tmp_path / "pytorch_model.bin", {"network": network}).eval()(x), own(x))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers"])
def test_the_original_dinov2_files_need_no_renaming(name, tmp_path):
    own = randomised(VisionTransformer(**MODELS[name][1]))
    torch.save({**own.state_dict(), "mask_token": torch.zeros(1, 96)}, tmp_path / "dinov2.pth")
    x = picture(112, 84)
    assert torch.equal(build_vit(tmp_path / "dinov2.pth", {"network": MODELS[name][1]}).eval()(x), own(x))


@torch.inference_mode()
def test_the_original_dinov3_files_mask_the_bias_of_the_keys(tmp_path):
    network = MODELS["dinov3-gated"][1]
    own = randomised(VisionTransformer(**network))
    original = {"mask_token": torch.zeros(1, 96), "rope_embed.periods": own.periods.bfloat16()}
    for name, value in own.state_dict().items():
        if name == "register_tokens":
            original["storage_tokens"] = value
        elif ".mlp.w12." in name:
            original[name.replace("w12", "w1")], original[name.replace("w12", "w2")] = value.chunk(2)
        else:
            original[name] = value
        if name.endswith("qkv.bias"):
            original[name + "_mask"] = torch.full_like(value, float("nan"))
            value[96:192] = 0
            original[name] = value + torch.where(torch.arange(288) // 96 == 1, 7.0, 0.0)
    torch.save(original, tmp_path / "dinov3.pth")
    own.periods.copy_(own.periods.bfloat16())
    x = picture(80, 96)
    assert torch.allclose(build_vit(tmp_path / "dinov3.pth", {"network": network}).eval()(x), own(x), atol=1e-5)


@torch.inference_mode()
def test_several_layers_can_be_fused(tmp_path):
    own = randomised(VisionTransformer(**SMALL))
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    fused = build_vit(tmp_path / "model.safetensors", {"network": SMALL}, layers=(0, 2)).eval()
    x = picture(70, 56)
    assert fused(x).shape == (1, 192, 5, 4) and fused.channels == 192
    assert torch.equal(fused(x)[:, 96:], own(x))


def test_wrong_files_are_refused_with_their_keys_named(tmp_path):
    state = VisionTransformer(**SMALL).state_dict()
    for change, name in (
        ({"blocks.1.mlp.fc1.bias": None}, "missing: blocks.1.mlp.fc1.bias"),
        ({"blocks.3.norm1.weight": torch.zeros(96)}, "surplus: blocks.3.norm1.weight"),
        ({"pos_embed": torch.zeros(1, 10, 96)}, "wrong shape: pos_embed"),
    ):
        content = {key: value for key, value in {**state, **change}.items() if value is not None}
        torch.save(content, tmp_path / "wrong.pth")
        with pytest.raises(WeightsError, match=name):
            build_vit(tmp_path / "wrong.pth", {"network": SMALL})


def test_files_with_code_are_not_opened(tmp_path):
    torch.save({"model": VisionTransformer(**SMALL)}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="run as code"):
        read_checkpoint(tmp_path / "code.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=r"broken\.pth"):
        read_checkpoint(tmp_path / "broken.pth")


PARAMETERS = {  # millions, of the published models
    "dinov2-s": 22.06, "dinov2-b": 86.58, "dinov2-l": 304.37, "dinov2-g": 1136.48,
    "dinov3-s": 21.60, "dinov3-b": 85.66, "dinov3-l": 303.13, "biomedclip": 85.80,
}  # fmt: skip


@pytest.mark.parametrize("id", PARAMETERS)
def test_the_catalogues_networks_have_the_published_number_of_parameters(id):
    with torch.device("meta"):
        network = VisionTransformer(**catalogue()[id].options["network"])
    millions = sum(value.numel() for value in network.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[id], rel=2e-3)
    assert network.channels == catalogue()[id].channels and network.patch == catalogue()[id].stride


@pytest.mark.slow
@torch.inference_mode()
def test_the_full_dinov2_l_with_registers_agrees_at_896_pixels(tmp_path):
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=518,
        patch_size=14,
        num_register_tokens=4,
    )
    model = randomised(transformers.Dinov2WithRegistersModel(config))
    model.save_pretrained(tmp_path)
    options = catalogue()["dinov2-l-reg"].options
    encoder = build_vit(tmp_path / "model.safetensors", options).eval()
    x = picture(896, 896)
    expected = tokens(model, x, 14, 5)
    assert (encoder(x) - expected).abs().max() < 1e-4


def original(network):
    """transformers' model of the size that an entry's ``network`` describes."""
    sizes = {
        "hidden_size": network["width"],
        "num_hidden_layers": network["depth"],
        "num_attention_heads": network["heads"],
        "patch_size": network["patch"],
        "image_size": network["patch"] * (network.get("table") or 14),
    }
    if "table" not in network:
        gated = {"use_gated_mlp": True, "hidden_act": "silu"} if network.get("gated") else {}
        hidden = network.get("hidden", 4 * network["width"])
        config = transformers.DINOv3ViTConfig(**sizes, **gated, intermediate_size=hidden, num_register_tokens=4)
        return transformers.DINOv3ViTModel(config)
    gated = network.get("gated", False)
    if network.get("registers"):
        config = transformers.Dinov2WithRegistersConfig(**sizes, use_swiglu_ffn=gated, num_register_tokens=4)
        return transformers.Dinov2WithRegistersModel(config)
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, use_swiglu_ffn=gated))


FULL = ["dinov2-s", "dinov2-b-reg", "dinov2-l", "dinov2-g-reg", "dinov3-s", "dinov3-splus", "dinov3-b", "dinov3-l",
        "dinov3-hplus"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("id", FULL)
@torch.inference_mode()
def test_models_of_full_size_agree_by_way_of_import_and_load(id, tmp_path, monkeypatch):
    """Random weights in a Hugging Face folder, taken in and loaded as a user does; the giants need 12 GB."""
    item = catalogue()[id]
    network = item.options["network"]
    patch, extra = network["patch"], 1 + network.get("registers", 0)
    gray = torch.rand(1, 1, 10 * patch, 8 * patch, generator=torch.Generator().manual_seed(5))
    mean, std = (torch.tensor(item.options[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    model = randomised(original(network))
    expected = tokens(model, (gray.expand(-1, 3, -1, -1) - mean) / std, patch, extra)
    model.save_pretrained(tmp_path / "published")
    del model
    monkeypatch.setattr(store, "_folder", tmp_path / "models")
    acquisition.import_file(id, tmp_path / "published", build_network)
    encoder = load_encoder(id)
    assert encoder.channels == item.channels and (encoder(gray) - expected).abs().max() < 1e-4
    del encoder
    half = load_encoder(id, precision="bfloat16")(gray)
    assert (half - expected).norm() / expected.norm() < 2e-2
