"""Where the voxels of an array lie in the patient.

Arrays are indexed (z, y, x); points are LPS millimetres in the order (x, y, z), as in ITK and DICOM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxel centres.

    ``shape`` counts voxels along the array axes (z, y, x). ``affine`` (4, 4, float64) maps a homogeneous array index
    (z, y, x, 1), continuous and zero at the centre of the first voxel, to an LPS point (x, y, z, 1) in millimetres.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_axes(cls, shape, spacing, origin, direction) -> Grid:
        """Grid from ``shape`` and ``spacing`` (z, y, x), ``origin`` (LPS mm) and ``direction`` (3, 3), whose column
        n is the LPS unit vector of *array* axis n (so column 0 is the z axis; ITK's matrix with its columns reversed).
        """
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(direction, float) * np.asarray(spacing, float)
        affine[:3, 3] = origin
        return cls(tuple(shape), affine)

    @property
    def spacing(self) -> np.ndarray:
        """Distance between voxel centres in mm along the array axes (z, y, x)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def direction(self) -> np.ndarray:
        """(3, 3): column n is the LPS unit vector of array axis n."""
        return self.affine[:3, :3] / self.spacing

    @property
    def origin(self) -> np.ndarray:
        """LPS point in mm of the centre of voxel (0, 0, 0)."""
        return self.affine[:3, 3].copy()

    @property
    def extent(self) -> np.ndarray:
        """Size in mm along the array axes (z, y, x), from outer face to outer face."""
        return self.spacing * np.array(self.shape)

    @property
    def center(self) -> np.ndarray:
        """LPS point in mm of the middle of the grid."""
        return self.points((np.array(self.shape) - 1) / 2)

    def points(self, indices) -> np.ndarray:
        """LPS points (..., 3) in mm of continuous array indices (..., 3) in the order (z, y, x)."""
        return np.asarray(indices, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def indices(self, points) -> np.ndarray:
        """Continuous array indices (..., 3), order (z, y, x), of LPS points (..., 3) in mm. Inverse of `points`."""
        return (np.asarray(points, float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def corners(self) -> np.ndarray:
        """LPS points (8, 3) in mm of the outer corners: the faces of the border voxels, not their centres."""
        high = np.array(self.shape) - 0.5
        return self.points([[(-0.5, high[n])[(k >> n) & 1] for n in range(3)] for k in range(8)])

    def with_spacing(self, spacing, shape=None) -> Grid:
        """Same first corner and axes, other spacing in mm; the far faces are rounded up to whole voxels.

        ``spacing`` is one number or (z, y, x). The grid covers this one's whole extent unless ``shape`` is given.
        """
        spacing = np.broadcast_to(np.asarray(spacing, float), 3)
        if shape is None:
            shape = np.maximum(1, np.ceil(self.extent / spacing - 1e-4).astype(int))
        corner = self.points([-0.5, -0.5, -0.5])
        origin = corner + self.direction @ (0.5 * spacing)
        return Grid.from_axes(shape, spacing, origin, self.direction)

    def padded(self, before, after) -> Grid:
        """Grid with ``before`` and ``after`` voxels (z, y, x) added at the low and high faces; negative ones crop."""
        before, after = np.broadcast_to(before, 3), np.broadcast_to(after, 3)
        affine = self.affine.copy()
        affine[:3, 3] = self.points(-before.astype(float))
        return Grid(tuple(np.array(self.shape) + before + after), affine)

    def __eq__(self, other) -> bool:
        """Same shape, and voxel centres that agree within a thousandth of a voxel."""
        return (
            isinstance(other, Grid)
            and self.shape == other.shape
            and bool(np.abs(self.indices(other.corners()) - self.indices(self.corners())).max() < 1e-3)
        )

    __hash__ = None
