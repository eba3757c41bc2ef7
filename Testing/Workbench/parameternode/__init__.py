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
from .gui import GuiConnector, createGuiConnector, parameterNodeGuiConnector
from .pack import FloatRange, isParameterPack, nestedParameterNames, parameterPack
from .serializers import (
    AnySerializer,
    BoolSerializer,
    DictSerializer,
    EnumSerializer,
    ListSerializer,
    NodeSerializer,
    NumberSerializer,
    PathSerializer,
    Serializer,
    StringSerializer,
    TupleSerializer,
    UnionSerializer,
    ValidatedSerializer,
    parameterNodeSerializer,
)
from .wrapper import SlicerParameterNamePropertyName, isParameterNodeWrapper, parameterNodeWrapper

__all__ = [
    "AnySerializer",
    "BoolSerializer",
    "DictSerializer",
    "EnumSerializer",
    "ListSerializer",
    "NodeSerializer",
    "NumberSerializer",
    "PathSerializer",
    "StringSerializer",
    "TupleSerializer",
    "UnionSerializer",

    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "FloatRange",
    "GuiConnector",
    "IsInstance",
    "Maximum",
    "Minimum",
    "NotNone",
    "RangeBounds",
    "Serializer",
    "SingleStep",
    "SlicerParameterNamePropertyName",
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
