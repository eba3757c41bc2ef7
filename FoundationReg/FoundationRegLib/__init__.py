"""FoundationReg: training-free registration of 3-D medical images with foundation-model features.

The package has three layers, and imports point one way only:

1. *Ways in*: the Slicer module and ``slicer/``, ``cli``, ``worker``.
2. *Registration*: ``registration`` ties the steps into one function; ``image``, ``preprocess``, ``alignment`` and
   ``metrics`` touch SimpleITK.
3. *Numerics*: ``grid``, ``encoders/``, ``features``, ``search``, ``refinement``, ``deformation`` import torch and
   numpy only, and run where SimpleITK is absent.

Importing this package imports none of them.
"""

__version__ = "0.1.0"
__all__ = ["Settings", "register"]


def __getattr__(name: str):
    if name == "register":
        from .registration import register

        return register
    if name == "Settings":
        from .settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
