"""The workbench's main window: File menu, the module's panel at the left, the views at the right."""

import pathlib

import qt
import slicer
from PySide6.QtCore import Qt
from PySide6.QtGui import QAction, QColor, QKeySequence, QPalette
from PySide6.QtWidgets import (
    QApplication,
    QComboBox,
    QDockWidget,
    QFileDialog,
    QMainWindow,
    QMessageBox,
    QScrollArea,
    QStyleFactory,
    QToolBar,
    QWidget,
)

from . import sampledata

_LAYOUTS = (
    ("Four-Up", "SlicerLayoutFourUpView"),
    ("Conventional", "SlicerLayoutConventionalView"),
    ("Red slice only", "SlicerLayoutOneUpRedSliceView"),
    ("3D only", "SlicerLayoutOneUp3DView"),
    ("Side by side", "SlicerLayoutSideBySideView"),
)


def style_application(app: QApplication) -> None:
    """Fusion in Slicer's light greys, the same on every system."""
    app.setStyle(QStyleFactory.create("Fusion"))
    palette = QPalette(QColor("#e8e8e8"))
    palette.setColor(QPalette.Window, QColor("#efefef"))
    palette.setColor(QPalette.Base, QColor("#ffffff"))
    palette.setColor(QPalette.Highlight, QColor("#2f77c0"))
    palette.setColor(QPalette.HighlightedText, QColor("#ffffff"))
    palette.setColor(QPalette.Link, QColor("#1f5f9f"))
    app.setPalette(palette)


class qSlicerMainWindow(QMainWindow):
    """The window (slicer.util.mainWindow() finds it by its name)."""

    def __init__(self):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.windowTitle = slicer.app.applicationName
        self.resize(1500, 920)
        self._panels = {}
        self.viewport = QWidget(self)
        self.viewport.setObjectName("CentralWidgetLayoutFrame")
        self.setCentralWidget(self.viewport)
        self._dock = QDockWidget("Module", self)
        self._dock.setObjectName("PanelDockWidget")
        self._dock.setFeatures(QDockWidget.DockWidgetMovable | QDockWidget.DockWidgetFloatable)
        self._scroll = QScrollArea(self._dock)
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarAsNeeded)
        self._scroll.setMinimumWidth(440)
        self._dock.setWidget(self._scroll)
        self.addDockWidget(Qt.LeftDockWidgetArea, self._dock)
        self.statusBar()
        self._make_file_menu()

    # Modules

    def showModule(self, module) -> None:
        """Put a module's panel into the dock, leaving the one that is there."""
        current = self._scroll.widget()
        if current is not None and hasattr(current, "exit"):
            current.exit()
        self._scroll.takeWidget()
        self._dock.windowTitle = module.title or module.name
        panel = module.widgetRepresentation()
        self._scroll.setWidget(panel)
        bar = self._scroll.verticalScrollBar().sizeHint.width()
        self._scroll.setMinimumWidth(max(440, panel.minimumSizeHint.width() + bar + 4))
        panel.enter()

    def closeModule(self) -> None:
        current = self._scroll.takeWidget()
        if current is not None and hasattr(current, "exit") and current.isEntered:
            current.exit()

    # Menu

    def _make_file_menu(self):
        menu = self.menuBar().addMenu("&File")
        menu.setObjectName("FileMenu")
        kinds = (("Volume", QKeySequence.Open), ("Transform", None), ("Segmentation", None), ("Markups", None))
        for kind, shortcut in kinds:
            self._add(menu, f"Open {kind.lower()}...", lambda kind=kind: self._open(kind), shortcut)
        menu.addSeparator()
        self._samples = menu.addMenu("Sample data")
        self._samples.aboutToShow.connect(self._list_samples)
        menu.addSeparator()
        self._add(menu, "Open scene...", lambda: self._open("Scene"))
        self._add(menu, "Save scene...", self._save_scene, QKeySequence.Save)
        self._add(menu, "Close scene", lambda: slicer.mrmlScene.Clear(), QKeySequence.Close)
        menu.addSeparator()
        self._add(menu, "Quit", self.close, QKeySequence.Quit)

    def _add(self, menu, text, call, shortcut=None):
        action = QAction(text, self)
        if shortcut is not None:
            action.setShortcut(shortcut)
        action.triggered.connect(lambda: self._guarded(call))
        menu.addAction(action)
        return action

    def _guarded(self, call):
        try:
            call()
        except Exception as error:
            QMessageBox.critical(self, slicer.app.applicationName, str(error))

    def _open(self, kind):
        title = f"Open {kind.lower()}"
        paths, _ = QFileDialog.getOpenFileNames(self, title, qt.QSettings().value("LastFolder", ""))
        for path in paths:
            qt.QSettings().setValue("LastFolder", str(pathlib.Path(path).parent))
            slicer.util.loadNodeFromFile(path, f"{kind}File", {"clear": True} if kind == "Scene" else {})

    def _save_scene(self):
        path, _ = QFileDialog.getSaveFileName(self, "Save scene", "scene.mrb")
        if path and not slicer.util.saveScene(path):
            raise RuntimeError(f"The scene could not be written to {path}.")

    def _list_samples(self):
        self._samples.clear()
        for category, sources in sampledata.SampleDataLogic.sampleDataSourcesByCategory().items():
            self._samples.addSection(sampledata.SampleDataLogic.categoryTitle(category))
            for source in sources:
                self._add(self._samples, source.sampleDescription, lambda source=source: sampledata.load(source))

    def makeViewToolBar(self, layout_manager) -> None:
        """Once there are views."""
        bar = QToolBar("Views", self)
        bar.setObjectName("ViewToolBar")
        bar.setMovable(False)
        layouts = QComboBox(bar)
        layouts.setObjectName("LayoutSelector")
        for title, name in _LAYOUTS:
            layouts.addItem(title, int(getattr(slicer.vtkMRMLLayoutNode, name)))
        layouts.activated.connect(lambda index: layout_manager.setLayout(layouts.itemData(index)))
        layout_manager.layoutChanged.connect(lambda value: layouts.setCurrentIndex(layouts.findData(value)))
        bar.addWidget(layouts)
        fit = bar.addAction("Fit views")
        fit.triggered.connect(lambda: (layout_manager.resetSliceViews(), layout_manager.resetThreeDViews()))
        self.addToolBar(bar)
