"""``python -m Workbench [MODULE.py] [--screenshot FILE]``: open the workbench with a scripted module."""

import argparse
import pathlib
import sys

import Workbench

DEFAULT_MODULE = pathlib.Path(__file__).parents[2] / "FoundationReg" / "FoundationReg.py"


def main() -> int:
    parser = argparse.ArgumentParser(prog="Workbench", description=Workbench.__doc__.partition("\n")[0])
    parser.add_argument("module", nargs="?", type=pathlib.Path, default=DEFAULT_MODULE, help="the module's .py file")
    parser.add_argument("--screenshot", metavar="FILE", help="do not open a window, save a picture of it and leave")
    arguments = parser.parse_args()
    workbench = Workbench.start(headless=bool(arguments.screenshot))
    try:
        if arguments.module.exists():
            workbench.load_module(arguments.module)
        if arguments.screenshot:
            workbench.screenshot(arguments.screenshot)
            return 0
        return workbench.run()
    finally:
        workbench.close()


if __name__ == "__main__":
    sys.exit(main())
