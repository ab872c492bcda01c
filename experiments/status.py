"""The grid of a sweep's cells: which runs are done, running, queued, cut, failed or missing. Behind `make status`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.cells import Planned, read
from experiments.cluster.queue import Open, open_submissions
from experiments.config import ROOT, RunConfig, UsageError
from experiments.planned import planned
from experiments.predict import duration, known_paces, pace_so_far
from experiments.records import run_id
from experiments.runner import Status, folder_of, resumable_step, status_of
from experiments.storage import relative

COLOURS = {
    Status.DONE: "green",
    Status.RUNNING: "yellow",
    Status.QUEUED: "blue",
    Status.CUT: "cyan",
    Status.FAILED: "red",
    Status.MISSING: "dim",
}
WIDE = 200
"""Columns where there is no terminal."""


Found = list[tuple[RunConfig, Status]]


def look(planned: list[Planned], queue: Sequence[Open] = ()) -> Found:
    """Each run and its status, which takes a look at its locks: once, for all that is said of it."""
    queued = {name for each in queue for name in each.names}

    def status(config: RunConfig) -> Status:
        found = status_of(config)
        waits = (str(config.results_dir), run_id(config)) in queued
        return Status.QUEUED if waits and found in (Status.MISSING, Status.CUT) else found

    return [(run.config, status(run.config)) for run in planned]


def queue_of(planned: list[Planned]) -> tuple[list[Open], str]:
    """The submissions in SLURM's queue, and what to say of them."""
    try:
        found = open_submissions(ROOT / planned[0].config.cluster.folder)
    except UsageError as error:
        return [], f"what is in the queue is not known: {error}"
    return found, "\n".join(map(describe, found))


def describe(each: Open) -> str:
    """A submission in the queue, in words."""
    tasks = len(each.manifest.tasks)
    reason = f" ({each.reason})" if each.waiting and each.reason not in ("", "None") else ""
    ended = tasks - len(each.running) - len(each.waiting)
    return (
        f"job {each.job}, {len(each.manifest.runs)} runs in {tasks} tasks: {len(each.running)} running, "
        f"{len(each.waiting)} waiting{reason}, {ended} ended; logs: {relative(each.manifest.folder)}/*.log"
    )


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
        table.add_row(*names, *(_cell(row.get(method, [])) for method in methods))
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
        runs = planned(read("python -m experiments.status", __doc__ or ""))
        queue, said = queue_of(runs)
        found = look(runs, queue)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A file or a pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else WIDE).print(grid(found))
    if left := time_left(found):
        print(left)
    if said:
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
