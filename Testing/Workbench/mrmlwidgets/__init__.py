"""Stand-ins for the qMRML widgets of Slicer's module panels, on the real MRML scene.

Properties, slots, signals and defaults follow Slicer, Libs/MRML/Widgets (each class in the file of its name).
"""

from .base import Observations, qMRMLSliderWidget, qMRMLWidget, qSlicerWidget
from .nodes import qMRMLCheckableNodeComboBox, qMRMLNodeComboBox

__all__ = [
    "Observations",
    "qMRMLCheckableNodeComboBox",
    "qMRMLNodeComboBox",
    "qMRMLSliderWidget",
    "qMRMLWidget",
    "qSlicerWidget",
]
