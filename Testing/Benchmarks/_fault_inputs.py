"""Damaged and odd inputs, made from sound ones with fixed seeds."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from _fault_runs import Case
from scipy import ndimage

QUICK = [
    *("-e", "mind", "-q", "--set", "iterations=1", "--set", "levels=2,1", "--set", "search_range_mm=6"),
    *("--set", "start=none", "--set", "rigid=false", "--set", "affine=false", "--set", "threads=1"),
]  # fmt: skip
# Of so many inputs one goes through a whole registration.
DEEP = 12
EVIL_NUMBERS = ("nan", "inf", "-inf", "1e999", "1e300", "-1e300", "1e-300", "0", "-1", "-0.0", "2147483648", "1e9",
                "1e-9", "99999999999999999999", "0x10", "", " ", "abc", "None", "true", "[]", "{}", "1,2", "\u0661",
                "1_000", "4096", "100000", "3.5", "--", "\x00", "é" * 500)  # fmt: skip


@cache
def phantom(seed: int = 0) -> np.ndarray:
    """float32 (16, 18, 20): smooth noise around 500."""
    noise = np.random.default_rng(seed).random((16, 18, 20))
    return (1000 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)


def image(array: np.ndarray | None = None) -> sitk.Image:
    return sitk.GetImageFromArray(phantom() if array is None else array)


@cache
def sound(name: str) -> bytes:
    """A sound file of the kind that ``name`` says: ``raw.mha`` and ``packed.mha`` and so on."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name.endswith((".h5", ".tfm")):
            field = sitk.Image([6, 6, 6], sitk.sitkVectorFloat64)
            affine = sitk.AffineTransform(3)
            affine.SetTranslation((1.0, 0.0, 0.5))
            transform = affine if name.startswith("affine") else sitk.DisplacementFieldTransform(field)
            sitk.WriteTransform(transform, str(path))
        else:
            sitk.WriteImage(image(), str(path), useCompression=not name.startswith("raw"))
        return path.read_bytes()


@cache
def good_folder() -> Path:
    """A folder with a sound pair of images and landmarks, for as long as this process runs."""
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="foundationreg-faults-"))
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    for name, shift in (("fixed", 0), ("moving", 1)):
        sitk.WriteImage(image(np.roll(phantom(), shift, 2)), str(folder / f"{name}.nii.gz"))
    return folder


def use(folder: Path, deep: bool, **paths: str | Path) -> list[str]:
    """The arguments of a command that reads sound images, or those in ``paths``: a registration where ``deep``, else
    `evaluate`, which takes a twentieth of the time and reads with the same functions."""
    fixed, moving = (paths.pop(name, good_folder() / f"{name}.nii.gz") for name in ("fixed", "moving"))
    if not deep and not any("mask" in name for name in paths):
        options = [f"--{name.replace('_', '-').replace('initial-', '')}={path}" for name, path in paths.items()]
        return ["evaluate", str(fixed), str(moving), *options]
    options = [f"--{name.replace('_', '-')}={path}" for name, path in paths.items()]
    return ["register", str(fixed), str(moving), f"--transform={folder / 'out.tfm'}", *options, *QUICK]


def flipped(content: bytes, rng: random.Random, reach: int) -> bytes:
    """``content`` with 1 to 6 bytes below ``reach`` changed."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        made[rng.randrange(min(reach, len(made)))] = rng.choice((rng.randrange(256), 0, 255, 0x7F, 0x80, 0x2D, 0x25))
    return bytes(made)


def _file_case(family: str, name: str, file: str, content: bytes, role: str = "fixed", whole: bool = True) -> Case:
    def prepare(folder: Path) -> list[str]:
        (folder / file).write_bytes(content)
        return use(folder, sum(name.encode()) % DEEP == 0, **{role: folder / file})

    return Case(family, name, prepare, whole)


FORMATS = {"raw.nii": 352, "packed.nii.gz": 352, "raw.nrrd": 420, "packed.nrrd": 420, "raw.mha": 330, "packed.mha": 350}


def headers(count: int) -> Iterator[Case]:
    """Bytes of the headers of all formats are changed; of a packed NIfTI file inside of its packing."""
    for n in range(count):
        rng = random.Random(f"headers {n}")
        file = list(FORMATS)[n % len(FORMATS)]
        content = sound(file)
        if file.endswith(".nii.gz"):
            content = gzip.compress(flipped(gzip.decompress(content), rng, FORMATS[file]), 1)
        else:
            content = flipped(content, rng, FORMATS[file])
        yield _file_case("image headers", f"{file} {n}", file, content, rng.choice(("fixed", "moving")))


def fields(count: int) -> Iterator[Case]:
    """Fields of NIfTI, NRRD and MetaImage get values that cannot be."""
    offsets = [(40 + 2 * k, "h") for k in range(8)] + [(70, "h"), (72, "h"), (252, "h"), (254, "h"), (344, "i")]
    offsets += [(76 + 4 * k, "f") for k in range(8)] + [(108, "f"), (112, "f"), (116, "f")]
    offsets += [(256 + 4 * k, "f") for k in range(18)]
    for n in range(count):
        rng = random.Random(f"fields {n}")
        if n % 3 == 0:
            content = bytearray(sound("raw.nii"))
            for offset, code in rng.sample(offsets, rng.choice((1, 2, 4))):
                floats = (float("nan"), float("inf"), 0.0, -1.0, 1e-9, 1e9, 1e30)
                value = rng.choice(floats) if code == "f" else rng.choice((0, -1, 32767, -32768, 1, 2, 3, 255))
                struct.pack_into(f"<{code}", content, offset, value)
            yield _file_case("header fields", f"nii {n}", "raw.nii", bytes(content))
            continue
        file, mark = (("raw.nrrd", b": "), ("raw.mha", b" = "))[n % 3 - 1]
        head, _, rest = sound(file).partition(b"\n\n" if file.endswith("nrrd") else b"LOCAL\n")
        lines = head.split(b"\n")
        for at in rng.sample(range(1, len(lines)), rng.choice((1, 2))):
            key, _, value = lines[at].partition(mark)
            parts = value.split()
            for k in rng.sample(range(len(parts)), min(len(parts), rng.choice((1, 1, 3)))):
                evil = rng.choice(
                    (*EVIL_NUMBERS, "(1,0,0)", "LIST", "%s%n", "ascii", "hex", "gzip", "/dev/zero", "9" * 400)
                )
                parts[k] = evil.encode()
            lines[at] = rng.choice((key + mark + b" ".join(parts), key + mark + b" ".join(parts), b"", key))
        join = b"\n\n" if file.endswith("nrrd") else b"LOCAL\n"
        yield _file_case("header fields", f"{file} {n}", file, b"\n".join(lines) + join + rest)


def streams(count: int) -> Iterator[Case]:
    """Files are cut off anywhere, and bits of packed voxels tip."""
    files = list(FORMATS)
    for n in range(count):
        rng = random.Random(f"streams {n}")
        file = files[n % len(files)]
        content = sound(file)
        if n % 4 == 3 and not file.startswith("raw"):
            place = rng.randrange(len(content) * 2 // 3, len(content) - 12)
            content = content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
            yield _file_case("cut and tipped streams", f"{file} bit {n}", file, content, whole=False)
            continue
        cut = rng.randrange(1, len(content))
        role = rng.choice(("fixed", "moving", "fixed_mask"))
        yield _file_case("cut and tipped streams", f"{file} to {cut}", file, content[:cut], role, whole=False)


def settings(count: int) -> Iterator[Case]:
    """Settings of the command line and of `Settings` itself get values of the wrong kind and size."""
    from dataclasses import fields as fields_of

    from FoundationRegLib.settings import Settings

    names = [field.name for field in fields_of(Settings) if field.name != "preset"]
    odd = (*EVIL_NUMBERS, 0, -3, 10**30, 1e300, float("nan"), float("inf"), None, True, [], {}, (), "mind", ("mind",),
           (1, 2, 4), (4, 4), (3,), "4,4", "cuda:99", "cpu:x", b"x", [[]], [["mind", "x"]], [["mind", -1]],
           object)  # fmt: skip
    for n in range(count):
        rng = random.Random(f"settings {n}")
        name, value = names[n % len(names)], odd[rng.randrange(len(odd))]
        if n % 5 == 0 and isinstance(value, str) and "\x00" not in value:

            def prepare(folder: Path, name=name, value=value) -> list[str]:
                return [*use(folder, True), "--set", f"{name}={value}"]
        elif n % 3 == 1:

            def prepare(folder: Path, name=name, value=value) -> Callable:
                return lambda: Settings.from_dict({name: value})
        else:

            def prepare(folder: Path, name=name, value=value) -> Callable:
                return lambda: Settings(**{name: value})

        yield Case("settings", f"{name}={value!r} {n}", prepare)
    for value in ("-1", "2147483648", "1e9", "x", ""):
        yield Case("settings", f"--seed {value}", lambda folder, v=value: [*use(folder, True), f"--seed={v}"])


def presets(count: int) -> Iterator[Case]:
    """Preset files that hold anything but a preset."""
    whole = {
        "title": "t",
        "summary": "s",
        "settings": {"smoothness": 2.0, "encoders": [["mind", 1.0]], "levels": [2, 1]},
    }
    texts = ["", "[]", "null", "3", '"x"', "{}", '{"settings": []}', '{"settings": {"smoothness": 1e999}}',
             "[" * 100_000,
             '{"settings": {"levels": {}}}', '{"settings": null}', '{"settings": {"preset": []}}', "NaN",
             '{"settings": {"smoothness": NaN}}', '{"settings": {"x": 1}}', '{"a":' * 50_000]  # fmt: skip
    for n in range(count):
        rng = random.Random(f"presets {n}")
        content = texts[n].encode() if n < len(texts) else flipped(json.dumps(whole).encode(), rng, 1000)

        def prepare(folder: Path, content=content, n=n) -> list[str]:
            path = folder / "own.json"
            path.mkdir() if n == count - 1 else path.write_bytes(content)
            return [*use(folder, True), f"--preset={path}"]

        yield Case("presets", str(n), prepare)


def landmarks(count: int) -> Iterator[Case]:
    """Landmark files of all three formats are changed, or hold what no landmark file does."""
    rows = [[2.0, 3.0, 4.0], [5.0, 8.0, 9.0], [10.0, 6.0, 7.0]]
    csv = "x,y,z\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    fcsv = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = id,x,y,z\n" + "".join(
        f"{n}," + ",".join(map(str, row)) + "\n" for n, row in enumerate(rows)
    )
    points = [{"position": row, "label": "a", "positionStatus": "defined"} for row in rows]
    markups = json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]})
    special = {
        "long.csv": "x,y,z\n" + "1" * 140_000 + ",2,3\n",
        "quote.csv": 'x,y,z\n"' + "a" * 140_000, "nul.csv": "x,y,z\n\0,1,2\n",
        "deep.mrk.json": '{"markups":' + "[" * 100_000, "huge.csv": "x,y,z\n1e300,1e300,1e300\n",
        "inf.csv": "1e999,0,0\n",
        "list.mrk.json": "[]", "many.mrk.json": '{"markups": [{"controlPoints": {"a": 1}}]}', "empty.csv": "",
        "position.mrk.json": '{"markups": [{"controlPoints": [{"position": [[1,2,3]]}]}]}', "text.fcsv": "a,b,c,d\n",
    }  # fmt: skip
    texts = {"a.csv": csv, "a.fcsv": fcsv, "a.mrk.json": markups}
    for n in range(count):
        rng = random.Random(f"landmarks {n}")
        if n < len(special):
            file, text = list(special.items())[n]
            content = text.encode()
        else:
            file, text = list(texts.items())[n % 3]
            content = flipped(text.encode(), rng, len(text))
            content = content[: rng.randrange(len(content))] if n % 5 == 0 else content

        def prepare(folder: Path, file=file, content=content, n=n) -> list[str]:
            (folder / f"bad-{file}").write_bytes(content)
            (folder / "good.csv").write_text(csv)
            return use(folder, n % DEEP == 0, fixed_points=folder / f"bad-{file}", moving_points=folder / "good.csv")

        yield Case("landmark files", f"{file} {n}", prepare)


def transforms(count: int) -> Iterator[Case]:
    """Transform files are changed and cut off; lattices are enormous; matrices are singular."""
    head = "#Insight Transform File V1.0\n#Transform 0\n"
    special = {}
    for n, (kind, parameters, fixed) in enumerate(
        (
            ("BSplineTransform_double_3_3", "0 0 0", "100000 100000 100000 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"),
            ("BSplineTransform_double_3_3", "0 0 0", "4e9 4e9 4e9 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"),
            ("DisplacementFieldTransform_double_3_3", "0 0 0", "2000 2000 2000 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"),
            ("AffineTransform_double_3_3", "0 0 0 0 0 0 0 0 0 0 0 0", "0 0 0"),
            ("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 1e300 0 0", "0 0 0"),
            ("AffineTransform_double_3_3", "nan 0 0 0 1 0 0 0 1 0 0 0", "0 0 0"),
            ("AffineTransform_double_3_3", "1 0 0", "0 0 0"),
            ("AffineTransform_double_3_3", "1 0 0 0 1 0 0 0 1 0 0 0", ""),
            ("Euler2DTransform_double_2_2", "0 0 0", "0 0"),
            ("CompositeTransform_double_3_3", "", ""),
            ("NoSuchTransform_double_3_3", "0", "0"),
            ("ScaleTransform_double_3_3", "0 1 1", "0 0 0"),
            ("VersorRigid3DTransform_double_3_3", "5 5 5 0 0 0", "0 0 0"),
        )
    ):
        special[f"special{n}.tfm"] = (
            f"{head}Transform: {kind}\nParameters: {parameters}\nFixedParameters: {fixed}\n".encode()
        )
    files = ["affine.h5", "field.h5", "affine.tfm", "field.tfm"]
    for n in range(count):
        rng = random.Random(f"transforms {n}")
        if n < len(special):
            file, content = list(special.items())[n]
            yield _file_case("transform files", file, file, content, "initial_transform")
            continue
        file = files[n % len(files)]
        content = sound(file)
        cut = n % 3 == 0
        content = content[: rng.randrange(1, len(content) - 1)] if cut else flipped(content, rng, len(content))
        yield _file_case("transform files", f"{file} {n}", file, content, "initial_transform", whole=not cut)


class _Evil:
    def __reduce__(self):
        return (os.abort, ())  # a crash, should it ever run


def checkpoints(count: int) -> Iterator[Case]:
    """Weight files that are damaged, malicious, or grow when they are unpacked."""
    import io

    import torch
    from safetensors.torch import save

    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3, 4), "b": torch.ones(5)}, buffer)
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as plain,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name) + (bytes(50_000_000) if "/data/" in name else b""))
    sources = {"w.pth": buffer.getvalue(), "w.safetensors": save({"a": torch.zeros(3, 4)})}
    special = [bomb.getvalue(), pickle.dumps(_Evil()), pickle.dumps([1, 2]), b"", b"PK\3\4" + b"x" * 50,
               b"\xff" * 8 + b"{", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 2) + b"{}"]  # fmt: skip

    def prepare(folder: Path, file: str, content: bytes) -> Callable:
        (folder / file).write_bytes(content)

        def read() -> None:
            from FoundationRegLib.weights.checkpoints import read_checkpoint

            read_checkpoint(folder / file)

        return read

    for n in range(count):
        rng = random.Random(f"checkpoints {n}")
        file = list(sources)[n % 2]
        cut = False
        if n < len(special):
            content = special[n]
        elif cut := n % 3 == 0:
            content = sources[file][: rng.randrange(1, len(sources[file]) - 1)]
        else:
            content = flipped(sources[file], rng, len(sources[file]))
        yield Case("checkpoints", f"{file} {n}", lambda f, a=file, c=content: prepare(f, a, c), whole=not cut)


def wheels(count: int) -> Iterator[Case]:
    """Python packages that are no zip, lack the file, or are cut off."""
    import io

    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("medsam_lite/w.pth", bytes(1000))

    def prepare(folder: Path, content: bytes) -> list[str]:
        import os

        os.environ["FOUNDATIONREG_MODELS"] = str(folder.parent / "models")
        (folder / "a.whl").write_bytes(content)
        return ["encoders", "import", "medsam-lite", str(folder / "a.whl")]

    for n in range(count):
        rng = random.Random(f"wheels {n}")
        content = (
            flipped(whole.getvalue(), rng, 2000)
            if n % 2
            else whole.getvalue()[: rng.randrange(1, len(whole.getvalue()))]
        )
        yield Case("wheels", str(n), lambda f, c=content: prepare(f, c), whole=False)


# Family: how many inputs all of it has.
SIZES = {"headers": 420, "fields": 360, "streams": 300, "settings": 240, "presets": 60, "landmarks": 150,
         "transforms": 160, "checkpoints": 80, "wheels": 30}  # fmt: skip
