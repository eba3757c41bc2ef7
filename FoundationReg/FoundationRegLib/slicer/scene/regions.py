"""Regions of interest as the worker takes them."""

from __future__ import annotations

import itertools

import numpy as np
import vtk

from . import nodes


def box_of(region, volume) -> dict:
    """The corners (8, 3) of a markups ROI node, LPS mm in the local coordinates of ``volume``."""
    half = np.array(region.GetSize()) / 2
    matrix: vtk.vtkMatrix4x4 = region.GetObjectToWorldMatrix()
    corners = [matrix.MultiplyPoint((*(half * signs), 1.0))[:3] for signs in itertools.product((-1.0, 1.0), repeat=3)]
    chain = nodes.chain_between(None, volume.GetParentTransformNode())
    return {"corners": (nodes.transform_points(chain, np.array(corners)) * (-1.0, -1.0, 1.0)).tolist()}
