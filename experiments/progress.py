"""What a person sees while runs go on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.config import RunConfig
from experiments.records import Event, Record, run_id

EVENTS_BETWEEN_LINES = 10
"""Without a terminal, every so many evaluations become a line."""


def describe_event(event: Event, best: float) -> str:
    """One evaluation in words; `best` is the best validation accuracy so far."""
    return f"step {event.step:>6,}  val {event.validation_accuracy:6.2%}  best {best:6.2%}"


def describe_record(record: Record) -> str:
    """A finished run in words."""
    metrics, clocks = record.metrics, record.clocks
    times = "untimed, as it shared its program with other seeds"
    if clocks:
        step, train, compilation = clocks.device_ms_per_step, clocks.train_s, clocks.compile_s
        times = f"{step:.3g} ms/step, {train:.1f} s training, {compilation:.1f} s compiling"
    return (
        f"{record.run_id}: test {metrics.test_accuracy:.2%}, val {metrics.validation_accuracy:.2%} "
        f"at step {metrics.best_step:,} of {metrics.steps_run:,} ({metrics.stopped_by}), {times}"
    )


def byte_bars() -> Progress:
    """Bars for files that come or are read; on a terminal alone, on its error output."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class RunProgress:
    """Shows runs one after the other; use it in a `with` block."""

    def __init__(self, total: int) -> None:
        self._console = Console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._overall = self._bars.add_task("runs", total=total, detail="")
        self._current: TaskID | None = None
        self._best = 0.0
        self._events, self._count = 0, 1

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, config: RunConfig, count: int = 1) -> None:
        """A run begins, or several that share its program."""
        self._best, self._events, self._count = 0.0, 0, count
        name = run_id(config) + (f" and {count - 1} more" if count > 1 else "")
        self._current = self._bars.add_task(name, total=config.protocol.max_steps, detail="compiling")
        if not self._console.is_terminal:
            self.line(f"{name}: started")

    def event(self, event: Event) -> None:
        """The current run was evaluated."""
        self._best = max(self._best, event.validation_accuracy)
        detail = describe_event(event, self._best)
        if self._current is not None:
            self._bars.update(self._current, completed=event.step, detail=detail)
        if not self._console.is_terminal and self._events % EVENTS_BETWEEN_LINES == 0:
            self.line(f"  {detail}")
        self._events += 1

    def end(self, *messages: str, left: int = 0) -> None:
        """The current runs ended; messages say how. So many of them are left for later."""
        if self._current is not None:
            self._bars.remove_task(self._current)
            self._current = None
        self._bars.advance(self._overall, self._count - left)
        for message in messages:
            self.line(message)

    def line(self, message: str) -> None:
        """Print a line that stays."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)
