"""A DICOM series as one volume, each slice where its own ImagePositionPatient puts it.

ITK's series reader takes the distance of the first two slices, or the mean one, for all, and turns a tilted gantry
into a rotation. Here the slices are put in order along their normal (DICOM PS3.3, C.7.6.2) and checked: uneven and
sheared stacks are resampled onto an even, perpendicular grid, and what cannot be made right is refused by name.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.progress import Progress
from ..errors import InputError
from .contents import SPACING_LIMITS_MM, require_regular
from .native import quiet, readable

# Files that lie beside DICOM images by custom.
_COMPANIONS = ("dicomdir", "thumbs.db", "desktop.ini", "version", "lockfile")
_COMPANION_SUFFIXES = (".txt", ".xml", ".json", ".pdf", ".htm", ".html", ".csv", ".log", ".jpg", ".png", ".exe", ".inf")
# Positions are written with few digits: nearer than this to even, in mm or as a share of the distance, is even.
_EVEN_MM, _EVEN_SHARE = 0.02, 0.01
_SAME_PLACE_MM = 0.005
# A gap is filled from its two sides up to so many distances and mm; beyond that anatomy would be made up.
_LARGEST_GAP, _LARGEST_GAP_MM = 2.5, 10.0
# Slices may lie beside the normal through the first by this share of a pixel.
_SHIFT_PIXELS = 0.1


@dataclass(frozen=True)
class Slice:
    """One file of a series. ``position``: LPS mm of its first pixel's centre; ``axes`` (2, 3): unit vectors along a
    row and along a column; ``spacing``: mm between columns and between rows; ``size``: columns and rows. What the file
    does not say is None or empty."""

    path: Path
    series: str
    description: str
    position: tuple[float, float, float] | None
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]
    frames: int = 1
    number: int = 0

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.axes[:3], self.axes[3:])


def read_dicom_folder(folder: Path, name: str, warnings: list[str], progress: Progress | None = None) -> sitk.Image:
    """The volume of the series with the most images in ``folder``; ``name`` begins the sentence of an error.

    What was chosen, left out or resampled is appended to ``warnings``. Raises `InputError`, with the file named, for a
    series that is no volume: two different slices in one place, gaps too wide to fill, slices that lie nowhere.
    """
    progress = progress or Progress()
    files = sorted(path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
    series: dict[str, list[Slice]] = defaultdict(list)
    strange = []
    for file in files:
        progress.check()
        found = read_slice(file)
        if found is not None:
            series[found.series].append(found)
        elif not _is_companion(file):
            strange.append(file)
    if not series:
        raise InputError(f"{name} is a folder without DICOM images; give the one that directly holds the slices.")
    chosen = max(series.values(), key=lambda slices: (sum(s.frames for s in slices), slices[0].series))
    if len(series) > 1:
        counts = ", ".join(str(len(s)) for s in sorted(series.values(), key=len, reverse=True))
        title = f' "{chosen[0].description}"' if chosen[0].description else ""
        warnings.append(f"{name} holds {len(series)} DICOM series ({counts} files); the largest{title} was taken.")
    if strange:
        warnings.append(
            f"{name} holds {_counted(len(strange), 'file')} that cannot be read as DICOM ({strange[0].name}); if it "
            "belongs to the series, a slice is missing."
        )
    if len(chosen) == 1:
        return _one_file(chosen[0], name, warnings)
    return _volume(_one_orientation(chosen, name, warnings), name, warnings, progress)


def read_slice(path: Path) -> Slice | None:
    """What the header of a DICOM image file says; None when it is none."""
    try:
        require_regular(path, "")
        with open(path, "rb") as file:
            begins = file.read(132)
        named = path.suffix.lower() in ("", ".dcm", ".ima", ".dic", ".img") or path.suffix[1:].isdigit()
        if begins[128:] != b"DICM" and not named:
            return None
        with quiet(), readable(path) as place:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(place))
            reader.ReadImageInformation()
            return _slice(path, reader)
    except (RuntimeError, OSError, ValueError, InputError):
        return None


def _slice(path: Path, reader: sitk.ImageFileReader) -> Slice:
    keys = set(reader.GetMetaDataKeys())

    def text(key: str) -> str:
        return reader.GetMetaData(key).strip().strip("\0") if key in keys else ""

    def numbers(key: str, count: int) -> tuple[float, ...]:
        parts = text(key).split("\\")
        values = tuple(float(part) for part in parts) if len(parts) == count else ()
        return values if np.isfinite(values).all() else ()

    size, between = reader.GetSize(), numbers("0028|0030", 2)
    number = text("0020|0013")
    return Slice(
        path=path,
        series=text("0020|000e"),
        description=text("0008|103e"),
        position=numbers("0020|0032", 3) or None,
        axes=numbers("0020|0037", 6),
        spacing=(between[1], between[0]) if between else (),
        size=(int(size[0]), int(size[1])),
        frames=int(size[2]) if len(size) > 2 else 1,
        number=int(number) if number.lstrip("-").isdigit() else 0,
    )


def _is_companion(path: Path) -> bool:
    return path.name.lower() in _COMPANIONS or path.suffix.lower() in _COMPANION_SUFFIXES


def _counted(count: int, what: str) -> str:
    return f"one {what}" if count == 1 else f"{count} {what}s"


def read_dicom_file(path: Path, name: str, warnings: list[str]) -> sitk.Image:
    """The volume in one DICOM file of many frames. Raises `InputError`, also for a single slice."""
    found = read_slice(path)
    if found is None:
        raise InputError(f"{name} cannot be read as DICOM; the file is damaged.")
    if found.frames < 2:
        raise InputError(f"{name} is a single DICOM slice; give the folder that holds all of its series.")
    return _one_file(found, name, warnings)


def _one_file(slice_: Slice, name: str, warnings: list[str]) -> sitk.Image:
    """The volume in one file of many frames."""
    if slice_.frames < 2:
        raise InputError(f"{name} holds a DICOM series of a single slice; at least four are needed.")
    image = _pixels(slice_, name)
    warnings.append(
        f"{name} is one DICOM file of {slice_.frames} frames; check their distance of {image.GetSpacing()[-1]:.3g} mm."
    )
    return image


def _pixels(slice_: Slice, name: str) -> sitk.Image:
    with quiet(), readable(slice_.path) as place:
        try:
            return sitk.ReadImage(str(place), imageIO="GDCMImageIO")
        except RuntimeError:
            raise InputError(
                f"{name} holds the DICOM file {slice_.path.name}, whose pixels cannot be read; copy it again."
            ) from None


def _one_orientation(slices: list[Slice], name: str, warnings: list[str]) -> list[Slice]:
    """Those of ``slices`` that share size, pixel spacing and orientation with most others: a localizer is left out."""
    for one in slices:
        placed = one.position is not None and one.axes and 0.99 < np.linalg.norm(one.normal) < 1.01
        if not placed or not one.spacing:
            lacking = "PixelSpacing" if placed else "ImagePositionPatient and ImageOrientationPatient"
            raise InputError(
                f"{name} holds a DICOM series without usable positions ({lacking} of {one.path.name}); where its "
                "voxels lie is not known."
            )
    groups: list[list[Slice]] = []
    for one in slices:
        for group in groups:
            if _agree(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    chosen = max(groups, key=len)
    if len(groups) > 1:
        others = len(slices) - len(chosen)
        example = next(s for s in slices if s not in chosen)
        warnings.append(
            f"{name} holds {_counted(others, 'image')} of another size or orientation in the same series "
            f"({example.path.name}); the {len(chosen)} that agree were taken."
        )
    if len(chosen) < 2:
        raise InputError(f"{name} holds a DICOM series whose images do not lie on one another.")
    low, high = SPACING_LIMITS_MM
    if not all(low <= s <= high for s in chosen[0].spacing):
        raise InputError(f"{name} holds a DICOM series with pixels of {chosen[0].spacing[0]:g} mm, which cannot be.")
    return chosen


def _agree(one: Slice, other: Slice) -> bool:
    """Whether both have the same size, pixel spacing and orientation."""
    return (
        one.size == other.size
        and np.allclose(one.axes, other.axes, atol=2e-3)
        and np.allclose(one.spacing, other.spacing, rtol=1e-3)
    )


def _volume(slices: list[Slice], name: str, warnings: list[str], progress: Progress) -> sitk.Image:
    first = slices[0]
    along, down = np.array(first.axes[:3]), np.array(first.axes[3:])
    normal = first.normal / np.linalg.norm(first.normal)
    slices = sorted(slices, key=lambda s: (float(np.dot(s.position, normal)), s.number, s.path.name))
    arrays = []
    for one in slices:
        progress.check()
        arrays.append(_flat(_pixels(one, name), one, name))
    slices, arrays = _without_copies(slices, arrays, normal, name, warnings)
    positions = np.array([s.position for s in slices])
    depths = positions @ normal
    spacing = _require_distances(slices, depths, name, warnings)
    array = np.stack(arrays)
    # How far each slice is shifted beside the normal through the first, in columns and rows.
    beside = positions - positions[0] - np.outer(depths - depths[0], normal)
    shifts = np.stack([beside @ down / first.spacing[1], beside @ along / first.spacing[0]], axis=1)
    origin = positions[0]
    if np.abs(shifts).max() > _SHIFT_PIXELS:
        array, corner = _sheared_back(array, shifts, progress)
        origin = origin + corner[0] * first.spacing[1] * down + corner[1] * first.spacing[0] * along
        lean = np.degrees(np.arctan(np.linalg.norm(beside[-1]) / (depths[-1] - depths[0])))
        warnings.append(
            f"{name} has slices that are shifted against one another, as by a gantry tilted by {lean:.1f} degrees; it "
            "was resampled onto a perpendicular grid."
        )
    if not _even(np.diff(depths), spacing):
        array = _evened(array, depths, spacing)
        warnings.append(
            f"{name} has slices at uneven distances ({np.diff(depths).min():.3g} to {np.diff(depths).max():.3g} mm); "
            f"it was resampled to {spacing:.3g} mm."
        )
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((*first.spacing, spacing))
    image.SetOrigin(origin.tolist())
    image.SetDirection(np.stack([along, down, normal], axis=1).ravel().tolist())
    return image


def _flat(image: sitk.Image, slice_: Slice, name: str) -> np.ndarray:
    """The pixels (rows, columns) of one slice."""
    array = sitk.GetArrayFromImage(image)
    array = array[0] if array.ndim == 3 and image.GetNumberOfComponentsPerPixel() == 1 and len(array) == 1 else array
    if array.ndim != 2:
        raise InputError(f"{name} holds {slice_.path.name}, which is no single slice of grey values.")
    return array


def _without_copies(slices, arrays, normal, name, warnings):
    """``slices`` and their ``arrays``, in order, without those that repeat another one. Raises `InputError` where two
    different slices lie in one place."""
    kept, pixels, copies = [slices[0]], [arrays[0]], []
    for one, array in zip(slices[1:], arrays[1:], strict=True):
        if abs(float(np.dot(np.subtract(one.position, kept[-1].position), normal))) > _SAME_PLACE_MM:
            kept.append(one)
            pixels.append(array)
        elif np.array_equal(array, pixels[-1]) and np.allclose(one.position, kept[-1].position, atol=_SAME_PLACE_MM):
            copies.append(one)
        else:
            raise InputError(
                f"{name} holds two different slices in one place ({kept[-1].path.name} and {one.path.name}): several "
                "volumes or times in one series; give one of them alone."
            )
    if copies:
        warnings.append(f"{name} holds {_counted(len(copies), 'slice')} twice ({copies[0].path.name}).")
    return kept, pixels


def _require_distances(slices: list[Slice], depths: np.ndarray, name: str, warnings: list[str]) -> float:
    """The distance in mm of neighbouring slices. Raises `InputError` where a gap is too wide to be filled."""
    if len(slices) < 2:
        raise InputError(f"{name} holds a DICOM series whose slices all lie in one place.")
    steps = np.diff(depths)
    usual = float(np.median(steps))
    if _even(steps, (depths[-1] - depths[0]) / len(steps)):
        usual = float((depths[-1] - depths[0]) / len(steps))
    low, high = SPACING_LIMITS_MM
    if not low <= usual <= high:
        raise InputError(f"{name} holds a DICOM series with slices {usual:g} mm apart, which cannot be.")
    for n in np.flatnonzero(steps > 1.5 * usual):
        between = f"between {slices[n].path.name} and {slices[n + 1].path.name}"
        gap = f"{steps[n]:.3g} mm instead of {usual:.3g} mm"
        if steps[n] > _LARGEST_GAP * usual or steps[n] > max(_LARGEST_GAP_MM, 1.5 * usual):
            raise InputError(f"{name} lacks slices {between} ({gap}); copy the series again, completely.")
        warnings.append(f"{name} lacks a slice {between} ({gap}); it was filled in from its neighbours.")
    return usual


def _even(steps: np.ndarray, spacing: float) -> bool:
    return bool(np.abs(steps - spacing).max() <= max(_EVEN_MM, _EVEN_SHARE * spacing))


def _evened(array: np.ndarray, depths: np.ndarray, spacing: float) -> np.ndarray:
    """``array`` (slices, rows, columns) at ``depths`` mm, interpolated linearly every ``spacing`` mm."""
    count = int(np.floor((depths[-1] - depths[0]) / spacing + 1e-3)) + 1
    wanted = np.minimum(depths[0] + spacing * np.arange(count), depths[-1])
    above = np.clip(np.searchsorted(depths, wanted), 1, len(depths) - 1)
    share = (wanted - depths[above - 1]) / (depths[above] - depths[above - 1])
    made = np.empty((count, *array.shape[1:]), np.float32)
    for n, (high, part) in enumerate(zip(above, share, strict=True)):
        made[n] = (1 - part) * array[high - 1].astype(np.float32) + part * array[high].astype(np.float32)
    return _as_kind(made, array.dtype)


def _sheared_back(array: np.ndarray, shifts: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """``array`` (slices, rows, columns) with slice n moved by ``shifts[n]`` (rows, columns), interpolated linearly.

    The picture grows so that nothing is lost; what no slice covers gets the lowest value, but not below air. Also
    gives the place (row, column) of the new first pixel in the old picture.
    """
    low, high = np.floor(shifts.min(0)).astype(int), np.ceil(shifts.max(0)).astype(int)
    outside = float(max(array.min(), -1024))
    made = np.empty((len(array), *(np.array(array.shape[1:]) + high - low)), np.float32)
    for n, (picture, shift) in enumerate(zip(array, shifts, strict=True)):
        progress.check()
        padded = np.pad(picture.astype(np.float32), [(0, h - a) for h, a in zip(high, low, strict=True)],
                        constant_values=outside)  # fmt: skip
        made[n] = ndimage.shift(padded, shift - low, order=1, mode="grid-constant", cval=outside)
    return _as_kind(made, array.dtype), low


def _as_kind(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Interpolated ``values`` in the pixel type ``kind``, rounded where that is whole numbers."""
    return np.rint(values).astype(kind) if kind.kind in "iu" else values.astype(kind)
