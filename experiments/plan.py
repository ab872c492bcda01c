"""What a sweep would take, before anything runs: by cell the runs to do, their memory and their time.

Behind `make plan`. The memory is the compiled program's; it needs the data, because what a program takes depends on how
many samples it holds. The time comes from finished runs of the same data, network, method and batch on the same device,
whatever their preset and seed; with measure=yes, where there are none, from a few updates, which take a while where a
step does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.cells import Planned, plan, read
from experiments.config import RunConfig, UsageError
from experiments.memory import gigabytes, limit_bytes
from experiments.predict import Pace, Paces, duration, known_paces
from experiments.runner import Status, resumable_step, status_of
from experiments.status import WIDE


@dataclass(frozen=True)
class Estimate:
    """A cell: its runs to do, what one takes of memory (bytes), the pace of its steps, and why it cannot be done."""

    names: tuple[str, str, str]
    left: list[RunConfig]
    needed: int | None = None
    pace: Pace | None = None
    refusal: str = ""

    @property
    def seconds(self) -> float | None:
        """All its runs, one after the other; the most that they can be where `pace.steps` is not known."""
        if not self.pace:
            return None
        steps = ((run.protocol.max_steps, resumable_step(run) or 0) for run in self.left)
        return sum(self.pace.seconds(limit, done) for limit, done in steps)


def estimates(planned: list[Planned], measure: bool = False) -> list[Estimate]:
    """One for each cell, in the order of the sweep; `measure` does a few updates of those without a finished run."""
    from experiments.data import Dataset, load
    from experiments.environment import describe
    from experiments.training import measured_pace, predicted_bytes

    cells: dict[tuple[str, str, str], list[RunConfig]] = {}
    for run in planned:
        config = run.config
        cells.setdefault((config.dataset.name, config.model.name, config.method.name), []).append(config)
    paces: Paces | None = None
    loaded: tuple[str, Dataset] | None = None  # the last one: cells come by data set, and several may not fit at once
    found = []
    for names, configs in cells.items():
        config = configs[0]
        left = [each for each in configs if status_of(each) is not Status.DONE]
        paces = paces or known_paces([run.config for run in planned], describe(config.jobs)["device"])
        pace = paces.of(config)
        try:
            # By the whole configuration: a preset may read less of a data set for some networks.
            wanted = str(config.dataset)
            if loaded is None or loaded[0] != wanted:
                loaded = wanted, load(config.dataset, config.data_dir)
            needed = predicted_bytes(config, loaded[1])
            if measure and left and not pace and _excess(config, needed) is None:
                pace = measured_pace(config, loaded[1])
        except UsageError as error:
            found.append(Estimate(names, left, refusal=f"cannot be done: {error}"))
            continue
        excess = _excess(config, needed)
        refusal = "" if excess is None else f"does not fit in {gigabytes(excess)}"
        found.append(Estimate(names, left, needed, pace, refusal))
    return found


def _excess(config: RunConfig, needed: int | None) -> float | None:
    """The limit that a program exceeds; None if it fits, or nobody knows."""
    limit = limit_bytes(config.memory_gb, config.jobs)
    return limit if limit is not None and needed is not None and needed > limit else None


def table(found: list[Estimate]) -> Table:
    """One row per cell, and the whole time."""
    shown = Table("data set", "model", "method", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("to do", "memory", "ms/step", "time"):
        shown.add_column(title, justify="right")
    shown.add_column("")
    for cell in found:
        size = gigabytes(cell.needed) if cell.needed is not None else "" if cell.refusal else "unknown"
        step = f"{cell.pace.ms_per_step:.3g}" if cell.pace else ""
        shown.add_row(*cell.names, str(len(cell.left)), size, step, _time(cell), cell.refusal)
    return shown


def _time(cell: Estimate) -> str:
    if cell.refusal or not cell.left:
        return ""
    if cell.pace is None or cell.seconds is None:
        return "not measured"
    return ("at most " if cell.pace.steps is None else "about ") + duration(cell.seconds)


def summary(found: list[Estimate], jobs: int) -> str:
    """The whole time in a sentence."""
    todo = [cell for cell in found if cell.left and not cell.refusal]
    known = [cell for cell in todo if cell.seconds is not None]
    refused = sum(bool(cell.left and cell.refusal) for cell in found)
    rest = f"{refused} cells cannot be done as asked, as the table says. " if refused else ""
    if not todo:
        return rest.rstrip() or "Nothing to do."
    unknown = len(todo) - len(known)
    missing = f"; {unknown} of {len(todo)} cells are not measured on this device: add MEASURE=yes" if unknown else ""
    if not known:
        return rest + missing.removeprefix("; ")
    most = "at most " if any(cell.pace and cell.pace.steps is None for cell in known) else "about "
    # A device that several share has the pace of those that shared it.
    seconds = sum(cell.seconds or 0 for cell in known) / jobs
    return f"{rest}{most}{duration(seconds)} in all on this device{missing}"


def main() -> int:
    """Command line; returns 0, or 2 for a wrong request or cells that `reproduce` would refuse."""
    try:
        arguments = read("python -m experiments.plan", __doc__ or "")
        asked = [argument for argument in arguments if argument.startswith("measure=")]
        if unknown := [argument for argument in asked if argument not in ("measure=yes", "measure=no")]:
            raise UsageError(f"{unknown[0]}: yes or no")
        planned = plan([argument for argument in arguments if argument not in asked])
        found = estimates(planned, measure="measure=yes" in asked[-1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # A file or a pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(found))
    print(summary(found, planned[0].config.jobs))
    return 2 if any(cell.left and cell.refusal for cell in found) else 0


if __name__ == "__main__":
    sys.exit(main())
