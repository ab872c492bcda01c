"""Do the runs of a sweep that are missing, one after the other or side by side, then tables, figures and report.

Behind `make reproduce` and `make demo`.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from experiments.cells import Planned, parse
from experiments.config import ROOT, UsageError
from experiments.progress import RunProgress, describe_outcome
from experiments.records import run_id
from experiments.runner import RunBusy, Status, execute_together, refusals, resumable_step, status_of
from experiments.tracking import tracked

LOOK_SECONDS = 1.0
"""Between two looks at the runs that other processes work on."""
NAMED = 3
"""How many of the runs that one error stops are named."""
BEYOND = {"beyond": (), "capped": (), "study": ("--pivot", "method.target_scale")}
"""Presets whose runs the paper has no table of, and how they are shown."""


def main() -> int:
    """Command line; returns 0 if every run is finished, 1 if one failed, 2 for what cannot be done, 130 for Ctrl-C."""
    planned: list[Planned] = []
    try:
        planned = parse("python -m experiments.reproduce", __doc__ or "")
        errors = run_missing(planned)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        finished = sum(_is_done(run) for run in planned)
        print(
            f"\ninterrupted: {finished} of {len(planned)} runs are finished and stay{_saved(planned)}. "
            "To continue, repeat the command."
        )
        return getattr(error, "status", 130)
    try:
        shown = _print_results(planned)
    except KeyboardInterrupt:
        print("\ninterrupted: all runs stay, and the same command makes their tables again", file=sys.stderr)
        return 130
    print_errors(errors, len(planned))
    if any(isinstance(error, UsageError) for error in errors.values()):
        return 2
    return 1 if errors else shown


def _is_done(run: Planned) -> bool:
    return _status(run) is Status.DONE


def _status(run: Planned) -> Status:
    return status_of(run.config)


def _saved(planned: Sequence[Planned]) -> str:
    """Which runs will go on, in words."""
    cut = [run.config for run in planned if _status(run) is Status.CUT]
    named = [f"{run_id(config)} from step {resumable_step(config):,}" for config in cut[:NAMED]]
    more = f" and {len(cut) - NAMED} more" if len(cut) > NAMED else ""
    return f", and the next start goes on with {', '.join(named)}{more}" if cut else ""


def run_missing(
    planned: Sequence[Planned], at_turn: Callable[[Planned], Planned] | None = None
) -> dict[str, Exception]:
    """Do the runs without a record; returns those that did not finish, by name, and why. No run stops another.

    With `at_turn` this process does one after the other, whatever else shares its machine, and asks it when a run's
    turn has come how that is to be done.

    A run that another process works on is left to it, and looked at again at the end: until it is finished, or is to do
    because the other process gave it up.
    """
    unfinished = [run for run in planned if not _is_done(run)]
    finished = f"{len(planned) - len(unfinished)} of {len(planned)} runs are finished"
    if not unfinished:
        print(f"{finished}: nothing to do.")
        return {}
    errors: dict[str, Exception] = {**refusals([run.config for run in unfinished])}
    ready = [run for run in unfinished if run_id(run.config) not in errors]
    refused = f", {len(errors)} cannot be done as asked (why: see the end)" if errors else ""
    print(f"{finished}, {len(ready)} to run{refused}.", flush=True)
    with RunProgress(len(ready)) as progress, tracked([run.config for run in ready], progress.line):
        errors |= _run(ready, progress, at_turn)
        while busy := [run for run in ready if _is_busy(run, errors)]:
            progress.line(f"{len(busy)} runs are left to the processes that work on them: waiting (Ctrl-C: no longer)")
            while not (free := [run for run in busy if _status(run) is not Status.RUNNING]):
                time.sleep(LOOK_SECONDS)
            for run in free:
                del errors[run_id(run.config)]
            errors |= _run(free, progress, at_turn)
    return errors


def _run(
    runs: Sequence[Planned], progress: RunProgress, at_turn: Callable[[Planned], Planned] | None
) -> dict[str, Exception]:
    errors: dict[str, Exception] = {}
    jobs = runs[0].config.jobs if runs else 1
    if jobs > 1 and not at_turn:
        # Imported late: the launcher takes a while, and most do without.
        from experiments.parallel import run_side_by_side

        return run_side_by_side(runs, jobs, progress)
    for planned in groups(runs):
        group = [at_turn(run) for run in planned] if at_turn else planned
        first = group[0].config
        progress.start(first, len(group))
        outcomes = execute_together(
            [(run.config, run.overrides) for run in group], lambda _, event, first=first: progress.event(first, event)
        )
        named = zip((run_id(run.config) for run in group), outcomes, strict=True)
        errors |= {name: outcome for name, outcome in named if isinstance(outcome, Exception)}
        left = sum(_is_busy(run, errors) for run in group)
        progress.end(first, *map(describe_outcome, outcomes), left=left)
    return errors


def _is_busy(run: Planned, errors: Mapping[str, Exception]) -> bool:
    """Whether to come back to a run. One whose owner seems dead is for a person to decide about."""
    error = errors.get(run_id(run.config))
    return isinstance(error, RunBusy) and not error.silent


def groups(runs: Sequence[Planned]) -> list[list[Planned]]:
    """Runs that become one program: a cell's seeds, if they are to, but for the first, which has the clocks."""
    groups: list[list[Planned]] = []
    for run in runs:
        last = groups[-1][-1] if groups else None
        alike = last and last.together and dataclasses.replace(last.config, seed=run.config.seed) == run.config
        if last and alike and last.config.seed != 0:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def print_errors(errors: Mapping[str, Exception], total: int) -> None:
    """Say what went wrong, once for all runs that it stops, and how many of them did not finish."""
    stopped: dict[str, list[str]] = {}
    for name, error in errors.items():
        stopped.setdefault(str(error), []).append(name)
    for message, names in stopped.items():
        print(f"error: {message}", file=sys.stderr)
        # A failed or busy run names itself; a refused one shares its message with others.
        if not message.startswith(names[0]):
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            print(f"  stops {', '.join(names[:NAMED])}{more}", file=sys.stderr)
    if errors:
        rest = "; the others did" if len(errors) < total else ""
        print(f"{len(errors)} of {total} runs did not finish{rest}.", file=sys.stderr)


def _print_results(planned: Sequence[Planned]) -> int:
    """Let `analysis` print what the records say; returns its exit status."""
    config = planned[0].config
    statuses = [_status(run) for run in planned]
    finished = statuses.count(Status.DONE)
    # A sweep of one's own has cells that no table of the paper has.
    tables = {run.sweep.removeprefix("table") for run in planned if run.sweep.startswith("table")}
    other = config.preset.name not in ("demo", "smoke") and (config.preset.name != "paper" or not tables)
    # The table of another preset has the runs that failed, too.
    if not finished and not (other and Status.FAILED in statuses):
        print("no run is finished: there is no table to print.", file=sys.stderr)
        return 0
    runs = config.results_dir
    if config.preset.name == "smoke":
        print(
            f"{finished} of {len(planned)} runs are finished. After so few steps on so few samples there is no table."
        )
        return 0
    if config.preset.name == "demo":
        commands = [["analysis.demo", str(runs)]]
    elif config.preset.name in BEYOND:
        commands = [["analysis.beyond", str(runs), *BEYOND[config.preset.name]]]
    else:
        datasets = {run.config.dataset.name for run in planned}
        narrowed = ["--dataset", *datasets] if len(datasets) == 1 else []
        narrowed += ["--table", *tables] if len(tables) == 1 else []
        # Beside results/runs, and inside any other folder of runs.
        out = runs.parent if runs.name == "runs" else runs
        commands = [
            ["analysis.tables", str(runs), *narrowed, "--out", str(out / "tables")],
            ["analysis.figures", str(runs), "--out", str(out / "figures")],
            ["analysis.report", str(runs), "--out", str(out / "report.html")],
        ]
        if other:
            # Tables and figures are of the paper's protocol and cells.
            commands[:-1] = [["analysis.overview", str(runs), "--out", str(out)]]
    for command in commands:
        if status := analyse(command):
            return status
    return 0


def analyse(command: Sequence[str]) -> int:
    """Run a module of `analysis`; returns its exit status."""
    # Ctrl-C is for this process, which ends the other without its traceback.
    with subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, process_group=0) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


if __name__ == "__main__":
    sys.exit(main())
