"""Volumes made in code that look enough like anatomy, on grids as scanners make them."""

from __future__ import annotations

import os
import shutil
import sys

# Before torch is loaded: threads that spin while they wait make small volumes slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from FoundationRegLib.core.grid import Grid
from module_fixtures import fake_channel, loaded, panel  # noqa: F401
from scipy import ndimage
from Workbench import i18n
from Workbench.fixtures import bench, workbench  # noqa: F401

sys.modules.setdefault("slicer.i18n", i18n)  # slicer-core lacks it


def rotation(degrees_about_z=0.0, degrees_about_y=0.0, degrees_about_x=0.0) -> np.ndarray:
    """(3, 3) LPS rotation: about x, then y, then z."""
    matrix = np.eye(3)
    for axis, degrees in ((0, degrees_about_x), (1, degrees_about_y), (2, degrees_about_z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


def make_grid(shape=(36, 44, 40), spacing=(3.0, 2.0, 2.5), center=(2.0, -1.0, 3.0), turn=(0, 0, 0), flip=()):
    """A `Grid` around ``center`` (LPS mm), turned by ``turn`` degrees about z, y, x; axes in ``flip`` run backwards."""
    direction = rotation(*turn)[:, ::-1].copy()
    for axis in flip:
        direction[:, axis] *= -1
    origin = center - direction @ ((np.array(shape) - 1) / 2 * spacing)
    return Grid.from_axes(shape, spacing, origin, direction)


def smooth_noise(shape, sigma, seed) -> np.ndarray:
    """Noise (shape) blurred by ``sigma`` voxels, scaled to a standard deviation of one."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma, mode="wrap")
    return noise / noise.std()


class Phantom:
    """A body at the LPS origin: an ellipsoid with texture, organs and dark air around, known at every point in mm."""

    _side, _step = 64, 2.5

    def __init__(self, seed=0):
        self._texture = smooth_noise((self._side,) * 3, 3, seed)
        self._organs = smooth_noise((self._side,) * 3, 6, seed + 100)

    def __call__(self, points) -> np.ndarray:
        """Grey values of LPS ``points`` (..., 3): 0 is air, tissue lies around 300."""
        points = np.asarray(points, float)
        places = np.moveaxis(points / self._step + self._side / 2, -1, 0)
        texture, organs = (
            ndimage.map_coordinates(field, places, order=1, mode="grid-wrap") for field in (self._texture, self._organs)
        )
        radius = np.linalg.norm(points / (40.0, 34.0, 46.0), axis=-1)
        inside = np.clip((1 - radius) * 15, 0, 1)
        return inside * (300 + 60 * texture + 150 * np.tanh(3 * organs))

    def on(self, grid: Grid, move=None) -> np.ndarray:
        """float32 (D, H, W) on ``grid``; ``move`` maps LPS points to where the phantom is looked up."""
        points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
        return self(points if move is None else move(points)).astype(np.float32)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is kept between runs stays with the tests, also in the processes that they start; kernels that are built
    already are used."""
    from FoundationRegLib.native.build import user_folder

    built, cache = user_folder(), tmp_path_factory.mktemp("cache")
    if built.is_dir():
        shutil.copytree(built, cache / built.name)
    os.environ["FOUNDATIONREG_CACHE"] = str(cache)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return Phantom()


@pytest.fixture(scope="session")
def shifted_pair(phantom):
    """Images that are 9 mm apart, along no axis."""
    from known_pairs import a_pair, shifted

    return a_pair(phantom, shifted)


@pytest.fixture(
    params=[
        {},
        {"turn": (20, -10, 15), "spacing": (3.0, 1.5, 2.5)},
        {"turn": (10, 5, -20), "flip": (1,), "spacing": (4.0, 2.0, 2.0)},
        {"turn": (90, 0, 90), "flip": (0, 2)},
    ],
    ids=["axial", "oblique", "left-handed", "turned-flipped"],
)
def grid(request) -> Grid:
    """Grids of differing spacing, obliqueness and handedness."""
    return make_grid(**request.param)


@pytest.fixture
def pair(tmp_path):
    """Folder with fixed.nii.gz and moving.nii.gz, which is the fixed image shifted by `fakes.SHIFT`."""
    import SimpleITK as sitk
    from fakes import SHIFT, blob_image

    sitk.WriteImage(blob_image(), str(tmp_path / "fixed.nii.gz"))
    sitk.WriteImage(blob_image(size=(30, 26, 22), center=SHIFT), str(tmp_path / "moving.nii.gz"))
    return tmp_path


@pytest.fixture
def fake_registration(monkeypatch):
    """The command line's register takes no time."""
    from fakes import fake_register
    from FoundationRegLib.registration import pipeline

    monkeypatch.setattr(pipeline, "register", fake_register)


def pytest_sessionfinish(session, exitstatus):
    session.config.foundationreg_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """End here once all is said, where the workbench ran: what a test that failed still holds of PySide's objects can
    crash Python 3.11 while the interpreter ends (see `Workbench.host`), and would hide what the tests found."""
    if "Workbench" in sys.modules and hasattr(config, "foundationreg_status"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.foundationreg_status)
