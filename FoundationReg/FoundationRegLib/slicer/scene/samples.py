"""A pair of volumes made on the spot, so that FoundationReg can be tried without network.

A head-like phantom: the moving one has another contrast (as FLAIR against T1), lies turned on a coarser oblique grid,
and is bent by a known smooth deformation of several millimetres.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...core.grid import Grid

FIXED_NAME, MOVING_NAME = "PhantomFixed", "PhantomMoving"
CATEGORY, SCHEME = "FoundationReg", "foundationreg-phantom:"
BRAINS = {  # node name -> file name and SHA256, in Slicer's own sample data
    "MRBrainTumor1": ("RegLib_C01_1.nrrd", "998cb522173839c78657f4bc0ea907cea09fd04e44601f17c82ea27927937b95"),
    "MRBrainTumor2": ("RegLib_C01_2.nrrd", "1a64f3f422eb3d1c9b093d1a18da354b13bcf307907c66317e2463ee530b7a97"),
}
BRAINS_ADDRESS = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
# Grey values of air, skin, skull, cerebrospinal fluid, grey matter, white matter, deep nuclei and a lesion.
FIXED_GREY = np.array([0, 350, 50, 110, 270, 420, 330, 190], np.float32)
MOVING_GREY = np.array([0, 260, 40, 70, 400, 290, 350, 560], np.float32)


def tissue(points: np.ndarray) -> np.ndarray:
    """Tissue class (...) of LPS ``points`` (..., 3) in mm, an index into the grey values."""
    x, y, z = np.moveaxis(points.astype(np.float32), -1, 0)

    def ellipsoid(center, radii):
        return np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip((x, y, z), center, radii, strict=True)))

    classes = np.zeros(x.shape, np.uint8)
    head = ellipsoid((0, 2, -2), (75, 95, 88))
    skull = ellipsoid((0, 3, 4), (69, 87, 77))
    classes[head < 1] = 1
    classes[skull < 1] = 2
    inner = ellipsoid((0, 3, 5), (64, 82, 71))
    classes[inner < 1] = 3
    # Depth below the surface of the brain in mm; sulci are narrow valleys where a wavy function is near zero.
    wave = (
        np.sin(x / 7 + 1.3 * np.sin(y / 9))
        + np.sin(y / 8 + 1.2 * np.sin(z / 7 + 1))
        + np.sin(z / 7.5 + 1.4 * np.sin(x / 8 + 2))
    )
    depth = (1 - ellipsoid((0, 3, 6), (62, 80, 68))) * 68
    sulcus = np.maximum(0, 1 - np.abs(wave) * 1.7)
    fissure = np.maximum(0, 1 - np.abs(x + 1.5 * np.sin(y / 14)) / 3.0) * np.clip((z - 2) / 12, 0, 1)
    cortex = depth - 19 * sulcus * np.clip(1.5 - depth / 20, 0, 1) - 40 * fissure * np.clip(1.6 - depth / 40, 0, 1)
    cerebrum = z > -24 + 0.25 * y
    classes[(inner < 1) & (z < -26 + 0.25 * y)] = 2
    classes[(inner < 1) & (z < -30 + 0.25 * y)] = 1
    classes[(cortex > 0) & cerebrum] = 4
    classes[(cortex > 6) & cerebrum] = 5
    folia = ellipsoid((0, 45, -34), (44, 26, 22)) + 0.06 * np.sin(z / 2.2 + y / 6)
    classes[(folia < 1.08) & ~cerebrum] = 3
    classes[(folia < 1) & ~cerebrum] = 4
    classes[(folia < 0.72) & ~cerebrum] = 5
    classes[ellipsoid((0, 20, -38), (13, 13, 40)) < 1] = 5
    for side in (-1, 1):
        horn = ellipsoid((side * (9 + 0.12 * np.abs(y - 5)), 4, 16 - 0.004 * (y - 5) ** 2), (5.5, 34, 8))
        classes[horn < 1] = 3
        classes[ellipsoid((side * 12, 14, 4), (8, 12, 8)) < 1] = 6
        classes[ellipsoid((side * 23, -4, 3), (6, 16, 11)) < 1] = 6
        classes[ellipsoid((side * 33, -76, -20), (13, 13, 13)) < 1] = 3
    classes[ellipsoid((28, 34, 30), (10, 9, 11)) < 1] = 7
    return classes


def true_displacement(points: np.ndarray) -> np.ndarray:
    """LPS displacement (..., 3) in mm that takes each fixed point (..., 3) to its place in the moving phantom."""
    x, y, z = np.moveaxis(points / np.array([74.0, 92.0, 82.0]), -1, 0)
    bend = np.stack(
        [
            3.5 * np.sin(2.1 * y) * np.cos(1.3 * z) + 2.0,
            4.0 * np.sin(1.9 * z + 0.5) * np.cos(1.7 * x) - 2.5,
            4.5 * np.sin(1.8 * x + 0.4) * np.cos(1.6 * y) + 1.5,
        ],
        -1,
    )
    angle = np.radians(6.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return points @ turn.T - points + bend


def fixed_grid() -> Grid:
    return _centered((80, 90, 72), (2.4, 2.4, 2.4), np.eye(3))


def moving_grid() -> Grid:
    tilt = np.radians(12.0)
    axes = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return _centered((66, 92, 78), (3.0, 2.3, 2.3), axes)


def make_pair() -> dict[str, tuple[np.ndarray, Grid]]:
    """Voxels (z, y, x), int16, and grid of the fixed and of the moving phantom."""
    fixed, moving = fixed_grid(), moving_grid()
    points = _points(moving)
    # Where a moving point comes from: the inverse of the displacement, by fixed-point iteration.
    origin = points.copy()
    for _ in range(12):
        origin = points - true_displacement(origin)
    return {
        FIXED_NAME: (_scan(tissue(_points(fixed)), FIXED_GREY, 1), fixed),
        MOVING_NAME: (_scan(tissue(origin), MOVING_GREY, 2), moving),
    }


def register(thumbnail: str) -> None:
    """Offer the phantom pair and a pair of brains in Slicer's module Sample Data."""
    import SampleData

    logic = SampleData.SampleDataLogic
    names = [FIXED_NAME, MOVING_NAME]
    logic.registerCustomSampleDataCategory(CATEGORY, title=CATEGORY)
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName="FoundationRegPhantomPair",
        thumbnailFileName=thumbnail,
        uris=[SCHEME + name for name in names],
        fileNames=[f"FoundationReg-1-{name}.nrrd" for name in names],
        nodeNames=names,
        customDownloader=load_pair,
    )
    # SampleData.downloadSample() ignores customDownloader (SampleData.py, downloadFromSource), but rewrites addresses.
    logic.registerUrlRewriteRule("FoundationRegPhantom", phantom_address)
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName="FoundationRegBrainPair",
        uris=[BRAINS_ADDRESS + digest for _name, digest in BRAINS.values()],
        fileNames=[name for name, _digest in BRAINS.values()],
        nodeNames=list(BRAINS),
        checksums=[f"SHA256:{digest}" for _name, digest in BRAINS.values()],
    )


def phantom_address(url: str) -> str:
    """Make the phantom that ``url`` names and return the URL of its file; any other URL stays as it is."""
    import slicer

    return phantom_file(url.removeprefix(SCHEME), slicer.app.temporaryPath).as_uri() if url.startswith(SCHEME) else url


def load_pair(source) -> list:
    """What a click on the sample does: load both volumes and show them; returns the nodes, fixed and moving."""
    import SampleData
    import slicer

    volumes = SampleData.SampleDataLogic().downloadFromSource(source)
    slicer.util.setSliceViewerLayers(*volumes, foregroundOpacity=0.5, fit=True)
    return volumes


def phantom_file(name: str, folder: str | Path) -> Path:
    """The NRRD file in ``folder`` with the phantom `FIXED_NAME` or `MOVING_NAME`; made when it is not there."""
    path = Path(folder) / f"FoundationReg-{name}.nrrd"
    if not path.exists():
        array, grid = make_pair()[name]
        vectors = " ".join(f"({','.join(map(repr, column))})" for column in grid.affine[:3, 2::-1].T.tolist())
        header = {
            "type": "int16",
            "dimension": "3",
            "space": "left-posterior-superior",
            "sizes": " ".join(map(str, array.shape[::-1])),
            "space directions": vectors,
            "kinds": "domain domain domain",
            "endian": "little",
            "encoding": "raw",
            "space origin": f"({','.join(map(repr, grid.affine[:3, 3].tolist()))})",
        }
        text = "\n".join(["NRRD0004", *(f"{key}: {value}" for key, value in header.items()), "", ""])
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(text.encode() + array.astype("<i2").tobytes())
        unfinished.replace(path)
    return path


def _centered(shape, spacing, axes) -> Grid:
    """Grid around the origin; columns of ``axes`` (3, 3) are the LPS directions of x, y, z."""
    direction = axes[:, ::-1]
    origin = -direction @ ((np.array(shape) - 1) / 2 * spacing)
    return Grid.from_axes(shape, spacing, origin, direction)


def _points(grid: Grid) -> np.ndarray:
    return grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))


def _scan(classes: np.ndarray, grey: np.ndarray, seed: int) -> np.ndarray:
    """What a scanner would see: blurred edges, a little shading and noise."""
    from scipy import ndimage

    image = ndimage.gaussian_filter(grey[classes], 0.6)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape), indexing="ij")
    image *= 1 + 0.08 * x * (-1) ** seed + 0.06 * z * y
    image += np.random.default_rng(seed).normal(0, 8, image.shape)
    return np.clip(np.rint(image), 0, 2000).astype(np.int16)
