"""What a request hands to the worker: arrays in files, and what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...core.constants import SIDES
from ...core.grid import Grid
from ..scene import nodes, regions, segmentations
from .request import MASK_ROLES, RegistrationRequest


class InputFiles:
    """Writes what a ``request`` hands over into ``folder``; ``payload`` says where it is.

    ``names``: of label values. ``notes``: sentences for the user about what was taken otherwise than drawn.
    ``boxed``: the sides whose box is segmented.
    """

    def __init__(self, request: RegistrationRequest, folder: Path):
        self.request, self.folder = request, folder
        self.grids = {side: nodes.volume_grid(getattr(request, side)) for side in SIDES}
        self.names: dict[int, str] = {}
        self.notes: list[str] = []
        self.boxed: list[str] = []
        self.payload: dict[str, Any] = {"settings": request.settings, "folder": str(folder)}
        for side, grid in self.grids.items():
            self._write(side, nodes.volume_array(getattr(request, side)), grid)
        self._write_boxes()

    def write_rest(self) -> None:
        """All that a registration needs besides the volumes and the boxes."""
        request = self.request
        self._write_masks()
        self._write_references()
        self._write_initial()
        wanted = request.output_volume is not None or request.create_volume
        self.payload |= {
            "preview": request.preview,
            "guide_with_labels": request.guide_with_labels,
            "guide_with_points": request.guide_with_points,
            "volume": request.volume if wanted else None,
        }

    def _write(self, name: str, array: np.ndarray, grid: Grid) -> None:
        path = self.folder / f"{name}.npy"
        np.save(path, np.ascontiguousarray(array), allow_pickle=False)
        self.payload[name] = {"array": str(path), "affine": grid.affine.tolist()}

    def _write_masks(self) -> None:
        for side, grid in self.grids.items():
            for name in (f"{side}_mask", f"exclude_{side}"):
                mask = getattr(self.request, name)
                if mask is not None:
                    self._write(name, nodes.mask_array(mask, getattr(self.request, side), MASK_ROLES[name]), grid)

    def _write_boxes(self) -> None:
        for side, grid in self.grids.items():
            volume, box, mask = (getattr(self.request, name) for name in (side, f"{side}_box", f"{side}_box_mask"))
            if mask is not None and (box is None or not segmentations.is_prediction(mask)):
                self._write(f"{side}_box_mask", nodes.mask_array(mask, volume, MASK_ROLES[f"{side}_box_mask"]), grid)
            elif box is not None:
                self.payload[f"{side}_box"] = regions.organ_box(box, volume).tolist()
                self.boxed.append(side)
                self.notes += filter(None, [regions.turned(box, volume)])

    def _write_references(self) -> None:
        request = self.request
        if request.fixed_labels is not None:
            pairs = [(request.fixed_labels, request.fixed), (request.moving_labels, request.moving)]
            arrays, self.names = nodes.label_arrays(pairs)
            for side, array in zip(SIDES, arrays, strict=True):
                self._write(f"{side}_labels", array, self.grids[side])
        if request.fixed_points is not None:
            points = nodes.landmark_pair(request.fixed_points, request.fixed, request.moving_points, request.moving)
            self.payload.update(fixed_points=points[0].tolist(), moving_points=points[1].tolist())

    def _write_initial(self) -> None:
        request = self.request
        chain = nodes.chain_between(request.fixed.GetParentTransformNode(), request.initial_node())
        initial = nodes.describe_initial(chain, self.grids["fixed"])
        if initial is not None and "field" in initial:
            self._write("initial", initial["field"], initial["grid"])
            self.payload["initial_transform"] = self.payload.pop("initial")
        elif initial is not None:
            self.payload["initial_transform"] = {"matrix": initial["matrix"].tolist()}
