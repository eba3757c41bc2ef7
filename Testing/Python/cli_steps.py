"""Calls of the command line and looks at what they left, for its tests."""

import SimpleITK as sitk
from FoundationRegLib.app import cli

RESULTS = {"transform.h5", "warped.nii.gz", "jacobian.nii.gz", "result.json", "report.html"}


def register(folder, *more, fixed="fixed.nii.gz", moving="moving.nii.gz"):
    return cli.main(["register", str(folder / fixed), str(folder / moving), "--encoder", "mind", *map(str, more)])


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def refused(capsys, *arguments):
    """The one sentence that a call with bad input prints; checks its form and the exit code."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("foundationreg: ")]
    assert len(lines) == 1 and "Traceback" not in err and out == "", err
    return lines[0].removeprefix("foundationreg: ")


def write(path, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing[: made.GetDimension()])
    made.SetOrigin(origin[: made.GetDimension()])
    sitk.WriteImage(made, str(path))
