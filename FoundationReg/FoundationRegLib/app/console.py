"""What the command line shows while it works, and how Ctrl-C reaches the work."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from ..core.files import printable
from ..core.progress import Event, Progress
from ..evaluation.titles import METRICS, metric_text


@contextmanager
def stoppable():
    """A `threading.Event` that the first Ctrl-C (or a polite kill) sets; the second interrupts at once."""
    wish = threading.Event()

    def stop(number, frame):
        if wish.is_set():
            raise KeyboardInterrupt
        wish.set()

    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(quiet: bool = False, console: Console | None = None):
    """A `Progress` shown on stderr: a bar on a terminal, one line for each stage elsewhere. Ctrl-C cancels it."""
    console = console or Console(stderr=True)
    with stoppable() as wish:
        if quiet:
            yield Progress(should_cancel=wish.is_set)
        elif not console.is_terminal:
            yield Progress(_lines(console), should_cancel=wish.is_set)
        else:
            with Bar(*bar_columns(22), console=console, transient=True) as bar:
                task = bar.add_task("Starting", total=1.0, left="")

                def show(event: Event) -> None:
                    label = "Stopping" if wish.is_set() else label_of(event)
                    bar.update(task, completed=event.fraction, description=label[:40], left=time_left(event))

                yield Progress(show, should_cancel=wish.is_set)


def bar_columns(label_width: int) -> tuple:
    """Label, bar, percentage and time left, which a task has as its field ``left``."""
    return (
        TextColumn(f"{{task.description:<{label_width}}}"),
        BarColumn(bar_width=36),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", style="dim"),
    )


def _lines(console: Console):
    said = set()

    def show(event: Event) -> None:
        label = label_of(event)
        if label and label not in said:
            said.add(label)
            print(f"{event.fraction:4.0%}  {label}", file=console.file, flush=True)

    return show


def label_of(event: Event) -> str:
    """The event's message, or its stage with a capital letter."""
    return event.message or event.stage[:1].upper() + event.stage[1:]


def time_left(event: Event) -> str:
    """The event's ``seconds_left`` in words, or nothing while unknown."""
    if event.seconds_left is None:
        return ""
    seconds = round(event.seconds_left)
    return f"{seconds} s left" if seconds < 100 else f"{round(seconds / 60)} min left"


def metrics_table(**columns: dict[str, Any]) -> Table:
    """Table with a row for each metric that one of the ``columns`` (title to scores) holds."""
    table = Table("", *[title.replace("_", " ").capitalize() for title in columns], box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for key, (title, *_) in METRICS.items():
        if any(scores.get(key) is not None for scores in columns.values()):
            table.add_row(title, *[metric_text(key, scores.get(key)) for scores in columns.values()])
    return table


def output() -> Console:
    """Standard output. Lines are not cut where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def print_result(result, places: list[Path]) -> None:
    """What a registration found, and where its files are."""
    console = output()
    console.print(metrics_table(**result.metrics))
    console.print(Text(result.quality))
    for warning in result.warnings:
        console.print(Text(f"Warning: {warning}", "yellow"))
    for place in places:
        console.print(Text(f"  {printable(place)}", "dim"), soft_wrap=True)


def print_encoders(entries: list[dict[str, Any]], folder: Path, trusted: list[str]) -> None:
    """The catalogue, each entry as `weights.status` describes it, and the user's own files that are ``trusted``."""
    table = Table("Id", "Encoder", "State", "Size", "CPU", "Licence", "Suits", box=SIMPLE_HEAD)
    for item in entries:
        size = f"{item['bytes'] / 1e6:,.0f} MB" if item["bytes"] else "–"
        missing = "needs a file" if item["needs"] == "file" else "to download"
        state = Text("ready", "green") if item["ready"] else Text(missing, "dim")
        seconds = f"{item['seconds_cpu']:g} s" if item["seconds_cpu"] else "–"
        table.add_row(item["id"], item["title"], state, size, seconds, item["licence"] or "–", item["suits"])
    console = output()
    console.print(table)
    console.print(Text("CPU: about the time of one slice on two cores; graphics cards take a small part of it."))
    console.print(Text(f"Weights lie in {folder}"), soft_wrap=True)
    for file in trusted:
        console.print(Text(f"Trusted to run: {file}"), soft_wrap=True)


def print_presets(presets: dict[str, dict[str, Any]]) -> None:
    """Id, title and summary of every preset."""
    table = Table("Id", "Preset", "For", box=SIMPLE_HEAD)
    for name, preset in presets.items():
        table.add_row(name, preset.get("title", ""), preset.get("summary", ""))
    output().print(table)
