"""The grid of a sweep's cells: which runs are done, running, cut, failed or missing. Behind `make status`."""

from __future__ import annotations

import sys
from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.cells import Planned, parse
from experiments.config import RunConfig, UsageError
from experiments.predict import duration, known_paces, pace_so_far
from experiments.runner import Status, folder_of, resumable_step, status_of

COLOURS = {
    Status.DONE: "green",
    Status.RUNNING: "yellow",
    Status.CUT: "cyan",
    Status.FAILED: "red",
    Status.MISSING: "dim",
}
WIDE = 200
"""Columns where there is no terminal."""


Found = list[tuple[RunConfig, Status]]


def look(planned: list[Planned]) -> Found:
    """Each run and its status, which takes a look at its locks: once, for all that is said of it."""
    return [(run.config, status_of(run.config)) for run in planned]


def grid(found: Found) -> Table:
    """One row per data set and model, one column per method; a cell counts its runs by status.

    Of cut runs it says from which steps they would go on, of running ones where they are.
    """
    methods = list(dict.fromkeys(config.method.name for config, _ in found))
    rows: dict[tuple[str, str], dict[str, Found]] = {}
    for config, status in found:
        row = rows.setdefault((config.dataset.name, config.model.name), {})
        row.setdefault(config.method.name, []).append((config, status))
    table = Table("data set", "model", *methods, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for names, row in rows.items():
        table.add_row(*names, *(_cell(row[method]) for method in methods))
    return table


def _cell(runs: Found) -> str:
    steps: dict[Status, list[int]] = {Status.CUT: [], Status.RUNNING: []}
    for config, status in runs:
        if status is Status.CUT:
            steps[status].append(resumable_step(config) or 0)
        elif status is Status.RUNNING:
            steps[status].append(pace_so_far(folder_of(config))[0])
    where = {status: " at " + ", ".join(f"{step:,}" for step in known) for status, known in steps.items()}
    counts = Counter(status for _, status in runs)
    return "\n".join(f"[{COLOURS[s]}]{counts[s]} {s.value}{where.get(s, '')}[/]" for s in Status if counts[s])


def time_left(found: Found) -> str:
    """How long the runs to do would take one after the other, by the clocks of finished runs and their own."""
    todo = [(config, status) for config, status in found if status not in (Status.DONE, Status.FAILED)]
    if not todo:
        return ""
    paces = known_paces([config for config, _ in todo])
    seconds, unknown, certain = 0.0, 0, True
    for config, status in todo:
        step, own = pace_so_far(folder_of(config)) if status is Status.RUNNING else (resumable_step(config) or 0, None)
        pace = paces.of(config) or own
        if pace is None:
            unknown += 1
            continue
        certain &= pace.steps is not None
        seconds += pace.seconds(config.protocol.max_steps, step)
    if unknown == len(todo):
        return f"{unknown} runs to do; no run of their cells has been timed."
    most = "about" if certain else "at most"
    rest = f"; {unknown} of them are not counted, as no run of their cells has been timed" if unknown else ""
    return f"{len(todo)} runs to do: {most} {duration(seconds)} one after the other{rest}."


def main() -> int:
    """Command line; returns the exit status."""
    try:
        found = look(parse("python -m experiments.status", __doc__ or ""))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A file or a pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else WIDE).print(grid(found))
    if left := time_left(found):
        print(left)
    return 0


if __name__ == "__main__":
    sys.exit(main())
