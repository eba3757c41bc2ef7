"""What a user can choose. One frozen dataclass; presets are JSON files of it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .core.anatomy import PLANE_NAMES, PlaneName
from .core.resources import resource_path
from .errors import InputError

PRESETS_FOLDER = resource_path("Presets")

# Settings that had another name, which presets and saved scenes may still hold.
_FORMER_NAMES = {"grey_reach": "grey_sigma", "grey_wide": "bias_corrected_weight"}

# The lowest and highest value of each number. They keep out mistakes, not what is merely unwise.
_LIMITS: dict[str, tuple[float, float]] = {
    "slice_gap_mm": (0.01, 1000), "encoder_pixels": (16, 8192), "pca_components": (1, 1024),
    "search_spacing_mm": (0.1, 200), "search_range_mm": (0, 300), "finest_spacing_mm": (0.01, 100),
    "grey_weight": (1e-6, 1e6), "grey_sigma": (0.1, 100), "bias_corrected_weight": (0, 1e6), "smoothness": (1e-6, 1e6),
    "diffusion": (0, 1e6), "bending": (0, 1e6), "iterations": (0, 10_000), "adam_diffusion": (0, 1e6),
    "adam_rate": (1e-6, 1000), "adam_kernel": (1, 31), "adam_passes": (1, 100), "memory_gb": (0.001, 1e5),
    "threads": (0, 1024), "seed": (0, 2**32 - 1),
}  # fmt: skip
_ZERO_MEANS_AUTOMATIC = ("encoder_pixels", "finest_spacing_mm", "memory_gb")
_LARGEST_WEIGHT, _LARGEST_GREY, _COARSEST_LEVEL, _MOST_LAYERS = 1e6, 1e30, 64, 1000


@dataclass(frozen=True)
class Settings:
    """Every choice of one registration. Lengths are millimetres.

    Preparation
        fixed_intensity, moving_intensity: how grey values are scaled to 0..1: ``mr`` (robust percentiles), ``ct``
            (Hounsfield window) or ``auto``.
        fixed_window, moving_window: explicit (low, high) grey values instead; None means by ``*_intensity``.
        body_mask: find the foreground of both images and keep empty space out of the features and the similarity.
    Initial alignment
        start: ``none``, centres of ``geometry``, centres of ``mass``, ``features`` (descriptors matched at every place
            and right-angled turn, then an affine map) or ``auto``. A given initial transform replaces it.
        rigid, affine: linear stages that follow. deformable: whether a deformation follows them.
    Features
        encoders: pairs of encoder id and weight. Weights are relative.
        planes: the slice directions that 2-D encoders see.
        slice_gap_mm: distance between encoded slices.
        encoder_pixels: longer side of the encoder's input in pixels; 0 means the encoder's own.
        encoder_layers: transformer blocks, counted from 0 or as -1 from the last, whose features are taken, side by
            side where several are given; none means the network's own output.
        encoder_normalisation: of the input as each network was ``trained``, or as in the ``study``.
        encoder_precision: numbers that the encoders compute with; ``auto`` is what the device does fast and accurately.
        pca_components: channels kept of each foundation encoder by the shared PCA.
        anatomy: an anatomy network that names regions in both images: its id, or the JSON file that describes your own;
            empty is none. Its regions are results, a check and a second opinion on the start; they do not guide.
    Search
        search_spacing_mm: distance between the nodes of the discrete search. search_range_mm: its largest displacement.
    Refinement
        finest_spacing_mm: voxel size of the working grid; 0 means by the images.
        levels: voxel sizes of the refinement levels as multiples of it, coarse to fine.
        grey_values: let grey values refine beside the features, as far as both images show one contrast.
            grey_weight: how much they count beside the features then. grey_sigma: standard deviation, in voxels of a
            level, of the Gaussian in which they are normalised. bias_corrected_weight: weight, relative to that, of
            grey values of which only slow shading is taken away, where the images turn out to be free of the rest.
        smoothness: weight of the regulariser, 1 is neutral. diffusion, bending: weights of the first and the second
            derivatives of the field in it. sliding: let neighbouring organs slide along each other. As far as
            bias-corrected grey values count, a membrane takes their place (`deformable.deform`).
            iterations: steps of each level at most.
        diffeomorphic: optimise a stationary velocity field, which cannot fold (``gauss-newton`` only).
        optimizer: ``gauss-newton`` or ``adam``; ``adam_*`` are the constants of the latter, which knows neither sliding
            nor grey values and is not diffeomorphic.
    Running
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``. memory_gb: device memory to stay within; 0 is
            automatic.
        threads: CPU threads; 0 is automatic. seed: for the few places that draw random numbers.
    """

    preset: str = "default"
    fixed_intensity: Literal["auto", "mr", "ct"] = "auto"
    moving_intensity: Literal["auto", "mr", "ct"] = "auto"
    fixed_window: tuple[float, float] | None = None
    moving_window: tuple[float, float] | None = None
    body_mask: bool = True
    start: Literal["auto", "none", "geometry", "mass", "features"] = "auto"
    rigid: bool = True
    affine: bool = True
    deformable: bool = True
    encoders: tuple[tuple[str, float], ...] = (("mind", 1.0),)
    planes: tuple[PlaneName, ...] = ("axial",)
    slice_gap_mm: float = 10.0
    encoder_pixels: int = 0
    encoder_layers: tuple[int, ...] = ()
    encoder_normalisation: Literal["trained", "study"] = "trained"
    encoder_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    pca_components: int = 12
    anatomy: str = ""
    search_spacing_mm: float = 6.0
    search_range_mm: float = 35.0
    finest_spacing_mm: float = 0.0
    levels: tuple[int, ...] = (4, 2, 1)
    grey_values: bool = True
    grey_weight: float = 1.0
    grey_sigma: float = 1.6
    bias_corrected_weight: float = 2.0
    smoothness: float = 1.0
    diffusion: float = 0.3
    bending: float = 1.0
    sliding: bool = True
    iterations: int = 8
    diffeomorphic: bool = True
    optimizer: Literal["gauss-newton", "adam"] = "gauss-newton"
    adam_diffusion: float = 2.0
    adam_rate: float = 3.0
    adam_kernel: int = 7
    adam_passes: int = 5
    device: str = "auto"
    memory_gb: float = 0.0
    threads: int = 0
    seed: int = 0

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name), hints[field.name]))
        if self.optimizer == "adam" and self.diffeomorphic:
            raise InputError("The optimizer adam cannot be diffeomorphic; set diffeomorphic=false.")
        if self.optimizer == "adam" and (self.sliding or self.grey_values):
            name = "sliding" if self.sliding else "grey_values"
            raise InputError(f"The optimizer adam knows no {name.replace('_', ' ')}; set {name}=false.")

    @classmethod
    def from_preset(cls, name: str = "default", **changes: Any) -> Settings:
        """The preset ``name`` with ``changes`` by field name. Raises `InputError` for an unknown preset or field."""
        return cls.from_dict({**read_preset(name)["settings"], **changes, "preset": name})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """From what `to_dict` made; values may also be texts, as typed after ``--set``."""
        if not isinstance(values, dict):
            raise InputError(f"Settings are a table of names and values, not {_short(values)}.")
        hints = get_type_hints(cls)
        values = {_FORMER_NAMES.get(key, key): value for key, value in values.items()}
        for key in values:
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f". There are: {', '.join(hints)}."
                raise InputError(f"There is no setting {_short(key)}{hint}")
        return cls(**values)

    def replace(self, **changes: Any) -> Settings:
        """A copy with ``changes`` by field name, checked like `from_dict`."""
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def preset_names() -> list[str]:
    """Ids of the presets that ship, the default first."""
    return sorted((p.stem for p in PRESETS_FOLDER.glob("*.json")), key=lambda n: (n != "default", n))


def read_preset(name: str) -> dict[str, Any]:
    """The preset file: ``title``, ``summary``, ``measured_on`` and ``settings``. ``name`` is an id or a file's path."""
    name = str(name)
    path = Path(name).expanduser() if name.endswith(".json") else PRESETS_FOLDER / f"{name}.json"
    try:
        preset = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no preset {_short(name)}. There are: {', '.join(preset_names())}.") from None
    except OSError as error:
        raise InputError(
            f"The preset {_short(name)} cannot be read: {(error.strerror or 'damaged').lower()}."
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"The preset file {path} is not valid JSON: {reason}.") from None
    if not isinstance(preset, dict) or not isinstance(preset.get("settings"), dict):
        raise InputError(f"The preset file {path} holds no table with settings.")
    return preset


def _checked(key: str, value: Any, kind: Any) -> Any:
    """``value``, possibly a text, as the type of the field ``key`` and within its limits. Raises `InputError`."""
    made = _parse(key, value, kind)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and made not in choices:
        raise InputError(f"The setting {key} must be one of {', '.join(choices)}, not {_short(value)}.")
    if key in _LIMITS:
        low, high = _LIMITS[key]
        if not (low <= made <= high or (made == 0 and key in _ZERO_MEANS_AUTOMATIC)):
            zero = ", or 0 for automatic" if key in _ZERO_MEANS_AUTOMATIC else ""
            raise InputError(f"The setting {key} must lie between {low:g} and {high:g}{zero}, not {_short(value)}.")
    if key == "threads" and made > (os.cpu_count() or 1):
        raise InputError(
            f"The setting threads must not exceed the {os.cpu_count()} cores of this computer, not {made}."
        )
    if key == "adam_kernel" and not made % 2:
        raise InputError(f"The setting adam_kernel must be odd, not {made}.")
    return made


def _short(value: Any) -> str:
    """``value`` as it is shown in a sentence."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse(key: str, value: Any, kind: Any) -> Any:
    """``value``, possibly a text, as the field's type. Raises `InputError`."""
    given = value
    try:
        if key == "encoders":
            pairs = tuple(_encoder(part) for part in (value.split(",") if isinstance(value, str) else value))
            if not pairs or not all(name and 0 < weight <= _LARGEST_WEIGHT for name, weight in pairs):
                needed = "at least one encoder, each with a weight above zero"
                raise InputError(f"The setting encoders needs {needed}, not {_short(given)}.")
            return pairs
        if key == "planes":
            value = tuple(p.strip() for p in value.split(",")) if isinstance(value, str) else tuple(value)
            if not value or len(set(value)) < len(value) or not set(value) <= set(PLANE_NAMES):
                raise ValueError
            return value
        if key == "levels":
            value = tuple(_whole(v) for v in (value.split(",") if isinstance(value, str) else value))
            if not value or any(not 1 <= v <= _COARSEST_LEVEL or v & (v - 1) for v in value):
                raise ValueError
            if list(value) != sorted(set(value), reverse=True):
                raise InputError(f"The setting levels must go from coarse to fine, such as 4,2,1, not {_short(given)}.")
            return value
        if key == "encoder_layers":
            if value in (None, "", "none"):
                return ()
            value = tuple(_whole(v) for v in (value.split(",") if isinstance(value, str) else value))
            if any(abs(v) > _MOST_LAYERS for v in value) or len(value) > _MOST_LAYERS:
                raise ValueError
            return value
        if key in ("fixed_window", "moving_window"):
            if value in (None, "", "none"):
                return None
            low, high = (float(v) for v in (value.split(",") if isinstance(value, str) else value))
            if not -_LARGEST_GREY <= low < high <= _LARGEST_GREY:
                raise ValueError
            return low, high
        if kind is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]
        if kind is int:
            return _whole(value)
        if kind is float:
            number = float(value)
            if isinstance(value, bool) or not abs(number) < float("inf"):
                raise ValueError
            return number
        if not isinstance(value, str):
            raise ValueError
        return value
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError):
        raise InputError(f"The setting {key} cannot be {_short(given)}.") from None


def _whole(value: Any) -> int:
    """``value`` as a whole number. Raises ValueError, TypeError or OverflowError for anything else."""
    number = int(value)
    if isinstance(value, bool) or (not isinstance(value, str) and number != value):
        raise ValueError
    return number


def _encoder(part: Any) -> tuple[str, float]:
    """Id or path, and weight, of a pair or of a text such as ``mind`` or ``mind=0.5``."""
    if isinstance(part, str):
        name, equals, weight = part.rpartition("=")
        part = (name, weight) if equals else (part, 1)
    name, weight = part
    return str(name).strip(), float(weight)
