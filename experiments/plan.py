"""What a sweep would take, before anything runs: runs to do and, by cell, the memory of the compiled program.

Behind `make plan`. Needs the data, because what a program takes depends on how many samples it holds.
"""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.cells import Planned, parse
from experiments.config import UsageError
from experiments.memory import gigabytes, limit_bytes
from experiments.runner import Status, status_of
from experiments.status import WIDE


def table(planned: list[Planned]) -> Table:
    """One row per cell: how many of its runs are to do, the memory that one takes, and whether it fits."""
    from experiments.data import Dataset, load
    from experiments.training import predicted_bytes

    cells: dict[tuple[str, str, str], list[Planned]] = {}
    for run in planned:
        config = run.config
        cells.setdefault((config.dataset.name, config.model.name, config.method.name), []).append(run)
    found = Table("data set", "model", "method", "to do", "memory", "", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    loaded: tuple[str, Dataset] | None = None  # the last one: cells come by data set, and several may not fit at once
    for names, runs in cells.items():
        config = runs[0].config
        left = sum(status_of(run.config) is not Status.DONE for run in runs)
        try:
            # By the whole configuration: a preset may read less of a data set for some networks.
            wanted = str(config.dataset)
            if loaded is None or loaded[0] != wanted:
                loaded = wanted, load(config.dataset, config.data_dir)
            needed = predicted_bytes(config, loaded[1])
        except UsageError as error:
            found.add_row(*names, str(left), "", f"cannot be done: {error}")
            continue
        limit = limit_bytes(config.memory_gb)
        fits = needed is None or limit is None or needed <= limit
        size = "unknown" if needed is None else gigabytes(needed)
        found.add_row(*names, str(left), size, "" if fits else f"does not fit in {gigabytes(limit or 0)}")
    return found


def main() -> int:
    """Command line; returns the exit status."""
    try:
        shown = table(parse("python -m experiments.plan", __doc__ or ""))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A file or a pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else WIDE).print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
