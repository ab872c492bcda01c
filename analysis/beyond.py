"""Beyond the paper: other methods beside its five, as a table and a figure, and what a method's settings are worth.

``python -m analysis.beyond [results/beyond] [--out results/beyond]``
``python -m analysis.beyond results/study --pivot method.target_scale``

The first compares the methods of each network, ours with ours on the same device. With ``--pivot`` there is a table of
accuracies for each network instead, a column for each value of that key.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analysis.compare import CompareError, Ours, dotted, grouped, ours_of
from analysis.figures import Drawn, write_figures
from analysis.layouts import MISSING, Column, Layout, Line, marks, mean_std, ratio, signed, variant_label
from analysis.load import LoadError, load_events, load_failures, load_records, shared_part
from analysis.plots import draw_band, legend, logarithmic
from analysis.published import Published, load_published
from analysis.statistics import contrast
from analysis.style import (
    METHODS,
    MORE_METHODS,
    RC,
    MethodStyle,
    dataset_label,
    family_label,
    method_label,
    method_style,
    model_label,
)
from analysis.tables import hardware_notes, mark_notes, markdown, terminal_table
from analysis.terminal import existing_folder, print_table, shown_path

DEFAULT_RUNS = Path("results/beyond")
REFERENCE = "adam"
COMPARED = (
    "A difference is to Adam's runs on the same device and data, with Welch's 95 % interval. An update reads one batch,"
    " which counts as 50 steps of DR, AP and CP."
)
_LINES: tuple[tuple[int, tuple[float, ...]], ...] = ((0, (1, 0)), (0, (1, 1)), (0, (6, 1, 1, 1)))
_MARKERS = ("P", "X", "d", "*")


@dataclass(frozen=True)
class Variant:
    """Runs of one network by one method in one configuration on one device; ``config`` has dotted keys and no seed.

    ``label`` is the method's name, with the settings in which it differs from others of the same network and method.
    """

    dataset: str
    model: str
    method: str
    config: dict[str, Any]
    ours: Ours
    label: str = ""

    @property
    def steps_per_update(self) -> int:
        """Steps that a batch counts as."""
        return int(self.config.get("method.steps_per_update", 1))


def variants(records: pd.DataFrame) -> dict[tuple[str, str], list[Variant]]:
    """Returns what was run of each network, in the order of methods.

    Raises CompareError, naming the files, when one seed was run twice in one configuration.
    """
    order = [*METHODS, *MORE_METHODS]
    found: dict[tuple[str, str, str], list[Variant]] = defaultdict(list)
    for group in (group for groups in grouped(records).values() for group in groups):
        first = group.iloc[0]
        config = dotted(shared_part(json.loads(first["config"])))
        one = Variant(first["dataset"], first["model"], first["method"], config, ours_of(group))
        found[one.dataset, one.model, one.method].append(one)
    places: dict[tuple[str, str], list[Variant]] = {}
    for key in sorted(
        found, key=lambda key: (*key[:2], order.index(key[2]) if key[2] in order else len(order), key[2])
    ):
        places.setdefault(key[:2], []).extend(_labelled(found[key]))
    return places


def _labelled(alike: Sequence[Variant]) -> list[Variant]:
    keys = _differing(alike) - {"engine.name"}
    labels = [", ".join([method_label(one.method, one.ours.engine), *_settings(one, keys)]) for one in alike]
    labelled = [replace(one, label=label) for one, label in zip(alike, labels, strict=True)]
    return sorted(labelled, key=lambda one: (one.ours.device, one.label))


def _differing(found: Sequence[Variant]) -> set[str]:
    """The keys in which configurations differ."""
    keys = {key for one in found for key in one.config}
    return {key for key in keys if len({json.dumps(one.config.get(key)) for one in found}) > 1}


def _settings(one: Variant, keys: set[str]) -> list[str]:
    # A key that came after the first runs is left out of their configuration, and where it has its default.
    return [f"{key.partition('.')[2]} {one.config.get(key, 'default')}" for key in sorted(keys)]


def _devices(places: dict[tuple[str, str], list[Variant]]) -> list[str]:
    return sorted({one.ours.device for found in places.values() for one in found})


def layout(places: dict[tuple[str, str], list[Variant]], published: Published) -> Layout:
    """Returns the table of methods."""
    cells = {cell.key: cell for cell in published.cells}
    columns = [Column(header, "text") for header in ("Dataset", "Architecture", "Method")]
    columns += [
        Column("Seeds", "ours"),
        Column("Test accuracy (%) ours", "ours"),
        Column("Test accuracy (%) published", "published"),
        Column("Difference to Adam [95\u00a0%]", "ours"),
        Column("Updates run", "ours"),
        Column("Device time/update (ms) ours", "ours"),
        Column("x Adam ours", "ours"),
    ]
    lines = []
    devices = _devices(places)
    for (dataset, model), found in places.items():
        for one in found:
            adam = _reference(one, found)
            times = [_update_ms(each) if each else None for each in (one, adam)]
            paper = cells.get((dataset, model, one.method))
            values = (
                variant_label(one.label, one.ours.device, devices, config=False) + marks(one.ours),
                ", ".join(map(str, one.ours.seeds)),
                mean_std(one.ours.accuracy, 2),
                MISSING if paper is None else "{:.1f} ± {:.1f}".format(*paper.accuracy),
                _difference(one, adam),
                _updates(one),
                MISSING if times[0] is None else f"{times[0]:.3f}",
                ratio(times[0] / times[1] if times[0] and times[1] else None),
            )
            lines.append(Line(None, (dataset_label(dataset), network(model), *values)))
    return Layout("beyond", "Beyond the paper: means of our runs", tuple(columns), tuple(lines))


def network(model: str) -> str:
    """Returns an architecture's name with its family, as there may be several in a table; other names as they are."""
    label = model_label(model)
    return label if label == model else f"{family_label(model)} {label}"


def _reference(one: Variant, found: Sequence[Variant]) -> Variant | None:
    """The only runs by Adam on the same data and device; what they and others have in common is not compared."""

    def where(each: Variant) -> tuple[object, ...]:
        return each.ours.device, each.ours.data_sha256, each.config["protocol.batch_size"]

    same = [other for other in found if other.method == REFERENCE and where(other) == where(one)]
    return same[0] if len(same) == 1 else None


def _update_ms(one: Variant) -> float | None:
    """Milliseconds of a batch, K steps of a projection method."""
    return None if one.ours.device_ms.mean is None else one.ours.device_ms.mean * one.steps_per_update


def _updates(one: Variant) -> str:
    steps = one.ours.steps_run.mean
    return MISSING if steps is None else f"{steps / one.steps_per_update:,.0f}"


def _difference(one: Variant, adam: Variant | None) -> str:
    if adam is None or one.method == REFERENCE:
        return MISSING
    estimate = contrast([(1.0, one.ours.accuracy), (-1.0, adam.ours.accuracy)])
    if estimate is None:
        return MISSING
    low, high = estimate.interval()
    return f"{signed(estimate.value, 2)} [{signed(low, 2)}, {signed(high, 2)}]"


def figure(places: dict[tuple[str, str], list[Variant]], folder: Path) -> Figure:
    """Returns validation accuracy of every network against updates and against time on the device.

    Raises LoadError, naming the file, for events that cannot be read.
    """
    devices = _devices(places)
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


def pivots(places: dict[tuple[str, str], list[Variant]], key: str) -> list[Layout]:
    """Returns for each network its test accuracies, a row for each method and its other settings.

    Raises CompareError where no run says the key.
    """
    found: list[Layout] = []
    devices = _devices(places)
    for (dataset, model), alike in places.items():
        having = [one for one in alike if key in one.config]
        values = sorted(
            {one.config[key] for one in having},
            key=lambda value: (isinstance(value, str), str(value) if isinstance(value, str) else value or 0),
        )
        others = _differing(having) - {key}
        rows: dict[tuple[str, ...], dict[Any, Ours]] = {}
        for one in having:
            settings = [*_settings(one, others), *([one.ours.device] if len(devices) > 1 else [])]
            rows.setdefault((method_label(one.method, None), ", ".join(settings)), {})[one.config[key]] = one.ours
        if not rows:
            continue
        names = ("Dataset", "Architecture", "Method", "Settings")
        columns = [Column(name, "text") for name in names] + [Column(f"{value}", "ours") for value in values]
        lines = [
            Line(
                None,
                (
                    dataset_label(dataset),
                    network(model),
                    *row,
                    *(mean_std(cells[value].accuracy, 1) if value in cells else MISSING for value in values),
                ),
            )
            for row, cells in sorted(rows.items())
        ]
        caption = f"{dataset_label(dataset)}, {network(model)}: test accuracy (%) by {key}"
        found.append(Layout(f"{dataset}-{model}", caption, tuple(columns), tuple(lines)))
    if places and not found:
        raise CompareError(f"no run has the key {key}")
    return found


def load_variants(runs: Path) -> dict[tuple[str, str], list[Variant]]:
    """Reads what was run of each network.

    Raises LoadError and CompareError, which name the offending record or folder.
    """
    records = load_records(runs)
    if records.empty and not load_failures(runs):
        raise CompareError(f"no finished runs under {shown_path(runs)}; `make reproduce TABLE=beyond` makes some")
    return variants(records)


def notes(places: dict[tuple[str, str], list[Variant]], runs: Path) -> list[str]:
    """Returns the lines below every table: marks, hardware, failed runs."""
    every = [one.ours for found in places.values() for one in found]
    lines = [*mark_notes(every), *hardware_notes(_devices(places))]
    lines += [
        f"Failed: {failure.run_id} at step {failure.step:,}: `{' '.join(failure.error.replace('`', '').split())}`."
        for failure in load_failures(runs)
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
    with mpl.rc_context(RC):
        return Beyond(layout(places, load_published()), [*notes(places, runs), COMPARED], draw(places, runs))


def write_beyond(runs: Path, out: Path, pivot: str | None) -> list[Path]:
    """Prints and writes ``beyond.md`` and, without a pivot, the figure ``curves``; returns the paths.

    Raises LoadError and CompareError, which name the offending record or folder.
    """
    places = load_variants(runs)
    command = ["python", "-m", "analysis.beyond", shown_path(runs)]
    command += ["--out", shown_path(out)] if out != runs else []
    command += ["--pivot", pivot] if pivot else []
    made = shlex.join(command)
    tables = pivots(places, pivot) if pivot else [layout(places, load_published())]
    below = [*notes(places, runs), *([] if pivot else [COMPARED])]
    for table in tables:
        print_table(terminal_table(table))
    print("\n".join(below))
    out.mkdir(parents=True, exist_ok=True)
    page = out / "beyond.md"
    sections = [*map(markdown, tables), *(f"- {note}" for note in below), "", f"Made by `{made}`.", ""]
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
    args = parser.parse_args(argv)
    out: Path = args.out or args.runs
    try:
        written = write_beyond(args.runs, out, args.pivot)
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
