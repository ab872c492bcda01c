"""Do the runs of a sweep that are missing, one after the other, then print the table.

Behind `make reproduce` and `make demo`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from experiments.cells import Planned, parse
from experiments.config import ROOT, UsageError


def main() -> int:
    """Command line; returns 0 if every run is finished, 1 if one failed, 2 for a wrong request, 130 for Ctrl-C."""
    planned: list[Planned] = []
    try:
        planned = parse("python -m experiments.reproduce", __doc__ or "")
        errors = run_missing(planned)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        finished = sum(_is_done(run) for run in planned)
        print(
            f"\ninterrupted: {finished} of {len(planned)} runs are finished and stay. To continue, repeat the command."
        )
        return 130
    shown = _print_results(planned)
    for message in errors:
        print(f"error: {message}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} of {len(planned)} runs did not finish; the others did.", file=sys.stderr)
    return 1 if errors else shown


def _is_done(run: Planned) -> bool:
    from experiments.runner import Status, status_of

    return status_of(run.config) is Status.DONE


def run_missing(planned: Sequence[Planned]) -> list[str]:
    """Do the runs without a record; returns a message for each that did not finish.

    Raises:
        UsageError: data are missing or the configuration is impossible, which would stop every run.
    """
    todo = [run for run in planned if not _is_done(run)]
    finished = f"{len(planned) - len(todo)} of {len(planned)} runs are finished"
    if not todo:
        print(f"{finished}: nothing to do.")
        return []
    print(f"{finished}, {len(todo)} to run.", flush=True)
    # Imported late: a repeated command that has nothing to do needs neither.
    from experiments.progress import RunProgress, describe_record
    from experiments.runner import RunBusy, RunFailed, execute

    errors = []
    with RunProgress(len(todo)) as progress:
        for run in todo:
            progress.start(run.config)
            try:
                record = execute(run.config, run.overrides, progress.event)
            except (RunFailed, RunBusy) as error:
                errors.append(str(error))
                progress.end(f"not finished: {error}")
            else:
                progress.end("finished by another process" if record is None else describe_record(record))
    return errors


def _print_results(planned: Sequence[Planned]) -> int:
    """Let `analysis` print what the records say; returns its exit status."""
    config = planned[0].config
    if not any(_is_done(run) for run in planned):
        print("no run is finished: there is no table to print.", file=sys.stderr)
        return 0
    if config.preset.name == "demo":
        command = ["analysis.demo", str(config.results_dir)]
    else:
        datasets = {run.config.dataset.name for run in planned}
        narrowed = ["--dataset", *datasets] if len(datasets) == 1 else []
        if planned[0].sweep.startswith("table"):
            narrowed += ["--table", planned[0].sweep.removeprefix("table")]
        command = ["analysis.tables", str(config.results_dir), *narrowed]
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
