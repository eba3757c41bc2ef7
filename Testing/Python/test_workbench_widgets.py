"""The workbench's Qt: PySide6 in PythonQt's dialect, and the stand-ins for ctk and qMRML widgets."""

import pytest


@pytest.fixture
def qt(workbench):
    import qt

    return qt


def test_properties_are_attributes_and_setters_stay_methods(qt):
    label, box, progress = qt.QLabel("a"), qt.QSpinBox(), qt.QProgressBar()
    assert label.text == "a"
    label.text = "b"
    label.setEnabled(False)
    assert (label.text, label.enabled, label.isEnabled()) == ("b", False, False)
    box.maximum = 7
    box.value = 9
    assert (box.value, box.maximum) == (7, 7)
    progress.value = 33.9  # PythonQt converts numbers to whole numbers
    assert progress.value == 33
    with pytest.raises(AttributeError):
        box.cleanText = "read only"
    label.name = "statusLabel"
    assert (label.objectName, label.name) == ("statusLabel", "statusLabel")


def test_signals_connect_by_their_cpp_signature(qt):
    button, heard = qt.QPushButton("x"), []
    button.checkable = True
    button.connect("clicked()", lambda: heard.append("clicked"))
    button.connect("toggled(bool)", heard.append)
    button.click()
    assert heard == ["clicked", True] or heard == [True, "clicked"]
    button.disconnect("clicked()")
    button.click()
    assert heard.count("clicked") == 1 and heard[-1] is False
    with pytest.raises(ValueError, match=r"no signal pressedTwice\(\)"):
        button.connect("pressedTwice()", heard.clear)


def test_misspelt_attributes_of_qt_objects_are_found(qt):
    from Workbench.pythonqt import stray_attributes

    panel = qt.QWidget()
    label = qt.QLabel("a", panel)
    label.name = "note"
    assert stray_attributes(panel) == []
    label.tooltip = "Slicer would raise here: the property is toolTip"
    assert stray_attributes(panel) == ["QLabel note.tooltip"]


def test_slider_and_spin_box_agree_and_clamp(workbench):
    import ctk

    slider, values = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = -2.0, 2.0, 0.25, 2
    slider.connect("valueChanged(double)", values.append)
    slider.value = 0.5
    slider.setValue(9.0)
    assert values == [0.5, 2.0] and slider.value == 2.0
    inner = slider.findChild(type(slider._slider))
    inner.value = 0
    assert slider.value == -2.0
    assert not hasattr(slider, "setRange")  # a plain C++ method, out of reach of Slicer's Python


def test_slider_without_tracking_tells_its_value_on_release(workbench):
    import ctk

    slider, final, passing = ctk.ctkSliderWidget(), [], []
    slider.tracking = False
    slider.valueChanged.connect(final.append)
    slider.valueIsChanging.connect(passing.append)
    slider._slider.sliderPressed.emit()
    slider._slider.value = 30
    slider._slider.value = 40
    assert final == [] and passing == [30.0, 40.0] and slider.value == 0.0
    slider._slider.sliderReleased.emit()
    assert final == [40.0] and slider.value == 40.0


def test_collapsible_button_hides_and_restores_its_contents(workbench):
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton()
    button.text = "Section"
    layout = qt.QVBoxLayout(button)
    shown, hidden, later = (qt.QLabel(text) for text in ("shown", "hidden", "later"))
    layout.addWidget(shown)
    layout.addWidget(hidden)
    hidden.hide()
    button.show()
    heights, events = [button.sizeHint().height()], []
    button.connect("contentsCollapsed(bool)", events.append)
    button.collapsed = True
    heights.append(button.sizeHint().height())
    layout.addWidget(later)
    workbench.process_events()
    assert not shown.visible and not later.visible and not button.checked
    button.click()
    assert shown.visible and later.visible and not hidden.visible and not button.collapsed
    assert events == [True, False] and heights[1] < heights[0]
    button.close()


@pytest.fixture
def selector(workbench):
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.noneEnabled = True
    box.setMRMLScene(slicer.mrmlScene)
    return box


def test_selector_follows_the_scene(selector):
    import slicer

    heard = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    first = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "first")
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "a model")
    assert selector.nodeCount() == 2 and selector.currentNode() is None
    selector.setCurrentNode(first)
    assert heard == [first] and selector.currentNodeID == first.GetID()
    first.SetName("renamed")
    assert selector._comboBox.currentText == "renamed"
    slicer.mrmlScene.RemoveNode(first)
    assert selector.nodeCount() == 1
    assert selector.currentNode() is labels, "QComboBox moves on to the next node"
    slicer.mrmlScene.RemoveNode(labels)
    assert selector.currentNode() is None and heard[-1] is None


def test_selector_filters_nodes(selector):
    import slicer

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "volume")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    selector.showChildNodeTypes = False
    assert [selector.nodeFromIndex(i).GetName() for i in range(selector.nodeCount())] == ["volume"]
    volume.SetHideFromEditors(True)
    assert selector.nodeCount() == 0
    selector.showHidden = True
    assert selector.nodeCount() == 1


def test_selector_without_none_takes_the_first_node_when_it_has_no_actions(workbench):
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.addEnabled = box.removeEnabled = False
    box.setMRMLScene(slicer.mrmlScene)
    assert box.currentNode() is None
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "volume")
    assert box.currentNode() is node


def test_selector_creates_renames_and_deletes(selector, workbench):
    import slicer

    created = []
    selector.connect("nodeAddedByUser(vtkMRMLNode*)", created.append)
    selector.renameEnabled = True
    selector.baseName = "Warped"
    texts = [selector._comboBox.itemText(i) for i in range(selector._comboBox.count)]
    assert texts == [
        "None",
        "",
        "Rename current Volume",
        "Create new Volume",
        "Create new Volume as...",
        "Delete current Volume",
    ]
    selector._comboBox.activated.emit(texts.index("Create new Volume"))
    assert [node.GetName() for node in created] == ["Warped"] and selector.currentNode() is created[0]

    def rename(dialog):
        dialog.setTextValue("Better name")
        dialog.accept()

    with workbench.dialogs.answering(rename) as seen:
        selector.renameCurrentNode()
    assert created[0].GetName() == "Better name" and seen == ["Rename Volume: New name:"]
    selector.removeCurrentNode()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def test_selector_remembers_a_node_set_before_the_scene(workbench):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "T")
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLTransformNode"]
    assert not box.enabled
    box.setCurrentNode(node)
    box.setMRMLScene(slicer.mrmlScene)
    assert box.enabled and box.currentNode() is node


def test_checkable_selector_checks_nodes(workbench):
    import qt
    import slicer

    box = slicer.qMRMLCheckableNodeComboBox()
    box.nodeTypes = ["vtkMRMLModelNode"]
    box.setMRMLScene(slicer.mrmlScene)
    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", name) for name in "ab"]
    heard = []
    box.connect("checkedNodesChanged()", lambda: heard.append(1))
    pictures = [box.grab().toImage()]
    box.setCheckState(nodes[1], qt.Qt.Checked)
    pictures.append(box.grab().toImage())
    assert pictures[0] != pictures[1], "what is ticked is shown, not the current item"
    assert box.checkedNodes() == [nodes[1]] and heard == [1] and box.checkState(nodes[0]) == qt.Qt.Unchecked
    slicer.mrmlScene.RemoveNode(nodes[1])
    assert box.checkedNodes() == []


def test_message_box_remembers_its_answer(workbench):
    import qt
    import slicer

    with workbench.dialogs.answering("OK") as seen:
        assert slicer.util.confirmOkCancelDisplay("Download 39 MB?", windowTitle="Weights")
    assert seen == ["Weights: Download 39 MB?"]
    with workbench.dialogs.answering("Cancel"):
        assert not slicer.util.confirmOkCancelDisplay("Download 39 MB?")

    def tick_and_accept(dialog):
        dialog.dontShowAgain = True
        dialog.button(qt.QMessageBox.Ok).click()

    key = "Test/DontShow"
    qt.QSettings().remove(key)
    with workbench.dialogs.answering(tick_and_accept) as seen:
        slicer.util.messageBox("Once", dontShowAgainSettingsKey=key)
        slicer.util.messageBox("Once", dontShowAgainSettingsKey=key)
    assert len(seen) == 1


def test_dialogs_without_answer_are_rejected_and_told(workbench):
    import slicer

    assert not slicer.util.confirmYesNoDisplay("Nobody answers")
    assert len(workbench.dialogs.unexpected) == 1 and "Nobody answers" in workbench.dialogs.unexpected[0]
    workbench.dialogs.unexpected.clear()


def test_single_shots_and_short_messages(qt, workbench):
    import slicer

    window, heard = qt.QWidget(), []
    window.show()
    qt.QTimer.singleShot(0, window.close)  # a method of C++
    qt.QTimer.singleShot(0, lambda: heard.append(1))
    workbench.wait_until(lambda: heard and not window.visible, 5)
    with workbench.dialogs.answering(lambda dialog: None) as seen:
        slicer.util.delayDisplay("Working...", 450)
    assert seen == [": Working..."]
