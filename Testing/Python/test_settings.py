"""What a user can choose, and what happens when it cannot be."""

import json

import pytest
from FoundationRegLib import settings
from FoundationRegLib.errors import InputError
from FoundationRegLib.settings import Settings


def test_settings_survive_json():
    chosen = Settings(fixed_window=(-200.0, 300.0), encoders=(("mind", 2.0),), planes=("axial", "coronal"), seed=7)
    assert Settings.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_texts_as_typed_become_the_right_types():
    typed = Settings.from_dict(
        {
            "rigid": "no",
            "affine": "True",
            "iterations": "40",
            "smoothness": "0.5",
            "encoders": "mind=0.5, medsam-lite",
            "planes": "axial, sagittal",
            "fixed_window": "-200,300",
            "moving_window": "none",
            "encoder_layers": "5, 11, -1",
            "encoder_precision": "bfloat16",
        }
    )
    assert typed.rigid is False and typed.affine is True
    assert typed.iterations == 40 and typed.smoothness == 0.5
    assert typed.encoders == (("mind", 0.5), ("medsam-lite", 1.0))
    assert typed.planes == ("axial", "sagittal")
    assert typed.fixed_window == (-200, 300) and typed.moving_window is None
    assert typed.encoder_layers == (5, 11, -1) and typed.encoder_precision == "bfloat16"


def test_encoders_may_be_given_one_by_one_with_any_path():
    typed = Settings.from_dict({"encoders": ["mind=0.5", "/data/a,b/model.pt", ("C:\\m=1\\model.pt", 2)]})
    assert typed.encoders == (("mind", 0.5), ("/data/a,b/model.pt", 1.0), ("C:\\m=1\\model.pt", 2.0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"smothness": 1}, "did you mean 'smoothness'"),
        ({"entirely_else": 1}, "no setting 'entirely_else'"),
        ({"smoothness": 0}, "smoothness must lie between 1e-06 and 1e"),
        ({"smoothness": "nan"}, "cannot be 'nan'"),
        ({"iterations": "2.5"}, "cannot be '2.5'"),
        ({"iterations": -1}, "must lie between 0 and 10000, not -1"),
        ({"start": "sideways"}, "one of auto, none, geometry"),
        ({"rigid": "maybe"}, "cannot be 'maybe'"),
        ({"planes": "slanted"}, "cannot be 'slanted'"),
        ({"planes": ""}, "cannot be ''"),
        ({"fixed_window": "300,-200"}, "cannot be '300,-200'"),
        ({"encoders": []}, "at least one encoder"),
        ({"encoders": "mind=-1"}, "weight above zero"),
        ({"encoders": "mind=many"}, "cannot be 'mind=many'"),
        ({"encoder_layers": "first"}, "cannot be 'first'"),
        ({"encoder_precision": "int8"}, "one of auto, float32, bfloat16, float16"),
        ({"encoder_normalisation": "none"}, "one of trained, study"),
    ],
)
def test_wrong_settings_get_one_plain_sentence(values, words):
    with pytest.raises(InputError, match=words):
        Settings.from_dict(values)


WRONG = [
    ("pca_components", 0), ("pca_components", -3), ("levels", (1, 2, 4)), ("levels", (4, 4)), ("levels", 4096),
    ("levels", {}), ("adam_kernel", 4), ("encoders", ()), ("encoders", 3), ("encoders", (("mind", float("nan")),)),
    ("threads", 100_000), ("threads", 2_147_483_648), ("seed", -1), ("finest_spacing_mm", 1e-9),
    ("finest_spacing_mm", 1e9), ("search_spacing_mm", 1e9), ("slice_gap_mm", 1e-9), ("grey_sigma", 1e9),
    ("smoothness", 1e300), ("smoothness", float("inf")), ("iterations", True), ("iterations", 10**30), ("preset", []),
    ("device", None), ("fixed_window", (0, float("inf"))), ("fixed_window", (1, 2, 3)), ("encoder_layers", [10**9]),
    ("rigid", []), ("start", ["auto"]), ("planes", ("axial", "axial")), ("planes", 7), ("memory_gb", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_every_way_to_settings_refuses_the_same(name, value):
    for make in (lambda: Settings(**{name: value}), lambda: Settings.from_dict({name: value}),
                 lambda: Settings().replace(**{name: value})):  # fmt: skip
        with pytest.raises(InputError, match=f"setting {name} ") as caught:
            make()
        assert len(str(caught.value)) < 300


def test_every_way_to_settings_accepts_texts_and_lists():
    assert Settings(encoders="mind", levels=[2, 1]) == Settings.from_dict({"encoders": ["mind"], "levels": "2,1"})
    assert hash(Settings(encoders=[["mind", 1]])) == hash(Settings(encoders="mind"))


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"settings": 3}', "[" * 100_000,
                                  '{"settings": {"a": 1}}', "\xff",
                                  '{"settings": {"smoothness": 1e999}}', ""])  # fmt: skip
def test_a_preset_file_that_is_no_preset_is_one_sentence(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError):
        Settings.from_preset(str(path))
    (tmp_path / "folder.json").mkdir()
    for name in (tmp_path / "folder.json", tmp_path / ("x" * 300 + ".json"), "\0.json"):
        with pytest.raises(InputError):
            Settings.from_preset(str(name))


def test_replace_checks_like_the_rest_and_leaves_the_original():
    original = Settings()
    assert original.replace(seed="5").seed == 5 and original.seed == 0
    with pytest.raises(InputError):
        original.replace(seed="x")


def test_presets_that_ship_are_valid():
    for name in settings.preset_names():
        preset = settings.read_preset(name)
        assert {"title", "summary", "settings"} <= set(preset)
        assert Settings.from_preset(name).preset == name
    assert [n for n in settings.preset_names() if Settings.from_preset(n).encoder_normalisation == "study"] == ["study"]


def test_a_preset_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"title": "Mine", "summary": "", "settings": {"iterations": 5}}), encoding="utf-8")
    assert Settings.from_preset(str(path), seed=3).iterations == 5
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        settings.read_preset(str(path))
    with pytest.raises(InputError, match="no preset 'nothing'"):
        settings.read_preset("nothing")
