"""Stand-in for ``slicer.app`` (Base/QTCore/qSlicerCoreApplication.h, Base/QTGUI/qSlicerApplication.h)."""

import importlib.metadata
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import types
from typing import ClassVar

import slicer
from PySide6.QtCore import QSettings, Signal
from PySide6.QtWidgets import QApplication

from .iomanager import qSlicerCoreIOManager
from .scripted import qSlicerModuleManager


class qSlicerApplication(QApplication):
    """The application: scene, logics, settings, paths."""

    startupCompleted = Signal()
    renderPaused = Signal(bool)
    mrmlSceneChanged = Signal(object)
    cppSignals: ClassVar[dict] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}

    def __init__(self, folder: pathlib.Path, headless: bool):
        """:param folder: a private folder for temporary files; headless, also for the settings."""
        super().__init__(["Workbench"])
        self._folder, self._testing, self._core = folder, False, None
        self._moduleManager, self._ioManager = qSlicerModuleManager(), qSlicerCoreIOManager()
        self._layoutManager = None
        QSettings.setDefaultFormat(QSettings.IniFormat)
        if headless:
            QSettings.setPath(QSettings.IniFormat, QSettings.UserScope, str(folder / "settings"))
        self.setOrganizationName("FoundationReg")
        self.setApplicationName("Workbench")
        for name in ("temporary", "cache"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._commandOptions = types.SimpleNamespace(noMainWindow=False, runPythonAndExit=False, testingEnabled=False)
        _provide_python_slicer(folder / "bin")

    def attach_core(self, core) -> None:
        """Take over the scene and logics of a trame-slicer SlicerApp."""
        self._core = core
        core.app_logic.SetTemporaryPath(self.temporaryPath)
        self._remoteIO, self._dataIO = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
        self._remoteIO.GetCacheManager().SetRemoteCacheDirectory(self.cachePath)
        self._dataIO.SetMRMLApplicationLogic(core.app_logic)
        self._dataIO.SetAndObserveDataIOManager(self._remoteIO.GetDataIOManager())
        core.app_logic.SetMRMLSceneDataIO(core.scene, self._remoteIO, self._dataIO)
        self.mrmlSceneChanged.emit(core.scene)

    def detach_core(self) -> None:
        """Let go of the scene and the logics, also where C++ singletons hold them."""
        core, self._core = self._core, None
        for name in ("SliceView", "ThreeDView"):
            getattr(slicer, f"vtkMRML{name}DisplayableManagerFactory").GetInstance().SetMRMLApplicationLogic(None)
        core.app_logic.SetMRMLSceneDataIO(None, None, None)
        core.app_logic.SetMRMLScene(None)
        core.scene.RemoveAllObservers()
        self._layoutManager = self._moduleManager = self._remoteIO = self._dataIO = None

    # Names as in PythonQt: properties without parentheses.

    applicationName = property(lambda self: "FoundationReg Workbench")
    applicationVersion = property(lambda self: importlib.metadata.version("slicer-core"))
    slicerHome = property(lambda self: str(self._folder))
    temporaryPath = property(lambda self: str(self._folder / "temporary"))
    cachePath = property(lambda self: str(self._folder / "cache"))
    documentationBaseUrl = property(lambda self: "https://slicer.readthedocs.io/en/latest/")

    def mrmlScene(self):
        return self._core.scene

    def applicationLogic(self):
        return self._core.app_logic

    def moduleManager(self):
        return self._moduleManager

    def coreIOManager(self):
        return self._ioManager

    def layoutManager(self):
        return self._layoutManager

    def setLayoutManager(self, manager):
        self._layoutManager = manager

    def commandOptions(self):
        return self._commandOptions

    def testingEnabled(self):
        return self._testing

    def userSettings(self):
        return QSettings()

    def setRenderPaused(self, paused):
        self._layoutManager.setRenderPaused(paused)
        self.renderPaused.emit(paused)

    def pauseRender(self):
        self.setRenderPaused(True)

    def resumeRender(self):
        self.setRenderPaused(False)


_LAUNCHER = """#!/bin/sh
"{python}" "$@"
code=$?
if [ $code -gt 128 ]; then
  echo "error: [{python}] exit abnormally - Report the problem." >&2
  exit 1
fi
exit $code
"""


def _provide_python_slicer(folder: pathlib.Path) -> None:
    """Slicer puts PythonSlicer on the path: CTK's launcher, which starts Python, hands on what it writes and its exit
    code, and tells of a killed one with "exit abnormally" and code 1 (commontk/AppLauncher, ctkAppLauncher.cpp)."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        (folder / "PythonSlicer.bat").write_text(f'@"{sys.executable}" %*\n', encoding="utf-8")
    else:
        script = folder / "PythonSlicer"
        script.write_text(_LAUNCHER.format(python=sys.executable), encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def make_folder() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix="FoundationRegWorkbench-"))


def remove_folder(folder: pathlib.Path) -> None:
    entries = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(entry for entry in entries if entry != str(folder / "bin"))
    shutil.rmtree(folder, ignore_errors=True)


class BuiltInModule:
    """A module of Slicer of which the workbench has the logic only."""

    def __init__(self, name: str, logic):
        self.name, self.title, self.path, self._logic = name, name, "", logic

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        return None


def built_in_modules(core) -> list[BuiltInModule]:
    """The modules whose logics come with slicer-core, each logic connected to the scene and registered."""
    registered = {
        "Volumes": core.volumes_logic,
        "Segmentations": core.segmentations_logic,
        "SubjectHierarchy": core.subject_hierarchy_logic,
        "Markups": core.app_logic.GetModuleLogic("Markups"),
    }
    new = {
        "Transforms": slicer.vtkSlicerTransformLogic(),
        "Models": slicer.vtkSlicerModelsLogic(),
        "Sequences": slicer.vtkSlicerSequencesLogic(),
    }
    for name, logic in new.items():
        registered[name] = core.register_module_logic(logic, logic_name=name)
    return [BuiltInModule(name, logic) for name, logic in registered.items() if logic is not None]
