"""Stand-in for ``slicer.packaging`` (Base/Python/slicer/packaging.py, Slicer 5.12) that asks as Slicer does, and then
installs nothing: what pip would have been called with is added to `installed`.
"""

import importlib.metadata
import logging
import pathlib
import shlex
import subprocess

import slicer
from packaging.requirements import Requirement

installed: list[list[str]] = []
exit_code = 0  # of the pip that is not run; anything else raises what Slicer raises then


def load_requirements(path) -> list[Requirement]:
    """The requirements listed in a file, one a line, without comments."""
    lines = (line.split(" #")[0].strip() for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def _requirements(reqs) -> list[Requirement]:
    items = reqs.split() if isinstance(reqs, str) else reqs if isinstance(reqs, list) else [reqs]
    return [item if isinstance(item, Requirement) else Requirement(item) for item in items]


def pip_check(req, _seen=None) -> bool:
    """Whether all requirements are met by what is installed."""
    for requirement in _requirements(req):
        try:
            if importlib.metadata.version(requirement.name) not in requirement.specifier:
                return False
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


def pip_ensure(
    requirements,
    constraints=None,
    skip_packages=None,
    prompt_install=True,
    prompt_restart=True,
    requester=None,
    skip_in_testing=True,
    show_progress=True,
) -> list[str] | None:
    """Install those requirements that are not met, after asking. RuntimeError when the user declines."""
    missing = [str(requirement) for requirement in _requirements(requirements) if not pip_check(requirement)]
    if not missing:
        return None
    if skip_in_testing and slicer.app.testingEnabled():
        logging.info(f"Testing mode is enabled: skipping pip_ensure for {missing}")
        return None
    if prompt_install:
        title = f"{requester} - Install Python Packages" if requester else "Install Python Packages"
        count = "1 Python package needs" if len(missing) == 1 else f"{len(missing)} Python packages need"
        message = f"{count} to be installed.\n\nThis will modify Slicer's Python environment. Continue?"
        details = "\n".join(f"- {requirement}" for requirement in missing)
        if not slicer.util.confirmOkCancelDisplay(message, title, detailedText=details):
            raise RuntimeError("User declined package installation")
    return pip_install(missing, constraints, skip_packages=skip_packages, requester=requester)


def pip_install(
    requirements,
    constraints=None,
    no_deps_requirements=None,
    skip_packages=None,
    blocking=True,
    show_progress=True,
    requester=None,
    logCallback=None,
    completedCallback=None,
) -> list[str] | None:
    """Slicer's shows a modal dialog and lets Qt work until pip has ended; CalledProcessError when that failed."""
    arguments = list(requirements) if isinstance(requirements, list) else shlex.split(requirements)
    installed.append(arguments)
    slicer.app.processEvents()
    if exit_code:
        raise subprocess.CalledProcessError(exit_code, ["PythonSlicer", "-m", "pip", "install", *arguments])
    return [] if skip_packages else None
