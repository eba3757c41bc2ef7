"""The last registration of a worker, asked and corrected from the features that it kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# Fields that are remembered, so that undoing a correction gives the very field that was there.
_REMEMBERED = 100


class Session:
    """``result`` of the request ``run``: its workspace, and the correction in force."""

    def __init__(self, run: int, result):
        self.run, self.result = run, result
        self._corrections: dict[tuple, Any] = {}
        self._regions: list[Any] = []
        self._current = None

    @property
    def transform(self):
        """Fixed to moving points, as corrected."""
        return self._current.transform if self._current is not None else self.result.transform

    def probe(self, request: dict, path: Path) -> dict:
        """The answer of `interaction.probe.correspondence`; the map of similarity goes to the file ``path``."""
        from ..interaction import probe
        from .exchange import save_array

        found = probe.correspondence(
            self.result._workspace(), np.asarray(request["point"], float), request.get("encoder"),
            request.get("side", "fixed"), self.transform,
        )  # fmt: skip
        names = ("match", "transform", "distance_mm", "similarity_at_match", "similarity_at_transform",
                 "expected_error_mm", "encoder", "side", "point")  # fmt: skip
        return {**{name: getattr(found, name) for name in names},
                "similarity": save_array(path, found.similarity, found.grid)}  # fmt: skip

    def encode(self, encoder: str, progress) -> tuple[dict, Any]:
        """Pictures of the features of an ``encoder`` that took no part, by side, and their grid; it can be asked from
        then on."""
        from ..registration.feature_review import encode_for_review

        pictures, grid, _digest = encode_for_review(self.result._workspace(), encoder, progress)
        return next(iter(pictures.values())), grid

    def correct(self, pairs: list[dict], progress, on_preview, regions: int = 0):
        """The `interaction.correction.Correction` by ``pairs`` and the first ``regions`` of the regions refined; the
        same one as before when they were given before."""
        from ..interaction import correction

        workspace = self.result._workspace()
        wanted = tuple(
            correction.LandmarkPair(pair["fixed"], pair["moving"], bool(pair.get("active", True))) for pair in pairs
        )
        layers = tuple(self._regions[:regions])
        if self._current is None:
            self._keep(correction.uncorrected(workspace))
        found = self._corrections.get((wanted, layers))
        if found is None:
            before = correction.with_regions(workspace, self._current, layers)
            found = correction.correct(workspace, before, wanted, progress, on_preview)
        return self._keep(found)

    def refine(self, corners, progress):
        """The correction in force with the box around ``corners`` registered once more."""
        from ..interaction import correction

        workspace = self.result._workspace()
        before = self._current or correction.uncorrected(workspace)
        self._keep(before)
        made = correction.refine_here(workspace, before, corners, progress)
        self._regions = list(made.regions)
        return self._keep(made)

    def _keep(self, correction):
        """Remember ``correction``, which is in force from now on."""
        key = (correction.pairs, correction.regions)
        self._corrections.pop(key, None)
        self._corrections[key] = self._current = correction
        while len(self._corrections) > _REMEMBERED:
            self._corrections.pop(next(iter(self._corrections)))
        return correction

    def measured(self, progress):
        """The result with the transform as it is now, measured."""
        from ..registration.result import measure

        workspace = self.result._workspace()
        found = workspace.found
        if self._current is not None:
            found = replace(found, displacement=self._current.displacement)
        made = replace(self.result, transform=self.transform)
        measure(made, workspace.inputs, found, workspace.settings, progress)
        return made
