"""The panel with the real registration: small volumes, the encoder without weights, a deformation that is known."""

import numpy as np
import pytest
from conftest import make_grid

slicer = pytest.importorskip("slicer")
from panel_steps import click  # noqa: E402

TURNED = {"turn": (8, -5, 6), "flip": (1,), "spacing": (3.2, 2.4, 2.0), "shape": (34, 40, 46)}


def bend(points):
    """Where LPS points (..., 3) of the fixed side lie in the moving image."""
    x, y, z = np.moveaxis(points / 30.0, -1, 0)
    push = np.stack([3 * np.sin(y) + 2, 3 * np.sin(z + 0.5) - 1, 2.5 * np.sin(x + 1)], -1)
    return points + push


def unbend(points):
    """The inverse of `bend`."""
    origin = points.copy()
    for _ in range(30):
        origin = points - (bend(origin) - origin)
    return origin


@pytest.fixture
def real(bench, loaded):
    """The opened panel with a channel to the real worker, on an empty scene."""
    import sys

    from FoundationRegLib.slicer.client import pump
    from FoundationRegLib.slicer.client.channel import Channel
    from FoundationRegLib.slicer.client.process import WorkerProcess

    command = [sys.executable, "-P", "-m", "FoundationRegLib.worker"]
    pump.use_channel(Channel(WorkerProcess(command, {"OMP_NUM_THREADS": "2"})))
    slicer.mrmlScene.Clear(0)
    loaded.enter()
    yield loaded
    loaded.panel.cancel()
    pump.use_channel(None)
    slicer.mrmlScene.Clear(0)


def test_a_known_deformation_is_found_and_refined_again_by_the_slider(real, bench, phantom):
    from FoundationRegLib.slicer.scene import nodes, results

    fixed_grid, moving_grid = make_grid(), make_grid(**TURNED)
    volumes = {}
    for name, array, grid in (
        ("fixed", phantom.on(fixed_grid), fixed_grid),
        ("moving", 700 - phantom.on(moving_grid, unbend), moving_grid),
    ):
        volumes[name] = slicer.util.addVolumeFromArray(array.astype(np.int16), nodes.ijk_to_ras(grid), name)
    ui, node = real.ui, real._parameterNode
    ui.fixedSelector.setCurrentNode(volumes["fixed"])
    ui.movingSelector.setCurrentNode(volumes["moving"])
    ui.encoderComboBox.currentIndex = ui.encoderComboBox.findData("mind")
    node.device, node.searchRange, node.makeVolume = "cpu", 12.0, True
    assert ui.applyButton.enabled
    click(bench, ui.applyButton)
    bench.wait_until(lambda: not real.panel._busy, 400)
    transform, volume = node.outputTransform, node.outputVolume
    assert transform is not None, ui.statusLabel.text
    points = fixed_grid.points(np.moveaxis(np.indices(fixed_grid.shape), 0, -1))[6:-6, 6:-6, 6:-6].reshape(-1, 3)
    points = points[np.linalg.norm(points / (40.0, 34.0, 46.0), axis=-1) < 0.85]
    signs = np.array([-1.0, -1.0, 1.0])
    found = nodes.transform_points(transform.GetTransformFromParent(), points * signs) * signs
    before = np.linalg.norm(bend(points) - points, axis=-1).mean()
    error = np.linalg.norm(found - bend(points), axis=-1).mean()
    assert error < 0.45 * before, (error, before)
    through_node = nodes.resample(volumes["moving"], volumes["fixed"]).astype(float)
    shown = slicer.util.arrayFromVolume(volume).astype(float)
    both = (through_node != 0) & (shown != 0)
    assert both.mean() > 0.5 and np.percentile(np.abs(through_node - shown)[both], 99.9) <= 2
    pid, first = real.logic.channel.process.pid, results.read_grid(transform)[0].copy()
    ui.smoothnessSlider.value = 5.0
    bench.wait_until(lambda: real.panel._busy, 20)
    bench.wait_until(lambda: not real.panel._busy, 400)
    stiffer = results.read_grid(transform)[0]
    assert real.logic.channel.process.pid == pid and np.abs(stiffer - first).max() > 0.05
