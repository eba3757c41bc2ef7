"""What must be installed before a registration runs, asked for when it is needed and never before."""

from __future__ import annotations

import importlib.metadata

from slicer.i18n import tr as _

from ...core.resources import resource_path
from ...errors import InputError

REQUIREMENTS_FILE = resource_path("requirements.txt")
TORCH_REQUIREMENT = ">=2.4"


def torch_version() -> str | None:
    """The version of the installed PyTorch, without importing it."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def ensure() -> None:
    """Install what is missing, after asking. Raises `InputError` when the user declines or something is not there."""
    ensure_torch()
    ensure_packages()


def ensure_torch() -> None:
    """PyTorch comes from the PyTorch extension, which knows the right build for the graphics card."""
    if torch_version() is not None:
        return
    try:
        import PyTorchUtils
    except ImportError:
        raise InputError(
            _(
                "FoundationReg computes with PyTorch. Install the extension named PyTorch in the Extensions Manager, "
                "restart Slicer and press Apply again."
            )
        ) from None
    torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(
        askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT
    )
    if torch is None:
        raise InputError(_("PyTorch was not installed, so nothing was started."))


def ensure_packages() -> None:
    """The remaining packages, none of which Slicer ships."""
    try:
        import slicer.packaging
    except ImportError:
        raise InputError(_("FoundationReg needs Slicer 5.12 or newer.")) from None
    requirements = slicer.packaging.load_requirements(REQUIREMENTS_FILE)
    try:
        slicer.packaging.pip_ensure(requirements, requester="FoundationReg")
    except RuntimeError as error:
        raise InputError(_("The Python packages were not installed, so nothing was started.")) from error
