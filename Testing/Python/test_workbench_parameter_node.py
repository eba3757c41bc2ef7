"""The workbench's parameter nodes: typed values on a real MRML node, in scenes and in widgets."""

import enum
from typing import Annotated

import pytest


class Start(enum.Enum):
    CENTERS = 1
    HEADERS = 2

    @staticmethod
    def label(member):
        return member.name.capitalize()


@pytest.fixture
def kinds(workbench):
    """The class of the parameter node, made once the stand-ins are in place."""
    from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
    from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper

    @parameterNodeWrapper
    class Parameters:
        fixed: vtkMRMLScalarVolumeNode
        mask: vtkMRMLLabelMapVolumeNode | vtkMRMLSegmentationNode | None
        carried: list[vtkMRMLScalarVolumeNode]
        smoothness: Annotated[float, WithinRange(0.0, 4.0)] = 1.0
        preset: Annotated[str, Choice(["fast", "accurate"]), Default("accurate")]
        start: Start = Start.HEADERS
        affine: bool = True
        seed: int | None = None
        spacing: Annotated[float, WithinRange(1.0, 20.0), Default(5.0)]
        rounds: int = 100

    return Parameters


@pytest.fixture
def parameters(kinds):
    import slicer

    return kinds(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))


def test_defaults_and_validation(parameters):
    assert parameters.fixed is None and parameters.seed is None and len(parameters.carried) == 0
    assert (parameters.smoothness, parameters.preset, parameters.start) == (1.0, "accurate", Start.HEADERS)
    assert parameters.spacing == 5.0
    for name, value in (("smoothness", 4.5), ("preset", "odd"), ("spacing", 0.0)):
        with pytest.raises(ValueError):
            parameters.setValue(name, value)
    for name, value in (("affine", 1), ("start", "HEADERS"), ("smoothness", "1"), ("seed", "7")):
        with pytest.raises(TypeError):
            parameters.setValue(name, value)
    assert parameters.smoothness == 1.0 and parameters.affine is True


def test_values_lie_in_the_node_as_slicer_writes_them(parameters):
    parameters.affine = False
    parameters.start = Start.CENTERS
    parameters.spacing = 2.5
    parameters.seed = 11
    node = parameters.parameterNode
    stored = {name: node.GetParameter(name) for name in node.GetParameterNames()}
    assert stored["affine"] == "False" and stored["start"] == "CENTERS" and stored["spacing"] == "2.5"
    assert stored["seed.0"] == "11" and stored["carried.len"] == "0"


def test_a_saved_and_loaded_scene_restores_every_value(workbench, kinds, parameters, tmp_path):
    import numpy as np
    import slicer

    fixed = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16), name="fixed image")
    mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mask")
    parameters.fixed, parameters.mask, parameters.carried = fixed, mask, [fixed]
    parameters.smoothness, parameters.preset, parameters.start = 2.25, "fast", Start.CENTERS
    parameters.affine, parameters.seed = False, 3
    parameters.rounds = 12
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 0
    slicer.util.loadScene(path)
    loaded = kinds(slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")[0])
    assert loaded.fixed.GetName() == "fixed image" and loaded.carried[0] is loaded.fixed
    assert loaded.mask.GetName() == "mask"
    assert (loaded.smoothness, loaded.preset, loaded.start) == (2.25, "fast", Start.CENTERS)
    assert (loaded.affine, loaded.seed) == (False, 3)
    assert (loaded.spacing, loaded.rounds) == (5.0, 12)


def test_a_mrml_file_alone_keeps_the_values(workbench, kinds, parameters, tmp_path):
    import slicer

    parameters.smoothness, parameters.start = 0.75, Start.CENTERS
    path = str(tmp_path / "scene.mrml")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(path)
    loaded = kinds(slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")[0])
    assert (loaded.smoothness, loaded.start) == (0.75, Start.CENTERS)


def test_a_change_of_one_member_is_one_modification(parameters):
    import vtk

    heard = []
    tag = parameters.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: heard.append(parameters.smoothness))
    parameters.smoothness = 3.0
    parameters.smoothness = 3.0
    assert heard == [3.0]
    parameters.RemoveObserver(tag)
    parameters.smoothness = 2.0
    assert heard == [3.0]


def test_deleting_a_referenced_node_leaves_none(parameters):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "volume")
    parameters.fixed = node
    assert parameters.fixed is node
    slicer.mrmlScene.RemoveNode(node)
    parameters.parameterNode.Modified()
    assert parameters.fixed is None


def test_widgets_and_node_follow_each_other(workbench, parameters):
    import ctk
    import qt
    import slicer

    panel = qt.QWidget()
    widgets = {
        "fixed": slicer.qMRMLNodeComboBox(panel),
        "mask": slicer.qMRMLNodeComboBox(panel),
        "smoothness": ctk.ctkSliderWidget(panel),
        "preset": qt.QComboBox(panel),
        "start": qt.QComboBox(panel),
        "affine": qt.QCheckBox(panel),
        "spacing": qt.QDoubleSpinBox(panel),
        "rounds": qt.QSpinBox(panel),
    }
    for name, widget in widgets.items():
        widget.setProperty("SlicerParameterName", name)
    for name in ("fixed", "mask"):
        widgets[name].noneEnabled = True
        widgets[name].setMRMLScene(slicer.mrmlScene)
    tag = parameters.connectGui(panel)
    assert widgets["mask"].nodeTypes == ("vtkMRMLLabelMapVolumeNode", "vtkMRMLSegmentationNode")
    assert (widgets["smoothness"].minimum, widgets["smoothness"].maximum) == (0.0, 4.0)
    assert widgets["start"].currentText == "Headers" and widgets["preset"].currentText == "accurate"

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "volume")
    widgets["fixed"].setCurrentNode(node)
    widgets["smoothness"].value = 0.5
    widgets["preset"].currentIndex = 0
    widgets["start"].currentIndex = 0
    widgets["affine"].click()
    widgets["spacing"].value = 7.0
    widgets["rounds"].value = 9
    assert parameters.fixed is node and parameters.smoothness == 0.5 and parameters.preset == "fast"
    assert parameters.start is Start.CENTERS and parameters.affine is False
    assert (parameters.spacing, parameters.rounds) == (7.0, 9)

    parameters.smoothness, parameters.affine, parameters.fixed = 3.25, True, None
    parameters.spacing = 11.0
    assert widgets["smoothness"].value == 3.25 and widgets["affine"].checked
    assert widgets["fixed"].currentNode() is None and widgets["spacing"].value == 11.0

    parameters.disconnectGui(tag)
    widgets["smoothness"].value = 1.5
    parameters.affine = False
    assert parameters.smoothness == 3.25 and widgets["affine"].checked


def test_a_widget_that_cannot_show_a_type_is_refused_as_in_slicer(workbench, parameters):
    import qt

    for name, widget in (("smoothness", qt.QSpinBox()), ("affine", qt.QToolButton()), ("seed", qt.QSpinBox())):
        with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
            parameters.connectParametersToGui({name: widget})
    with pytest.raises(ValueError, match="Cannot find a param"):
        parameters.connectParametersToGui({"smothness": qt.QDoubleSpinBox()})


def test_a_union_of_nodes_needs_none_as_in_slicer(workbench):
    import slicer
    from slicer import vtkMRMLModelNode, vtkMRMLScalarVolumeNode
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    @parameterNodeWrapper
    class WithoutNone:
        either: vtkMRMLModelNode | vtkMRMLScalarVolumeNode

    with pytest.raises(TypeError, match="Unable to write value None"):
        WithoutNone(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))
