"""Sequences of volumes: their frames as files for a run over many pairs, and its results as sequences again.

A vtkMRMLSequenceNode keeps copies of its data nodes in a scene of its own (`SetDataNodeAtValue`); what the views show
is the proxy node that a vtkMRMLSequenceBrowserNode fills with the selected item.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from ...core.grid import Grid
from ...errors import InputError
from . import cohorts, nodes, results

# Attributes of the sequences that were made: what they were made from.
SOURCE = "FoundationReg.sequence"
FIXED_FRAME = "FoundationReg.fixedFrame"
# Nodes of two grids coincide within so many of their steps, and directions within as much.
_COINCIDING = 1e-3


def sequence_of(volume):
    """The sequence of which ``volume`` is the proxy node, or None."""
    if volume is None or volume.GetScene() is None:
        return None
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volume)
    return browser.GetSequenceNode(volume) if browser is not None else None


def frame_title(sequence, frame: int) -> str:
    """Like ``time 12.5 s``, for frame ``frame`` from 0."""
    parts = (sequence.GetIndexName(), sequence.GetNthIndexValue(frame), sequence.GetIndexUnit())
    return " ".join(part for part in parts if part)


def check_sequence(sequence, fixed: int) -> None:
    """Raise `InputError` when the frames of ``sequence`` cannot be registered to its frame ``fixed``, from 0."""
    if sequence is None or sequence.GetScene() is None:
        raise InputError(_("Choose a sequence of volumes."))
    count, name = sequence.GetNumberOfDataNodes(), sequence.GetName()
    if count < 2:
        text = _("The sequence {name!r} has fewer than two frames; there is nothing to register.")
        raise InputError(text.format(name=name))
    if not 0 <= fixed < count:
        text = _("There is no frame {frame}; the sequence {name!r} has {count} frames.")
        raise InputError(text.format(frame=fixed + 1, name=name, count=count))
    node = sequence.GetNthDataNode(fixed)
    if node is None or node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise InputError(_("The sequence {name!r} holds no volumes; choose another one.").format(name=name))
    nodes.check_volume(node, _("fixed frame"))


def frame_id(frame: int) -> str:
    return f"frame{frame:04d}"


@dataclass
class FrameTable:
    """The frames of ``sequence`` as files in ``folder``, with a table of pairs for ``foundationreg batch``.

    ``unusable``: frame -> why it could not be written.
    """

    sequence: object
    fixed: int
    folder: Path
    unusable: dict[int, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / cohorts.TABLE

    def write(self) -> Iterator[int]:
        """Write one frame at a time, and yield how many there are so far. Raises `InputError` where none can be
        registered."""
        files: dict[int, Path] = {}
        count = self.sequence.GetNumberOfDataNodes()
        for frame in (self.fixed, *(n for n in range(count) if n != self.fixed)):
            node = self.sequence.GetNthDataNode(frame)
            try:
                nodes.check_volume(node, _("frame"))
                files[frame] = cohorts.write_volume(node, self.folder, frame, compress=False)
            except InputError as error:
                if frame == self.fixed:
                    raise
                self.unusable[frame] = str(error)
            yield len(files)
        if len(files) < 2:
            raise InputError(next(iter(self.unusable.values())))
        with self.path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "fixed", "moving"])
            fixed = files.pop(self.fixed)
            writer.writerows([frame_id(n), fixed.name, moving.name] for n, moving in sorted(files.items()))


class RegisteredFrames:
    """Transforms and warped volumes of frames, collected outside of the scene until `place` puts them there."""

    def __init__(self, sequence, fixed: int):
        self._sequence, self._fixed = sequence, fixed
        self._index = [sequence.GetNthIndexValue(n) for n in range(sequence.GetNumberOfDataNodes())]
        self._fields: dict[int, tuple[np.ndarray, Grid]] = {}
        self._warped = self._empty(_("{name} registered"))
        self._warped.SetDataNodeAtValue(sequence.GetNthDataNode(fixed), self._index[fixed])

    def _empty(self, name: str):
        """A sequence with the index of the source and no items. Only in the scene is it part of it."""
        made = slicer.vtkMRMLSequenceNode()
        made.SetName(slicer.mrmlScene.GenerateUniqueName(name.format(name=self._sequence.GetName())))
        made.SetIndexName(self._sequence.GetIndexName())
        made.SetIndexUnit(self._sequence.GetIndexUnit())
        made.SetIndexType(self._sequence.GetIndexType())
        made.SetNumericIndexValueTolerance(self._sequence.GetNumericIndexValueTolerance())
        made.SetAttribute(SOURCE, self._sequence.GetID())
        made.SetAttribute(FIXED_FRAME, str(self._fixed))
        return made

    @property
    def count(self) -> int:
        return len(self._fields)

    def add(self, frame: int, folder: Path) -> None:
        """Take the result of ``frame`` from the files in ``folder``. Raises `InputError`."""
        transform, warped = folder / "transform.h5", folder / "warped.nii.gz"
        scene = slicer.vtkMRMLScene()
        loaded = _read(scene, "vtkMRMLTransformNode", "vtkMRMLTransformStorageNode", transform)
        found = results.read_grid(loaded)
        if found is None:
            raise InputError(_("The file {path} holds no displacement field.").format(path=transform))
        values, grid = found
        image = _read(scene, "vtkMRMLScalarVolumeNode", "vtkMRMLVolumeArchetypeStorageNode", warped)
        self._fields[frame] = (values.copy(), grid)
        self._warped.SetDataNodeAtValue(self._on_fixed(image, frame), self._index[frame])

    def _on_fixed(self, image, frame: int):
        """``image`` with the fixed frame's geometry to the last bit, which a file may have rounded, and its pixel type:
        only so do all frames fit into one file."""
        fixed = self._sequence.GetNthDataNode(self._fixed)
        made = slicer.vtkMRMLScalarVolumeNode()
        made.CopyContent(fixed)
        made.SetName(self._sequence.GetNthDataNode(frame).GetName())
        values = slicer.util.arrayFromVolume(image)
        kind = slicer.util.arrayFromVolume(fixed).dtype
        if values.dtype != kind and np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            values = np.rint(values).clip(limits.min, limits.max)
        slicer.util.updateVolumeFromArray(made, np.ascontiguousarray(values, dtype=kind))
        return made

    def leave_out(self, frame: int) -> None:
        """``frame`` has no result: in the sequence of warped volumes it is blank. Left out, the views would keep
        the frame before, or fill Slicer's log because their volume is empty."""
        fixed = self._sequence.GetNthDataNode(self._fixed)
        blank = slicer.vtkMRMLScalarVolumeNode()
        blank.CopyContent(fixed)
        blank.SetName(_("no result"))
        values = slicer.util.arrayFromVolume(fixed)
        slicer.util.updateVolumeFromArray(blank, np.full_like(values, values.min()))
        self._warped.SetDataNodeAtValue(blank, self._index[frame])

    def place(self) -> tuple:
        """Put both sequences into the scene and into one browser with their source; returns browser, transforms and
        warped volumes. The scene is left as it was when that fails."""
        undo = nodes.remember_scene()
        try:
            transforms = self._empty(_("{name} transforms"))
            for frame, node in self._transforms():
                transforms.SetDataNodeAtValue(node, self._index[frame])
            made = [slicer.mrmlScene.AddNode(node) for node in (transforms, self._warped)]
            return (self._browse(made), *made)
        except Exception:
            undo()
            raise

    def _transforms(self) -> Iterator[tuple[int, object]]:
        fields = on_one_grid(self._fields)
        values, grid = next(iter(fields.values()))
        # Not a matrix: in one file only fields of one grid go together.
        fields[self._fixed] = (np.zeros_like(values), grid)
        for frame in sorted(fields):
            node = slicer.vtkMRMLTransformNode()
            node.SetName(self._sequence.GetNthDataNode(frame).GetName())
            node.SetAndObserveTransformFromParent(results.grid_transform(*fields[frame]))
            yield frame, node

    def _browse(self, made: list):
        """Let ``made`` be scrubbed together with the source, lie where it lies, and be seen."""
        logic = slicer.modules.sequences.logic()
        browser = logic.GetFirstBrowserNodeForSequenceNode(self._sequence)
        if browser is None:
            name = _("{name} browser").format(name=self._sequence.GetName())
            browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", name)
            browser.SetAndObserveMasterSequenceNodeID(self._sequence.GetID())
        for sequence in made:
            browser.AddSynchronizedSequenceNode(sequence)
            # Where there is no transform, the proxy is the identity and not that of the frame before.
            browser.SetMissingItemMode(sequence, browser.MissingItemSetToDefault)
        logic.UpdateProxyNodesFromSequences(browser)
        source = browser.GetProxyNode(self._sequence)
        parent = source.GetTransformNodeID() if source is not None else None
        for sequence in made:
            proxy = browser.GetProxyNode(sequence)
            if proxy is not None:
                proxy.SetAndObserveTransformNodeID(parent)
        warped = browser.GetProxyNode(made[1])
        if warped is not None:
            display = source.GetDisplayNode() if source is not None else None
            if display is not None and warped.GetDisplayNode() is not None:
                warped.GetDisplayNode().CopyContent(display)
            slicer.util.setSliceViewerLayers(background=warped, foreground=source, foregroundOpacity=0.0)
        return browser


def on_one_grid(fields: dict[int, tuple[np.ndarray, Grid]]) -> dict[int, tuple[np.ndarray, Grid]]:
    """``fields`` continued by their edge values to one grid that holds all of theirs, where their nodes coincide; else
    as they are. Beyond its last node a field in VTK goes on for ever, so nothing changes."""
    first = next(iter(fields.values()))[1]
    low, high, starts = np.zeros(3, int), np.array(first.shape), {}
    for frame, (_values, grid) in fields.items():
        start = first.indices(grid.points(np.zeros(3)))
        steps = np.abs(grid.affine[:3, :3] - first.affine[:3, :3]).max() / first.spacing.min()
        if steps > _COINCIDING or np.abs(start - np.rint(start)).max() > _COINCIDING:
            return fields
        starts[frame] = np.rint(start).astype(int)
        low = np.minimum(low, starts[frame])
        high = np.maximum(high, starts[frame] + grid.shape)
    whole = first.padded(-low, high - first.shape)
    made = {}
    for frame, (values, grid) in fields.items():
        before = starts[frame] - low
        after = high - starts[frame] - grid.shape
        widths = [*zip(before.tolist(), after.tolist(), strict=True), (0, 0)]
        made[frame] = (np.pad(values, widths, mode="edge"), whole)
    return made


def _read(scene, class_name: str, storage_name: str, path: Path):
    """What the file holds, as a node of the private ``scene``."""
    node = scene.AddNewNodeByClass(class_name)
    storage = scene.AddNewNodeByClass(storage_name)
    storage.SetFileName(str(path))
    if not path.is_file() or not storage.ReadData(node):
        raise InputError(_("The file {path} cannot be read.").format(path=path))
    return node
