"""The moving volume on its way from where it lay before to where it is registered, step by step; and as a film."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import slicer

from ...core.files import replacing
from . import copies, nodes, results, views


class Morph:
    """Shows a copy of the moving volume of the result ``owner`` (a transform node) between before and after.

    The volume itself is not moved. `close` removes the copy.
    """

    def __init__(self, owner):
        self._moving = owner.GetNodeReference(results.ROLE + "moving")
        fixed = owner.GetNodeReference(results.ROLE + "fixed")
        field = results.read_grid(owner)
        self._grid = field[1] if field is not None else nodes.volume_grid(fixed).with_spacing(8.0).padded(1, 1)
        self._before = self._vectors(nodes.chain_between(fixed.GetParentTransformNode(),
                                                         owner.GetNodeReference(results.INITIAL_ROLE)))  # fmt: skip
        self._after = field[0] if field is not None else self._vectors(owner.GetTransformFromParent())
        self._node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "FoundationReg morph")
        self._node.SetHideFromEditors(True)
        self._node.SetSaveWithScene(False)
        parent = fixed.GetParentTransformNode()
        self._node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
        self._copy = copies.hidden_copy(self._moving, self._node, "morph")
        views.exchange(self._moving, self._copy)

    def _vectors(self, transform) -> np.ndarray:
        signs = np.array([-1.0, -1.0, 1.0])
        points = self._grid.points(np.moveaxis(np.indices(self._grid.shape), 0, -1).reshape(-1, 3))
        moved = nodes.transform_points(transform, points * signs) * signs
        return (moved - points).reshape(*self._grid.shape, 3)

    def show(self, share: float) -> None:
        """0 is before, 1 is registered."""
        vectors = (1 - share) * self._before + share * self._after
        self._node.SetAndObserveTransformFromParent(results.grid_transform(vectors, self._grid))

    def close(self) -> None:
        """The views show the moving volume itself again."""
        if self._copy.GetScene() is not None:
            views.exchange_back(self._copy, self._moving if self._moving.GetScene() is not None else None)
            copies.remove_copy(self._copy)
        if self._node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(self._node)


def shares(frames: int) -> list[float]:
    """Where a film of ``frames`` frames stands: slowly from before to after and back, resting at both ends."""
    phase = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    return (0.5 - 0.5 * np.clip(1.2 * np.cos(phase), -1, 1)).tolist()


def can_make_video() -> bool:
    """Whether the module Screen Capture is there and knows where ffmpeg is, so that a film can be an .mp4 file."""
    logic = _screen_capture()
    return logic is not None and bool(logic.isFfmpegPathValid())


def save_film(morph: Morph, path: str | Path, frames: int = 40, milliseconds: int = 80) -> None:
    """Write what the views show from before to after and back as an animated picture (.gif), or as a video (.mp4)
    where `can_make_video`. Raises OSError."""
    path, logic = Path(path), _screen_capture()
    with tempfile.TemporaryDirectory(prefix="foundationreg-film-") as folder:
        for number, share in enumerate(shares(frames)):
            morph.show(share)
            slicer.util.forceRenderAllViews()
            _capture(logic, Path(folder) / f"{number:04}.png")
        if path.suffix.lower() == ".mp4":
            whole = _video(logic, Path(folder), 1000 / milliseconds)
        else:
            whole = _animation(Path(folder), milliseconds)
        with replacing(path) as partial:
            shutil.copyfile(whole, partial)


def _animation(folder: Path, milliseconds: int) -> Path:
    from PIL import Image

    pictures = []
    for frame in sorted(folder.glob("*.png")):
        with Image.open(frame) as picture:
            pictures.append(picture.convert("P", palette=Image.Palette.ADAPTIVE))
    whole = folder / "film.gif"
    pictures[0].save(whole, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return whole


def _video(logic, folder: Path, rate: float) -> Path:
    if not can_make_video():
        raise OSError("a video needs ffmpeg; set its path in the module Screen Capture, or save a .gif")
    try:
        # Options of its preset H.264 (ScreenCapture.py, videoFormatPresets).
        logic.createVideo(rate, "-codec libx264 -preset slower -pix_fmt yuv420p", str(folder), "%04d.png", "film.mp4")
    except ValueError as error:
        raise OSError(str(error)) from None
    return folder / "film.mp4"


def _screen_capture():
    """The logic of the module Screen Capture, or None where that module is not there."""
    try:
        import ScreenCapture
    except ImportError:
        return None
    return ScreenCapture.ScreenCaptureLogic()


def _capture(logic, path: Path) -> None:
    """Save a picture of all views, by Screen Capture where it is there."""
    if logic is None:
        slicer.util.mainWindow().centralWidget().grab().save(str(path))
    else:
        try:
            logic.captureImageFromView(None, str(path))
        except ValueError as error:  # the views are too small (ScreenCapture.py, captureImageFromView)
            raise OSError(str(error)) from None
    if not path.is_file():
        raise OSError(f"no picture of the views could be written to {path}")
