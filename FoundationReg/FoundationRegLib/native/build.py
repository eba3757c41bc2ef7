"""Build the compiled kernels with the computer's own C++ compiler. Standard library only.

    python -m FoundationRegLib.native.build [--output FOLDER] [--compiler COMMAND] [--optional]

One shared library is made for each kind of processor in `VARIANTS`; which one runs is found out when it is loaded. Its
name holds a fingerprint of the sources and options, so that a library of other sources is never taken for it.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from ..core.files import replacing
from ..core.resources import cache_path, resource_path

# Options by processor and compiler family, the plainest first. The names are those of torch's CPU capabilities.
VARIANTS = {
    "x86": {
        "DEFAULT": {"gcc": [], "cl": []},
        "AVX2": {"gcc": ["-mavx2", "-mfma"], "cl": ["/arch:AVX2"]},
    },
    "other": {"DEFAULT": {"gcc": [], "cl": []}},
}
# Errors of the mathematical library and floating-point traps are not looked at; without that no loop with a condition
# becomes vector code. What is not a number stays what it is.
_OPTIONS = {
    "gcc": [
        *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC", "-shared"),
        *("-pthread", "-Wno-psabi"),
    ],
    "cl": ["/nologo", "/std:c++17", "/O2", "/EHsc", "/LD", "/MD"],
}
_SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}


class BuildError(Exception):
    """No compiler was found, or it refused; one sentence for the user, then the compiler's own words."""


def sources() -> list[Path]:
    """The C++ files of the kernels."""
    return sorted(resource_path("Kernels").glob("*.cpp"))


def variants() -> dict[str, dict[str, list[str]]]:
    """`VARIANTS` of this computer's processor."""
    return VARIANTS["x86" if platform.machine().lower() in ("x86_64", "amd64") else "other"]


@functools.cache
def fingerprint() -> str:
    """What the names of libraries built from these sources with these options hold."""
    files = [*sources(), *sorted(resource_path("Kernels").glob("*.hpp"))]
    parts = [path.read_bytes().replace(b"\r\n", b"\n") for path in files]
    parts.append(repr((VARIANTS, _OPTIONS, platform.machine())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def library_name(variant: str) -> str:
    suffix = _SUFFIX.get(platform.system(), ".so")
    return f"foundationreg-kernels-{variant.lower()}-{fingerprint()}{suffix}"


def user_folder() -> Path:
    """Where libraries lie that the user had built: beside the user's weights, in the system's place for caches."""
    return cache_path("kernels")


def find_compiler() -> list[str]:
    """The command of a C++ compiler: that of the environment variable CXX, or a usual one. Raises `BuildError`."""
    chosen = os.environ.get("CXX", "").strip()
    usual = ["cl", "clang++", "g++"] if os.name == "nt" else ["c++", "g++", "clang++"]
    for command in [shlex.split(chosen, posix=os.name != "nt")] if chosen else [[name] for name in usual]:
        if shutil.which(command[0]):
            return command
    looked_for = chosen or ", ".join(usual)
    raise BuildError(f"There is no C++ compiler on this computer (looked for {looked_for}).")


def build(folder: Path | None = None, compiler: list[str] | None = None) -> list[Path]:
    """Build what is missing of the libraries in ``folder`` (default: `user_folder`) and return their paths.

    Each appears under its name when it is whole. Those of other sources stay: another installation may use them.
    Raises `BuildError`.
    """
    folder = folder or user_folder()
    paths = {variant: folder / library_name(variant) for variant in variants()}
    missing = [variant for variant, path in paths.items() if not path.is_file()]
    if missing:
        compiler = compiler or find_compiler()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(f"The folder {folder} cannot be made: {error.strerror}.") from None
    for variant in missing:
        _compile(compiler, variant, paths[variant])
    return list(paths.values())


def _compile(compiler: list[str], variant: str, path: Path) -> None:
    family = "cl" if Path(compiler[0]).stem.lower() == "cl" else "gcc"
    options = [*_OPTIONS[family], *variants()[variant][family]]
    try:
        with replacing(path, path.suffix) as temporary:
            target = [f"/Fe:{temporary}", f"/Fo:{temporary.parent}{os.sep}"] if family == "cl" else ["-o", temporary]
            command = [*compiler, *options, *sources(), *target]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace")
            if done.returncode:
                words = (done.stderr or done.stdout).strip()
                raise BuildError(f"The compiler {compiler[0]} did not build the kernels.\n{words[-2000:]}")
    except OSError as error:
        raise BuildError(f"The kernels cannot be built in {path.parent}: {error.strerror or error}.") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m FoundationRegLib.native.build", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the libraries (default: the user's cache)")
    parser.add_argument("--compiler", help="command of the C++ compiler (default: CXX, or a usual one)")
    parser.add_argument("--optional", action="store_true", help="succeed where they cannot be built")
    chosen = parser.parse_args(arguments)
    try:
        paths = build(chosen.output, [chosen.compiler] if chosen.compiler else None)
    except BuildError as error:
        print(f"{error}\nFoundationReg works without them, more slowly on the CPU.", file=sys.stderr)
        return 0 if chosen.optional else 1
    print(f"Compiled kernels: {', '.join(str(path) for path in paths)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
