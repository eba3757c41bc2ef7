"""Stand-ins for the qMRML widgets of Slicer's module panels, on the real MRML scene.

Properties, slots, signals and defaults follow Slicer, Libs/MRML/Widgets (each class in the file of its name).
"""

from .base import Observations, qMRMLWidget, qSlicerWidget
from .nodes import qMRMLCheckableNodeComboBox, qMRMLNodeComboBox
from .others import qMRMLCollapsibleButton, qMRMLRangeWidget, qMRMLSliderWidget, qMRMLSpinBox
from .segments import qMRMLSegmentSelectorWidget

__all__ = [
    "Observations",
    "qMRMLCheckableNodeComboBox",
    "qMRMLCollapsibleButton",
    "qMRMLNodeComboBox",
    "qMRMLRangeWidget",
    "qMRMLSegmentSelectorWidget",
    "qMRMLSliderWidget",
    "qMRMLSpinBox",
    "qMRMLWidget",
    "qSlicerWidget",
]
