"""What the benchmarks share: fresh processes, peak memory, the machine's description, tables as CSV and HTML.

Importing this loads nothing heavy: what a benchmark's parent process holds would count in its children's peak memory.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "convexAdam", "antspyx", "itk-elastix", "picsl-greedy")
STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #888 }
tbody tr:nth-child(even) { background: #f4f6f8 } img { max-width: 100% } .note { color: #666 }"""

# The library, also where it is not installed.
sys.path.insert(0, str(Path(__file__).parents[2] / "FoundationReg"))


def run_fresh(script: str, *arguments: str, limit_s: float | None = None) -> dict:
    """The JSON object that ``script`` prints last, run in a process of its own; ``{"failed": why}`` when it fails."""
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit_s:.0f} s"}
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": said[-1].strip()[:200] if said else f"exit code {done.returncode}: not enough memory?"}
    return json.loads(done.stdout.splitlines()[-1])


def start_memory(device: str) -> None:
    """Begin to count the peak of a GPU's memory."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str = "cpu") -> int:
    """Bytes: the peak of the GPU's allocations, or of what this process kept in main memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    try:
        # Linux counts the parent's peak in ru_maxrss of a child, but not in this.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def synchronize(device: str) -> None:
    """Wait for the work that was handed to a GPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def machine(device: str = "cpu") -> str:
    """One line on the hardware."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{_processor()}, {cores} cores, {platform.system()}"
    if device.startswith("cuda"):
        import torch

        text = f"{torch.cuda.get_device_name(device)}; {text}"
    return text


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> str:
    """Python and the installed ones of the packages that matter."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def today() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; none when it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write ``rows`` as CSV, their columns in the order of first appearance; either the whole file or nothing."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def number(value) -> float | None:
    """``value`` of a row as a number; None where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def shown(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def html_table(header: list[str], rows: list[list[str]], bold: set[tuple[int, int]] = frozenset()) -> str:
    """``rows`` of texts under ``header``; ``bold`` holds (row, column) of the cells to stress."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    lines = []
    for i, row in enumerate(rows):
        cells = [html.escape(text) for text in row]
        cells = [f"<b>{cell}</b>" if (i, j) in bold else cell for j, cell in enumerate(cells)]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def html_page(title: str, parts: list[str]) -> str:
    """A self-contained page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def html_picture(figure, path: Path, alt: str) -> str:
    """Save a matplotlib ``figure`` as PNG at ``path`` and return it as an element that holds its data."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def pyplot():
    """matplotlib.pyplot that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
