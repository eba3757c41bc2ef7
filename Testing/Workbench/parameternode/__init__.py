"""Stand-in for ``slicer.parameterNodeWrapper``: typed Python attributes kept on a vtkMRMLScriptedModuleNode.

Names, supported types, errors and the way in which values lie in the node's parameters follow Slicer's package
Base/Python/slicer/parameterNodeWrapper (a scene saved by one opens in the other).
"""

from .annotations import (
    Choice,
    Decimals,
    Default,
    Exclude,
    IsInstance,
    Maximum,
    Minimum,
    NotNone,
    SingleStep,
    Validator,
    WithinRange,
)
from .annotations import (
    FloatRangeBounds as RangeBounds,
)
from .containers import AnySerializer, DictSerializer, ListSerializer, TupleSerializer, UnionSerializer
from .gui import GuiConnector, createGuiConnector, parameterNodeGuiConnector
from .pack import FloatRange, isParameterPack, nestedParameterNames, parameterPack
from .serializers import (
    BoolSerializer,
    EnumSerializer,
    NodeSerializer,
    NumberSerializer,
    PathSerializer,
    Serializer,
    StringSerializer,
    ValidatedSerializer,
    parameterNodeSerializer,
)
from .wrapper import SlicerParameterNamePropertyName, isParameterNodeWrapper, parameterNodeWrapper

__all__ = [
    "AnySerializer",
    "BoolSerializer",
    "Choice",
    "Decimals",
    "Default",
    "DictSerializer",
    "EnumSerializer",
    "Exclude",
    "FloatRange",
    "GuiConnector",
    "IsInstance",
    "ListSerializer",
    "Maximum",
    "Minimum",
    "NodeSerializer",
    "NotNone",
    "NumberSerializer",
    "PathSerializer",
    "RangeBounds",
    "Serializer",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "StringSerializer",
    "TupleSerializer",
    "UnionSerializer",
    "ValidatedSerializer",
    "Validator",
    "WithinRange",
    "createGuiConnector",
    "isParameterNodeWrapper",
    "isParameterPack",
    "nestedParameterNames",
    "parameterNodeGuiConnector",
    "parameterNodeSerializer",
    "parameterNodeWrapper",
    "parameterPack",
]
