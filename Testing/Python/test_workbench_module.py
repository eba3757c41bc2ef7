"""The workbench loads a scripted module with its .ui file, as Slicer does, and lives through closing the scene."""

import os
import pathlib
import subprocess
import sys

import pytest

MODULE = """
import slicer
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _, translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin
from typing import Annotated
import qt


class Dummy(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("A dummy")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.started = 0
        slicer.app.connect("startupCompleted()", self.onStart)

    def onStart(self):
        self.started += 1


@parameterNodeWrapper
class DummyParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    level: Annotated[float, WithinRange(0, 100)] = 40.0


class DummyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.node, self.tag, self.applied, self.calls = None, None, [], []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/Dummy.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.initialize()

    def initialize(self):
        self.calls.append("initialize")
        self.setNode(DummyParameterNode(DummyLogic().getParameterNode()))

    def setNode(self, node):
        if self.node:
            self.node.disconnectGui(self.tag)
        self.node = node
        if self.node:
            self.tag = self.node.connectGui(self.ui)

    def cleanup(self):
        self.calls.append("cleanup")
        self.setNode(None)
        self.removeObservers()

    def enter(self):
        self.calls.append("enter")

    def exit(self):
        self.calls.append("exit")

    def onSceneStartClose(self, caller, event):
        self.setNode(None)

    def onSceneEndClose(self, caller, event):
        if self.parent.isEntered:
            self.initialize()

    def onSceneEndImport(self, caller, event):
        # The parameter node was modified before the nodes that it refers to were there.
        self.initialize()

    def onApply(self):
        with slicer.util.tryWithErrorDisplay(_("Failed to compute results."), waitCursor=True):
            if self.node.inputVolume is None:
                raise ValueError("No input")
            self.applied.append(self.node.level)


class DummyLogic(ScriptedLoadableModuleLogic):
    pass


class DummyTest(ScriptedLoadableModuleTest):
    ran = []

    def test_a(self):
        DummyTest.ran.append("a")

    def test_b(self):
        self.delayDisplay("b")
        DummyTest.ran.append("b")
"""

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Dummy</class>
 <widget class="qMRMLWidget" name="Dummy">
  <layout class="QVBoxLayout" name="verticalLayout">
   <item>
    <widget class="ctkCollapsibleButton" name="inputs">
     <property name="text"><string>Inputs</string></property>
     <layout class="QFormLayout" name="formLayout">
      <item row="0" column="0"><widget class="QLabel" name="label"/></item>
      <item row="0" column="1">
       <widget class="qMRMLNodeComboBox" name="inputSelector">
        <property name="nodeTypes">
         <stringlist notr="true"><string>vtkMRMLScalarVolumeNode</string></stringlist>
        </property>
        <property name="noneEnabled"><bool>true</bool></property>
        <property name="addEnabled"><bool>false</bool></property>
        <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property>
       </widget>
      </item>
      <item row="1" column="1">
       <widget class="ctkSliderWidget" name="levelSlider">
        <property name="singleStep"><double>0.5</double></property>
        <property name="SlicerParameterName" stdset="0"><string>level</string></property>
       </widget>
      </item>
      <item row="2" column="1">
       <widget class="QLineEdit" name="nameEdit">
        <property name="alignment"><set>Qt::AlignRight|Qt::AlignVCenter</set></property>
       </widget>
      </item>
     </layout>
    </widget>
   </item>
   <item>
    <widget class="QPushButton" name="applyButton"><property name="text"><string>Apply</string></property></widget>
   </item>
  </layout>
 </widget>
 <customwidgets>
  <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><header>ctkCollapsibleButton.h</header><container>1</container></customwidget>
  <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header><container>1</container></customwidget>
  <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>qMRMLNodeComboBox.h</header></customwidget>
  <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends><header>ctkSliderWidget.h</header></customwidget>
 </customwidgets>
 <connections>
  <connection>
   <sender>Dummy</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
  </connection>
 </connections>
</ui>
"""


@pytest.fixture
def module_file(tmp_path) -> pathlib.Path:
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    (tmp_path / "Resources" / "UI" / "Dummy.ui").write_text(UI, encoding="utf-8")
    path = tmp_path / "Dummy.py"
    path.write_text(MODULE, encoding="utf-8")
    yield path
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def _click(button):
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    QTest.mouseClick(button, Qt.LeftButton)


def test_module_loads_and_its_panel_is_clicked(workbench, module_file, tmp_path):
    import numpy as np
    import slicer
    from Workbench.pythonqt import stray_attributes

    widget = workbench.load_module(module_file)
    assert slicer.modules.dummy.title == "A dummy" and slicer.util.modulePath("Dummy") == str(module_file)
    assert slicer.modules.DummyWidget is widget and slicer.modules.DummyInstance.started == 1
    assert slicer.util.getModuleWidget("Dummy") is widget and widget.calls == ["initialize", "enter"]
    assert widget.ui.inputSelector.mrmlScene() is slicer.mrmlScene, "connected in the .ui file"
    assert widget.ui.levelSlider.value == 40.0 and widget.ui.levelSlider.singleStep == 0.5
    assert stray_attributes(widget.parent) == []

    volume = slicer.util.addVolumeFromArray(np.zeros((2, 3, 4), np.uint8), name="volume")
    widget.ui.inputSelector.setCurrentNode(volume)
    widget.ui.levelSlider.value = 12.5
    _click(widget.ui.applyButton)
    assert widget.applied == [12.5] and widget.node.inputVolume is volume
    picture = tmp_path / "panel.png"
    workbench.screenshot(picture, widget.parent)
    assert picture.stat().st_size > 1000


def test_errors_of_the_module_reach_the_user(workbench, module_file):
    widget = workbench.load_module(module_file)
    with workbench.dialogs.answering("OK") as seen, pytest.raises(ValueError, match="No input"):
        widget.onApply()
    assert "Failed to compute results." in seen[0] and "No input" in seen[0]


def test_closing_the_scene_starts_the_panel_afresh(workbench, module_file):
    import slicer

    widget = workbench.load_module(module_file)
    widget.ui.levelSlider.value = 77.0
    for _ in range(2):
        slicer.mrmlScene.Clear()
        assert widget.node.level == 40.0 and widget.ui.levelSlider.value == 40.0
        widget.ui.levelSlider.value = 55.0
        assert widget.node.level == 55.0


def test_a_loaded_scene_fills_the_panel(workbench, module_file, tmp_path):
    import numpy as np
    import slicer

    widget = workbench.load_module(module_file)
    widget.ui.inputSelector.setCurrentNode(slicer.util.addVolumeFromArray(np.ones((2, 2, 2)), name="kept"))
    widget.ui.levelSlider.value = 3.5
    scene = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(scene)
    slicer.mrmlScene.Clear()
    assert widget.ui.inputSelector.currentNode() is None
    slicer.util.loadScene(scene)
    assert widget.ui.levelSlider.value == 3.5 and widget.ui.inputSelector.currentNode().GetName() == "kept"


def test_reload_and_unload(workbench, module_file):
    import slicer

    first = workbench.load_module(module_file)
    module_file.write_text(MODULE.replace("= 40.0", "= 41.0"), encoding="utf-8")
    slicer.mrmlScene.Clear()
    slicer.util.reloadScriptedModule("Dummy")
    second = slicer.modules.DummyWidget
    assert second is not first and first.calls[-1] == "cleanup" and type(second) is not type(first)
    workbench.unload_module("Dummy")
    assert second.calls[-1] == "cleanup" and not hasattr(slicer.modules, "dummy")
    third = workbench.load_module(module_file)
    assert "exit" not in third.calls


def test_self_test_of_the_module_runs(workbench, module_file):
    import slicer

    workbench.load_module(module_file)
    slicer.selfTests["Dummy"]()
    assert sys.modules["Dummy"].DummyTest.ran == ["a", "b"]


def test_packages_are_installed_only_after_a_yes(workbench, tmp_path, monkeypatch):
    import slicer
    from Workbench import packaging

    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# comment\nnumpy>=1.20\nno-such-package>=2  # why\n", encoding="utf-8")
    listed = slicer.packaging.load_requirements(str(requirements))
    assert [str(requirement) for requirement in listed] == ["numpy>=1.20", "no-such-package>=2"]
    assert slicer.packaging.pip_check("numpy>=1.20") and not slicer.packaging.pip_check(listed)
    monkeypatch.setattr(packaging, "installed", [])
    with workbench.dialogs.answering("Cancel") as seen, pytest.raises(RuntimeError, match="User declined"):
        slicer.packaging.pip_ensure(listed, requester="Dummy")
    assert packaging.installed == [] and "no-such-package" in seen[0]
    assert seen[0].startswith("Dummy - Install Python Packages")
    monkeypatch.setattr(packaging, "exit_code", 1)
    with workbench.dialogs.answering("OK"), pytest.raises(subprocess.CalledProcessError):
        slicer.packaging.pip_ensure(listed, requester="Dummy")
    assert packaging.installed == [["no-such-package>=2"]]


def test_python_slicer_runs_this_python(workbench):
    import shutil
    import subprocess

    executable = shutil.which("PythonSlicer")
    command = [executable, "-c", "import sys; print(sys.executable)"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert pathlib.Path(answer).resolve() == pathlib.Path(sys.executable).resolve()


def test_files_are_read_and_written(workbench, tmp_path):
    import numpy as np
    import slicer
    import vtk

    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = slicer.util.addVolumeFromArray(values, ijkToRAS=np.diag([-2.0, -3.0, 4.0, 1.0]), name="image")
    for suffix in ("nii.gz", "nrrd", "mha"):
        path = tmp_path / f"image.{suffix}"
        assert slicer.util.saveNode(volume, str(path))
        loaded = slicer.util.loadVolume(str(path), properties={"show": False})
        assert np.array_equal(slicer.util.arrayFromVolume(loaded), values)
        assert np.allclose(loaded.GetSpacing(), (2, 3, 4))
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 12.0)
    transform.SetMatrixTransformToParent(matrix)
    assert slicer.util.saveNode(transform, str(tmp_path / "shift.h5"))
    loaded = slicer.util.loadTransform(str(tmp_path / "shift.h5"))
    assert np.allclose(slicer.util.arrayFromTransformMatrix(loaded)[:, 3], (12, 0, 0, 1))
    with pytest.raises(RuntimeError, match="Failed to load node from file"):
        slicer.util.loadVolume(str(tmp_path / "missing.nrrd"))


def test_samples_of_a_module_are_offered_and_loaded(workbench, tmp_path):
    import SampleData
    import slicer

    made = []
    SampleData.SampleDataLogic.registerCustomSampleDataCategory("Dummy", title="Dummy samples")
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="Dummy",
        sampleName="Phantom",
        uris="made:here",
        fileNames="phantom.nrrd",
        customDownloader=lambda source: made.append(source.sampleName),
    )
    with pytest.raises(TypeError):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(sampleName="x", uris=None)
    menu = workbench.window._samples
    menu.aboutToShow.emit()
    next(action for action in menu.actions() if action.text == "Phantom").trigger()
    assert made == ["Phantom"]
    del slicer.modules.sampleDataSources


def test_closing_leaves_nothing_to_the_interpreter(module_file):
    script = """
import gc, sys, weakref
import Workbench
workbench = Workbench.start(headless=True)
workbench.load_module(sys.argv[1])
import shiboken6, slicer, vtk
node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
forgotten = slicer.qMRMLNodeComboBox()
forgotten.setMRMLScene(slicer.mrmlScene)
for layout in ("FourUpTableView", "FourUpPlotView", "FourUpView"):
    slicer.app.layoutManager().setLayout(getattr(slicer.vtkMRMLLayoutNode, f"SlicerLayout{layout}"))
    workbench.process_events()
slicer.util.forceRenderAllViews()
del node
folder = slicer.app.slicerHome
workbench.close()
kinds = (slicer.vtkMRMLNode, slicer.vtkMRMLScene, slicer.vtkMRMLApplicationLogic, vtk.vtkRenderWindow, vtk.vtkRenderer)
everything = [item for item in gc.get_objects() if issubclass(type(item), (*kinds, shiboken6.Object))]
print("LEFT", {type(item).__name__ for item in everything if type(item).__name__.startswith("vtk")})
# Python 3.11 crashes on a weak reference to a Qt object that is freed while the interpreter ends.
print("WEAK", {type(item).__name__ for item in everything if weakref.getweakrefcount(item)})
from PySide6.QtCore import QCoreApplication
import os
print("APPLICATION", QCoreApplication.instance(), os.path.exists(folder))
"""
    answer = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script, str(module_file)],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert "LEFT set()" in answer.stdout and "WEAK set()" in answer.stdout, answer.stdout
    assert "APPLICATION None False" in answer.stdout
