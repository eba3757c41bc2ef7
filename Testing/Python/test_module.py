"""The panel, clicked as a user does, in the workbench and with a register that takes no time."""

import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import fake_register
import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
from module_fixtures import MODULE, bench, fake_channel, loaded, panel, process_is_running  # noqa: E402, F401
from test_slicer_nodes import add_linear, add_segmentation, add_volume, affine, smooth  # noqa: E402

LIBRARY = MODULE.parent / "FoundationRegLib" / "slicer"
UI_FILE = MODULE.parent / "Resources" / "UI" / "FoundationReg.ui"


def add_pair():
    return (
        add_volume(smooth((18, 20, 22)), "anisotropic oblique", "fixed"),
        add_volume(smooth((24, 28, 30), 1, np.int16), "left-handed", "moving"),
    )


def click(bench, button):  # noqa: F811
    """Click from within the event loop, as a user does: dialogs that open rely on it."""
    from PySide6.QtCore import QEventLoop, QPoint, Qt, QTimer
    from PySide6.QtTest import QTest

    assert button.enabled, button.text
    loop = QEventLoop()

    def press():
        # A check box takes clicks on its box and text only, at its left.
        where = QPoint(10, button.height // 2) if button.inherits("QCheckBox") else QPoint()
        QTest.mouseClick(button, Qt.LeftButton, Qt.NoModifier, where)
        loop.quit()

    QTimer.singleShot(0, press)
    loop.exec()
    bench.process_events()


def prepare(widget, bench, action=fake_register.QUICK):  # noqa: F811
    """Choose a pair and an encoder without weights; ``action`` is what the register will do."""
    pair = add_pair()
    widget.ui.fixedSelector.setCurrentNode(pair[0])
    widget.ui.movingSelector.setCurrentNode(pair[1])
    widget.ui.encoderComboBox.currentIndex = widget.ui.encoderComboBox.findData("mind")
    widget.ui.seedSpinBox.value = action
    widget.ui.smoothnessSlider.value = 3.0
    bench.process_events()
    return pair


def run(widget, bench):  # noqa: F811
    click(bench, widget.ui.applyButton)
    bench.wait_until(lambda: not widget.panel._busy, 60)


def combo_texts(combo):
    return [combo.itemText(n) for n in range(combo.count)]


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
    names = {widget.get("name") for widget in ElementTree.parse(UI_FILE).iter("widget")}
    used = set()
    for path in [MODULE, *LIBRARY.glob("panel*.py")]:
        used |= set(re.findall(r"\bui\.(\w+)", path.read_text(encoding="utf-8")))
    assert used - {"py"} <= names, used - names


def test_every_bound_parameter_exists_and_every_widget_has_a_tooltip(panel):  # noqa: F811
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


def test_the_panel_works_without_torch(panel, bench, monkeypatch):  # noqa: F811
    from FoundationRegLib.slicer import dependencies

    monkeypatch.setattr(dependencies, "torch_version", lambda: None)
    panel.panel._device = ""
    panel.panel._showDevice()
    assert "not installed" in panel.ui.deviceLabel.text
    prepare(panel, bench)
    with bench.dialogs.answering("OK") as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: seen, 10)
    assert "extension named PyTorch" in seen[0] and not panel.panel._busy


# Choosing


def test_the_apply_button_says_what_is_missing(panel, bench):  # noqa: F811
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


def test_two_volumes_are_chosen_by_themselves(panel, bench):  # noqa: F811
    fixed, moving = add_pair()
    panel.enter()
    assert panel.ui.fixedSelector.currentNode() is fixed and panel.ui.movingSelector.currentNode() is moving


def test_presets_set_the_advanced_values_and_tell_of_changes(panel, bench):  # noqa: F811
    from FoundationRegLib.settings import Settings, preset_names

    ui, node = panel.ui, panel._parameterNode
    assert [ui.presetComboBox.itemData(n) for n in range(ui.presetComboBox.count)] == preset_names()
    for name in preset_names():
        ui.presetComboBox.currentIndex = ui.presetComboBox.findData(name)
        bench.process_events()
        from FoundationRegLib.slicer import parameters

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


def test_presets_and_encoders_of_another_version_are_replaced(panel, bench):  # noqa: F811
    node = panel._parameterNode
    panel.exit()
    node.preset, node.encoder = "of the future", "of the past"
    panel.enter()
    assert panel._parameterNode.preset == "default" and panel._parameterNode.encoder == ""
    assert panel.ui.encoderStateLabel.text


def test_an_encoder_is_combined_with_mind_when_wanted(panel, bench):  # noqa: F811
    from FoundationRegLib.slicer import parameters

    ui, node = panel.ui, panel._parameterNode
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("medsam-lite")
    assert [name for name, _ in parameters.settings_of(node).encoders] == ["medsam-lite", "mind"]
    node.combineMind = False
    assert [name for name, _ in parameters.settings_of(node).encoders] == ["medsam-lite"]
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("mind")
    assert [name for name, _ in parameters.settings_of(node).encoders] == ["mind"]
    assert ui.encoderStateLabel.text == "Ready."


# Running


def test_a_registration_by_clicks(panel, bench):  # noqa: F811
    fixed, moving = prepare(panel, bench)
    run(panel, bench)
    transform = panel.ui.outputTransformSelector.currentNode()
    assert transform is not None and moving.GetParentTransformNode() is transform
    assert panel.ui.statusLabel.text.startswith("Done") and panel.ui.applyButton.text == "Apply"
    assert not panel.ui.progressBar.visible and "No voxel is folded" in panel.ui.qualityLabel.text
    assert not panel.ui.reviewCollapsibleButton.collapsed
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert composite.GetBackgroundVolumeID() == fixed.GetID()
        assert composite.GetForegroundVolumeID() == moving.GetID()
    count = slicer.mrmlScene.GetNumberOfNodes()
    run(panel, bench)
    assert slicer.mrmlScene.GetNumberOfNodes() == count and moving.GetParentTransformNode() is transform


def test_volume_only_and_both_by_clicks(panel, bench):  # noqa: F811
    _, moving = prepare(panel, bench)
    click(bench, panel.ui.makeTransformCheckBox)
    click(bench, panel.ui.makeVolumeCheckBox)
    run(panel, bench)
    volume = panel.ui.outputVolumeSelector.currentNode()
    assert moving.GetParentTransformNode() is None and slicer.util.arrayFromVolume(volume).dtype == np.int16
    assert panel.ui.outputTransformSelector.currentNode() is None
    click(bench, panel.ui.makeTransformCheckBox)
    run(panel, bench)
    assert panel.ui.outputVolumeSelector.currentNode() is volume
    assert moving.GetParentTransformNode() is panel.ui.outputTransformSelector.currentNode()


def test_apply_turns_into_cancel(panel, bench, fake_channel):  # noqa: F811
    _, moving = prepare(panel, bench, fake_register.SLOW)
    parent = add_linear(affine())
    moving.SetAndObserveTransformNodeID(parent.GetID())
    nodes_before = slicer.mrmlScene.GetNumberOfNodes()
    click(bench, panel.ui.applyButton)
    assert panel.ui.applyButton.text == "Cancel" and panel.ui.stopHereButton.visible
    bench.wait_until(lambda: moving.GetParentTransformNode() is not parent, 30)  # the live preview
    bench.wait_until(lambda: panel.ui.progressBar.value > 0, 30)
    assert panel.ui.progressBar.visible and panel.ui.statusLabel.text
    pid, folder = fake_channel.process.pid, fake_channel.process.folder
    click(bench, panel.ui.applyButton)
    assert panel.ui.applyButton.text == "Apply" and not panel.ui.stopHereButton.visible
    assert moving.GetParentTransformNode() is parent and slicer.mrmlScene.GetNumberOfNodes() == nodes_before
    assert not process_is_running(pid) and not folder.exists()
    assert "Cancelled" in panel.ui.statusLabel.text


def test_stop_here_and_preview_switch(panel, bench):  # noqa: F811
    _, moving = prepare(panel, bench, fake_register.UNTIL_FINISH)
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: moving.GetParentTransformNode() is not None, 30)
    click(bench, panel.ui.previewCheckBox)
    assert moving.GetParentTransformNode() is None
    click(bench, panel.ui.stopHereButton)
    bench.wait_until(lambda: not panel.panel._busy, 10)
    assert panel.ui.outputTransformSelector.currentNode() is not None


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_killed_worker_is_explained_and_can_run_again(panel, bench, fake_channel):  # noqa: F811
    prepare(panel, bench, fake_register.NO_CHECKS)
    with bench.dialogs.answering("OK") as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: panel.ui.progressBar.value > 0, 30)
        os.kill(fake_channel.process.pid, signal.SIGKILL)
        bench.wait_until(lambda: seen, 10)
    assert "SIGKILL" in seen[0] and panel.ui.applyButton.text == "Apply"
    panel.ui.seedSpinBox.value = fake_register.QUICK
    run(panel, bench)
    assert panel.ui.outputTransformSelector.currentNode() is not None


def test_bad_input_is_shown_as_its_sentence(panel, bench):  # noqa: F811
    prepare(panel, bench, fake_register.BAD_INPUT)
    with bench.dialogs.answering("OK") as seen:
        run(panel, bench)
    assert "The fixed image is empty." in seen[0]
    assert "The fixed image is empty." in panel.ui.logTextEdit.plainText


def test_deleting_an_input_during_the_run(panel, bench):  # noqa: F811
    _, moving = prepare(panel, bench, fake_register.SLOW)
    with bench.dialogs.answering("OK") as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: moving.GetParentTransformNode() is not None, 30)
        slicer.mrmlScene.RemoveNode(moving)
        bench.wait_until(lambda: seen, 10)
    assert "'moving' was removed" in seen[0] and not panel.panel._busy
    assert not panel.ui.applyButton.enabled


def test_closing_the_scene_during_the_run(panel, bench, fake_channel):  # noqa: F811
    prepare(panel, bench, fake_register.SLOW)
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: panel.ui.progressBar.value > 0, 30)
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    assert not panel.panel._busy and not fake_channel.process.alive
    assert "fixed volume" in panel.ui.applyButton.text


def test_moving_the_smoothness_refines_again_with_the_warm_worker(panel, bench, fake_channel):  # noqa: F811
    from FoundationRegLib.slicer import results

    prepare(panel, bench)
    run(panel, bench)
    transform, pid = panel.ui.outputTransformSelector.currentNode(), fake_channel.process.pid
    panel.ui.smoothnessSlider.value = 4.0
    bench.wait_until(lambda: results.read_grid(transform)[0][0, 0, 0, 0] > 3.9, 30)
    assert fake_channel.process.pid == pid
    assert '"reused": true' in transform.GetAttribute("FoundationReg.record")
    # While one runs, a newer value replaces it without losing the worker.
    panel.ui.seedSpinBox.value = fake_register.SLOW
    panel.ui.smoothnessSlider.value = 5.0
    bench.wait_until(lambda: panel.panel._busy, 10)
    panel.ui.seedSpinBox.value = fake_register.QUICK
    panel.ui.smoothnessSlider.value = 6.0
    bench.wait_until(lambda: results.read_grid(transform)[0][0, 0, 0, 0] > 5.9, 30)
    assert fake_channel.process.pid == pid
    panel._parameterNode.reoptimize = False
    panel.ui.smoothnessSlider.value = 7.0
    bench.process_events(0.8)
    assert not panel.panel._busy


# Weights


def test_a_download_is_asked_for_with_size_and_licence(panel, bench, fake_channel, tmp_path):  # noqa: F811
    fake_channel.close()  # the warm worker of other tests has another folder
    prepare(panel, bench)
    panel.ui.encoderComboBox.currentIndex = panel.ui.encoderComboBox.findData("medsam-lite")
    assert "39 MB" in panel.ui.encoderStateLabel.text and "Apache-2.0" in panel.ui.encoderStateLabel.text
    with bench.dialogs.answering("Cancel") as seen:
        click(bench, panel.ui.applyButton)
    assert "39 MB" in seen[0] and "Apache-2.0" in seen[0]
    assert not panel.panel._busy and panel.ui.outputTransformSelector.currentNode() is None
    assert not (tmp_path / "models" / "medsam-lite").exists()
    with bench.dialogs.answering("OK"):
        run(panel, bench)
        bench.wait_until(lambda: panel.ui.outputTransformSelector.currentNode() is not None, 60)
    assert panel.ui.encoderStateLabel.text == "Ready."


def test_weights_are_verified_by_a_click_and_gated_ones_name_their_page(panel, bench, fake_channel):  # noqa: F811
    from FoundationRegLib import weights
    from FoundationRegLib.encoders import entry

    ui = panel.ui
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("dinov3-s")
    assert "huggingface.co/facebook/dinov3-vits16" in ui.encoderStateLabel.text and not ui.verifyButton.enabled
    fake_channel.close()
    place = weights.models_folder() / "medsam-lite" / entry("medsam-lite").weights.file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("medsam-lite")
    ui.modelsCollapsibleButton.collapsed = False
    bench.process_events()
    with bench.dialogs.answering("OK") as seen:
        click(bench, ui.verifyButton)
        bench.wait_until(lambda: bool(seen), 60)
    assert "damaged or not the published" in seen[0]


def test_the_folder_of_weights_can_be_changed_and_cleared(panel, bench, tmp_path):  # noqa: F811
    from FoundationRegLib import weights
    from FoundationRegLib.slicer import models

    other = tmp_path / "other"
    try:
        panel.panel.models.setFolder(str(other))
        assert weights.models_folder() == other
        assert slicer.app.userSettings().value(models.FOLDER_SETTING) == str(other)
        assert str(other) in panel.ui.modelsFolderLabel.text
        kept, ours = other / "mine" / "file.bin", other / "medsam-lite" / "lite_medsam.pth"
        for path in (kept, ours):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x" * 2_000_000)
        panel.panel.models.update()
        assert "4 MB" in panel.ui.modelsFolderLabel.text
        panel.ui.modelsCollapsibleButton.collapsed = False
        bench.process_events()
        with bench.dialogs.answering("OK"):
            click(bench, panel.ui.clearFolderButton)
        assert kept.exists() and not ours.exists()
    finally:
        slicer.app.userSettings().remove(models.FOLDER_SETTING)


def test_a_program_of_ones_own_runs_only_after_a_yes_to_its_content(panel, bench, tmp_path, monkeypatch):  # noqa: F811
    import qt
    from FoundationRegLib import consent

    ui, node = panel.ui, panel._parameterNode
    path = tmp_path / "mine.pt"
    path.write_bytes(b"a program")
    prepare(panel, bench)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(path))
    chooser = next(n for n in range(ui.encoderComboBox.count) if "TorchScript" in ui.encoderComboBox.itemText(n))
    with bench.dialogs.answering("No") as seen:
        ui.encoderComboBox.currentIndex = chooser
    assert str(path) in seen[0] and consent.digest(path)[:12] in seen[0] and "program" in seen[0]
    assert node.encoder == "mind" == ui.encoderComboBox.itemData(ui.encoderComboBox.currentIndex)
    with bench.dialogs.answering("Yes"):
        ui.encoderComboBox.currentIndex = ui.encoderComboBox.findText(ui.encoderComboBox.itemText(chooser))
    assert node.encoder == str(path) and ui.encoderComboBox.currentText == "mine.pt"
    assert ui.encoderStateLabel.text == "Ready." and consent.digest(path) in consent.kept()
    run(panel, bench)
    assert ui.outputTransformSelector.currentNode() is not None

    path.write_bytes(b"another program")
    panel.panel.update()
    assert "asked before it runs" in ui.encoderStateLabel.text and ui.encoderActionButton.text == "Allow..."
    with bench.dialogs.answering("No") as seen:
        click(bench, ui.applyButton)
    assert str(path) in seen[0] and not panel.panel._busy
    with bench.dialogs.answering("Yes"):
        click(bench, ui.encoderActionButton)
    assert ui.encoderStateLabel.text == "Ready."
    ui.modelsCollapsibleButton.collapsed = False
    bench.process_events()
    with bench.dialogs.answering("OK"):
        click(bench, ui.removeButton)
    assert "asked before it runs" in ui.encoderStateLabel.text and not consent.kept()

    path.unlink()
    panel.panel.update()
    with bench.dialogs.answering("OK") as seen:
        click(bench, ui.applyButton)
    assert "does not exist any more" in seen[0]


def test_a_transformers_folder_is_chosen_without_a_question(panel, bench, tmp_path, monkeypatch):  # noqa: F811
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    ui = panel.ui
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findText("Your own transformers folder...")
    assert panel._parameterNode.encoder == str(tmp_path) and ui.encoderStateLabel.text == "Ready."
    panel.exit()
    panel.enter()
    assert panel._parameterNode.encoder == str(tmp_path) and ui.encoderComboBox.currentText == tmp_path.name
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: "")
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findText("Your own transformers folder...")
    assert ui.encoderComboBox.currentText == tmp_path.name, "a dialog that is closed changes nothing"


def test_encoder_choices_reach_the_settings(panel, bench):  # noqa: F811
    from FoundationRegLib.slicer import parameters

    ui, node = panel.ui, panel._parameterNode
    ui.encoderLayersEdit.text = "5, -1"
    ui.encoderPrecisionComboBox.currentText = "bfloat16"
    ui.encoderNormalizationComboBox.currentText = "study"
    bench.process_events()
    made = parameters.settings_of(node)
    assert made.encoder_layers == (5, -1) and made.encoder_precision == "bfloat16"
    assert made.encoder_normalisation == "study" and "encoder layers" in ui.presetLabel.text
    ui.encoderLayersEdit.text = "5, x"
    prepare(panel, bench)
    assert not ui.applyButton.enabled and "encoder_layers" in ui.applyButton.toolTip


# Scenes, console, samples, reload


def test_a_saved_scene_restores_the_panel(panel, bench, tmp_path):  # noqa: F811
    fixed, _ = prepare(panel, bench)
    mask = np.zeros((18, 20, 22), np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    segmentation = add_segmentation(fixed, {"organ": mask})
    surface = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "surface")
    panel.ui.fixedMaskSelector.setCurrentNode(segmentation)
    panel._parameterNode.carried = [surface]
    panel.ui.searchRangeSpinBox.value = 12.5
    panel.ui.startComboBox.currentIndex = 2
    run(panel, bench)
    names = {
        selector: getattr(panel.ui, selector).currentNode().GetName()
        for selector in ("fixedSelector", "movingSelector", "outputTransformSelector", "fixedMaskSelector")
    }
    quality = panel.ui.qualityLabel.text
    path = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(path))
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    assert panel.ui.fixedSelector.currentNode() is None and panel.ui.searchRangeSpinBox.value != 12.5
    assert read_bundle(path)
    bench.process_events()
    for selector, name in names.items():
        assert getattr(panel.ui, selector).currentNode().GetName() == name, selector
    assert panel.ui.searchRangeSpinBox.value == 12.5 and panel.ui.startComboBox.currentIndex == 2
    assert panel.ui.encoderComboBox.currentData == "mind" and panel.ui.smoothnessSlider.value == 3.0
    assert [node.GetName() for node in panel._parameterNode.carried] == ["surface"]
    assert panel.ui.qualityLabel.text == quality and panel.ui.reviewModeComboBox.enabled
    assert panel.ui.showTableButton.enabled


def read_bundle(path):
    """Load an MRB as Slicer does: unpack and read the scene in it."""
    import zipfile

    folder = path.with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    scene = slicer.mrmlScene
    scene.SetURL(str(next(folder.rglob("*.mrml"))))
    return scene.Import()


def test_the_console_examples(panel, bench):  # noqa: F811
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


def test_the_phantom_pair_is_registered_as_sample_data(panel, bench):  # noqa: F811
    import SampleData
    from FoundationRegLib.slicer import nodes, samples

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


def test_reload_takes_the_library_anew(panel, bench, fake_channel):  # noqa: F811
    import FoundationRegLib.settings as before

    fake_channel.close()
    slicer.util.reloadScriptedModule("FoundationReg")
    bench.process_events()
    import FoundationRegLib.settings as after

    assert after is not before
    again = slicer.modules.FoundationRegWidget
    assert again is not panel and again.ui.applyButton.text
    again.cleanup()
