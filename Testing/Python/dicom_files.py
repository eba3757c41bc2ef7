"""DICOM files written byte by byte (explicit VR, little endian), so that tests decide on every tag."""

import struct

import numpy as np

_LONG = ("OB", "OW", "SQ", "UN")


def element(group: int, number: int, kind: str, value) -> bytes:
    if isinstance(value, str):
        value = value.encode()
        value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int):
        value = struct.pack("<H" if kind == "US" else "<I", value)
    size = struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + size + value


def numbers(values) -> str:
    return "\\".join(f"{v:.6f}".rstrip("0").rstrip(".") for v in values)


def slice_bytes(
    pixels: np.ndarray,
    position=(0.0, 0.0, 0.0),
    axes=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    spacing=(1.0, 1.0),
    number: int = 1,
    series: str = "1.2.3.4",
    without=(),
) -> bytes:
    """One CT slice of int16 ``pixels`` (rows, columns); ``spacing`` between rows and columns in mm. ``without``: tags
    (group, number) that are left out."""
    pixels = np.asarray(pixels, "<i2")
    image = "1.2.840.10008.5.1.4.1.1.2"
    meta = b"".join(
        [
            element(2, 1, "OB", b"\0\1"),
            element(2, 2, "UI", image),
            element(2, 3, "UI", f"{series}.{number}"),
            element(2, 0x10, "UI", "1.2.840.10008.1.2.1"),
            element(2, 0x12, "UI", "1.2.3"),
        ]
    )
    body = [
        (8, 0x16, "UI", image),
        (8, 0x18, "UI", f"{series}.{number}"),
        (8, 0x60, "CS", "CT"),
        (8, 0x103E, "LO", "phantom"),
        (0x20, 0x0D, "UI", "1.2.3.9"),
        (0x20, 0x0E, "UI", series),
        (0x20, 0x13, "IS", str(number)),
        (0x20, 0x32, "DS", numbers(position)),
        (0x20, 0x37, "DS", numbers(axes)),
        (0x28, 2, "US", 1),
        (0x28, 4, "CS", "MONOCHROME2"),
        (0x28, 0x10, "US", pixels.shape[0]),
        (0x28, 0x11, "US", pixels.shape[1]),
        (0x28, 0x30, "DS", numbers(spacing)),
        (0x28, 0x100, "US", 16),
        (0x28, 0x101, "US", 16),
        (0x28, 0x102, "US", 15),
        (0x28, 0x103, "US", 1),
        (0x28, 0x1052, "DS", "0"),
        (0x28, 0x1053, "DS", "1"),
        (0x7FE0, 0x10, "OW", pixels.tobytes()),
    ]
    head = b"\0" * 128 + b"DICM" + element(2, 0, "UL", len(meta)) + meta
    return head + b"".join(element(*item) for item in body if item[:2] not in without)


def write_series(folder, volume: np.ndarray, positions, **options) -> list:
    """Write ``volume`` (slices, rows, columns) with the LPS ``positions`` of its slices; gives the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n, (pixels, position) in enumerate(zip(volume, positions, strict=True)):
        path = folder / f"slice{n:03d}.dcm"
        path.write_bytes(slice_bytes(pixels, position, number=n + 1, **options))
        paths.append(path)
    return paths
