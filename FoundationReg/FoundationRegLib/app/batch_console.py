"""What the command line shows of a run over many pairs: the whole, the pairs at work, and what came out."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from ..core.progress import Event
from .console import bar_columns, output, stoppable, time_left

_MOST_SHOWN = 8
# Seconds between two lines where there is no terminal.
_LINE_EVERY, _JSON_EVERY = 10.0, 0.5


@contextmanager
def batch_progress(quiet: bool = False, as_json: bool = False, console: Console | None = None):
    """Yields ``watch`` and ``stop`` for `runner.run_batch`. Ctrl-C stops after the present steps, twice at once."""
    console = console or Console(stderr=True)
    with stoppable() as wish:
        if as_json:
            yield _throttled(lambda state: print(json.dumps(facts_of(state)), flush=True), _JSON_EVERY), wish.is_set
        elif quiet:
            yield None, wish.is_set
        elif not console.is_terminal:
            yield (
                _throttled(lambda state: print(line_of(state), file=console.file, flush=True), _LINE_EVERY),
                wish.is_set,
            )
        else:
            with Bar(*bar_columns(28), console=console, transient=True) as bar:
                yield _bars(bar, wish), wish.is_set


def _bars(bar: Bar, wish):
    whole = bar.add_task("Starting", total=1.0, left="")
    rows: dict[str, int] = {}

    def watch(state) -> None:
        label = "Stopping" if wish.is_set() else f"{state.found + state.done} of {state.total} results"
        failed = f", {state.failed} failed" if state.failed else ""
        bar.update(whole, completed=state.fraction, description=label + failed, left=_left(state))
        running = dict(list(state.running.items())[:_MOST_SHOWN])
        for id in [id for id in rows if id not in running]:
            bar.remove_task(rows.pop(id))
        for id, (stage, fraction) in running.items():
            if id not in rows:
                rows[id] = bar.add_task("", total=1.0, left="")
            bar.update(rows[id], completed=fraction, description=f"  {id[:26]}", left=stage)

    return watch


def _throttled(show, every: float):
    """``show`` not more often than ``every`` seconds, but always when a result came."""
    last = [-1e9, -1]

    def watch(state) -> None:
        count = state.done + state.failed
        now = time.monotonic()
        if (count != last[1] and (every < 1 or now - last[0] > 1 or state.fraction == 1)) or now - last[0] > every:
            last[:] = now, count
            show(state)

    return watch


def _left(state) -> str:
    return time_left(Event("", state.fraction, seconds_left=state.seconds_left()))


def line_of(state) -> str:
    """One line on how far a run is."""
    running = ", ".join(f"{id} ({stage})" for id, (stage, _) in list(state.running.items())[:3])
    parts = [f"{state.fraction:4.0%}  {state.found + state.done} of {state.total} results"]
    parts += [f"{state.failed} failed"] if state.failed else []
    parts += [part for part in (_left(state), running) if part]
    return "; ".join(parts)


def facts_of(state) -> dict:
    """The same for programs."""
    running = {id: {"stage": stage, "fraction": round(fraction, 4)} for id, (stage, fraction) in state.running.items()}
    return {
        "event": "progress",
        "total": state.total,
        "found": state.found,
        "done": state.done,
        "failed": state.failed,
        "fraction": round(state.fraction, 4),
        "seconds_left": state.seconds_left(),
        "running": running,
    }


def print_outcome(numbers, advice: str, found: int, places: list[Path], as_json: bool = False) -> None:
    """The ranking, the advice, and where the files are. ``numbers``: `cohort.statistics.Numbers`."""
    if as_json:
        facts = {"event": "result", "advice": advice, "ranking": numbers.ranking(), "places": [str(p) for p in places]}
        print(json.dumps(facts), flush=True)
        return
    console = output()
    console.print(ranking_table(numbers))
    console.print(Text(advice))
    if found:
        console.print(Text(f"{found} results were already there.", "dim"))
    for place in places:
        console.print(Text(f"  {place}", "dim"), soft_wrap=True)
    sys.stdout.flush()


def ranking_table(numbers) -> Table:
    """Mean of every metric by variant over the common pairs, the best variant first."""
    metrics = numbers.metrics()
    table = Table("", *[f"{m.title} {m.unit}".strip() for m in metrics], box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, variant: str, end: str = "") -> None:
        spreads = [numbers.spreads(variant, m, None, end) if m.better or not end else None for m in metrics]
        if any(s is not None and s.count for s in spreads):
            texts = [f"{s.mean:.{m.decimals}f}" if s and s.count else "" for s, m in zip(spreads, metrics, strict=True)]
            table.add_row(name, *texts)

    if numbers.variants:
        add("as the images lie", numbers.variants[0], "_before")
        add("linear part alone", numbers.variants[0], "_linear")
    for variant in numbers.ranking():
        add(variant, variant)
    return table
