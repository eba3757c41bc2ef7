"""Nodes to arrays and back, on the real MRML core, against SimpleITK and analytic transforms."""

import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402
from FoundationRegLib.app import exchange  # noqa: E402
from FoundationRegLib.errors import InputError  # noqa: E402
from FoundationRegLib.slicer.scene import nodes, results  # noqa: E402

SIGNS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(autouse=True)
def scene():
    previous = getattr(slicer, "mrmlScene", None)
    slicer.mrmlScene = slicer.vtkMRMLScene()
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(True)
    slicer.mrmlScene = previous


def rotation(axis, angle):
    return np.reshape(sitk.VersorTransform(axis, angle).GetMatrix(), (3, 3))


OBLIQUE = rotation((0.3, 0.5, -0.2), 0.6)
GEOMETRIES = {
    "axis-aligned": (np.diag([-1, -1, 1.0]), (1, 1, 1), (6, 7, -3)),
    "anisotropic oblique": (OBLIQUE, (0.8, 1.1, 3.0), (-2, 3, 8)),
    "left-handed": (OBLIQUE @ np.diag([1, -1, 1.0]), (1.2, 0.9, 2.0), (5, -2, 4)),
}


def between(fixed, moving):
    """The scene's transform from the fixed to the moving volume's coordinates."""
    return nodes.chain_between(fixed.GetParentTransformNode(), moving.GetParentTransformNode())


def add_volume(array, geometry="axis-aligned", name="volume", class_name=None):
    """A volume node from voxels (z, y, x) and one of `GEOMETRIES` (RAS directions of i, j, k; spacing; centre)."""
    direction, spacing, center = GEOMETRIES[geometry]
    matrix = np.eye(4)
    matrix[:3, :3] = direction * spacing
    matrix[:3, 3] = center - matrix[:3, :3] @ (np.array(array.shape[2::-1]) - 1) / 2
    return slicer.util.addVolumeFromArray(np.ascontiguousarray(array), matrix, name, class_name)


def smooth(shape=(14, 16, 18), seed=0, dtype=np.float32):
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    array = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, 4.0)) * 500 + 300
    return array.astype(dtype)


def as_image(node):
    """The SimpleITK image of a volume node, by VTK's own numbers, not by the code under test."""
    image = sitk.GetImageFromArray(slicer.util.arrayFromVolume(node))
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    matrix = np.diag([-1, -1, 1, 1]) @ slicer.util.arrayFromVTKMatrix(matrix)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image


def add_linear(matrix, parent=None):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "linear")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    if parent:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def affine(axis=(0.1, 0.9, 0.3), angle=0.35, scale=1.05, shift=(4, -7, 3)):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(axis, angle) * scale, shift
    return matrix


def bump(points, height=6.0):
    """A smooth LPS displacement in mm at LPS ``points`` (..., 3)."""
    wave = np.sin(points / 17.0)
    return height * np.stack([wave[..., 1], wave[..., 2] * wave[..., 0], 0.5 * wave[..., 0]], -1)


def bump_on(grid, height=6.0):
    return bump(grid.points(np.moveaxis(np.indices(grid.shape), 0, -1)), height).astype(np.float32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_volume_reaches_the_worker_where_slicer_shows_it(tmp_path, geometry, dtype):
    node = add_volume(smooth(dtype=dtype), geometry)
    sent = exchange.save_array(tmp_path / "a.npy", nodes.volume_array(node), nodes.volume_grid(node))
    image, expected = exchange.load_image(sent), as_image(node)
    assert image.GetPixelID() == expected.GetPixelID() and image.GetSize() == expected.GetSize()
    for index in ((0, 0, 0), (17, 3, 9), (4, 15, 13)):
        assert image[index] == expected[index]
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(index), expected.TransformIndexToPhysicalPoint(index), atol=1e-9
        )
    np.testing.assert_allclose(nodes.ijk_to_ras(nodes.volume_grid(node)), ijk_to_ras(node), atol=1e-12)


def field_image(displacement, grid):
    """SimpleITK displacement image, float64, of LPS vectors (z, y, x, 3) on ``grid``."""
    image = sitk.GetImageFromArray(np.asarray(displacement, float), isVector=True)
    image.SetSpacing(grid.spacing[::-1].tolist())
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction[:, ::-1].ravel().tolist())
    return image


def ijk_to_ras(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: None, "Choose a fixed volume"),
        (lambda: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow"), "'hollow' has no image data"),
        (lambda: add_volume(np.zeros((4, 5, 6, 3), np.uint8), class_name="vtkMRMLVectorVolumeNode"), "color or vector"),
        (lambda: add_volume(np.zeros((1, 5, 6), np.uint8), name="flat"), "single slice"),
    ],
)
def test_volumes_that_cannot_be_registered_are_named(make, text):
    with pytest.raises(InputError, match=text):
        nodes.check_volume(make(), "fixed volume")


def test_a_removed_volume_is_named():
    node = add_volume(smooth())
    slicer.mrmlScene.RemoveNode(node)
    with pytest.raises(InputError, match="no longer in the scene"):
        nodes.check_volume(node, "moving volume")


def test_volumes_without_transforms_need_no_initial_transform():
    fixed, moving = add_volume(smooth()), add_volume(smooth(seed=1), "left-handed")
    assert (
        nodes.describe_initial(
            between(fixed, moving),
            nodes.volume_grid(fixed),
        )
        is None
    )


def test_linear_parents_of_both_volumes_become_one_matrix():
    fixed, moving = add_volume(smooth()), add_volume(smooth(seed=1), "left-handed")
    outer, inner = affine(), affine((1, 0, 0.2), -0.5, 0.9, (1, 2, 3))
    other = affine((0, 0, 1), 0.2, 1.0, (9, 9, 9))
    moving.SetAndObserveTransformNodeID(add_linear(inner, parent=add_linear(outer)).GetID())
    fixed.SetAndObserveTransformNodeID(add_linear(other).GetID())
    initial = nodes.describe_initial(between(fixed, moving), nodes.volume_grid(fixed))
    flip = np.diag([-1, -1, 1, 1])
    expected = flip @ np.linalg.inv(outer @ inner) @ other @ flip
    np.testing.assert_allclose(initial["matrix"], expected, atol=1e-9)
    given = affine(shift=(-3, 0, 5))
    chain = nodes.chain_between(fixed.GetParentTransformNode(), add_linear(given))
    np.testing.assert_allclose(
        nodes.describe_initial(chain, nodes.volume_grid(fixed))["matrix"],
        flip @ np.linalg.inv(given) @ other @ flip,
        atol=1e-9,
    )


@pytest.mark.parametrize("stored", ["from parent", "to parent"])
def test_a_warped_parent_is_sampled_over_the_fixed_volume(stored):
    fixed, moving = add_volume(smooth((30, 34, 36)), "anisotropic oblique"), add_volume(smooth(seed=1))
    grid = nodes.volume_grid(fixed).with_spacing(4.0).padded(6, 6)
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    transform = results.grid_transform(bump_on(grid), grid)
    if stored == "from parent":
        warp.SetAndObserveTransformFromParent(transform)
    else:
        warp.SetAndObserveTransformToParent(transform)
    outer = affine()
    warp.SetAndObserveTransformNodeID(add_linear(outer).GetID())
    moving.SetAndObserveTransformNodeID(warp.GetID())
    initial = nodes.describe_initial(between(fixed, moving), nodes.volume_grid(fixed))
    field = sitk.DisplacementFieldTransform(field_image(initial["field"], initial["grid"]))
    rng = np.random.default_rng(0)
    for index in rng.uniform(0, np.array(nodes.volume_grid(fixed).shape) - 1, (50, 3)):
        point = nodes.volume_grid(fixed).points(index)
        moved = np.array(field.TransformPoint(point))
        # Through world to the moving volume's coordinates, by VTK's own chain.
        world = np.array(point) * SIGNS
        inverse = np.linalg.inv(outer)
        expected = inverse[:3, :3] @ world + inverse[:3, 3]
        target = transform if stored == "from parent" else transform.GetInverse()
        expected = np.array(target.TransformPoint(expected)) * SIGNS
        assert np.linalg.norm(moved - expected) < 0.1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_field_on_a_transform_node_moves_points_as_in_itk(geometry):
    fixed, moving = add_volume(smooth((24, 26, 28)), geometry), add_volume(smooth(seed=1))
    grid = nodes.volume_grid(fixed).with_spacing(3.0)
    displacement = bump_on(grid)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "result")
    results.set_transform(node, displacement, grid, fixed, moving)
    expected = sitk.DisplacementFieldTransform(field_image(displacement, grid))
    volume = nodes.volume_grid(fixed)
    points = volume.points(np.random.default_rng(0).uniform(-0.4, np.array(volume.shape) - 0.6, (200, 3)))
    from_parent = node.GetTransformFromParent()
    for point in points:
        ours = np.array(from_parent.TransformPoint(point * SIGNS)) * SIGNS
        np.testing.assert_allclose(ours, expected.TransformPoint(point), atol=1e-4)
    assert node.GetNodeReference(slicer.vtkMRMLTransformNode.GetFixedNodeReferenceRole()) is fixed
    assert node.GetNodeReference(slicer.vtkMRMLTransformNode.GetMovingNodeReferenceRole()) is moving
    back, back_grid = results.read_grid(node)
    assert back_grid == grid
    np.testing.assert_allclose(back, displacement, atol=1e-6)


def test_the_grid_is_continued_until_it_covers_the_fixed_volume():
    fixed, moving = add_volume(smooth((24, 26, 28)), "left-handed"), add_volume(smooth(seed=1))
    volume = nodes.volume_grid(fixed)
    small = volume.padded(-3, -4)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "result")
    results.set_transform(node, bump_on(small), small, fixed, moving)
    _, grid = results.read_grid(node)
    index = grid.indices(volume.corners())
    assert (index.min(axis=0) >= -0.5 - 1e-3).all() and (index.max(axis=0) <= np.array(grid.shape) - 0.5 + 1e-3).all()


@pytest.mark.parametrize("parents", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_slicers_own_resampling_through_the_node_equals_simpleitk(parents, dtype):
    """The moving volume under the result, resampled by Slicer's Volumes logic onto the fixed grid."""
    fixed = add_volume(smooth((24, 30, 28)), "anisotropic oblique", "fixed")
    moving = add_volume(smooth((40, 44, 46), 1, dtype), "left-handed", "moving")
    grid = nodes.volume_grid(fixed).with_spacing(3.0)
    displacement = bump_on(grid)
    if parents:
        fixed.SetAndObserveTransformNodeID(add_linear(affine()).GetID())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "result")
    results.set_transform(node, displacement, grid, fixed, moving)
    moving.SetAndObserveTransformNodeID(node.GetID())
    transform = sitk.DisplacementFieldTransform(field_image(displacement, grid))
    expected = sitk.GetArrayFromImage(sitk.Resample(as_image(moving), as_image(fixed), transform, sitk.sitkLinear, 0))
    ours = nodes.resample(moving, fixed)
    assert ours.dtype == dtype
    scale = float(np.ptp(slicer.util.arrayFromVolume(moving).astype(float)))
    tolerance = max(1e-3 * scale, 1.0 if np.dtype(dtype).kind in "iu" else 0.0)
    inside = expected != 0
    assert np.abs(ours.astype(float) - expected)[inside & (ours != 0)].max() <= tolerance
    assert (inside != (ours != 0)).mean() < 0.01
    if not parents:
        logic = slicer.vtkSlicerVolumesLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        output = slicer.util.arrayFromVolume(logic.ResampleVolumeToReferenceVolume(moving, fixed))
        both = inside & (output != 0)
        assert np.abs(output.astype(float) - expected)[both].max() <= tolerance


def test_landmarks_and_models_follow_the_moving_volume_as_in_simpleitk():
    fixed, moving = add_volume(smooth((30, 34, 36)), "anisotropic oblique"), add_volume(smooth(seed=1))
    grid = nodes.volume_grid(fixed).with_spacing(3.0)
    displacement = bump_on(grid, 4.0)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "result")
    results.set_transform(node, displacement, grid, fixed, moving)
    transform = sitk.DisplacementFieldTransform(field_image(displacement, grid))
    volume = nodes.volume_grid(fixed)
    middle = volume.points(np.random.default_rng(1).uniform(0.3, 0.7, (40, 3)) * (np.array(volume.shape) - 1))
    moving_points = np.array([transform.TransformPoint(point) for point in middle])
    markups = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    for point in moving_points * SIGNS:
        markups.AddControlPoint(vtk.vtkVector3d(*point))
    markups.SetAndObserveTransformNodeID(node.GetID())
    followed = slicer.util.arrayFromMarkupsControlPoints(markups, world=True) * SIGNS
    assert np.linalg.norm(followed - middle, axis=1).max() < 0.01
    points = vtk.vtkPoints()
    for point in moving_points * SIGNS:
        points.InsertNextPoint(point)
    surface = vtk.vtkPolyData()
    surface.SetPoints(points)
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "surface")
    model.SetAndObservePolyData(surface)
    model.SetAndObserveTransformNodeID(node.GetID())
    model.HardenTransform()
    assert np.linalg.norm(slicer.util.arrayFromModelPoints(model) * SIGNS - middle, axis=1).max() < 0.01


def test_jacobian_equals_itks_filter_on_an_oblique_grid():
    fixed = add_volume(smooth((40, 26, 28)), "left-handed")
    grid = nodes.volume_grid(fixed)
    displacement = bump_on(grid, 9.0)
    ours = results.jacobian_determinant(displacement, grid)
    identity_axes = field_image(np.einsum("...c,cm->...m", displacement, grid.direction[:, ::-1]), grid)
    identity_axes.SetDirection(np.eye(3).ravel().tolist())  # the filter ignores directions
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(identity_axes))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(ours[inner], expected[inner], atol=2e-3)
    assert np.ptp(ours) > 0.3


def add_segmentation(reference, masks):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    for name, mask in masks.items():
        labelmap = slicer.vtkOrientedImageData()
        image = vtk.vtkImageData()
        image.SetDimensions(mask.shape[::-1])
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.ravel()
        labelmap.ShallowCopy(image)
        matrix = vtk.vtkMatrix4x4()
        reference.GetIJKToRASMatrix(matrix)
        labelmap.SetImageToWorldMatrix(matrix)
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.AddRepresentation("Binary labelmap", labelmap)
        node.GetSegmentation().AddSegment(segment)
    return node


def blocks(shape=(14, 16, 18)):
    first, second = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    first[2:6, 3:9, 4:10] = 1
    second[8:12, 5:12, 2:9] = 1
    return first, second


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_masks_from_a_segmentation_and_from_a_labelmap(geometry):
    volume = add_volume(smooth(), geometry)
    first, second = blocks()
    expected = first | second
    segmentation = add_segmentation(volume, {"a": first, "b": second})
    mask = nodes.mask_array(segmentation, volume, "fixed mask")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)
    labelmap = add_volume((first * 7 + second * 3).astype(np.int16), geometry, class_name="vtkMRMLLabelMapVolumeNode")
    np.testing.assert_array_equal(nodes.mask_array(labelmap, volume, "fixed mask"), expected)
    before = slicer.mrmlScene.GetNumberOfNodes()
    nodes.mask_array(segmentation, volume, "fixed mask")
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_a_mask_under_another_transform_lands_where_slicer_shows_it():
    volume = add_volume(smooth())
    first, _ = blocks()
    shift = np.eye(4)
    shift[:3, 3] = (2, 3, -1)
    labelmap = add_volume(first, class_name="vtkMRMLLabelMapVolumeNode")
    labelmap.SetAndObserveTransformNodeID(add_linear(shift).GetID())
    # the axis-aligned geometry has its i and j axes along -R and -A
    expected = np.roll(first, (-1, -3, -2), axis=(0, 1, 2))
    np.testing.assert_array_equal(nodes.mask_array(labelmap, volume, "mask"), expected)
    segmentation = add_segmentation(volume, {"a": first})
    segmentation.SetAndObserveTransformNodeID(add_linear(shift).GetID())
    np.testing.assert_array_equal(nodes.mask_array(segmentation, volume, "mask"), expected)


def test_an_empty_mask_is_named():
    volume = add_volume(smooth())
    labelmap = add_volume(np.zeros((14, 16, 18), np.uint8), name="nothing", class_name="vtkMRMLLabelMapVolumeNode")
    with pytest.raises(InputError, match="'nothing' marks nothing"):
        nodes.mask_array(labelmap, volume, "fixed mask")


def test_segments_correspond_by_name():
    volume = add_volume(smooth())
    first, second = blocks()
    one = add_segmentation(volume, {"liver": first, "spleen": second})
    two = add_segmentation(volume, {"kidney": first, "spleen": first, "liver": second})
    arrays, names = nodes.label_arrays([(one, volume), (two, volume)])
    assert names == {1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(arrays[0], first + 2 * second)
    np.testing.assert_array_equal(arrays[1], second + 2 * first)
    with pytest.raises(InputError, match="no segment name in common"):
        nodes.label_arrays([(one, volume), (add_segmentation(volume, {"other": first}), volume)])


def test_labelmaps_stay_integers_under_the_result():
    fixed, moving = add_volume(smooth((24, 26, 28)), "anisotropic oblique"), add_volume(smooth(seed=1))
    first, second = blocks()
    labels = add_volume((3 * first + 7 * second).astype(np.int16), class_name="vtkMRMLLabelMapVolumeNode")
    grid = nodes.volume_grid(fixed).with_spacing(3.0)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "result")
    results.set_transform(node, bump_on(grid), grid, fixed, moving)
    labels.SetAndObserveTransformNodeID(node.GetID())
    array = nodes.resample(labels, fixed, linear=False)
    assert array.dtype == np.int16 and set(np.unique(array)) <= {0, 3, 7}


def test_landmarks_of_both_sides():
    fixed, moving = add_volume(smooth()), add_volume(smooth(seed=1))
    shift = np.eye(4)
    shift[:3, 3] = (1, 2, 3)
    parent = add_linear(shift)
    lists = []
    for count in (2, 2, 3):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", f"list{len(lists)}")
        for n in range(count):
            node.AddControlPoint(vtk.vtkVector3d(n, 10 + n, 20 + n))
        lists.append(node)
    lists[0].SetAndObserveTransformNodeID(parent.GetID())
    ours = nodes.landmark_pair(lists[0], fixed, lists[1], moving)
    np.testing.assert_allclose(ours[0], [(-1, -12, 23), (-2, -13, 24)], atol=1e-9)
    np.testing.assert_allclose(ours[1], [(0, -10, 20), (-1, -11, 21)], atol=1e-9)
    with pytest.raises(InputError, match=r"'list0' \(2 points\) and 'list2' \(3 points\)"):
        nodes.landmark_pair(lists[0], fixed, lists[2], moving)


def test_outputs_that_cannot_take_the_result_are_refused():
    fixed = add_volume(smooth(), name="fixed")
    linear = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "line")
    with pytest.raises(InputError, match="cannot hold a displacement field"):
        results.check_output_transform(linear, fixed)
    outer = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "outer")
    fixed.SetAndObserveTransformNodeID(add_linear(affine(), parent=outer).GetID())
    with pytest.raises(InputError, match="lies under the output transform 'outer'"):
        results.check_output_transform(outer, fixed)


def test_warped_volume_keeps_type_and_place():
    fixed = add_volume(smooth(), "left-handed", "fixed")
    moving = add_volume(smooth(seed=1, dtype=np.int16), name="moving")
    fixed.SetAndObserveTransformNodeID(add_linear(affine()).GetID())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "warped")
    results.set_warped_volume(node, np.full((14, 16, 18), 40000.4), nodes.volume_grid(fixed), fixed, moving)
    assert slicer.util.arrayFromVolume(node).dtype == np.int16 and slicer.util.arrayFromVolume(node).max() == 32767
    np.testing.assert_allclose(ijk_to_ras(node), ijk_to_ras(fixed))
    assert node.GetParentTransformNode() is fixed.GetParentTransformNode()


def test_tables_and_charts_hold_the_numbers():
    owner = add_volume(smooth())
    chart = results.set_loss_chart(owner, {"4 mm": [3, 2], "2 mm": [1.5]}, "result")
    assert chart.GetNumberOfPlotSeriesNodes() == 2
    count = slicer.mrmlScene.GetNumberOfNodes()
    assert results.set_loss_chart(owner, {"4 mm": [3, 2], "2 mm": [1.5]}, "result") is chart
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    table = owner.GetNodeReference("FoundationReg.lossTable")
    np.testing.assert_allclose(slicer.util.arrayFromTableColumn(table, "4 mm"), [3, 2])
    np.testing.assert_allclose(slicer.util.arrayFromTableColumn(table, "Iteration, 2 mm"), [3, 3])
    np.testing.assert_allclose(slicer.util.arrayFromTableColumn(table, "2 mm"), [1.5, 1.5])
    metrics = {"before": {"dice_per_label": {"1": 0.5}, "nmi": 1.1}, "after": {"dice_per_label": {"1": 0.8}}}
    rows = results.metric_rows(metrics, {1: "liver"})
    assert [row[1:] for row in rows] == [(0.5, 0.8), (1.1, None)]
    assert "Dice" in rows[0][0] and "liver" in rows[0][0]
