#!/usr/bin/env python3
"""Set up FoundationReg and run it. Needs nothing but Python 3.11 or 3.12, on Linux, macOS or Windows.

    python dev.py demo                 register two real volumes and open the report
    python dev.py register A B -o DIR  any command of foundationreg: register, apply, encoders, evaluate, presets,
                                       batch, compare, sequence
    python dev.py workbench            the module's window, without Slicer
    python dev.py test [ARGUMENTS]     style and the whole test suite; arguments go to pytest
    python dev.py benchmark [NAME]     speed, memory and accuracy
    python dev.py screenshots          take the pictures of the documentation anew
    python dev.py format               format the sources; update the lists and the address that CMake holds
    python dev.py setup                only make .venv, install, and build the compiled kernels

The first run makes the folder .venv and installs into it the versions in constraints.txt; later runs start at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "foundationreg-setup.json"
SUPPORTED = ((3, 12), (3, 11))
CLI_COMMANDS = ("demo", "register", "apply", "encoders", "evaluate", "presets")
BATCH_COMMANDS = ("batch", "compare", "sequence")

# What Qt and VTK load at run time on Linux, and the Debian package that brings it.
SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libOpenGL.so.0": "libopengl0",
    "libX11.so.6": "libx11-6",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
}
# What a window on the screen needs beyond that.
WINDOW_LIBRARIES = {
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}


def say(message: str) -> None:
    print(f"[dev] {message}", flush=True)


def run(*command, **options) -> None:
    """Run a command that has to succeed; otherwise end with its exit status."""
    status = subprocess.run([str(part) for part in command], cwd=ROOT, **options).returncode
    if status:
        say(f"This did not work (exit code {status}): {' '.join(str(part) for part in command)}")
        sys.exit(status)


# Python


def version_of(python) -> tuple[int, int] | None:
    """(major, minor) of an interpreter that can make virtual environments, or None."""
    probe = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([*python, "-c", probe], capture_output=True, text=True, timeout=60)
        return tuple(int(n) for n in answer.stdout.split()) if answer.returncode == 0 else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def suitable_python() -> list[str]:
    """Command of a supported interpreter: this one, or another on this computer."""
    candidates = [[sys.executable]]
    for major, minor in SUPPORTED:
        candidates += [[f"python{major}.{minor}"], ["py", f"-{major}.{minor}"]]
    for python in candidates:
        if (shutil.which(python[0]) or Path(python[0]).exists()) and version_of(python) in SUPPORTED:
            return python
    ours = ".".join(str(n) for n in sys.version_info[:2])
    hint = ""
    if sys.version_info[:2] in SUPPORTED:
        ours += " without the modules venv and ensurepip"
        hint = f" On Debian and Ubuntu: apt-get install python{ours.split()[0]}-venv."
    sys.exit(f"[dev] FoundationReg needs Python 3.11 or 3.12; this is {ours}, and no other was found.{hint}")


# Installation


def wanted_setup(python_version) -> str:
    """Fingerprint of everything that decides what is installed."""
    kernels = sorted((ROOT / "FoundationReg" / "Resources" / "Kernels").glob("*.?pp"))
    parts = [path.read_bytes() for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", *kernels)]
    parts.append(f"{python_version} {platform.system()} {platform.machine()} {ROOT}".encode())
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def pinned(name: str) -> str:
    """``name==version`` as constraints.txt has it."""
    return re.search(rf"(?mi)^{re.escape(name)}==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8")).group()


def set_up(extra: str) -> None:
    """Make .venv and install the package with ``extra``, unless that was done before."""
    if VENV_PYTHON.exists():
        version = version_of([VENV_PYTHON])
        if version not in SUPPORTED:
            sys.exit(f"[dev] The folder {VENV} holds no working Python 3.11 or 3.12. Delete it and run this again.")
    else:
        python = suitable_python()
        version = version_of(python)
        say(f"Making .venv with Python {version[0]}.{version[1]}")
        run(*python, "-m", "venv", VENV)

    setup = wanted_setup(version)
    try:
        done = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        done = {}
    extras = done.get("extras", []) if done.get("setup") == setup else []
    if extra in extras:
        return

    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    pip = [VENV_PYTHON, "-m", "pip", "install", *quiet, "--disable-pip-version-check"]
    torch = pinned("torch")
    note = "; on Linux it may bring GPU libraries, some gigabytes" if platform.system() == "Linux" else ""
    say(f"Installing PyTorch ({torch}{note})")
    run(*pip, torch)
    say(f"Installing FoundationReg with [{extra}] into .venv, versions from constraints.txt")
    run(*pip, "--constraint", "constraints.txt", "--editable", f".[{','.join(sorted({*extras, extra}))}]")
    STAMP.write_text(json.dumps({"setup": setup, "extras": sorted({*extras, extra})}), encoding="utf-8")
    build_kernels()
    say("Installed.")


def build_kernels() -> None:
    """Build the compiled kernels where there is a C++ compiler; everything works without them, only more slowly."""
    say("Building the compiled kernels (a C++ compiler makes them; without one, PyTorch does their work more slowly)")
    run(VENV_PYTHON, "-m", "FoundationRegLib.native.build", "--optional")


def missing_packages(libraries: dict[str, str]) -> list[str]:
    """Debian packages of the shared libraries that this Linux cannot load."""
    missing = []
    for library, package in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    return missing


def ensure_system_libraries(libraries: dict[str, str]) -> None:
    """Install what Qt and VTK need from a bare Debian, or say what is missing."""
    packages = missing_packages(libraries) if platform.system() == "Linux" else []
    if not packages:
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        say(f"Installing system libraries for Qt and VTK: {' '.join(packages)}")
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
        run("apt-get", "update", "-qq", **quiet)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, **quiet)
    else:
        how = f"sudo apt-get install {' '.join(packages)}" if shutil.which("apt-get") else " ".join(packages)
        say(f"Qt and VTK may need system libraries that this computer lacks. Install them: {how}")


# Commands


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONUTF8": "1", **more}


def call(*command, **more: str) -> int:
    """Exit status of a command run with the Python of .venv in the caller's folder. Ctrl-C is the command's affair."""
    process = subprocess.Popen([str(VENV_PYTHON), *map(str, command)], env=environment(**more))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def test(arguments: list[str]) -> int:
    set_up("test")
    ensure_system_libraries(SYSTEM_LIBRARIES)
    os.chdir(ROOT)
    say("Checking style")
    style = call("-m", "ruff", "check", ".") or call("-m", "ruff", "format", "--check", ".")
    say("Running the tests")
    offscreen = {"QT_QPA_PLATFORM": os.environ.get("QT_QPA_PLATFORM", "offscreen"), "MPLBACKEND": "Agg"}
    return call("-m", "pytest", *arguments, **offscreen) or style


def workbench(arguments: list[str]) -> int:
    set_up("workbench")
    ensure_system_libraries({**SYSTEM_LIBRARIES, **WINDOW_LIBRARIES})
    paths = [str(ROOT / "Testing"), os.environ.get("PYTHONPATH", "")]
    return call("-m", "Workbench", *arguments, PYTHONPATH=os.pathsep.join(filter(None, paths)))


def screenshots(arguments: list[str]) -> int:
    set_up("workbench")
    ensure_system_libraries(SYSTEM_LIBRARIES)
    return call(ROOT / "Testing" / "screenshots.py", *arguments, QT_QPA_PLATFORM="offscreen")


def benchmark(arguments: list[str]) -> int:
    folder = ROOT / "Testing" / "Benchmarks"
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if not arguments or arguments[0] not in names:
        print(f"python dev.py benchmark NAME, where NAME is one of: {', '.join(names) or '(there is none yet)'}")
        return 0 if not arguments else 2
    set_up("test")
    return call(folder / f"{arguments[0]}.py", *arguments[1:])


def format_sources(arguments: list[str]) -> int:
    set_up("test")
    os.chdir(ROOT)
    list_shipped_files()
    write_public_address()
    return call("-m", "ruff", "check", "--fix", ".") or call("-m", "ruff", "format", ".")


def shipped_files() -> dict[str, list[str]]:
    """What FoundationReg/CMakeLists.txt has to list: paths from the folder FoundationReg by CMake variable."""
    module = ROOT / "FoundationReg"
    files = [path.relative_to(module) for path in module.rglob("*") if path.is_file()]
    files = [path for path in files if not {"__pycache__", "foundationreg.egg-info"} & set(path.parts)]
    scripts = sorted(path.as_posix() for path in files if path.suffix == ".py")
    resources = sorted(path.as_posix() for path in files if path.parts[0] == "Resources" and path.suffix != ".py")
    return {"MODULE_PYTHON_SCRIPTS": scripts, "MODULE_PYTHON_RESOURCES": resources}


def list_shipped_files() -> None:
    cmake = ROOT / "FoundationReg" / "CMakeLists.txt"
    text = cmake.read_text(encoding="utf-8")
    for variable, files in shipped_files().items():
        block = "".join(f"\n  {name}" for name in [variable, *files]).replace("\n  ", "", 1)
        text = re.sub(rf"set\({variable}\n[^)]*\)", lambda _, block=block: f"set({block}\n  )", text)
    cmake.write_text(text, encoding="utf-8", newline="\n")


def write_public_address() -> None:
    """Bring the index description and the module in line with CMakeLists.txt, which holds the project's address."""
    homepage = re.search(r'EXTENSION_HOMEPAGE "([^"]+)"', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))[1]
    path = ROOT / "Resources" / "FoundationReg.json"
    description = {**json.loads(path.read_text(encoding="utf-8")), "scm_url": f"{homepage}.git"}
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8", newline="\n")
    module = ROOT / "FoundationReg" / "FoundationReg.py"
    text = re.sub(r'(?m)^(HOMEPAGE = )".*"', rf'\1"{homepage}"', module.read_text(encoding="utf-8"))
    module.write_text(text, encoding="utf-8", newline="\n")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    command, rest = arguments[0], arguments[1:]
    own = {"test": test, "workbench": workbench, "benchmark": benchmark, "format": format_sources,
           "screenshots": screenshots}  # fmt: skip
    try:
        if command in own:
            return own[command](rest)
        if command == "setup":
            set_up(rest[0] if rest else "run")
            build_kernels()
            return 0
        if command in CLI_COMMANDS:
            set_up("run")
            return call("-m", "FoundationRegLib.app.cli", command, *rest)
        if command in BATCH_COMMANDS:
            set_up("run")
            set_up("batch")
            return call("-m", "FoundationRegLib.app.cli", command, *rest)
    except KeyboardInterrupt:
        return 130
    print(f"There is no command {command!r}.\n\n{__doc__.strip()}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
