"""Public registration tools as functions from two images to an ITK transform (fixed to moving points, LPS mm).

All are optional packages, loaded when called. Each runs with what its authors recommend for 3-D medical images of any
contrast, affine stage included; convexAdam, which has none, starts from FoundationReg's. Their warps are turned into
displacement fields or composites that SimpleITK can use.
"""

from __future__ import annotations

import tempfile
from importlib import util
from pathlib import Path

import numpy as np

PEERS = {"convexadam": "convexAdam", "ants": "ants", "elastix": "itk", "greedy": "picsl_greedy"}


def installed_peers() -> list[str]:
    """Names of the tools whose package is there."""
    found = [name for name, package in PEERS.items() if util.find_spec(package) is not None]
    return [name for name in found if name != "elastix" or _has_elastix()]


def _has_elastix() -> bool:
    from importlib import metadata

    try:
        metadata.version("itk-elastix")
    except metadata.PackageNotFoundError:
        return False
    return True


def register_with(name: str, fixed: Path, moving: Path, device: str = "cpu"):
    """The transform that the tool ``name`` finds for two image files."""
    return {"convexadam": convexadam, "ants": ants, "elastix": elastix, "greedy": greedy}[name](fixed, moving, device)


def convexadam_displacement(fixed: np.ndarray, moving: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Displacement (D, H, W, 3) in voxels along the array axes, with the package's defaults (MIND)."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    kind = torch.float32 if device == "cpu" else torch.float16
    images = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (fixed, moving))
    return convex_adam_pt(*images, device=torch.device(device), dtype=kind)


def convexadam(fixed: Path, moving: Path, device: str):
    """convexAdam on the fixed image's voxels, after FoundationReg's affine stage."""
    import SimpleITK as sitk
    from FoundationRegLib.images.conversion import grid_of
    from FoundationRegLib.images.reading import read_image
    from FoundationRegLib.images.resampling import warp
    from FoundationRegLib.images.transforms import compose_field

    fixed_image, moving_image = read_image(fixed, "fixed image"), read_image(moving, "moving image")
    linear = affine(fixed_image, moving_image)
    aligned = warp(moving_image, linear, fixed_image)
    grid = grid_of(fixed_image)
    arrays = (sitk.GetArrayFromImage(image).astype(np.float32) for image in (fixed_image, aligned))
    voxels = convexadam_displacement(*arrays, device)
    return compose_field(linear, np.moveaxis(voxels * grid.spacing, -1, 0), grid, fixed_image)


def affine(fixed, moving):
    """FoundationReg's affine stage for two SimpleITK images."""
    from FoundationRegLib.registration import linear

    sides = linear.prepare(fixed), linear.prepare(moving)
    return linear.align_linearly(*sides, linear.start_transform(*sides))[0]


def ants(fixed: Path, moving: Path, _device: str):
    """ANTs: affine, then SyN with mutual information."""
    import ants as package
    import SimpleITK as sitk

    images = [package.image_read(str(path)) for path in (fixed, moving)]
    found = package.registration(*images, type_of_transform="SyN", random_seed=1)
    warp, matrix = found["fwdtransforms"]
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(warp, sitk.sitkVectorFloat64))
    # A composite applies its last member first: a fixed point is warped, then taken to the moving image.
    return sitk.CompositeTransform([sitk.ReadTransform(matrix), field])


def elastix(fixed: Path, moving: Path, _device: str):
    """elastix: its default rigid, affine and B-spline parameter maps (mutual information)."""
    import itk
    import SimpleITK as sitk

    images = [itk.imread(str(path), itk.F) for path in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    for stage in ("rigid", "affine", "bspline"):
        values = parameters.GetDefaultParameterMap(stage)
        # Images of differing position: begin with their centres together.
        values["AutomaticTransformInitialization"] = ["true"]
        parameters.AddParameterMap(values)
    _, found = itk.elastix_registration_method(*images, parameter_object=parameters, log_to_console=False)
    with tempfile.TemporaryDirectory() as folder:
        # Without a folder of its own it writes deformationField.nii into the working directory.
        field = itk.transformix_deformation_field(images[1], found, output_directory=folder)
        path = str(Path(folder) / "field.mha")
        itk.imwrite(field, path)
        return sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))


def greedy(fixed: Path, moving: Path, _device: str):
    """greedy: affine by mutual information, then diffeomorphic by normalised cross-correlation."""
    import SimpleITK as sitk
    from FoundationRegLib.images.transforms import affine_transform
    from picsl_greedy import Greedy3D

    # NaN marks the outside in greedy: images go in as floats.
    images = {f"my_{name}": sitk.ReadImage(str(path), sitk.sitkFloat32)
              for name, path in (("fixed", fixed), ("moving", moving))}  # fmt: skip
    tool, pair = Greedy3D(), "-i my_fixed my_moving"
    tool.execute(f"{pair} -a -dof 12 -m NMI -ia-image-centers -n 100x50x10 -o my_affine", **images, my_affine=None)
    tool.execute(f"{pair} -it my_affine -m WNCC 4x4x4 -s 2vox 1vox -n 100x50x20 -o my_warp", my_warp=None)
    field = sitk.DisplacementFieldTransform(sitk.Cast(tool["my_warp"], sitk.sitkVectorFloat64))
    # Its matrices are RAS.
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return sitk.CompositeTransform([affine_transform(flip @ tool["my_affine"] @ flip), field])
