"""The grid of a sweep's cells: which runs are done, running, cut, failed or missing. Behind `make status`."""

from __future__ import annotations

import sys
from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.cells import Planned, parse
from experiments.config import RunConfig, UsageError
from experiments.runner import Status, resumable_step, status_of

COLOURS = {
    Status.DONE: "green",
    Status.RUNNING: "yellow",
    Status.CUT: "cyan",
    Status.FAILED: "red",
    Status.MISSING: "dim",
}
WIDE = 200
"""Columns where there is no terminal."""


def grid(planned: list[Planned]) -> Table:
    """One row per data set and model, one column per method; a cell counts its runs by status.

    Of cut runs it says from which steps they would go on.
    """
    methods = list(dict.fromkeys(run.config.method.name for run in planned))
    rows: dict[tuple[str, str], dict[str, list[RunConfig]]] = {}
    for run in planned:
        row = rows.setdefault((run.config.dataset.name, run.config.model.name), {})
        row.setdefault(run.config.method.name, []).append(run.config)
    table = Table("data set", "model", *methods, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for names, row in rows.items():
        table.add_row(*names, *(_cell(row[method]) for method in methods))
    return table


def _cell(configs: list[RunConfig]) -> str:
    statuses = [status_of(config) for config in configs]
    steps = [resumable_step(config) for config, status in zip(configs, statuses, strict=True) if status is Status.CUT]
    where = {Status.CUT: " at " + ", ".join(f"{step:,}" for step in steps if step is not None)}
    counts = Counter(statuses)
    return "\n".join(f"[{COLOURS[s]}]{counts[s]} {s.value}{where.get(s, '')}[/]" for s in Status if counts[s])


def main() -> int:
    """Command line; returns the exit status."""
    try:
        planned = parse("python -m experiments.status", __doc__ or "")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A file or a pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else WIDE).print(grid(planned))
    return 0


if __name__ == "__main__":
    sys.exit(main())
