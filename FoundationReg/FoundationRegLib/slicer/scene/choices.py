"""What the panel's boxes choose from. A scene keeps a choice by its name here, so a renamed one is lost."""

from __future__ import annotations

import enum

from slicer.i18n import tr as _


class Intensity(enum.Enum):
    """How grey values are scaled."""

    AUTO = "auto"
    MR = "mr"
    CT = "ct"

    def label(self) -> str:
        return {"auto": _("Automatic"), "mr": _("MR"), "ct": _("CT")}[self.value]


class Start(enum.Enum):
    """How the volumes are brought together first."""

    AUTO = "auto"
    NONE = "none"
    GEOMETRY = "geometry"
    MASS = "mass"
    FEATURES = "features"

    def label(self) -> str:
        return {
            "auto": _("Automatic"),
            "none": _("Where they are"),
            "geometry": _("Centers of the volumes"),
            "mass": _("Centers of mass"),
            "features": _("Matching features"),
        }[self.value]


class ReviewMode(enum.Enum):
    """How both sides are shown together."""

    FADE = "fade"
    FLICKER = "flicker"
    CHECKERBOARD = "checkerboard"
    DIFFERENCE = "difference"
    JACOBIAN = "jacobian"
    UNCERTAINTY = "uncertainty"

    def label(self) -> str:
        return {
            "fade": _("Fade between both"),
            "flicker": _("Flicker"),
            "checkerboard": _("Checkerboard"),
            "difference": _("Difference"),
            "jacobian": _("Jacobian (growth and shrinkage)"),
            "uncertainty": _("Uncertainty (likely error, relative)"),
        }[self.value]


class DeformationMode(enum.Enum):
    """How the transform itself is drawn."""

    NONE = "none"
    GRID = "grid"
    ARROWS = "arrows"
    CONTOURS = "contours"

    def label(self) -> str:
        return {"none": _("Hidden"), "grid": _("Grid"), "arrows": _("Arrows"), "contours": _("Contours")}[self.value]
