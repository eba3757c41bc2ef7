"""Stand-ins for the registration of a pair. The text in the pair's fixed file chooses what happens."""

import argparse
import os
import signal
import sys
import time
import zlib
from pathlib import Path

from FoundationRegLib.cohort.cluster import Where
from FoundationRegLib.cohort.job import Options, Variant
from FoundationRegLib.cohort.pairs import read_pairs
from FoundationRegLib.cohort.runner import run_batch
from FoundationRegLib.errors import InputError

OPTIONS = Options(produce="fake_produce:produce", keep="scores")
VARIANTS = [Variant(f"smoothness {s}", f"s{s}", {"smoothness": s}) for s in (1, 2)]


def dice_of(text: str, smoothness: int) -> float:
    """A number between 0.7 and 0.9 that follows from the pair and the variant."""
    return 0.7 + 0.2 * zlib.crc32(f"{text} {smoothness}".encode()) / 2**32


def produce(files, settings, options, folder, progress, cache):
    path = Path(files["fixed"])
    text = path.read_text(encoding="utf-8")
    if text.startswith("kill"):
        note = path.with_suffix(f".{os.getpid()}.died")
        if text == "kill always" or not list(path.parent.glob(f"{path.stem}.*.died")):
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if text == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if text == "refuse":
        raise InputError("The fixed image is empty.")
    if text == "bug":
        raise ZeroDivisionError("a bug")
    if text == "vanished":
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if text == "fill":
        (folder / "warped.nii.gz").write_bytes(bytes(2_000_000))
    if text == "memory":
        held = [bytearray(os.urandom(1)) * 50_000_000 for _ in range(60)]
        time.sleep(30)
        del held
    with progress.stage("refine", 1.0):
        for n in range(4):
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0.004")) / 4)
            progress.update(n / 4)
    dice = dice_of(text, settings["smoothness"])
    after = {"dice": dice, "dice_per_label": {"1": dice, "2": dice / 2}, "folded_percent": 0.0}
    return {
        "metrics": {"before": {"dice": 0.5}, "linear": {"dice": 0.6}, "after": after},
        "quality": "Fine.",
        "warnings": [],
    }


def write_table(folder: Path, texts: dict[str, str], **columns: dict[str, str]) -> Path:
    """pairs.csv with a pair for each id in ``texts``, whose fixed file holds the text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "moving.txt").write_text("moving")
    lines = [",".join(["id", "fixed", "moving", *columns])]
    for id, text in texts.items():
        (folder / f"{id}.txt").write_text(text, encoding="utf-8")
        lines.append(",".join([id, f"{id}.txt", "moving.txt", *(column.get(id, "") for column in columns.values())]))
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("table")
    parser.add_argument("output")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--most-bytes", type=int, help="size that no file can exceed, like a disk that fills")
    args = parser.parse_args()
    if args.most_bytes:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.most_bytes, args.most_bytes))
    outcome = run_batch(read_pairs(args.table), VARIANTS, args.output, OPTIONS, Where(workers=args.workers))
    return int(outcome.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
