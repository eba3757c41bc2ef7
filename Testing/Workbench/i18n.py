"""Stand-in for ``slicer.i18n`` (Base/Python/slicer/i18n.py): the workbench speaks English only."""


def translate(context: str, text: str) -> str:
    return text


def tr(text: str) -> str:
    return text
