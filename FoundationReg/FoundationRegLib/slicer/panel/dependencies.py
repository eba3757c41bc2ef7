"""What must be installed before a registration runs, asked for when it is needed and never before."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import traceback
from collections.abc import Iterable
from pathlib import Path

from slicer.i18n import tr as _

from ...errors import InputError

REQUIREMENTS_FILE = Path(__file__).parents[3] / "Resources" / "requirements.txt"
TORCH_REQUIREMENT = ">=2.4"
# What the encoders of a family need beyond that; "folder" is a vision transformer that transformers saved.
FAMILY_REQUIREMENTS = {"sam": ["segment-anything==1.0"], "folder": ["transformers>=4.56"]}


def torch_version() -> str | None:
    """The version of the installed PyTorch, without importing it."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def ensure(families: Iterable[str] = ()) -> None:
    """Install what encoders of ``families`` need, after asking. Raises `InputError` when the user declines, when
    something is not there, and when an installation fails."""
    ensure_torch()
    ensure_packages(families)


def check(families: Iterable[str] = ()) -> None:
    """Raise `InputError` when something that encoders of ``families`` need is not installed; nobody is asked."""
    if torch_version() is None:
        raise InputError(
            _("PyTorch is not installed. Press Apply in the module FoundationReg once, which installs what is missing.")
        )
    check_torch()
    missing = _missing(_requirements(families))
    if missing:
        text = _(
            "These Python packages are not installed: {names}. Press Apply in the module FoundationReg once, or call "
            "slicer.packaging.pip_ensure."
        )
        raise InputError(text.format(names=", ".join(missing)))


def ensure_torch() -> None:
    """PyTorch comes from the PyTorch extension, which knows the right build for the graphics card."""
    if torch_version() is not None:
        check_torch()
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
    # PyTorchUtils lets pass whatever pip, light-the-torch or the import of a broken PyTorch raise.
    try:
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT
        )
    except Exception as error:
        logging.debug(traceback.format_exc())
        text = _(
            "PyTorch could not be installed ({reason}). Open the module PyTorch Utils and install it there, restart "
            "Slicer and press Apply again."
        )
        raise InputError(text.format(reason=_reason(error))) from error
    if torch is None:
        raise InputError(_("PyTorch was not installed, so nothing was started."))


def check_torch() -> None:
    """Raise `InputError` when the installed PyTorch is too old."""
    from packaging.specifiers import SpecifierSet

    version = torch_version()
    if not SpecifierSet(TORCH_REQUIREMENT).contains(version, prereleases=True):
        text = _(
            "PyTorch {version} is installed, and FoundationReg needs {needed} or newer. Open the module PyTorch Utils, "
            "uninstall PyTorch there, restart Slicer and press Apply again."
        )
        raise InputError(text.format(version=version, needed=TORCH_REQUIREMENT.removeprefix(">=")))


def ensure_packages(families: Iterable[str] = ()) -> None:
    """The remaining packages, none of which Slicer ships."""
    requirements = _requirements(families)
    try:
        slicer_packaging().pip_ensure(requirements, requester="FoundationReg")
    except RuntimeError as error:  # "User declined package installation" (slicer/packaging.py, pip_ensure)
        raise InputError(_("The Python packages were not installed, so nothing was started.")) from error
    except (subprocess.CalledProcessError, OSError) as error:  # Slicer has shown pip's messages already
        text = _("The Python packages could not be installed ({reason}), so nothing was started.")
        raise InputError(text.format(reason=_reason(error))) from error
    missing = _missing(requirements)
    if missing:
        text = _("These Python packages are still not installed: {names}. Restart Slicer and press Apply again.")
        raise InputError(text.format(names=", ".join(missing)))


def slicer_packaging():
    """Slicer's package installer. Raises `InputError` where it is not there."""
    try:
        import slicer.packaging
    except ImportError:
        raise InputError(_("FoundationReg needs Slicer 5.12 or newer.")) from None
    return slicer.packaging


def _requirements(families: Iterable[str]) -> list:
    requirements = list(slicer_packaging().load_requirements(REQUIREMENTS_FILE))
    for family in sorted(set(families)):
        requirements += FAMILY_REQUIREMENTS.get(family, [])
    return requirements


def _missing(requirements: list) -> list[str]:
    return [str(requirement) for requirement in requirements if not slicer_packaging().pip_check(requirement)]


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return _("pip ended with code {code}").format(code=error.returncode)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
