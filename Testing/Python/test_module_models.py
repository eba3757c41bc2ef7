"""Encoders and their weights in the panel: download, verify, own models, the folder."""

import pytest

slicer = pytest.importorskip("slicer")
from panel_steps import click, prepare, run  # noqa: E402


def test_a_download_is_asked_for_with_size_and_licence(panel, bench, fake_channel, tmp_path):
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


def test_weights_are_verified_by_a_click_and_gated_ones_name_their_page(panel, bench, fake_channel):
    from FoundationRegLib.weights import store
    from FoundationRegLib.weights.catalogue import entry

    ui = panel.ui
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("dinov3-s")
    assert "huggingface.co/facebook/dinov3-vits16" in ui.encoderStateLabel.text and not ui.verifyButton.enabled
    fake_channel.close()
    place = store.models_folder() / "medsam-lite" / entry("medsam-lite").weights.file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("medsam-lite")
    ui.modelsCollapsibleButton.collapsed = False
    bench.process_events()
    with bench.dialogs.answering("OK") as seen:
        click(bench, ui.verifyButton)
        bench.wait_until(lambda: bool(seen), 60)
    assert "damaged or not the published" in seen[0]


def test_the_folder_of_weights_can_be_changed_and_cleared(panel, bench, tmp_path):
    from FoundationRegLib.slicer.panel import availability
    from FoundationRegLib.weights import store

    other = tmp_path / "other"
    try:
        panel.panel.models.setFolder(str(other))
        assert store.models_folder() == other
        assert slicer.app.userSettings().value(availability.FOLDER_SETTING) == str(other)
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
        slicer.app.userSettings().remove(availability.FOLDER_SETTING)


def test_a_program_of_ones_own_runs_only_after_a_yes_to_its_content(panel, bench, tmp_path, monkeypatch):
    import qt
    from FoundationRegLib.weights import trust

    ui, node = panel.ui, panel._parameterNode
    path = tmp_path / "mine.pt"
    path.write_bytes(b"a program")
    prepare(panel, bench)
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(path))
    chooser = next(n for n in range(ui.encoderComboBox.count) if "TorchScript" in ui.encoderComboBox.itemText(n))
    with bench.dialogs.answering("No") as seen:
        ui.encoderComboBox.currentIndex = chooser
    assert str(path) in seen[0] and trust.digest(path)[:12] in seen[0] and "program" in seen[0]
    assert node.encoder == "mind" == ui.encoderComboBox.itemData(ui.encoderComboBox.currentIndex)
    with bench.dialogs.answering("Yes"):
        ui.encoderComboBox.currentIndex = ui.encoderComboBox.findText(ui.encoderComboBox.itemText(chooser))
    assert node.encoder == str(path) and ui.encoderComboBox.currentText == "mine.pt"
    assert ui.encoderStateLabel.text == "Ready." and trust.digest(path) in trust.kept()
    run(panel, bench)
    assert ui.outputTransformSelector.currentNode() is not None

    path.write_bytes(b"another program")
    panel.panel.models.update()
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
    assert "asked before it runs" in ui.encoderStateLabel.text and not trust.kept()

    path.unlink()
    panel.panel.update()
    with bench.dialogs.answering("OK") as seen:
        click(bench, ui.applyButton)
    assert "does not exist any more" in seen[0]


def test_a_transformers_folder_is_chosen_without_a_question(panel, bench, tmp_path, monkeypatch):
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


def test_encoder_choices_reach_the_settings(panel, bench):
    from FoundationRegLib.slicer.panel import parameters

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
