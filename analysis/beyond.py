"""Beyond the paper: other methods beside its five, as a table and a figure, and what a method's settings are worth.

``python -m analysis.beyond [results/beyond] [--dataset mnist] [--model 'mlp_*'] [--out results/beyond]``
``python -m analysis.beyond results/study --pivot method.target_scale``

The first compares the methods of each network, ours with ours on the same device. With ``--pivot`` there is a table of
accuracies for each network instead, a column for each value of that key. ``--dataset`` and ``--model`` narrow what
is printed: the files always hold all.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.compare import CompareError
from analysis.figures import Drawn, write_figures
from analysis.layouts import MISSING, Column, Layout, Line, marks, mean_std, ratio, signed, variant_label
from analysis.load import Failure, LoadError, load_events, load_failures, load_records
from analysis.pivots import pivots
from analysis.plots import draw_band, legend, logarithmic
from analysis.published import Published, load_published
from analysis.statistics import contrast
from analysis.style import RC, MethodStyle, dataset_label, method_style
from analysis.tables import hardware_notes, mark_notes, markdown, terminal_table
from analysis.terminal import existing_folder, print_table, shown_path
from analysis.variants import Variant, devices_of, network, variants

DEFAULT_RUNS = Path("results/beyond")
REFERENCES = ("straight_through", "adam")
COMPARED = (
    "A difference and a ratio of times are to runs by Adam on the same device and data, by the straight-through"
    " estimator where there are some, with Welch's 95 % interval. An update reads one batch, which counts as 50 steps"
    " of DR, AP and CP."
)
_LINES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (1, 0)), (0, (1, 1)), (0, (6, 1, 1, 1)))
_MARKERS = ("P", "X", "d", "*")


def layout(places: dict[tuple[str, str], list[Variant]], published: Published) -> Layout:
    """Returns the table of methods."""
    cells = {cell.key: cell for cell in published.cells}
    columns = [Column(header, "text") for header in ("Dataset", "Architecture", "Method")]
    columns += [
        Column("Seeds", "ours"),
        Column("Test accuracy (%) ours", "ours"),
        Column("Test accuracy (%) published", "published"),
        Column("Difference [95\u00a0%]", "ours"),
        Column("Updates run", "ours"),
        Column("Device time/update (ms) ours", "ours"),
        Column("Ratio ours", "ours"),
    ]
    lines = []
    devices = devices_of(places)
    for (dataset, model), found in places.items():
        for one in found:
            reference = _reference(one, found)
            times = [_update_ms(each) if each else None for each in (one, reference)]
            paper = cells.get((dataset, model, one.method))
            values = (
                variant_label(one.label, one.ours.device, devices, config=False) + marks(one.ours),
                ", ".join(map(str, one.ours.seeds)),
                mean_std(one.ours.accuracy, 2),
                MISSING if paper is None else "{:.1f} ± {:.1f}".format(*paper.accuracy),
                _difference(one, reference),
                _updates(one),
                MISSING if times[0] is None else f"{times[0]:.3f}",
                ratio(times[0] / times[1] if times[0] and times[1] else None),
            )
            lines.append(Line(None, (dataset_label(dataset), network(model), *values)))
    return Layout("beyond", "Beyond the paper: means of our runs", tuple(columns), tuple(lines))


def _reference(one: Variant, found: Sequence[Variant]) -> Variant | None:
    """The only configuration of the reference on the same data and device; what all have in common is not compared."""
    same = _references(one, found)
    return same[0] if len(same) == 1 else None


def _references(one: Variant, found: Sequence[Variant]) -> list[Variant]:
    """Every configuration of the reference on the same data, in the same batches and on the same device."""

    def where(each: Variant) -> tuple[object, ...]:
        return each.ours.device, each.ours.data_sha256, each.config["protocol.batch_size"]

    same = [other for other in found if where(other) == where(one)]
    alike = ([other for other in same if other.method == name] for name in REFERENCES)
    return next((references for references in alike if references), [])


def _update_ms(one: Variant) -> float | None:
    """Milliseconds of a batch, K steps of a projection method."""
    return None if one.ours.device_ms.mean is None else one.ours.device_ms.mean * one.steps_per_update


def _updates(one: Variant) -> str:
    steps = one.ours.steps_run.mean
    return MISSING if steps is None else f"{steps / one.steps_per_update:,.0f}"


def _difference(one: Variant, reference: Variant | None) -> str:
    if reference is None or one is reference:
        return MISSING
    estimate = contrast([(1.0, one.ours.accuracy), (-1.0, reference.ours.accuracy)])
    if estimate is None:
        return MISSING
    low, high = estimate.interval()
    return f"{signed(estimate.value, 2)} [{signed(low, 2)}, {signed(high, 2)}]"


def figure(places: dict[tuple[str, str], list[Variant]], folder: Path) -> Figure:
    """Returns validation accuracy of every network against updates and against time on the device.

    Raises LoadError, naming the file, for events that cannot be read.
    """
    devices = devices_of(places)
    drawn = Figure(figsize=(10.0, 1.0 + 2.9 * len(places)), layout="constrained")
    grid = drawn.subplots(len(places), 2, squeeze=False, sharey="row")
    for axes, ((dataset, model), found) in zip(grid, places.items(), strict=True):
        for one, look in zip(found, _looks(found), strict=True):
            events = [load_events(folder / run_id) for run_id in one.ours.run_ids]
            for axis, column in zip(axes, ("update", "train_s"), strict=True):
                lines = [(e[column].to_numpy(float), 100 * e["validation_accuracy"].to_numpy(float)) for e in events]
                draw_band(axis, lines, look, variant_label(one.label, one.ours.device, devices, config=False))
        for axis, what in zip(axes, ("updates", "time"), strict=True):
            axis.set_title(f"{dataset_label(dataset)}, {network(model)}, by {what}")
            logarithmic(axis)
        axes[0].set_ylabel("Validation accuracy (%)")
    grid[-1][0].set_xlabel("Updates (batches)")
    grid[-1][1].set_xlabel("Training time on the device (s)")
    legend(drawn, list(grid.flat))
    return drawn


def _looks(found: Sequence[Variant]) -> list[MethodStyle]:
    """The style of each method; of those with several settings, with other lines and markers from the second on."""
    looks: list[MethodStyle] = []
    seen: Counter[str] = Counter()
    for one in found:
        look, n = method_style(one.method), seen[one.method]
        seen[one.method] += 1
        looks.append(
            replace(look, linestyle=_LINES[n % len(_LINES)], marker=_MARKERS[n % len(_MARKERS)]) if n else look
        )
    return looks


def load_variants(runs: Path) -> dict[tuple[str, str], list[Variant]]:
    """Reads what was run of each network.

    Raises LoadError and CompareError, which name the offending record or folder.
    """
    records = load_records(runs)
    if records.empty and not load_failures(runs):
        raise CompareError(f"no finished runs under {shown_path(runs)}; `make reproduce TABLE=beyond` makes some")
    return variants(records)


def notes(places: dict[tuple[str, str], list[Variant]], failures: Sequence[Failure]) -> list[str]:
    """Returns the lines below every table: marks, hardware, failed runs."""
    every = [one.ours for found in places.values() for one in found]
    lines = [*mark_notes(every), *hardware_notes(devices_of(places))]
    lines += [
        f"Failed: {failure.run_id} at step {failure.step:,}: `{' '.join(failure.error.replace('`', '').split())}`."
        for failure in failures
    ]
    return [*lines, "± is the standard deviation over a row's seeds, ddof = 1 for ours and 0 for the published."]


def draw(places: dict[tuple[str, str], list[Variant]], runs: Path) -> Drawn:
    """Returns the figure ``curves`` with its caption."""
    caption = (
        "Mean over seeds with a band of one standard deviation while all of them run; then each seed by itself. "
        "Time is that of training on the device, without compilation and evaluation."
    )
    return Drawn("curves", figure(places, runs), "Beyond the paper: validation accuracy", caption)


@dataclass(frozen=True)
class Beyond:
    """What the report shows of a folder: the table, the lines below it, and the figure."""

    table: Layout
    notes: list[str]
    figure: Drawn


def load_beyond(runs: Path) -> Beyond | None:
    """Returns what the report shows of a folder; None while it has no finished run.

    Raises LoadError and CompareError, which name the offending record.
    """
    if load_records(runs).empty:
        return None
    places = load_variants(runs)
    below = [*notes(places, load_failures(runs)), *_compared(places)]
    with mpl.rc_context(RC):
        return Beyond(layout(places, load_published()), below, draw(places, runs))


def _compared(places: dict[tuple[str, str], list[Variant]]) -> list[str]:
    """The lines below the table of methods."""
    several = {
        f"{dataset_label(dataset)} {network(model)}"
        for (dataset, model), found in places.items()
        if any(len(_references(one, found)) > 1 for one in found)
    }
    places_of = ", ".join(sorted(several))
    unclear = f"No difference where the reference ran in several configurations: {places_of}."
    return [COMPARED, *([unclear] if several else [])]


def write_beyond(runs: Path, out: Path, pivot: str | None, dataset: str | None = None, model: str = "*") -> list[Path]:
    """Prints and writes ``beyond.md`` and, without a pivot, the figure ``curves``; returns the paths.

    Only what is of the data set, if one is given, and of such models is printed.

    Raises LoadError and CompareError, which name the offending record or folder.
    """
    places = load_variants(runs)
    command = ["python", "-m", "analysis.beyond", shown_path(runs)]
    command += ["--out", shown_path(out)] if out != runs else []
    command += ["--pivot", pivot] if pivot else []
    made = shlex.join(command)
    failures = load_failures(runs)
    below = [*notes(places, failures), *([] if pivot else _compared(places))]
    known = sorted({name for name, _ in places} | {failure.cell[0] for failure in failures})
    if dataset is not None and dataset not in known:
        raise CompareError(f"no run of data set {dataset} under {shown_path(runs)}; there are {', '.join(known)}")

    def tables(narrowed: Callable[[tuple[str, ...]], bool]) -> list[Layout]:
        shown = {place: found for place, found in places.items() if narrowed(place)}
        failed = [failure for failure in failures if narrowed(failure.cell)]
        if not shown and not failed:
            of = f" of {dataset}" if dataset else ""
            raise CompareError(f"no run{of} by a network {model} under {shown_path(runs)}")
        return pivots(shown, failed, pivot) if pivot else [layout(shown, load_published())]

    for table in tables(lambda place: dataset in (None, place[0]) and fnmatchcase(place[1], model)):
        print_table(terminal_table(table))
    print("\n".join(below))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "beyond.md"
    sections = [*map(markdown, tables(lambda _: True)), *(f"- {note}" for note in below), "", f"Made by `{made}`.", ""]
    page.write_text("\n".join(sections), encoding="utf-8", newline="\n")
    if pivot or not places:
        return [page]
    with mpl.rc_context(RC):
        return [page, *write_figures([draw(places, runs)], made, out)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable records or folders)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.beyond", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="?", type=existing_folder, default=DEFAULT_RUNS, help="folder with one folder per run"
    )
    parser.add_argument("--out", type=Path, help="folder for the files; default: that of the runs")
    parser.add_argument("--pivot", metavar="KEY", help="a key of the configuration, such as method.target_scale")
    parser.add_argument("--dataset", metavar="NAME", help="print only what is of this data set")
    parser.add_argument("--model", metavar="PATTERN", default="*", help="and of such networks, as 'quantized_*'")
    args = parser.parse_args(argv)
    out: Path = args.out or args.runs
    try:
        written = write_beyond(args.runs, out, args.pivot, args.dataset, args.model)
    except (LoadError, CompareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the files cannot be written to {shown_path(out)}: {error}", file=sys.stderr)
        return 1
    print(f"written: {', '.join(map(shown_path, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
