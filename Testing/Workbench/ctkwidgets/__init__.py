"""Stand-ins for the widgets of the Common Toolkit that Slicer modules use in their panels.

Properties, slots, signals and defaults follow commontk/CTK, Libs/Widgets (each class in the file of its name). What
is neither property, slot nor Q_INVOKABLE there cannot be reached from Slicer's Python, and is missing here too.
"""

# ruff: noqa: F401 - what is imported here is what the module ``ctk`` offers

from .inputs import ctkComboBox, ctkMessageBox
from .sections import ctkCollapsibleButton
from .values import ctkSliderWidget
