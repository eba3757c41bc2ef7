"""What the worker reports, in the words of the panel."""

from __future__ import annotations

from slicer.i18n import tr as _


def stage_title(stage: str) -> str:
    """The name of a stage of the registration; what follows its first word (an encoder, a voxel size) stays."""
    titles = {
        "load": _("Reading"),
        "align": _("Aligning"),
        "start": _("Finding a start"),
        "linear": _("Aligning"),
        "rigid": _("Rigid alignment"),
        "affine": _("Affine alignment"),
        "prepare": _("Preparing"),
        "deform": _("Deforming"),
        "encode": _("Encoding"),
        "search": _("Searching"),
        "refine": _("Refining"),
        "output": _("Making the outputs"),
    }
    word, _space, rest = stage.partition(" ")
    return " ".join(part for part in (titles.get(word, word.capitalize()), rest) if part)


def time_left(seconds: float | None) -> str:
    """Like "about 40 s left", rounded as one would say it; empty when unknown."""
    if seconds is None:
        return ""
    if seconds < 90:
        return _("about {seconds} s left").format(seconds=max(1, round(seconds)))
    return _("about {minutes} min left").format(minutes=round(seconds / 60))


def device_text(answer: dict) -> str:
    """The device line from the worker's answer to ``warm``."""
    text = _("PyTorch {version} on {name}").format(version=answer["torch"], name=answer["name"])
    if answer.get("memory"):
        text += _(", {memory:.1f} GB free").format(memory=answer["memory"] / 1e9)
    elif answer.get("device") == "cpu":
        text += _(", {threads} threads").format(threads=answer.get("threads"))
        if answer.get("compiled_kernels") == "none":
            text += _(", without compiled kernels (about half as fast)")
    if answer.get("problem"):
        text += _(". The graphics card cannot be used ({problem}); see the PyTorch Utils module.").format(
            problem=answer["problem"]
        )
    return text
