"""What the panel offers, remembers and tells, clicked as a user does, in the workbench."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import fake_register
import numpy as np
import pytest
from module_fixtures import MODULE

slicer = pytest.importorskip("slicer")
from panel_steps import add_pair, click, prepare, run  # noqa: E402
from test_slicer_nodes import add_segmentation, add_volume  # noqa: E402

LIBRARY = MODULE.parent / "FoundationRegLib" / "slicer"
UI_FILE = MODULE.parent / "Resources" / "UI" / "FoundationReg.ui"


# What is there


def test_loading_the_panel_imports_nothing_that_slicer_does_not_bring():
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import Workbench; bench = Workbench.start(headless=True)\n"
        "widget = bench.load_module(sys.argv[3])\n"
        "assert widget.ui.applyButton.text, 'no panel'\n"
        "heavy = {'torch', 'SimpleITK', 'safetensors', 'scipy', 'transformers', 'rich'}\n"
        "print('IMPORTED', sorted(heavy & set(sys.modules)), widget.logic.channel.process.alive)\n"
    )
    folders = [str(MODULE.parent), str(MODULE.parents[1] / "Testing")]
    answer = subprocess.run(
        [sys.executable, "-c", script, *folders, str(MODULE)], capture_output=True, text=True, timeout=120
    )
    assert "IMPORTED [] False" in answer.stdout, answer.stdout + answer.stderr


def test_every_widget_that_the_code_names_exists_in_the_ui_file():
    files = UI_FILE.parent.glob("*.ui")
    names = {widget.get("name") for file in files for widget in ElementTree.parse(file).iter("widget")}
    used = set()
    for path in [MODULE, *LIBRARY.rglob("panel/*.py")]:
        used |= set(re.findall(r"\bui\.(\w+)", path.read_text(encoding="utf-8")))
    assert len(used) > 30 and used - {"py"} <= names, used - names


def test_every_bound_parameter_exists_and_every_widget_has_a_tooltip(panel):
    tree = ElementTree.parse(UI_FILE)
    bound = {
        item.findtext("string")
        for widget in tree.iter("widget")
        for item in widget.findall("property")
        if item.get("name") == "SlicerParameterName"
    }
    assert len(bound) > 40
    for name in bound:
        getattr(panel._parameterNode, name)
    for widget in tree.iter("widget"):
        interactive = re.search("Button|Box|Slider|Selector|Edit|ComboBox|Spin", widget.get("class"))
        if interactive and widget.get("class") != "ctkCollapsibleButton":
            assert any(item.get("name") == "toolTip" for item in widget.findall("property")), widget.get("name")
    stops = [stop.text for stop in tree.iter("tabstop")]
    order = [widget.get("name") for widget in tree.iter("widget")]
    assert stops == sorted(stops, key=order.index)


def test_the_panel_works_without_torch(panel, bench, monkeypatch):
    from FoundationRegLib.slicer.panel import dependencies

    monkeypatch.setattr(dependencies, "torch_version", lambda: None)
    panel.panel.device._text = ""
    panel.panel.device._show()
    assert "not installed" in panel.ui.deviceLabel.text
    prepare(panel, bench)
    with bench.dialogs.answering("OK") as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: seen, 10)
    assert "extension named PyTorch" in seen[0] and not panel.panel._busy


def test_the_device_line_says_where_kernels_are_missing():
    from FoundationRegLib.slicer.panel.wording import device_text

    answer = {"torch": "2.13.0", "name": "CPU", "device": "cpu", "memory": None, "threads": 2}
    assert device_text({**answer, "compiled_kernels": "avx2"}) == "PyTorch 2.13.0 on CPU, 2 threads"
    assert "without compiled kernels" in device_text({**answer, "compiled_kernels": "none"})
    card = {**answer, "device": "cuda:0", "name": "H100", "memory": 7.5e9, "compiled_kernels": "none"}
    assert device_text(card) == "PyTorch 2.13.0 on H100, 7.5 GB free"


# Choosing


def test_the_apply_button_says_what_is_missing(panel, bench):
    ui = panel.ui
    assert not ui.applyButton.enabled and "fixed volume" in ui.applyButton.text
    fixed, moving = add_pair()
    ui.fixedSelector.setCurrentNode(fixed)
    assert not ui.applyButton.enabled and "moving volume" in ui.applyButton.text
    ui.movingSelector.setCurrentNode(fixed)
    assert not ui.applyButton.enabled and "same" in ui.applyButton.toolTip
    hollow = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    ui.movingSelector.setCurrentNode(hollow)
    assert not ui.applyButton.enabled and "'hollow' has no image data" in ui.applyButton.toolTip
    ui.movingSelector.setCurrentNode(moving)
    assert ui.applyButton.enabled and ui.applyButton.text == "Apply"
    click(bench, ui.makeTransformCheckBox)
    assert not ui.applyButton.enabled and "output" in ui.applyButton.text
    click(bench, ui.makeVolumeCheckBox)
    assert ui.applyButton.enabled


def test_two_volumes_are_chosen_by_themselves(panel, bench):
    fixed, moving = add_pair()
    panel.enter()
    assert panel.ui.fixedSelector.currentNode() is fixed and panel.ui.movingSelector.currentNode() is moving


def test_presets_set_the_advanced_values_and_tell_of_changes(panel, bench):
    from FoundationRegLib.settings import Settings, preset_names

    ui, node = panel.ui, panel._parameterNode
    assert [ui.presetComboBox.itemData(n) for n in range(ui.presetComboBox.count)] == preset_names()
    for name in preset_names():
        ui.presetComboBox.currentIndex = ui.presetComboBox.findData(name)
        bench.process_events()
        from FoundationRegLib.slicer.panel import parameters

        ours, expected = parameters.settings_of(node).to_dict(), Settings.from_preset(name).to_dict()
        assert ours == expected
        assert ui.presetLabel.text and "Changed" not in ui.presetLabel.text
    ui.presetComboBox.currentIndex = 0
    ui.searchRangeSpinBox.value = 17
    assert "Changed: search range." in ui.presetLabel.text
    assert parameters.settings_of(node).search_range_mm == 17
    ui.advancedCollapsibleButton.collapsed = False
    bench.process_events()
    click(bench, ui.restorePresetButton)
    assert "Changed" not in ui.presetLabel.text and ui.searchRangeSpinBox.value != 17


def test_presets_and_encoders_of_another_version_are_replaced(panel, bench):
    node = panel._parameterNode
    panel.exit()
    node.preset, node.encoder = "of the future", "of the past"
    panel.enter()
    assert panel._parameterNode.preset == "default" and panel._parameterNode.encoder == ""
    assert panel.ui.encoderStateLabel.text


def test_an_encoder_is_combined_with_mind_when_wanted(panel, bench):
    from FoundationRegLib.slicer.panel import parameters

    ui, node = panel.ui, panel._parameterNode
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("medsam-lite")
    assert [name for name, _ in parameters.settings_of(node).encoders] == ["medsam-lite", "mind"]
    node.combineMind = False
    assert [name for name, _ in parameters.settings_of(node).encoders] == ["medsam-lite"]
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("mind")
    assert [name for name, _ in parameters.settings_of(node).encoders] == ["mind"]
    assert ui.encoderStateLabel.text == "Ready."


def test_the_weight_of_the_encoder_is_the_users_and_computed_again_when_changed(panel, bench):
    from FoundationRegLib.slicer.panel import parameters

    ui, node = panel.ui, panel._parameterNode
    assert not ui.encoderWeightSpinBox.enabled, "the default preset has MIND alone"
    ui.presetComboBox.currentIndex = ui.presetComboBox.findData("foundation")
    bench.process_events()
    assert ui.encoderWeightSpinBox.enabled and ui.encoderWeightSpinBox.value == 0.15
    assert parameters.encoders_of(node) == []
    before = parameters.tuning_of(node)
    ui.encoderWeightSpinBox.value = 0.4
    assert parameters.settings_of(node).encoders == (("medsam-lite", 0.4), ("mind", 1.0))
    assert parameters.tuning_of(node) != before and "encoders" in parameters.changed_fields(node)
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("mind")
    bench.process_events()
    alone = parameters.tuning_of(node)
    node.encoderWeight = 0.7
    assert parameters.tuning_of(node) == alone and not ui.encoderWeightSpinBox.enabled


# Scenes, console, samples, reload


def test_a_saved_scene_restores_the_panel(panel, bench, tmp_path):
    fixed, _ = prepare(panel, bench)
    mask = np.zeros((18, 20, 22), np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    segmentation = add_segmentation(fixed, {"organ": mask})
    surface = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "surface")
    panel.ui.fixedMaskSelector.setCurrentNode(segmentation)
    lesion = add_volume(mask, "anisotropic oblique", "lesion")
    panel.ui.excludeFixedSelector.setCurrentNode(lesion)
    panel._parameterNode.carried = [surface]
    panel.ui.searchRangeSpinBox.value = 12.5
    panel.ui.startComboBox.currentIndex = 2
    run(panel, bench)
    names = {
        selector: getattr(panel.ui, selector).currentNode().GetName()
        for selector in (
            *("fixedSelector", "movingSelector", "outputTransformSelector"),
            *("fixedMaskSelector", "excludeFixedSelector"),
        )
    }
    quality = panel.ui.qualityLabel.text
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    assert panel.ui.fixedSelector.currentNode() is None and panel.ui.searchRangeSpinBox.value != 12.5
    slicer.util.loadScene(str(path))
    bench.process_events()
    for selector, name in names.items():
        assert getattr(panel.ui, selector).currentNode().GetName() == name, selector
    assert panel.ui.searchRangeSpinBox.value == 12.5 and panel.ui.startComboBox.currentIndex == 2
    assert panel.ui.encoderComboBox.currentData == "mind" and panel.ui.smoothnessSlider.value == 3.0
    assert [node.GetName() for node in panel._parameterNode.carried] == ["surface"]
    assert panel.ui.qualityLabel.text == quality and panel.ui.reviewModeComboBox.enabled
    assert panel.ui.showTableButton.enabled


def test_the_console_examples(panel, bench):
    from FoundationReg import FoundationRegLogic

    fixed, moving = add_pair()
    seen = []
    settings = {"encoders": "mind", "smoothness": 3.0}
    result = FoundationRegLogic().process(fixed, moving, settings=settings, onEvent=seen.append)
    assert moving.GetParentTransformNode() is result.transformNode
    assert result.metrics["after"]["nmi"] == 1.25 and result.quality and seen[-1]["event"] == "done"
    job = FoundationRegLogic().process(
        fixed, moving, result.transformNode, settings={**settings, "seed": fake_register.SLOW}, waitForCompletion=False
    )
    assert job.state == "running"
    job.cancel()
    assert job.state == "cancelled"
    job = FoundationRegLogic().process(fixed, moving, settings=settings, waitForCompletion=False, jacobian=True)
    bench.wait_until(lambda: not job.running, 30)  # driven by the timer alone
    assert job.result.jacobianNode is not None
    from FoundationRegLib.errors import InputError

    with pytest.raises(InputError, match="are the same"):
        FoundationRegLogic().process(fixed, fixed)


def test_the_phantom_pair_is_registered_as_sample_data(panel, bench):
    import SampleData
    from FoundationRegLib.slicer.scene import nodes, samples

    from FoundationReg import registerSampleData

    registerSampleData()
    sources = {source.sampleName: source for source in slicer.modules.sampleDataSources["FoundationReg"]}
    assert {"FoundationRegPhantomPair", "FoundationRegBrainPair"} <= set(sources)
    assert SampleData is not None
    fixed, moving = sources["FoundationRegPhantomPair"].customDownloader(sources["FoundationRegPhantomPair"])
    # The deformation that made the pair matches it: tissue borders agree far better with it than without.
    grid = nodes.volume_grid(fixed)
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1)[::4, ::4, ::4])
    expected = samples.tissue(points)
    index = np.rint(nodes.volume_grid(moving).indices(points + samples.true_displacement(points))).astype(int)
    inside = np.all((index >= 0) & (index < nodes.volume_grid(moving).shape), axis=-1)
    grey = slicer.util.arrayFromVolume(moving)[tuple(np.moveaxis(index[inside], -1, 0))].astype(float)
    spread = sum(grey[expected[inside] == tissue].var() * (expected[inside] == tissue).mean() for tissue in range(8))
    assert spread < 0.35 * grey.var()


def test_reload_takes_the_library_anew(panel, bench, fake_channel):
    import FoundationRegLib.settings as before

    fake_channel.close()
    slicer.util.reloadScriptedModule("FoundationReg")
    bench.process_events()
    import FoundationRegLib.settings as after

    assert after is not before
    again = slicer.modules.FoundationRegWidget
    assert again is not panel and again.ui.applyButton.text
    again.cleanup()
