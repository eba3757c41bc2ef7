"""Stand-in for ``slicer.parameterNodeWrapper``: typed Python attributes kept on a vtkMRMLScriptedModuleNode.

Names, errors and the way in which values lie in the node's parameters follow Slicer's package
Base/Python/slicer/parameterNodeWrapper (a scene saved by one opens in the other). Of the types there are those of a
panel: numbers, texts, switches, enumerations, nodes, unions of them with None, and lists.
"""

from .annotations import Choice, Default, Validator, WithinRange
from .gui import GuiConnector, createGuiConnector, parameterNodeGuiConnector
from .serializers import (
    BoolSerializer,
    EnumSerializer,
    ListSerializer,
    NodeSerializer,
    NumberSerializer,
    Serializer,
    StringSerializer,
    UnionSerializer,
    ValidatedSerializer,
    parameterNodeSerializer,
)
from .wrapper import SlicerParameterNamePropertyName, isParameterNodeWrapper, parameterNodeWrapper

__all__ = [
    "BoolSerializer",
    "Choice",
    "Default",
    "EnumSerializer",
    "GuiConnector",
    "ListSerializer",
    "NodeSerializer",
    "NumberSerializer",
    "Serializer",
    "SlicerParameterNamePropertyName",
    "StringSerializer",
    "UnionSerializer",
    "ValidatedSerializer",
    "Validator",
    "WithinRange",
    "createGuiConnector",
    "isParameterNodeWrapper",
    "parameterNodeGuiConnector",
    "parameterNodeSerializer",
    "parameterNodeWrapper",
]
