"""The compiled kernels as functions of tensors.

Call them only where `usable` says so. Tensors are float32 on the CPU; those that are not contiguous are copied. Each
call uses as many threads as torch has in the calling thread, and gives the same result with any number. Other Python
threads go on meanwhile.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .library import library

Check = Callable[[], None]

_ARGUMENTS = {
    # name: p pointer, i int, f float
    "row_extents": "ppp",
    "data_term": "ppppppppppiii",
    "weighted_sums": "pppp" + "liii",
    "pack": "ppfp" + "liii",
    "find_padding": "pp" + "liii",
    "mind_distances": "pppppp" + "iiii",
    "mind_descriptors": "pp" + "ff" + "lii",
    "smooth": "pppii",
    "sample": "pppp" + "liii",
    "warp": "pppp" + "fff" + "ii",
    "exponential": "ppp" + "fff" + "ii",
    "halve": "pppii",
    "strain_energy": "pppi",
    "regulariser_gradient": "pppp" + "ff" + "i",
    "conjugate_gradients": "ppppp" + "ff" + "iii",
    "candidate_costs": "pppppppppiii",
    "cost_range": "ppplii",
    "scale_costs": "ppflii",
    "choose_candidates": "ppppflii",
    "mutual_information": "ppppppl" + "ii",
    "jacobian_sums": "pppppppp" + "i",
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float}
# Candidates whose costs are worked out between two looks at whether to stop.
_CANDIDATES = 128
# Voxels whose sums the kernels take together.
_PIECE = 1 << 15


def usable(*tensors: Tensor) -> bool:
    """Whether there are kernels and they can work on ``tensors``: float32, on the CPU, and no gradient is wanted."""
    if library() is None:
        return False
    gradients = torch.is_grad_enabled()
    return all(
        t.device.type == "cpu" and t.dtype == torch.float32 and not (gradients and t.requires_grad) for t in tensors
    )


def _call(name: str, *arguments) -> None:
    """Call a kernel; a tensor is passed as its address, a sequence as an array of 64-bit integers, None as null."""
    function = getattr(library(), name)
    kinds = _ARGUMENTS[name]
    assert len(kinds) == len(arguments), name
    if function.argtypes is None:
        function.argtypes, function.restype = [_TYPES[kind] for kind in kinds], ctypes.c_int
    passed = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.is_contiguous() and argument.device.type == "cpu", name
            argument = argument.data_ptr()
        elif isinstance(argument, (tuple, list, torch.Size)):
            argument = (ctypes.c_int64 * len(argument))(*argument)
        passed.append(argument)
    if function(*passed):
        raise MemoryError(f"There is not enough memory for {name.replace('_', ' ')}.")


def padded_channels(channels: int) -> int:
    """Numbers that a voxel takes in `by_voxel`: whole vectors of the processor, or one."""
    return 1 if channels == 1 else 4 if channels <= 4 else -(-channels // 8) * 8


def by_voxel(features: Tensor) -> Tensor:
    """``features`` (C, D, H, W) as (D, H, W, P), padded with zeros to `padded_channels`; a view where they lie so."""
    count, padded = features.shape[0], padded_channels(features.shape[0])
    depth, height, width = features.shape[1:]
    strides = (height * width * padded, width * padded, padded, 1)
    room = features.untyped_storage().nbytes() // 4 - features.storage_offset()
    if features.stride() == (1, *strides[:3]) and room >= depth * strides[0]:
        whole = features.as_strided((depth, height, width, padded), strides)
        found = torch.zeros(1, dtype=torch.int32)
        if count < padded:
            _call("find_padding", whole, found, depth * height * width, count, padded, torch.get_num_threads())
        if not found:
            return whole
    return _packed(features, features.new_zeros(count), 1.0)


def _packed(features: Tensor, origin: Tensor, factor: float) -> Tensor:
    """(``features`` (C, D, H, W) - ``origin`` (C)) * ``factor`` as (D, H, W, P)."""
    count, padded = features.shape[0], padded_channels(features.shape[0])
    whole, threads = features.new_empty((*features.shape[1:], padded)), torch.get_num_threads()
    _call("pack", features.contiguous(), origin, factor, whole, whole[..., 0].numel(), count, padded, threads)
    return whole


def standardised(fixed: Tensor, moving: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both features (C, D, H, W), jointly centred by channel and scaled to mean square 1 over ``weight`` (D, H, W).

    They lie in memory as `by_voxel` wants them.
    """
    both = [values.contiguous() for values in (fixed, moving)]
    mass = 2 * float(weight.sum(dtype=torch.float64).clamp_min(1))
    mean = fixed.new_zeros(fixed.shape[0])
    mean = (sum(_weighted_sums(values, weight, mean, False) for values in both) / mass).float()
    power = sum(_weighted_sums(values, weight, mean, True).mean() for values in both) / mass
    factor = 1 / max(float(power) ** 0.5, 1e-8)
    count = fixed.shape[0]
    return tuple(_packed(values, mean, factor)[..., :count].movedim(-1, 0) for values in both)


def _weighted_sums(values: Tensor, weight: Tensor, origin: Tensor, squared: bool) -> Tensor:
    """By channel of ``values`` (C, D, H, W): the sum of ``weight`` (D, H, W) times what they differ from ``origin``
    (C), or times its square; float64 (C)."""
    sums = torch.empty((len(values), -(-weight.numel() // _PIECE)), dtype=torch.float64)
    shape = (weight.numel(), len(values), int(squared), torch.get_num_threads())
    _call("weighted_sums", values, weight.contiguous(), origin, sums, *shape)
    return sums.sum(1)


def mind_distances(
    padded: Tensor, geometry: Tensor, taps: Tensor, dilation: int, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Distances of MIND (C, D, H, W), each less the least of its voxel, and their mean (D, H, W).

    ``padded``: the image of ``shape`` with a border of radius + 2 ``dilation``. ``taps`` (2 radius + 1): weights of a
    patch along an axis. ``geometry``, int32 (C, 10): a channel, the move between both neighbours, and the two places
    where the patch mean is read, in dilations; rows of one move follow each other.
    """
    distances, noise = padded.new_empty((len(geometry), *shape)), padded.new_empty(tuple(shape))
    _call(
        "mind_distances", padded.contiguous(), geometry, taps, distances, noise, shape,
        len(geometry), len(taps) // 2, dilation, torch.get_num_threads(),
    )  # fmt: skip
    return distances, noise


def mind_descriptors(distances: Tensor, noise: Tensor, least: float, most: float) -> Tensor:
    """exp(-``distances`` / ``noise``) in the place of ``distances`` (C, D, H, W); the noise (D, H, W) is kept between
    ``least`` and ``most``."""
    _call("mind_descriptors", distances, noise, least, most, noise.numel(), len(distances), torch.get_num_threads())
    return distances


def row_extents(weight: Tensor) -> Tensor:
    """Where the rows of ``weight`` (D, H, W) have any: int32 (D, H, 2), the first voxel and the one behind the last."""
    weight = weight.contiguous()
    extents = torch.empty((*weight.shape[:2], 2), dtype=torch.int32)
    _call("row_extents", weight, extents, weight.shape)
    return extents


def data_term(
    fixed: Tensor,
    moving: Tensor,
    weight: Tensor,
    landing: Tensor,
    shift: Tensor,
    extents: Tensor,
    stride: int,
    mass: Tensor | None,
) -> Tensor:
    """Sums of `numerics.data_term` for one pair: (10, d, h, w), three rows of the negative gradient, six of curvature
    and the squared residual, means over the voxels of each node.

    ``fixed`` and ``moving``: (D, H, W, P) as of `by_voxel`; ``weight`` and ``landing`` (D, H, W); ``shift`` (3, ...) in
    voxels, on the voxels or on a lattice of whole multiples of them; ``extents``: `row_extents` of ``weight``;
    ``stride``: voxels per node; ``mass`` (d, h, w): zeros that are filled with what the voxels of each node count.
    """
    shape = tuple(weight.shape)
    nodes = tuple(n // stride for n in shape)
    every = shape[0] // shift.shape[1]
    assert fixed.shape == moving.shape and fixed.shape[:3] == shape == tuple(landing.shape)
    assert tuple(n * stride for n in nodes) == shape == tuple(n * every for n in shift.shape[1:])
    terms = weight.new_zeros((10, *nodes))
    _call(
        "data_term", fixed, moving, weight.contiguous(), landing.contiguous(), shift.contiguous(), extents, terms, mass,
        shape, shift.shape[1:], stride, fixed.shape[3], torch.get_num_threads(),
    )  # fmt: skip
    return terms


def sample(volume: Tensor, grid: Tensor, nearest: bool) -> Tensor:
    """``volume`` (C, D, H, W) at ``grid`` (..., 3), as `numerics.sampling.sample_at` with the border repeated."""
    volume, grid = volume.contiguous(), grid.contiguous()
    out, places = volume.new_empty((volume.shape[0], *grid.shape[:-1])), grid.numel() // 3
    if out.numel():
        shape, threads = volume.shape[1:], torch.get_num_threads()
        _call("sample", volume, grid, out, shape, places, volume.shape[0], int(nearest), threads)
    return out


def warp(volume: Tensor, displacement: Tensor, spacing: Sequence[float]) -> Tensor:
    """``volume`` (C, D, H, W) at x + ``displacement`` (3, D, H, W, in the unit of ``spacing``), its border outside."""
    volume, displacement = volume.contiguous(), displacement.contiguous()
    assert volume.shape[1:] == displacement.shape[1:]
    out, per_voxel = torch.empty_like(volume), [1 / float(s) for s in spacing]
    _call("warp", volume, displacement, out, volume.shape[1:], *per_voxel, volume.shape[0], torch.get_num_threads())
    return out


def exponential(velocity: Tensor, spacing: Sequence[float], steps: int) -> Tensor:
    """`numerics.fields.exponential` of ``velocity`` (3, D, H, W) with ``steps`` squarings."""
    velocity, out = velocity.contiguous(), torch.empty_like(velocity, memory_format=torch.contiguous_format)
    unit = [float(s) for s in spacing]
    _call("exponential", velocity, out, velocity.shape[1:], *unit, steps, torch.get_num_threads())
    return out


def halve(values: Tensor) -> Tensor:
    """Means over blocks of 2 voxels of (C, D, H, W); an odd border voxel is repeated outwards."""
    values = values.contiguous()
    out = values.new_empty((values.shape[0], *(-(-n // 2) for n in values.shape[1:])))
    if out.numel():
        _call("halve", values, out, values.shape[1:], values.shape[0], torch.get_num_threads())
    return out


def strain_energy(field: Tensor) -> Tensor:
    """`numerics.regularisation.strain_energy` of ``field`` (3, D, H, W)."""
    field = field.contiguous()
    out = torch.empty_like(field[0])
    _call("strain_energy", field, out, field.shape[1:], torch.get_num_threads())
    return out


def regulariser_gradient(field: Tensor, weight: Tensor | None, diffusion: float, bending: float) -> Tensor:
    """Half the gradient of the energy of `numerics.regularisation` at ``field`` (3, D, H, W); ``weight`` (D, H, W) of
    it or None."""
    field, out = field.contiguous(), torch.empty_like(field, memory_format=torch.contiguous_format)
    weight = None if weight is None else weight.contiguous()
    _call("regulariser_gradient", field, weight, out, field.shape[1:], diffusion, bending, torch.get_num_threads())
    return out


def conjugate_gradients(
    curvature: Tensor,
    right: Tensor,
    weight: Tensor | None,
    diffusion: float,
    bending: float,
    start: Tensor | None,
    steps: int,
) -> Tensor:
    """Conjugate gradient steps of `numerics.regularisation.solve` on one lattice, from ``start`` or zero.

    ``curvature`` (6, D, H, W), ``right`` (3, D, H, W); ``weight`` (D, H, W) of the regulariser's energy or None.
    """
    step = torch.empty_like(right, memory_format=torch.contiguous_format)
    if start is not None:
        step.copy_(start)
    _call(
        "conjugate_gradients", curvature.contiguous(), right.contiguous(),
        None if weight is None else weight.contiguous(), step, right.shape[1:], diffusion, bending,
        int(start is not None), steps, torch.get_num_threads(),
    )  # fmt: skip
    return step


def smooth(volumes: Tensor) -> Tensor:
    """Mean over 3 nodes along each axis of (..., D, H, W); border nodes are repeated outwards."""
    volumes, shape = volumes.contiguous(), volumes.shape[-3:]
    out = torch.empty_like(volumes)
    if volumes.numel():
        _call("smooth", volumes, out, shape, volumes.numel() // math.prod(shape), torch.get_num_threads())
    return out


def cost_volume(
    cost: Tensor,
    fixed: Tensor,
    moving: Tensor,
    energy: Tensor,
    offsets: Tensor,
    weight: Tensor,
    share: Tensor,
    check: Check,
) -> Tensor:
    """Fills ``cost`` (K, D, H, W) of the candidates ``offsets`` (K, 3): what `numerics.search.cost_volume` smooths,
    over ``share`` (D, H, W), and not yet scaled.

    ``moving`` (C, ...) and its ``energy`` (...) reach as far beyond the lattice of ``fixed`` (C, D, H, W) on either
    side as the offsets do. ``check`` is called now and then and may raise.
    """
    shape, count = fixed.shape[1:], len(offsets)
    offsets = offsets.to(torch.int32).contiguous()
    fixed, moving, energy = fixed.contiguous(), moving.contiguous(), energy.contiguous()
    weight, share = weight.contiguous(), share.contiguous()
    for first in range(0, count, _CANDIDATES):
        check()
        some = slice(first, first + _CANDIDATES)
        _call(
            "candidate_costs", fixed, moving, energy, offsets[some], weight, share, cost[some],
            shape, energy.shape, fixed.shape[0], len(offsets[some]), torch.get_num_threads(),
        )  # fmt: skip
    return cost


def cost_range(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The least ``cost`` (K, D, H, W) of each node and the mean of what its candidates cost more, each (D, H, W)."""
    least, mean = torch.empty_like(cost[0]), torch.empty_like(cost[0])
    _call("cost_range", cost, least, mean, least.numel(), len(cost), torch.get_num_threads())
    return least, mean


def scale_costs(cost: Tensor, least: Tensor, factor: float) -> Tensor:
    """(``cost`` - ``least``) * ``factor``, in the place of ``cost`` (K, D, H, W)."""
    _call("scale_costs", cost, least, factor, least.numel(), len(cost), torch.get_num_threads())
    return cost


def choose_candidates(cost: Tensor, offsets: Tensor, active: Tensor, field: Tensor, strength: float) -> Tensor:
    """``field`` (3, D, H, W), in its place, with the best of ``offsets`` (K, 3) at the nodes that are ``active``.

    The best one has the least ``cost`` (K, D, H, W) plus ``strength`` times its squared distance from the field.
    """
    _call(
        "choose_candidates", cost, offsets.contiguous(), active.to(torch.uint8).contiguous(), field, strength,
        active.numel(), len(cost), torch.get_num_threads(),
    )  # fmt: skip
    return field


def mutual_information(
    offsets: Tensor, rows: Tensor, volume: Tensor, motion: Tensor, bins: int
) -> tuple[float, float, Tensor]:
    """Mutual information in nats of points and ``volume`` (D, H, W), as `numerics.mutual_information` has it; the share
    of the points that fall inside; and how the first changes with ``motion``, float64 (3, 4).

    ``motion``, float64 (3, 4), takes ``offsets`` (n, 3) to continuous indices (x, y, z). ``rows``, int32 (n): the bin,
    of ``bins``, of each point's own grey value.
    """
    assert motion.dtype == torch.float64 and rows.dtype == torch.int32
    found = torch.empty(14, dtype=torch.float64)
    _call(
        "mutual_information", offsets.contiguous(), rows.contiguous(), volume.contiguous(), volume.shape,
        motion.contiguous(), found, len(offsets), bins, torch.get_num_threads(),
    )  # fmt: skip
    return float(found[0]), float(found[1]) / max(len(offsets), 1), found[2:].reshape(3, 4)


def jacobian_sums(
    nodes: Tensor, first: Sequence[float], step: Sequence[float], shape: Sequence[int], axes, spacing: Sequence[float]
) -> Tensor:
    """By plane of ``shape``, float64 (D, 3): voxels that fold, and the sums of the logarithm of the determinant of the
    Jacobian and of its square; those at the faces do not count.

    ``nodes`` (3, d, h, w): displacement in mm along x, y, z in LPS. Voxel n of axis z, y or x lies at node ``first`` +
    n ``step``. ``axes`` (3, 3): those of the voxels, x, y, z, in LPS, as columns; ``spacing`` along them in mm.
    """
    given = (first, step, axes, spacing)
    numbers = [torch.from_numpy(np.array(values, np.float64, order="C")) for values in given]
    sums = torch.empty((shape[0], 3), dtype=torch.float64)
    _call(
        "jacobian_sums", nodes, nodes.shape[1:], *numbers[:2], shape, *numbers[2:], sums, torch.get_num_threads(),
    )  # fmt: skip
    return sums


def fits(shape: Sequence[int], multiple: Sequence[int]) -> bool:
    """Whether ``multiple`` is the same whole multiple of ``shape`` along each axis."""
    factor = multiple[0] // max(shape[0], 1)
    return factor > 0 and all(n * factor == m for n, m in zip(shape, multiple, strict=True))
