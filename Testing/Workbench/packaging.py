"""Stand-in for ``slicer.packaging`` (Base/Python/slicer/packaging.py, Slicer 5.12): install what a module requires.

The signatures, questions and errors are Slicer's. The workbench installs into the Python that runs it.
"""

import importlib.metadata
import logging
import pathlib
import shlex
import tomllib

import slicer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def load_requirements(path) -> list[Requirement]:
    """The requirements listed in a file, one a line, without comments."""
    lines = (line.split(" #")[0].strip() for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def load_pyproject_dependencies(path) -> list[Requirement]:
    with open(path, "rb") as file:
        return [Requirement(text) for text in tomllib.load(file).get("project", {}).get("dependencies", [])]


def _requirements(reqs) -> list[Requirement]:
    items = reqs.split() if isinstance(reqs, str) else reqs if isinstance(reqs, list) else [reqs]
    return [item if isinstance(item, Requirement) else Requirement(item) for item in items]


def pip_check(req, _seen=None) -> bool:
    """Whether all requirements, with those of their extras, are met by what is installed."""
    seen = set() if _seen is None else _seen
    return all(_is_met(requirement, seen) for requirement in _requirements(req))


def _is_met(requirement: Requirement, seen: set) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    key = (requirement.name.lower(), frozenset(requirement.extras))
    if key in seen:
        return True
    seen.add(key)
    try:
        distribution = importlib.metadata.distribution(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if distribution.version not in requirement.specifier:
        return False
    optional = [r for r in map(Requirement, distribution.requires or []) if r.marker is not None]
    activated = [r for r in optional if any(r.marker.evaluate({"extra": extra}) for extra in requirement.extras)]
    return all(_is_met(_without_marker(r), seen) for r in activated)


def _without_marker(requirement: Requirement) -> Requirement:
    return Requirement(str(requirement).partition(";")[0].strip())


def isPipInstallInProgress() -> bool:
    return False


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
    """Install those requirements that are not met, after asking."""
    missing = [requirement for requirement in _requirements(requirements) if not pip_check(requirement)]
    if not missing:
        return None
    if skip_in_testing and slicer.app.testingEnabled():
        logging.info(f"Testing mode is enabled: skipping pip_ensure for {', '.join(map(str, missing))}")
        return None
    if prompt_install:
        title = f"{requester} - Install Python Packages" if requester else "Install Python Packages"
        count = "1 Python package needs" if len(missing) == 1 else f"{len(missing)} Python packages need"
        message = f"{count} to be installed.\n\nThis will modify Slicer's Python environment. Continue?"
        details = "\n".join(f"- {requirement}" for requirement in missing)
        if not slicer.util.confirmOkCancelDisplay(message, title, detailedText=details):
            raise RuntimeError("User declined package installation")
    return pip_install(
        [str(requirement) for requirement in missing],
        constraints=constraints,
        skip_packages=skip_packages,
        show_progress=show_progress,
        requester=requester,
    )


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
    """Install packages with pip; the workbench always waits. With skip_packages, the skipped ones are returned."""
    arguments = list(requirements) if isinstance(requirements, list) else shlex.split(requirements)
    options = ["-c", str(constraints)] if constraints is not None else []
    skipped = None
    if skip_packages:
        skipped = []
        _install_around(arguments, {canonicalize_name(name) for name in skip_packages}, options, skipped, set())
    else:
        slicer.util.pip_install([*arguments, *options])
    if no_deps_requirements:
        extra = no_deps_requirements if isinstance(no_deps_requirements, list) else shlex.split(no_deps_requirements)
        slicer.util.pip_install(["--no-deps", *extra])
    if completedCallback:
        completedCallback(0)
    return skipped


def _install_around(requirements, skip, options, skipped, seen) -> None:
    """Install each requirement and what it requires in turn, without those to be skipped."""
    for requirement in _requirements(list(requirements)):
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name in skip:
            skipped.append(str(requirement))
            continue
        plain = _without_marker(requirement)
        if not pip_check(plain):
            slicer.util.pip_install(["--no-deps", str(plain), *options])
        needed = importlib.metadata.distribution(plain.name).requires or []
        _install_around(needed, skip, options, skipped, seen)
