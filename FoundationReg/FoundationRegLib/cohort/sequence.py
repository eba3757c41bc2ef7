"""Several frames of one image, such as a dynamic contrast series, each registered to one of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..core.formats import IMAGE_SUFFIXES, suffix_of
from ..errors import InputError
from ..images.reading import read_transform
from ..images.resampling import warp
from ..images.writing import write_image, write_transform
from .pairs import CohortPair
from .records import file_state
from .results import is_done, write_text

_FRAMES = "frames"
_SOURCE = "source.json"


@dataclass(frozen=True)
class Sequence4D:
    """A file with ``count`` volumes, along a fourth axis or, in Slicer's .seq.nrrd, as components of a list."""

    path: Path
    count: int
    is_list: bool
    origin: float = 0.0
    spacing: float = 1.0

    @classmethod
    def read(cls, path: str | Path) -> Sequence4D:
        """What the header of the file says. Raises `InputError` when it holds no sequence."""
        place = Path(path).expanduser().absolute()
        if not place.is_file():
            raise InputError(f"The sequence {place} does not exist.")
        if suffix_of(place) not in IMAGE_SUFFIXES:
            raise InputError(f"The sequence {place} has an unknown extension; use one of {' '.join(IMAGE_SUFFIXES)}.")
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(place))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise InputError(f"The sequence {place} cannot be read; the file is damaged or of another kind.") from None
        components = reader.GetNumberOfComponents()
        if reader.GetDimension() == 4 and components == 1:
            return cls(place, reader.GetSize()[3], False, reader.GetOrigin()[3], reader.GetSpacing()[3])
        kinds = [reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if key.startswith("NRRD_kinds")]
        if reader.GetDimension() == 3 and components > 1 and "list" in kinds:
            return cls(place, components, True)
        raise InputError(
            f"The sequence {place} holds one volume; a 4-D image or a list of volumes (.seq.nrrd) is needed."
        )

    def require_frame(self, frame: int) -> None:
        if self.count < 2:
            raise InputError(f"The sequence {self.path} has a single frame; there is nothing to register.")
        if not 0 <= frame < self.count:
            raise InputError(
                f"There is no frame {frame}; the sequence {self.path} has the frames 0 to {self.count - 1}."
            )

    def pairs(self, root: Path, fixed: int, fixed_mask: str | None = None) -> list[CohortPair]:
        """A pair for every frame but ``fixed``, which is the fixed image of all; frames are put below ``root``."""
        folder = self.unpacked(root)
        mask = {"fixed_mask": str(Path(fixed_mask).expanduser().absolute())} if fixed_mask else {}
        return [
            CohortPair(
                self.name(n), {"fixed": str(folder / f"{self.name(fixed)}.nii"),
                               "moving": str(folder / f"{self.name(n)}.nii"), **mask}, row=n,
            )
            for n in range(self.count) if n != fixed
        ]  # fmt: skip

    def name(self, frame: int) -> str:
        return f"frame{frame:0{max(3, len(str(self.count - 1)))}d}"

    def unpacked(self, root: Path) -> Path:
        """The folder with a file for each frame, written unless an earlier run left them from the same source."""
        folder = root.expanduser().absolute() / _FRAMES
        source = json.dumps([str(self.path), file_state(str(self.path))])
        try:
            if (folder / _SOURCE).read_text(encoding="utf-8") == source:
                return folder
        except OSError:
            pass
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The output folder {root} cannot be used: {(error.strerror or '').lower()}.") from None
        whole = sitk.ReadImage(str(self.path))
        for n in range(self.count):
            frame = sitk.VectorIndexSelectionCast(whole, n) if self.is_list else whole[:, :, :, n]
            write_image(frame, folder / f"{self.name(n)}.nii")
        write_text(folder / _SOURCE, source)
        return folder


def assemble(sequence: Sequence4D, fixed: int, rows: Sequence[dict[str, Any]], root: Path) -> list[Path]:
    """Write transforms/frame000.h5 and so on, and warped.nii.gz, the sequence with every frame on the fixed one's grid.

    With frames that failed, only the transforms of the others are written: a gap in the sequence could be overlooked.
    """
    root = root.expanduser().absolute()
    frames, transforms = root / _FRAMES, root / "transforms"
    transforms.mkdir(exist_ok=True)
    done = {row["id"]: root / "pairs" / row["folder"] / "transform.h5" for row in rows if is_done(row)}
    still = sitk.ReadImage(str(frames / f"{sequence.name(fixed)}.nii"))
    warped = []
    for n in range(sequence.count):
        name = sequence.name(n)
        place = transforms / f"{name}.h5"
        if n == fixed:
            write_transform(sitk.TranslationTransform(3), place)
            warped.append(still)
        elif name in done:
            _link(done[name], place)
            moving = sitk.ReadImage(str(frames / f"{name}.nii"))
            warped.append(sitk.Cast(warp(moving, read_transform(place), still), still.GetPixelID()))
        else:
            place.unlink(missing_ok=True)
    result = root / "warped.nii.gz"
    if len(warped) < sequence.count:
        result.unlink(missing_ok=True)
        return [transforms]
    write_series(warped, result, sequence.origin, sequence.spacing)
    shutil.rmtree(frames, ignore_errors=True)
    return [transforms, result]


def write_series(volumes: Sequence[sitk.Image], path: Path, origin: float, spacing: float) -> None:
    """Write ``volumes``, all on one grid, as one 4-D image; the whole file appears or none."""
    write_image(sitk.JoinSeries(list(volumes), origin, spacing), path)


def _link(source: Path, place: Path) -> None:
    """``source`` also at ``place``, without a second copy where the file system can."""
    place.unlink(missing_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
