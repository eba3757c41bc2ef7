"""What a user does with the panel, for its tests: choose, click, run."""

import fake_register
import numpy as np
import slicer
from test_slicer_nodes import add_volume, smooth


def add_pair():
    return (
        add_volume(smooth((18, 20, 22)), "anisotropic oblique", "fixed"),
        add_volume(smooth((24, 28, 30), 1, np.int16), "left-handed", "moving"),
    )


def click(bench, button):
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


def prepare(widget, bench, action=fake_register.QUICK):
    """Choose a pair and an encoder without weights; ``action`` is what the register will do."""
    pair = add_pair()
    slicer.util.setSliceViewerLayers(*pair)  # as after loading both
    widget.ui.fixedSelector.setCurrentNode(pair[0])
    widget.ui.movingSelector.setCurrentNode(pair[1])
    widget.ui.encoderComboBox.currentIndex = widget.ui.encoderComboBox.findData("mind")
    widget.ui.seedSpinBox.value = action
    widget.ui.smoothnessSlider.value = 3.0
    bench.process_events()
    return pair


def layers() -> set:
    """Names of what the slice views show, as (background, foreground)."""
    ids = [
        (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID())
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    ]
    found = [tuple(slicer.mrmlScene.GetNodeByID(i or "") for i in pair) for pair in ids]
    return {tuple(node.GetName() if node is not None else None for node in pair) for pair in found}


def run(widget, bench):
    click(bench, widget.ui.applyButton)
    bench.wait_until(lambda: not widget.panel._busy, 60)


def combo_texts(combo):
    return [combo.itemText(n) for n in range(combo.count)]
