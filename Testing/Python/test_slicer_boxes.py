"""Boxes and predicted segmentations as nodes, on Slicer's own classes: where ROIs lie, what segmentations hold."""

import itertools

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402
from FoundationRegLib.errors import InputError  # noqa: E402
from FoundationRegLib.slicer.client.request import RegistrationRequest  # noqa: E402
from FoundationRegLib.slicer.scene import nodes, regions, results, segmentations  # noqa: E402
from test_slicer_nodes import add_linear, add_volume, affine, bump_on, scene, smooth  # noqa: E402, F401


def add_roi(center=(0.0, 0, 0), size=(20.0, 16, 24), turn=None, parent=None, name="box"):
    """A box around RAS ``center``; ``turn``: (3, 3) rotation of its edges."""
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    roi.SetSize(*size)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = (np.eye(3) if turn is None else turn), center
    roi.GetObjectToNodeMatrix().DeepCopy(slicer.util.vtkMatrixFromArray(matrix))
    if parent is not None:
        roi.SetAndObserveTransformNodeID(parent.GetID())
    return roi


def middle_of(volume):
    """RAS of the middle of a volume, without its parent transform."""
    return nodes.volume_grid(volume).center * (-1, -1, 1)


def places_of(corners, volume):
    return nodes.volume_grid(volume).indices(corners)


def voxels_in_roi(roi, volume):
    """Which voxels' centres lie in the ROI, as the ROI's own implicit function says."""
    grid = nodes.volume_grid(volume)
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)) * (-1, -1, 1)
    world = nodes.transform_points(nodes.chain_between(volume.GetParentTransformNode(), None), points)
    return np.array([roi.IsPointInROIWorld(p) for p in world]).reshape(grid.shape)


def turned_like(volume):
    """The rotation of a box along the axes of ``volume``."""
    matrix = nodes.ijk_to_ras(nodes.volume_grid(volume))[:3, :3]
    turn = matrix / np.linalg.norm(matrix, axis=0)
    turn[:, 2] *= np.sign(np.linalg.det(turn))
    return turn


@pytest.mark.parametrize("lies", ["alone", "both under a matrix", "the box alone", "both under a warp"])
def test_a_box_along_the_axes_holds_the_voxels_that_slicer_shows_in_it(lies):
    volume = add_volume(smooth((18, 20, 22)), "anisotropic oblique", "v")
    roi = add_roi(np.add(middle_of(volume), (1.3, -2.1, 0.7)), turn=turned_like(volume))
    expected = voxels_in_roi(roi, volume)
    if lies == "both under a matrix":
        parent = add_linear(affine())
        for node in (roi, volume):
            node.SetAndObserveTransformNodeID(parent.GetID())
    elif lies == "the box alone":
        # A box under a transform that undoes what the volume was moved by.
        parent = add_linear(affine())
        roi.SetAndObserveTransformNodeID(parent.GetID())
        roi.HardenTransform()
        volume.SetAndObserveTransformNodeID(parent.GetID())
    elif lies == "both under a warp":
        grid = nodes.volume_grid(volume).with_spacing(4.0).padded(8, 8)
        parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
        parent.SetAndObserveTransformFromParent(results.grid_transform(bump_on(grid), grid))
        for node in (roi, volume):
            node.SetAndObserveTransformNodeID(parent.GetID())
    places = places_of(regions.organ_box(roi, volume), volume)
    low, high = places.min(0), places.max(0)
    index = np.moveaxis(np.indices(expected.shape), 0, -1)
    held = ((index >= low) & (index <= high)).all(-1)
    assert expected.sum() > 100 and (held != expected).sum() <= 0.01 * expected.sum()
    assert regions.turned(roi, volume) == ""


def test_a_turned_box_holds_at_least_what_was_drawn_and_says_so():
    volume = add_volume(smooth((18, 20, 22)), "anisotropic oblique", "v")
    angle = np.radians(30)
    spin = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    roi = add_roi(middle_of(volume), turn=turned_like(volume) @ spin)
    places = places_of(regions.organ_box(roi, volume), volume)
    inside = np.argwhere(voxels_in_roi(roi, volume))
    assert (inside.min(0) >= places.min(0)).all() and (inside.max(0) <= places.max(0)).all()
    assert "'box' is turned against 'v'" in regions.turned(roi, volume)


def test_a_box_drawn_over_a_warped_volume_holds_what_is_seen_in_it():
    volume = add_volume(smooth((18, 20, 22)), "anisotropic oblique", "v")
    grid = nodes.volume_grid(volume).with_spacing(4.0).padded(8, 8)
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    parent.SetAndObserveTransformFromParent(results.grid_transform(bump_on(grid), grid))
    volume.SetAndObserveTransformNodeID(parent.GetID())
    seen = nodes.transform_points(parent.GetTransformToParent(), middle_of(volume)[None])[0]
    roi = add_roi(seen, (10, 9, 12), turn=turned_like(volume))
    places = places_of(regions.organ_box(roi, volume), volume)
    inside = np.argwhere(voxels_in_roi(roi, volume))
    assert (inside.min(0) >= places.min(0) - 0.5).all() and (inside.max(0) <= places.max(0) + 0.5).all()
    assert ((places.max(0) - places.min(0)) < (inside.max(0) - inside.min(0)) + 3).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda roi, volume: roi.SetSize(0, 0, 0), "is not drawn yet"),
        (lambda roi, volume: roi.SetSize(20, 0, 20), "is empty"),
        (lambda roi, volume: roi.SetCenter(500, 0, 0), "lies outside of the volume 'moving'"),
        (lambda roi, volume: roi.SetSize(0.5, 20, 20), "is thinner than two voxels"),
    ],
)
def test_boxes_that_cannot_be_are_told_by_name(change, sentence):
    volumes = [add_volume(smooth((18, 20, 22)), "anisotropic oblique", side) for side in ("fixed", "moving")]
    boxes = [
        add_roi(middle_of(volume), turn=turned_like(volume), name=f"{volume.GetName()} organ") for volume in volumes
    ]
    request = RegistrationRequest(*volumes, fixed_box=boxes[0], moving_box=boxes[1])
    request.check()
    change(boxes[1], volumes[1])
    with pytest.raises(InputError, match=f"'moving organ' {sentence}"):
        request.check()


def test_one_box_alone_and_one_for_both_are_refused():
    volumes = [add_volume(smooth((18, 20, 22)), "anisotropic oblique", side) for side in ("fixed", "moving")]
    box = add_roi(middle_of(volumes[0]))
    with pytest.raises(InputError, match="around the same organ in the fixed and the moving volume, or in none"):
        RegistrationRequest(*volumes, fixed_box=box).check()
    with pytest.raises(InputError, match="are the same node"):
        RegistrationRequest(*volumes, fixed_box=box, moving_box=box).check()


def labels_on(volume):
    labels = np.zeros(nodes.volume_grid(volume).shape, np.uint8)
    labels[3:12, 5:15, 4:16], labels[6:9, 8:11, 7:10] = 1, 3
    return labels


@pytest.mark.parametrize("axes", ["anisotropic oblique", "left-handed"])
def test_segments_lie_where_they_were_predicted_and_bear_their_names(axes):
    volume = add_volume(smooth((18, 20, 22)), axes, "v")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "s")
    labels, grid = labels_on(volume), nodes.volume_grid(volume)
    for _again in range(2):
        segmentations.set_segments(node, labels, grid, {1: "liver", 2: "spleen", 3: "left kidney"}, volume, "net")
    names = nodes.segment_names(node)
    assert list(names.values()) == ["liver", "left kidney"], "what was not found is no segment"
    assert node.GetAttribute(segmentations.PREDICTED_BY) == "net"
    # Slicer's own export, in the order of the segments.
    exported = nodes.segment_array(node, list(names), volume)
    np.testing.assert_array_equal(exported, np.select([labels == 1, labels == 3], [1, 2]))


def test_structures_get_the_colours_of_slicers_anatomy_table_where_it_knows_them():
    table = slicer.vtkMRMLColorTableNode()
    table.SetTypeToUser()
    table.SetNumberOfColors(3)
    for number, (name, color) in enumerate({"background": (0, 0, 0), "liver": (0.8, 0.4, 0.3)}.items()):
        table.SetColor(number, name, *color, 1.0)
    table.SetSingletonTag("FileGenericAnatomyColors.txt")
    slicer.mrmlScene.AddNode(table)
    assert segmentations.color_of("Liver", 5) == pytest.approx((0.8, 0.4, 0.3), abs=0.01)
    others = [segmentations.color_of(f"ctx-{n}", n) for n in range(40)]
    assert all(np.abs(np.subtract(a, b)).max() > 0.1 for a, b in itertools.pairwise(others))


def test_a_correction_of_a_prediction_is_noticed_and_moving_it_is_none():
    volume = add_volume(smooth((18, 20, 22)), "anisotropic oblique", "v")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "s")
    segmentations.set_segments(node, labels_on(volume) == 1, nodes.volume_grid(volume), {1: "organ"}, volume, "net")
    assert not segmentations.is_prediction(node) and not segmentations.is_prediction(None)
    segmentations.remember_content(node)
    node.SetAndObserveTransformNodeID(add_linear(affine()).GetID())
    assert segmentations.is_prediction(node)
    image = node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    # Segment Editor enlarges a labelmap as it needs room.
    padded = vtk.vtkImageConstantPad()
    padded.SetInputData(image)
    padded.SetOutputWholeExtent(0, 21, 0, 19, 0, 17)
    padded.Update()
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    image.DeepCopy(padded.GetOutput())
    image.SetImageToWorldMatrix(matrix)
    assert segmentations.is_prediction(node)
    image.SetScalarComponentFromDouble(9, 9, 8, 0, 1 - image.GetScalarComponentAsDouble(9, 9, 8, 0))
    assert not segmentations.is_prediction(node)
