"""The files of one registration: transform, images, segmentations, report and record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.files import printable

RESULT_FILES = ("transform.h5", "warped.nii.gz", "jacobian.nii.gz", "warped_labels.nii.gz", "report.html",
                "result.json")  # fmt: skip


def write_results(result, fixed: str, moving: str, folder: Path, outputs, progress, initial=None) -> None:
    """Every file of a registration for ``folder``, into the places that ``outputs`` gives.

    ``fixed`` and ``moving`` are the images' paths, ``initial`` the initial transform, for the report.
    """
    from ..images.writing import write_image, write_transform
    from ..reporting.report import write_report

    write_transform(result.transform, outputs.path(folder / "transform.h5"))
    progress.update(0.2)
    write_image(result.warped, outputs.path(folder / "warped.nii.gz"))
    write_image(result.jacobian(), outputs.path(folder / "jacobian.nii.gz"))
    if result.warped_labels is not None:
        write_image(result.warped_labels, outputs.path(folder / "warped_labels.nii.gz"))
    elif (folder / "result.json").exists():  # an earlier run's labels would be taken for this one's
        outputs.drop(folder / "warped_labels.nii.gz")
    write_segmentations(result, folder, outputs)
    progress.update(0.5)
    write_report(
        result,
        outputs.path(folder / "report.html"),
        *(printable(Path(image).name) for image in (fixed, moving)),
        initial,
    )
    record = {
        "foundationreg": __version__,
        "fixed": str(fixed),
        "moving": str(moving),
        "quality": result.quality,
        "warnings": result.warnings,
        "metrics": result.metrics,
        "record": result.record,
        "files": [place.name for place in outputs.places],
    }
    text = json.dumps(plain(record), indent=2, allow_nan=False)
    outputs.path(folder / "result.json").write_text(text + "\n", encoding="utf-8")


def write_segmentations(result, folder: Path, outputs) -> None:
    """Predicted regions and the boxes' masks of both images; an earlier run's are deleted where there are none now."""
    from ..images.writing import write_image

    regions, masks = result.regions, result.box_masks
    found: dict[str, Any] = {}
    for n, side in enumerate(("fixed", "moving")):
        found[f"{side}_predicted.nii.gz"] = getattr(regions, side).labels if regions else None
        found[f"{side}_box_mask.nii.gz"] = masks[n] if masks else None
    for name, image in found.items():
        if image is not None:
            write_image(image, outputs.path(folder / name))
        elif (folder / "result.json").exists():
            outputs.drop(folder / name)
    names = folder / "predicted_names.json"
    if regions:
        content = {
            "network": regions.network,
            "note": "Predicted by a network, not drawn by a person.",
            "believed": regions.believed,
            "names": {str(number): name for number, name in enumerate(regions.fixed.names, 1)},
        }
        outputs.path(names).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    elif (folder / "result.json").exists():
        outputs.drop(names)


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it; what is not a finite number becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
