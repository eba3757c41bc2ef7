"""From MRML nodes to arrays in LPS millimetres: what a registration takes in.

Everything is expressed in the *local* coordinates of the fixed and of the moving volume, that is, as their voxels are
stored, without their parent transforms. The way from one to the other through the scene, of any length and kind, is
the initial transform. So nothing is lost when the volumes lie under rotated, scaled or warped transforms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ...core.grid import Grid
from ...errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAMPLING_MM = 2.5  # of a non-linear initial transform; costs a few hundredths of a millimetre


def remember_scene() -> Callable[[], None]:
    """A function that removes the nodes that are added to the scene from now on, and puts the others back under the
    transforms that they have now."""
    scene = slicer.mrmlScene

    def every() -> list:
        nodes = scene.GetNodes()
        return [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]

    parents = {
        node.GetID(): node.GetTransformNodeID() if node.IsA("vtkMRMLTransformableNode") else None for node in every()
    }

    def undo() -> None:
        for node in every():
            if node.GetID() not in parents:
                if node.GetScene() is not None:
                    scene.RemoveNode(node)
            elif node.IsA("vtkMRMLTransformableNode") and node.GetTransformNodeID() != parents[node.GetID()]:
                node.SetAndObserveTransformNodeID(parents[node.GetID()])

    return undo


def volume_grid(node) -> Grid:
    """Where the voxels of a volume node lie, LPS, without its parent transform."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    ijk_to_lps = LPS @ slicer.util.arrayFromVTKMatrix(matrix)
    affine = ijk_to_lps.copy()
    affine[:, :3] = ijk_to_lps[:, 2::-1]
    image = node.GetImageData()
    return Grid(image.GetDimensions()[::-1] if image else (0, 0, 0), affine)


def ijk_to_ras(grid: Grid) -> np.ndarray:
    """The 4x4 matrix of a volume node whose voxels lie on ``grid``: undoes `volume_grid`."""
    matrix = grid.affine.copy()
    matrix[:, :3] = grid.affine[:, 2::-1]
    return LPS @ matrix


def check_volume(node, role: str) -> None:
    """Raise `InputError` when ``node`` is no scalar volume with voxels. ``role`` names it: "fixed volume"."""
    if node is None:
        raise InputError(_("Choose a {role}.").format(role=role))
    name = node.GetName()
    if node.GetScene() is None:
        text = _("The {role} {name!r} is no longer in the scene; choose another one.")
        raise InputError(text.format(role=role, name=name))
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        text = _("The {role} {name!r} has no image data; load it again or choose another one.")
        raise InputError(text.format(role=role, name=name))
    if image.GetNumberOfScalarComponents() != 1:
        text = _("The {role} {name!r} is a color or vector volume; choose a volume with one value per voxel.")
        raise InputError(text.format(role=role, name=name))
    if min(image.GetDimensions()) < 2:
        text = _("The {role} {name!r} is a single slice; choose a 3-D volume.")
        raise InputError(text.format(role=role, name=name))


def volume_array(node) -> np.ndarray:
    """Voxels (z, y, x) of a volume node, not copied."""
    return slicer.util.arrayFromVolume(node)


def chain_between(source, target) -> vtk.vtkGeneralTransform:
    """RAS transform from the coordinates under transform node ``source`` to those under ``target``; None is world."""
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    return general


def transform_points(transform: vtk.vtkAbstractTransform, points: np.ndarray) -> np.ndarray:
    """RAS points (N, 3) taken through a VTK transform."""
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    source.SetData(numpy_to_vtk(np.ascontiguousarray(points, dtype=np.float64), deep=True))
    target.SetDataTypeToDouble()
    transform.TransformPoints(source, target)
    if target.GetNumberOfPoints() == 0:
        return np.zeros((0, 3))
    return vtk_to_numpy(target.GetData()).copy()


def linear_matrix(transform: vtk.vtkGeneralTransform) -> np.ndarray | None:
    """The (4, 4) RAS matrix of a linear transform, None when it is not linear."""
    linear = vtk.vtkTransform()
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(transform, linear):
        return None
    return slicer.util.arrayFromVTKMatrix(linear.GetMatrix())


def describe_initial(transform: vtk.vtkGeneralTransform, fixed_grid: Grid) -> dict | None:
    """A RAS transform from fixed to moving coordinates as the worker takes it, in LPS.

    None for the identity, ``{"matrix": (4, 4)}`` when linear, else ``{"field": (z, y, x, 3), "grid": Grid}``: sampled
    over the fixed volume and a margin of two nodes.
    """
    matrix = linear_matrix(transform)
    if matrix is not None:
        matrix = LPS @ matrix @ LPS
        return None if np.allclose(matrix, np.eye(4), atol=1e-9) else {"matrix": matrix}
    grid = fixed_grid.with_spacing(np.maximum(fixed_grid.spacing, SAMPLING_MM)).padded(2, 2)
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
    signs = np.array([-1.0, -1.0, 1.0])
    moved = transform_points(transform, points * signs) * signs
    return {"field": (moved - points).reshape(*grid.shape, 3).astype(np.float32), "grid": grid}


def resample(node, reference, chain: vtk.vtkAbstractTransform | None = None, *, linear: bool = True, background=0.0):
    """Voxels (z, y, x) of volume ``node`` on the grid of volume ``reference``, in the type of ``node``.

    ``chain``: RAS transform from the reference's to the node's local coordinates; as the scene has it when left out.
    Nearest neighbour unless ``linear``.
    """
    if chain is None:
        chain = chain_between(reference.GetParentTransformNode(), node.GetParentTransformNode())
    to_ras, to_ijk = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    reference.GetIJKToRASMatrix(to_ras)
    node.GetRASToIJKMatrix(to_ijk)
    whole = vtk.vtkGeneralTransform()
    whole.PostMultiply()
    whole.Concatenate(to_ras)
    whole.Concatenate(chain)
    whole.Concatenate(to_ijk)
    image = vtk.vtkImageData()
    image.ShallowCopy(node.GetImageData())
    image.SetOrigin(0, 0, 0)
    image.SetSpacing(1, 1, 1)
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceTransform(whole)
    reslice.SetInterpolationModeToLinear() if linear else reslice.SetInterpolationModeToNearestNeighbor()
    reslice.SetBackgroundLevel(float(background))
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    shape = reference.GetImageData().GetDimensions()
    reslice.SetOutputExtent(0, shape[0] - 1, 0, shape[1] - 1, 0, shape[2] - 1)
    reslice.Update()
    scalars = reslice.GetOutput().GetPointData().GetScalars()
    array = vtk_to_numpy(scalars).copy()
    return array.reshape(*shape[::-1], -1) if scalars.GetNumberOfComponents() > 1 else array.reshape(shape[::-1])


def segment_array(segmentation, segment_ids: list[str], reference) -> np.ndarray:
    """Labels 1..n (z, y, x) of the segments on the grid of volume ``reference``; parent transforms are respected."""
    ids = vtk.vtkStringArray()
    for segment_id in segment_ids:
        ids.InsertNextValue(segment_id)
    scene = slicer.mrmlScene
    labelmap = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "FoundationReg segments")
    labelmap.SetHideFromEditors(True)
    try:
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        if not logic.ExportSegmentsToLabelmapNode(segmentation, ids, labelmap, reference):
            text = _("The segments of {name!r} could not be converted to a labelmap.")
            raise InputError(text.format(name=segmentation.GetName()))
        return slicer.util.arrayFromVolume(labelmap).copy()
    finally:
        display = labelmap.GetDisplayNode()
        if display is not None:
            if display.GetColorNode() is not None and not display.GetColorNode().GetSingletonTag():
                scene.RemoveNode(display.GetColorNode())
            scene.RemoveNode(display)
        scene.RemoveNode(labelmap)


def segment_names(segmentation) -> dict[str, str]:
    """Segment id -> name, in the segmentation's order."""
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    return {i: segmentation.GetSegmentation().GetSegment(i).GetName() for i in ids}


def mask_array(node, volume, role: str) -> np.ndarray:
    """Mask (z, y, x), uint8, on the grid of ``volume`` from a segmentation (all its segments) or a volume node.

    Raises `InputError` when nothing of it lies inside the volume.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        names = segment_names(node)
        array = segment_array(node, list(names), volume) if names else np.zeros(volume_grid(volume).shape)
    else:
        check_volume(node, role)
        array = resample(node, volume, linear=False)
    mask = (array != 0).astype(np.uint8)
    if not mask.any():
        text = _("The {role} {name!r} marks nothing inside the volume {volume!r}.")
        raise InputError(text.format(role=role, name=node.GetName(), volume=volume.GetName()))
    return mask


def label_arrays(pairs) -> tuple[list[np.ndarray], dict[int, str]]:
    """Label arrays of ``pairs`` of (segmentation or labelmap node, volume) with shared values, and value -> name.

    Segments correspond by name when all are segmentations, else by their label values.
    """
    if all(node.IsA("vtkMRMLSegmentationNode") for node, _volume in pairs):
        tables = [segment_names(node) for node, _volume in pairs]
        common = [name for name in tables[0].values() if all(name in table.values() for table in tables)]
        if not common:
            text = _("The two segmentations have no segment name in common; rename segments that correspond.")
            raise InputError(text)
        arrays = []
        for (node, volume), table in zip(pairs, tables, strict=True):
            ids = [next(i for i, other in table.items() if other == name) for name in common]
            arrays.append(segment_array(node, ids, volume).astype(np.int32))
        return arrays, dict(enumerate(common, start=1))
    arrays = []
    for node, volume in pairs:
        if node.IsA("vtkMRMLSegmentationNode"):
            array = segment_array(node, list(segment_names(node)), volume)
        else:
            check_volume(node, _("labelmap"))
            array = resample(node, volume, linear=False)
        if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
            text = _("The labelmap {name!r} holds fractions; labels must be whole numbers.")
            raise InputError(text.format(name=node.GetName()))
        arrays.append(array.astype(np.int32))
    values = set.intersection(*(set(np.unique(array).tolist()) for array in arrays)) - {0}
    return arrays, {int(value): str(int(value)) for value in sorted(values)}


def landmark_points(node, volume) -> np.ndarray:
    """Placed control points (N, 3) of a markups node, LPS in the local coordinates of ``volume``."""
    placed = [n for n in range(node.GetNumberOfControlPoints()) if node.GetNthControlPointPositionStatus(n) == 2]
    points = np.array([node.GetNthControlPointPosition(n) for n in placed], float).reshape(-1, 3)
    chain = chain_between(node.GetParentTransformNode(), volume.GetParentTransformNode())
    return transform_points(chain, points) * (-1.0, -1.0, 1.0)


def landmark_pair(fixed_node, fixed_volume, moving_node, moving_volume) -> tuple[np.ndarray, np.ndarray]:
    """Corresponding landmarks of both sides, by order. Raises `InputError` when their numbers differ."""
    fixed, moving = landmark_points(fixed_node, fixed_volume), landmark_points(moving_node, moving_volume)
    if len(fixed) != len(moving) or not len(fixed):
        text = _(
            "The landmarks {fixed!r} ({fixed_count} points) and {moving!r} ({moving_count} points) must be the same "
            "points in the same order."
        )
        names = {"fixed": fixed_node.GetName(), "moving": moving_node.GetName()}
        raise InputError(text.format(**names, fixed_count=len(fixed), moving_count=len(moving)))
    return fixed, moving
