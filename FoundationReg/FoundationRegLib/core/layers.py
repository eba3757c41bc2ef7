"""Which package may import which: the rule that keeps the data flow readable. test_layers.py reads every import.

``settings`` and ``errors`` stand for the modules of these names; ``errors`` is open to all.
"""

from __future__ import annotations

# Package: the packages that it may import besides itself.
LAYERS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "core": (),
    "settings": ("core",),
    "images": ("core",),
    "native": ("core",),
    "numerics": ("core", "native"),
    "weights": ("core",),
    "encoders": ("core", "native", "weights"),
    "features": ("core", "native", "numerics", "encoders"),
    "evaluation": ("core", "images", "numerics"),
    "registration": (
        *("core", "settings", "images", "native", "numerics", "weights", "encoders", "features", "evaluation"),
    ),
    "interaction": ("core", "images", "numerics", "weights", "encoders", "registration"),
    "reporting": ("core", "images", "evaluation", "registration"),
    "cohort": (
        *("core", "settings", "images", "numerics", "weights", "encoders", "features", "evaluation"),
        *("registration", "reporting"),
    ),
    "app": (
        *("core", "settings", "images", "native", "numerics", "weights", "encoders", "features", "evaluation"),
        *("registration", "interaction", "reporting", "cohort"),
    ),
    "slicer.scene": ("core", "evaluation"),
    "slicer.client": ("core", "evaluation", "slicer.scene"),
    "slicer.panel": ("core", "settings", "weights", "evaluation", "slicer.scene", "slicer.client"),
}

# (package, imported package): the only modules of it that may be imported.
ONLY: dict[tuple[str, str], tuple[str, ...]] = {("slicer", "evaluation"): ("evaluation.titles",)}

# Imports inside a function that the table does not allow, (module, imported module): each for the reason given.
LAZY_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("registration.result", "interaction.probe"): "the console asks a result about a point",
    ("registration.result", "interaction.correction"): "the console corrects a result",
}

# Packages of others, and where they may be imported at file scope; None of the names: nowhere at file scope.
SIMPLEITK = ("images", "evaluation", "registration", "interaction", "reporting", "cohort", "app")
NO_TORCH_AT_FILE_SCOPE = ("core", "settings", "errors", "weights", "slicer")
TORCH_AT_FILE_SCOPE = ("weights.checkpoints",)
RICH = ("app",)
SLICER = ("slicer",)
