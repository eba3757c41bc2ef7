"""Between the module's parameter node and `settings.Settings`."""

from __future__ import annotations

import os

from slicer.i18n import tr as _

from ...core.anatomy import PLANE_NAMES
from ...errors import FoundationRegError, InputError
from ...settings import Settings, preset_names
from ...weights.catalogue import catalogue
from ..client.request import RegistrationRequest
from . import availability

# parameter of the node -> field of Settings
FIELDS = {
    "smoothness": "smoothness",
    "anatomy": "anatomy",
    "bodyMask": "body_mask",
    "rigid": "rigid",
    "affine": "affine",
    "sliceGap": "slice_gap_mm",
    "encoderPixels": "encoder_pixels",
    "encoderLayers": "encoder_layers",
    "encoderNormalization": "encoder_normalisation",
    "encoderPrecision": "encoder_precision",
    "pcaComponents": "pca_components",
    "searchRange": "search_range_mm",
    "searchSpacing": "search_spacing_mm",
    "finestSpacing": "finest_spacing_mm",
    "iterations": "iterations",
    "diffeomorphic": "diffeomorphic",
    "device": "device",
    "memory": "memory_gb",
    "threads": "threads",
    "seed": "seed",
}
CHOICES = {"fixedIntensity": "fixed_intensity", "movingIntensity": "moving_intensity", "start": "start"}
PLANES = PLANE_NAMES
COMPUTER = {"device", "memory", "threads", "seed"}  # of the computer, not of the images: a preset leaves them alone
PRESET_ENCODERS = ""  # those that the preset names
MIND = "mind"


def apply_preset(parameters, name: str) -> None:
    """Set the parameters that a preset decides to its values."""
    settings = Settings.from_preset(name)
    parameters.preset = name
    parameters.encoder = PRESET_ENCODERS
    parameters.encoderWeight = _usual_weight(settings)
    for parameter, field in FIELDS.items():
        if parameter not in COMPUTER:
            value = getattr(settings, field)
            value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            if getattr(parameters, parameter) != value:
                setattr(parameters, parameter, value)
    for parameter, field in CHOICES.items():
        kind = type(getattr(parameters, parameter))
        setattr(parameters, parameter, kind(getattr(settings, field)))
    for plane in PLANES:
        setattr(parameters, plane, plane in settings.planes)


def repair(parameters) -> None:
    """Give a new parameter node the values of its preset, and replace what this version does not know any more."""
    if parameters.preset not in preset_names():
        # The values of a preset of one's own stay where it is not at hand.
        if not parameters.preset.endswith(".json"):
            parameters.initialized = False
        if not os.path.isfile(parameters.preset):
            parameters.preset = preset_names()[0]
    known = parameters.encoder in (PRESET_ENCODERS, *catalogue()) or availability.is_path(parameters.encoder)
    if not known:
        parameters.encoder = PRESET_ENCODERS
    if parameters.anatomy not in catalogue() and not availability.is_path(parameters.anatomy):
        parameters.anatomy = ""
    if not parameters.initialized:
        apply_preset(parameters, parameters.preset)
        parameters.initialized = True


def settings_of(parameters) -> Settings:
    """The settings that the parameters describe. Raises `InputError` for values that cannot be."""
    changes = {field: getattr(parameters, parameter) for parameter, field in FIELDS.items()}
    changes |= {field: getattr(parameters, parameter).value for parameter, field in CHOICES.items()}
    changes["planes"] = [plane for plane in PLANES if getattr(parameters, plane)]
    changes["deformable"] = not parameters.linearOnly
    encoders = [(MIND, 1.0)] if parameters.linearOnly else encoders_of(parameters)
    if encoders:
        changes["encoders"] = encoders
    return Settings.from_preset(parameters.preset, **changes)


def encoders_of(parameters) -> list[tuple[str, float]]:
    """Encoders with weights that the user chose instead of the preset's; empty when the preset decides."""
    settings, chosen = Settings.from_preset(parameters.preset), parameters.encoder
    if chosen == PRESET_ENCODERS:
        if not has_weight(parameters) or parameters.encoderWeight == _usual_weight(settings):
            return []
        return [(name, weight if name == MIND else parameters.encoderWeight) for name, weight in settings.encoders]
    usual = dict(settings.encoders)
    if has_weight(parameters):
        return [(chosen, parameters.encoderWeight), (MIND, usual.get(MIND, 1.0))]
    return [(chosen, usual.get(chosen, 1.0))]


def has_weight(parameters) -> bool:
    """Whether there is one encoder beside MIND, so that it matters how much it counts."""
    if parameters.encoder == PRESET_ENCODERS:
        names = [name for name, _ in Settings.from_preset(parameters.preset).encoders]
        return len(names) == 2 and MIND in names
    return parameters.combineMind and parameters.encoder != MIND


def _usual_weight(settings: Settings) -> float:
    """What the encoder beside MIND counts where nobody chose otherwise."""
    beside = [weight for name, weight in settings.encoders if name != MIND]
    return beside[0] if len(beside) == 1 else 1.0


def has_boxes(parameters) -> bool:
    """Whether something is left to segment in boxes, as far as the nodes tell."""
    return parameters.fixedBox is not None or parameters.movingBox is not None


def changed_fields(parameters) -> list[str]:
    """Settings that differ from the preset's, by field name."""
    preset = Settings.from_preset(parameters.preset).to_dict()
    ours = settings_of(parameters).to_dict()
    ignored = {FIELDS[name] for name in COMPUTER}
    return [name for name, value in ours.items() if name not in ignored and value != preset[name]]


def tuning_of(parameters) -> tuple:
    """What a result is computed again for as soon as it is changed: smoothness, the encoder's weight, and masks."""
    masks = (parameters.fixedMask, parameters.movingMask, parameters.excludeFixed, parameters.excludeMoving)
    weight = parameters.encoderWeight if has_weight(parameters) and not parameters.linearOnly else None
    return (parameters.smoothness, weight, *(mask.GetID() if mask is not None else None for mask in masks))


def volume_options(parameters) -> dict:
    """How the output volume is made, as of `RegistrationRequest.volume`. Raises `InputError` for a background that is
    no number."""
    options = {"interpolation": parameters.interpolation}
    if parameters.voxelType != "same":
        options["type"] = parameters.voxelType
    if text := parameters.background.strip():
        try:
            options["background"] = float(text.replace(",", "."))
        except ValueError:
            raise InputError(f"The background {text!r} of the output volume is no number.") from None
    return options


def landmarks_of(parameters) -> tuple:
    """Both lists of landmarks and whether they guide; lists that hold nothing are as good as none."""
    lists = (parameters.fixedLandmarks, parameters.movingLandmarks)
    if all(lists) and not any(markups.GetNumberOfControlPoints() for markups in lists):
        return None, None, False
    return (*lists, parameters.guideWithLandmarks)


def request_of(parameters, carry: tuple = ()) -> RegistrationRequest:
    """The registration that the parameters describe."""
    fixed_points, moving_points, guides = landmarks_of(parameters)
    return RegistrationRequest(
        fixed=parameters.fixedVolume,
        moving=parameters.movingVolume,
        settings=settings_of(parameters).to_dict(),
        output_transform=parameters.outputTransform if parameters.makeTransform else None,
        output_volume=parameters.outputVolume if parameters.makeVolume else None,
        create_transform=parameters.makeTransform,
        create_volume=parameters.makeVolume,
        apply_transform=parameters.applyTransform,
        initial_transform=parameters.initialTransform,
        fixed_mask=parameters.fixedMask,
        moving_mask=parameters.movingMask,
        exclude_fixed=parameters.excludeFixed,
        exclude_moving=parameters.excludeMoving,
        fixed_labels=parameters.fixedLabels,
        moving_labels=parameters.movingLabels,
        fixed_points=fixed_points,
        moving_points=moving_points,
        fixed_box=parameters.fixedBox,
        moving_box=parameters.movingBox,
        fixed_box_mask=parameters.fixedBoxMask,
        moving_box_mask=parameters.movingBoxMask,
        guide_with_labels=parameters.guideWithLabels,
        guide_with_points=guides,
        volume=volume_options(parameters),
        carry=carry,
        jacobian=parameters.makeJacobian,
        preview=parameters.livePreview,
    )


def missing_of(parameters, carry: tuple = ()) -> tuple[str, str]:
    """What hinders a start: the short text of the button and the sentence of its tooltip; empty when nothing."""
    if not parameters.fixedVolume:
        return _("Choose a fixed volume"), _("Choose the volume that stays where it is.")
    if not parameters.movingVolume:
        return _("Choose a moving volume"), _("Choose the volume that is to be moved.")
    if not (parameters.makeTransform or parameters.makeVolume):
        return _("Choose an output"), _("Tick transform, volume or both under Outputs.")
    try:
        request_of(parameters, carry).check()
    except FoundationRegError as error:
        return _("Cannot start yet"), str(error)
    return "", ""
