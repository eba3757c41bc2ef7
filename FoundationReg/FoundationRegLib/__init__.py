"""FoundationReg: training-free registration of 3-D medical images with foundation-model features.

The packages follow the data, and each uses only those before it; `LAYERS` in the tests' test_layers.py holds the rule:
`core`, then `images`, `numerics` and `weights`, then `encoders`, `features`, `registration`, `evaluation`, `reporting`,
and last the two ways in, `app` and `slicer`. Importing this package imports none of them.
"""

__version__ = "0.1.0"
__all__ = ["Registration", "Settings", "register"]


def __getattr__(name: str):
    if name in ("register", "Registration"):
        from .registration import pipeline

        return getattr(pipeline, name)
    if name == "Settings":
        from .settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
