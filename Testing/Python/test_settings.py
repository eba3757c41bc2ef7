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
        ({"smoothness": 0}, "greater than zero"),
        ({"smoothness": "nan"}, "cannot be 'nan'"),
        ({"iterations": "2.5"}, "cannot be '2.5'"),
        ({"iterations": -1}, "must not be negative"),
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
