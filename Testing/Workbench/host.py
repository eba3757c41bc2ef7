"""Puts the stand-ins in place, starts the application and its window, and loads modules into it."""

import atexit
import gc
import pathlib
import sys
import time
import types
from collections.abc import Callable

from . import pythonqt

qt = pythonqt.install()


def _module(name: str, source: types.ModuleType | dict) -> types.ModuleType:
    """Offer the public names of ``source`` as the module ``name``."""
    module = types.ModuleType(name)
    names = source if isinstance(source, dict) else vars(source)
    public = names.get("__all__") or [key for key in names if not key.startswith("_")]
    for key in public:
        setattr(module, key, names[key])
    sys.modules[name] = module
    return module


def _install_standins() -> None:
    """Everything that needs no running application; the order follows the imports between the stand-ins."""
    import slicer

    from . import ctkwidgets, uiloader

    ctk_classes = [value for key, value in vars(ctkwidgets).items() if key.startswith("ctk")]
    sys.modules["ctk"] = _module("ctk", {cls.__name__: cls for cls in ctk_classes})
    slicer.mrmlScene = None
    slicer.modules = types.SimpleNamespace()

    from . import mrmlwidgets

    mrml_classes = [value for key, value in vars(mrmlwidgets).items() if key.startswith(("qMRML", "qSlicer"))]
    for cls in mrml_classes:
        setattr(slicer, cls.__name__, cls)
    slicer.i18n = _module("slicer.i18n", __import__("Workbench.i18n", fromlist=["i18n"]))
    from . import packaging, parameternode, scripted

    slicer.parameterNodeWrapper = _module("slicer.parameterNodeWrapper", parameternode)
    slicer.packaging = _module("slicer.packaging", packaging)
    base_names = ("Module", "ModuleWidget", "ModuleLogic", "ModuleTest")
    bases = {f"ScriptedLoadable{name}": getattr(scripted, f"ScriptedLoadable{name}") for name in base_names}
    slicer.ScriptedLoadableModule = _module("slicer.ScriptedLoadableModule", bases)
    slicer.qSlicerScriptedLoadableModule = scripted.qSlicerScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = scripted.qSlicerScriptedLoadableModuleWidget

    from . import sampledata

    sys.modules["SampleData"] = _module("SampleData", sampledata)
    uiloader.register(*ctk_classes, *mrml_classes)
    qt.QUiLoader = uiloader.UiLoader


_install_standins()

import shiboken6  # noqa: E402
import slicer  # noqa: E402 - with the stand-ins in place
from PySide6.QtTest import QTest  # noqa: E402
from PySide6.QtWidgets import QWidget  # noqa: E402
from trame_slicer.core import SlicerApp  # noqa: E402

from . import application, dialogs, layout, window  # noqa: E402

for _name in ("qMRMLLayoutManager", "qMRMLSliceWidget", "qMRMLThreeDWidget", "qSlicerLayoutManager"):
    setattr(slicer, _name, getattr(layout, _name))


def _log_qt_message(kind, context, message: str) -> None:
    """Qt's messages on stderr, without one that the offscreen platform repeats for every window."""
    if "propagateSizeHints" not in message:
        print(message, file=sys.stderr)


def _release_callbacks() -> None:
    """trame-slicer hands methods to C++ objects that hold them where Python's garbage collector cannot see it."""
    observer, creator = slicer.vtkMRMLLayerDMObjectEventObserverScripted, slicer.vtkMRMLLayerDMPipelineScriptedCreator
    for item in gc.get_objects():
        if type(item) is creator:
            slicer.vtkMRMLLayerDMPipelineFactory.GetInstance().RemovePipelineCreator(item)
        if type(item) in (observer, creator):
            item.SetPythonCallback(None)


def _empty_deleted_widgets() -> None:
    """shiboken keeps the Python side of some deleted widgets for ever; what they hold shall go nevertheless."""
    for item in gc.get_objects():
        if issubclass(type(item), QWidget) and not shiboken6.isValid(item):
            object.__getattribute__(item, "__dict__").clear()


class Workbench:
    """The running workbench: one application, one scene, one window."""

    def __init__(self, headless: bool):
        if headless:
            qt.qInstallMessageHandler(_log_qt_message)
        self._folder = application.make_folder()
        self.app = slicer.app = application.qSlicerApplication(self._folder, headless)
        self._loaded = []
        window.style_application(self.app)
        self.core = SlicerApp()
        slicer.mrmlScene = self.core.scene
        self.app.attach_core(self.core)
        for module in application.built_in_modules(self.core):
            self.app.moduleManager().add_module(module)
        self.dialogs = dialogs.DialogWatch(self.app, headless)
        self.window = window.qSlicerMainWindow()
        manager = layout.qSlicerLayoutManager(self.core.scene, self.core.app_logic, self.window.viewport)
        self.app.setLayoutManager(manager)
        self.window.makeViewToolBar(manager)
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self.window.show()
        self.process_events()
        atexit.register(self.close)

    # Modules

    def load_module(self, path: str | pathlib.Path):
        """Load a scripted module as Slicer does at its start, show its panel, and return its Python widget."""
        manager = self.app.moduleManager()
        name = pathlib.Path(path).stem
        if manager.module(name):
            self.unload_module(name)
        module = manager.load_file(path)
        self._loaded.append(module.name)
        self.app.startupCompleted.emit()
        self.window.showModule(module)
        self.process_events()
        return module.widgetRepresentation().self()

    def unload_module(self, name: str) -> None:
        """Take a module's panel away and forget the module."""
        self.window.closeModule()
        self.app.moduleManager().unload_module(name)
        self._loaded.remove(name)
        self.process_events()

    # For tests

    def process_events(self, seconds: float = 0.0) -> None:
        """Let Qt work, for so long or until it has nothing to do."""
        QTest.qWait(max(1, round(1000 * seconds)))

    def wait_until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Let Qt work until ``condition()`` holds; TimeoutError when it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"Not so within {seconds} s")
            self.process_events(0.01)

    def screenshot(self, path: str | pathlib.Path, widget=None) -> None:
        """Save a picture of the window, or of one widget, with freshly rendered views."""
        self.process_events()
        slicer.util.forceRenderAllViews()
        target = widget or self.window
        if not target.grab().save(str(path)):
            raise OSError(f"Cannot write {path}")

    def view_image(self, name: str):
        """What the view "Red", "Green", "Yellow", ... or "1" (3-D) shows, as an array (rows, columns, RGB)."""
        self.process_events()
        manager = self.app.layoutManager()
        widget = manager.sliceWidget(name) or manager.threeDWidget(name)
        return widget.viewWidget().read_image()

    def clear(self) -> None:
        """Unload the modules and empty the scene. The workbench itself goes on."""
        for name in list(self._loaded):
            self.unload_module(name)
        self.core.scene.Clear()
        for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
            self.core.scene.RemoveNode(node)  # parameter nodes are singletons, which outlive Clear()
        self.process_events()

    def run(self) -> int:
        """Show the window to a person until it is closed."""
        return self.app.exec()

    def close(self) -> None:
        """Take everything apart in order: module, views, window, logics and scene, application.

        What is left to the interpreter's shut-down is destroyed in an order that depends on addresses, partly after
        Python and Qt are gone; and a Qt object that Python frees by then leaves its weak references dangling, because
        shiboken looks at Py_IsInitialized() first. Nothing of the workbench may be used afterwards, and none can be
        started again.
        """
        if self.app is None:
            return
        atexit.unregister(self.close)
        self.clear()
        app, self.app = self.app, None
        app.removeEventFilter(self.dialogs)
        _release_callbacks()
        app.layoutManager().release_views()
        # An error that a callback of VTK or Qt printed keeps the frames it went through, and the widgets in them.
        for name in ("last_type", "last_value", "last_traceback"):
            vars(sys).pop(name, None)
        for widget in app.topLevelWidgets():
            if shiboken6.isValid(widget) and widget.parent() is None:
                shiboken6.delete(widget)
        _empty_deleted_widgets()
        gc.collect()  # the views' render windows, displayable managers and observers
        app.detach_core()
        self.core = self.window = self.dialogs = slicer.mrmlScene = slicer.app = None
        vars(slicer.modules).clear()
        gc.collect()  # the logics and the scene
        app.shutdown()
        application.remove_folder(self._folder)
