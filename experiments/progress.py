"""What a person sees while runs go on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
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
    times = "untimed, as it shared its program with other seeds or had two devices"
    if clocks:
        step, train, compilation = clocks.device_ms_per_step, clocks.train_s, clocks.compile_s
        times = f"{step:.3g} ms/step, {train:.1f} s training, {compilation:.1f} s compiling"
    return (
        f"{record.run_id}: test {metrics.test_accuracy:.2%}, val {metrics.validation_accuracy:.2%} "
        f"at step {metrics.best_step:,} of {metrics.steps_run:,} ({metrics.stopped_by}), {times}"
    )


def describe_outcome(outcome: Record | Exception | None) -> str:
    """How a run ended, in words."""
    if isinstance(outcome, Exception):
        return f"not finished: {outcome}"
    return "finished by another process" if outcome is None else describe_record(outcome)


def byte_bars() -> Progress:
    """Bars for files that come or are read; on a terminal alone, on its error output."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class RunProgress:
    """Shows runs as they go on; use it in a `with` block.

    The time left is to the last step that the protocol allows; a run that stops early needs less.
    """

    def __init__(self, total: int) -> None:
        self._console = Console()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("at most"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            # Evaluations may be many minutes apart.
            speed_estimate_period=24 * 3600,
        )
        self._overall = self._bars.add_task("runs", total=total, detail="")
        self._shown: dict[str, _Shown] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, config: RunConfig, count: int = 1) -> None:
        """A run begins, or several that share its program; or it begins once more, because its process was killed."""
        if again := self._shown.pop(run_id(config), None):
            self._bars.remove_task(again.task)
        name = run_id(config) + (f" and {count - 1} more" if count > 1 else "")
        task = self._bars.add_task(name, total=config.protocol.max_steps, detail="compiling")
        self._shown[run_id(config)] = _Shown(task, count)
        if not self._console.is_terminal:
            self.line(f"{name}: started")

    def event(self, config: RunConfig, event: Event) -> None:
        """A run that began was evaluated, or one that shares its program."""
        shown = self._shown[run_id(config)]
        shown.best = max(shown.best, event.validation_accuracy)
        detail = describe_event(event, shown.best)
        self._bars.update(shown.task, completed=event.step, detail=detail)
        if not self._console.is_terminal and shown.events % EVENTS_BETWEEN_LINES == 0:
            name = f"{run_id(config)}: " if len(self._shown) > 1 else ""
            self.line(f"  {name}{detail}")
        shown.events += 1

    def end(self, config: RunConfig, *messages: str, left: int = 0) -> None:
        """A run ended, with those that shared its program; messages say how. So many of them are left for later."""
        # One whose process was killed at once has not begun here.
        shown = self._shown.pop(run_id(config), None)
        if shown:
            self._bars.remove_task(shown.task)
        self._bars.advance(self._overall, (shown.count if shown else 1) - left)
        for message in messages:
            self.line(message)

    def line(self, message: str) -> None:
        """Print a line that stays."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _Shown:
    """A run, or several that share its program, as they are shown."""

    task: TaskID
    count: int
    best: float = 0.0
    events: int = 0
