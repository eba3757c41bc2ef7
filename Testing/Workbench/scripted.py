"""Stand-in for ``slicer.ScriptedLoadableModule`` (Base/Python/slicer/ScriptedLoadableModule.py): the four base classes
of a scripted module, and the Qt objects of Base/QTGUI (qSlicerScriptedLoadableModule*) that hold their instances.
"""

import importlib
import importlib.util
import logging
import os
import sys
import types
import unittest

import qt
import slicer
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtWidgets import QVBoxLayout

from .mrmlwidgets import qSlicerWidget
from .qtproperty import stored


class ScriptedLoadableModule:
    """Describes the module; ``parent`` is its qSlicerScriptedLoadableModule."""

    def __init__(self, parent):
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = ""
        parent.categories = []
        parent.dependencies = []
        parent.contributors = []
        parent.helpText = ""
        parent.acknowledgementText = ""
        for extension in (".svg", ".png"):
            icon = self.resourcePath(f"Icons/{self.moduleName}{extension}")
            if os.path.isfile(icon):
                parent.icon = qt.QIcon(icon)
                break
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        url = slicer.app.documentationBaseUrl + (docPage or f"user_guide/modules/{self.moduleName.lower()}.html")
        return f'<p>For more information, see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec=100, **kwargs):
        test = getattr(importlib.import_module(self.__module__), f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """The module's panel; ``parent`` is its qSlicerScriptedLoadableModuleWidget."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        self.parent, self.layout = parent, parent.layout()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def cleanup(self):
        pass

    def _onModuleAboutToBeUnloaded(self, moduleName):
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def setup(self):
        """The workbench has no developer section."""


class ScriptedLoadableModuleLogic:
    """What the module computes, and its parameter node."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node:
            # Closing the scene may have removed the attribute.
            if node.GetAttribute("ModuleName") != self.moduleName:
                node.SetAttribute("ModuleName", self.moduleName)
            return node
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The module's self-test: ``runTest`` calls every callable whose name contains "test", in alphabetical order."""

    def __init__(self, *args, **kwargs):
        self.moduleTestNames = []
        super().__init__(*args, **kwargs)
        self.moduleTestNames = [name for name in dir(self) if "test" in name and callable(getattr(self, name))]

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        delay = getattr(self, "messageDelay", None)
        for candidate in (msec, requestedDelay, 100):
            delay = candidate if delay is None else delay
        slicer.util.delayDisplay(message, delay)

    def runTest(self):
        self.setUpClass()
        for name in self.moduleTestNames:
            self.setUp()
            logging.info(f"Running {name}")
            getattr(self, name)()
            self.tearDown()
        self.tearDownClass()


class qSlicerScriptedLoadableModule(QObject):
    """A loaded scripted module, as ``slicer.modules.<lower case name>`` gives it."""

    title = stored(str, "_title", "")
    categories = stored("QStringList", "_categories", [])
    contributors = stored("QStringList", "_contributors", [])
    dependencies = stored("QStringList", "_dependencies", [])
    helpText = stored(str, "_helpText", "")
    acknowledgementText = stored(str, "_acknowledgementText", "")
    icon = stored("QIcon", "_icon", None)
    name = Property(str, lambda self: self._name)
    path = Property(str, lambda self: self._path)

    def __init__(self, path: str):
        super().__init__()
        self._path, self._name = os.path.abspath(path), os.path.basename(path).removesuffix(".py")
        self._representation, self._logic = None, slicer.vtkSlicerScriptedLoadableModuleLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        module = _load_source(self._name, self._path)
        setattr(slicer.modules, self._name.lower(), self)
        self._instance = getattr(module, self._name)(self)
        setattr(slicer.modules, f"{self._name}Instance", self._instance)

    def mrmlScene(self):
        return slicer.mrmlScene

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        if self._representation is None:
            self._representation = qSlicerScriptedLoadableModuleWidget(self._name, self._path)
            self._representation.setMRMLScene(slicer.mrmlScene)
            self._representation.setup()
        return self._representation

    def forget_widget(self) -> None:
        """Delete the panel, after its module was told so."""
        if self._representation is not None:
            self._representation.deleteLater()
            self._representation = None


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The Qt widget around a module's panel."""

    moduleName = Property(str, lambda self: self._name)
    isEntered = Property(bool, lambda self: self._entered)

    def __init__(self, name: str, path: str):
        super().__init__()
        self._name, self._path, self._entered = name, path, False
        self.setObjectName(f"{name}ModuleWidget")
        QVBoxLayout(self)
        self._instantiate()

    def _instantiate(self):
        class_name = f"{self._name}Widget"
        self._self = getattr(sys.modules[self._name], class_name)(self)
        setattr(slicer.modules, class_name, self._self)

    def self(self):
        return self._self

    def setup(self):
        self._self.setup()

    def reload(self):
        self._instantiate()
        self.setup()

    def enter(self):
        self._entered = True
        getattr(self._self, "enter", lambda: None)()

    def exit(self):
        self._entered = False
        getattr(self._self, "exit", lambda: None)()


class qSlicerModuleManager(QObject):
    """Knows the loaded modules (Base/QTCore/qSlicerModuleManager.h)."""

    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    def __init__(self):
        super().__init__()
        self._modules = {}

    def add_module(self, module) -> None:
        self._modules[module.name.lower()] = module
        setattr(slicer.modules, module.name.lower(), module)
        self.moduleLoaded.emit(module.name)

    def load_file(self, path) -> qSlicerScriptedLoadableModule:
        module = qSlicerScriptedLoadableModule(str(path))
        self.add_module(module)
        return module

    def unload_module(self, name: str) -> None:
        self.moduleAboutToBeUnloaded.emit(name)
        module = self._modules.pop(name.lower())
        module.forget_widget()
        for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
            if hasattr(slicer.modules, attribute):
                delattr(slicer.modules, attribute)
        sys.modules.pop(name, None)

    def modulesNames(self):
        return [module.name for module in self._modules.values()]

    def module(self, name):
        return self._modules.get(name.lower())

    def factoryManager(self):
        return types.SimpleNamespace(loadedModuleNames=self.modulesNames)


def _load_source(name: str, path: str):
    """Import a module file under its name, with its folder on the path, as Slicer does."""
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
