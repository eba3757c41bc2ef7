"""Pairs of volume nodes as files for a run over many pairs, and its results as nodes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import slicer

from ...core.files import replacing
from ...core.formats import harmless_cell
from ...errors import InputError
from .nodes import check_volume

TABLE = "pairs.csv"


def write_pairs(pairs: list[tuple], folder: Path) -> Path:
    """Write the nodes of ``pairs`` (fixed, moving) below ``folder`` and a table of them; returns the table's path.

    A node that is in several pairs becomes one file. Raises `InputError` for a node that cannot be written as it lies.
    """
    volumes = folder / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)
    files = {}
    for role, node in ((role, node) for pair in pairs for role, node in zip(("fixed", "moving"), pair, strict=True)):
        if node.GetID() not in files:
            check_volume(node, role)
            files[node.GetID()] = write_volume(node, volumes, len(files))
    table = folder / TABLE
    with replacing(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "fixed", "moving"])
        for n, (fixed, moving) in enumerate(pairs, start=1):
            name = f"{n} {moving.GetName()} to {fixed.GetName()}"
            paths = (files[node.GetID()].relative_to(folder).as_posix() for node in (fixed, moving))
            writer.writerow([harmless_cell(name), *paths])
    return table


def write_volume(node, folder: Path, number: int, compress: bool = True) -> Path:
    """``node`` as an .nrrd file in ``folder``. Its own storage stays as it is."""
    if node.GetParentTransformNode() is not None:
        raise InputError(
            f"The volume {node.GetName()} lies under a transform; harden it (Transforms module) before a batch."
        )
    name = re.sub(r"[^\w.+-]", "_", node.GetName())[:60]
    path = folder / f"{number:03d}-{name}.nrrd"
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetScene(slicer.mrmlScene)
    storage.SetFileName(str(path))
    storage.SetUseCompression(compress)
    if not storage.WriteData(node):
        raise InputError(f"The volume {node.GetName()} cannot be written to {path}; is the disk full?")
    return path


def load_result(result: dict) -> dict:
    """The nodes of a finished ``result`` (`client.cohort.finished_results`): fixed, moving, and the transform, under
    which the moving volume is put. Raises `InputError` when a file is gone; then nothing stays in the scene."""
    transform = Path(result["folder"]) / "transform.h5"
    paths = {"fixed": Path(result["fixed"]), "moving": Path(result["moving"]), "transform": transform}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing:
        raise InputError(f"{missing[0]} is not there (any more); run the batch again with all files kept.")
    nodes = {}
    try:
        for side in ("fixed", "moving"):
            name = f"{result['id']} {side}"
            nodes[side] = slicer.util.loadVolume(str(paths[side]), properties={"name": name, "show": False})
        nodes["transform"] = slicer.util.loadTransform(str(transform))
    except RuntimeError as error:
        for node in nodes.values():
            slicer.mrmlScene.RemoveNode(node)
        raise InputError(f"A file of {result['id']} cannot be loaded: {error}") from None
    nodes["transform"].SetName(f"{result['id']} {result['variant']}")
    nodes["moving"].SetAndObserveTransformNodeID(nodes["transform"].GetID())
    slicer.util.setSliceViewerLayers(
        background=nodes["fixed"], foreground=nodes["moving"], foregroundOpacity=0.5, fit=True
    )
    return nodes
