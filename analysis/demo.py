"""The demonstration's table and figure: five methods on one network and data set.

``python -m analysis.demo [results/demo] [--out results/demo/demo.png]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from analysis.load import LoadError, load_events, load_records
from analysis.statistics import Sample, sample
from analysis.style import METHODS, dataset_label, family_label, method_label, method_style, model_label
from analysis.terminal import existing_folder, print_table, shown_path

DEFAULT_FOLDER = Path("results/demo")
# From this ratio of the longest to the shortest run on, a linear axis would squeeze the short one into a line.
_LOG_FROM = 10.0
_MARKERS_PER_CURVE = 8


class DemoError(ValueError):
    """Records that do not make one demonstration; the message says which and what to do."""


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run: counted steps, seconds of training, validation accuracy in percent."""

    step: NDArray[np.float64]
    train_s: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """The runs of one method: its display label, their records, and one curve per seed."""

    method: str
    label: str
    runs: pd.DataFrame
    curves: tuple[Curve, ...]


def load_demo(folder: Path) -> list[Entry]:
    """Reads ``<folder>/<run_id>/`` and returns the methods present, in the fixed order SGD, Adam, DR, AP, CP.

    Raises LoadError for a file that cannot be used, and DemoError when there are no records or when they are of several
    data sets, models, presets or devices, or of several configurations of one method, which one figure would mix.
    """
    where = shown_path(folder)
    records = load_records(folder)
    if records.empty:
        raise DemoError(f"no records under {where}; `make demo` makes them")
    for column in ("dataset", "model", "preset", "device"):
        values = sorted(set(records[column]))
        if len(values) > 1:
            raise DemoError(f"{where} holds more than one {column}: {', '.join(values)}; move all but one away")
    entries: list[Entry] = []
    if unknown := sorted(set(records["method"]) - set(METHODS)):
        raise DemoError(f"{where} holds methods without a style: {', '.join(unknown)}; add them to analysis/style.py")
    engines = [engine if isinstance(engine, str) else None for engine in records["engine"]]
    labels = [method_label(method, engine) for method, engine in zip(records["method"], engines, strict=True)]
    for label, runs in records.assign(label=labels).groupby("label", sort=True):
        if len(set(runs["config_digest"])) > 1:
            names = ", ".join(runs["run_id"])
            raise DemoError(f"{where} holds {label} in more than one configuration: {names}; move all but one away")
        curves = tuple(_curve(Path(path).parent) for path in runs["path"])
        entries.append(Entry(runs["method"].iloc[0], str(label), runs, curves))
    order = list(METHODS)
    return sorted(entries, key=lambda entry: (order.index(entry.method), entry.label))


def table(entries: Sequence[Entry]) -> Table:
    """Returns the terminal table; several seeds of a method are shown as mean ± standard deviation (``ddof=1``)."""
    result = Table(
        title=_heading(entries), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    result.add_column("Method", no_wrap=True)
    for name in ("Test accuracy\n(%)", "Steps\nrun", "Steps to 99 %\nof the best", "Time per step\n(ms)"):
        result.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        runs = entry.runs
        result.add_row(
            entry.label,
            _text(sample([100.0 * value for value in runs["test_accuracy"].tolist()]), ".1f"),
            _text(sample(runs["steps_run"].tolist()), ",.0f"),
            _text(sample(runs["steps_to_99"].tolist()), ",.0f"),
            _text(sample(runs["device_ms_per_step"].tolist()), ".3f"),
        )
    return result


def figure(entries: Sequence[Entry]) -> Figure:
    """Returns validation accuracy (%) against counted steps (left) and seconds of training (right), a line per seed."""
    result = Figure(figsize=(10.0, 4.6), layout="constrained")
    axes: list[Axes] = list(result.subplots(1, 2, sharey=True))
    for axis, name in zip(axes, ("step", "train_s"), strict=True):
        logarithmic = _spread([getattr(curve, name) for entry in entries for curve in entry.curves]) > _LOG_FROM
        for entry in entries:
            for number, curve in enumerate(entry.curves):
                x: NDArray[np.float64] = getattr(curve, name)
                # A logarithmic axis has no place for an evaluation before the first step.
                shown = x > 0 if logarithmic else np.full(x.shape, True)
                _draw(axis, entry, x[shown], curve.accuracy[shown], entry.label if number == 0 else None)
        if logarithmic:
            axis.set_xscale("log")
        axis.grid(visible=True, color="0.88", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlabel("Counted steps")
    axes[1].set_xlabel("Training time (s), without compiling and evaluating")
    axes[0].set_ylabel("Validation accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    # Below the panels, where no curve can run under it.
    result.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, handlelength=3.5)
    result.suptitle(_heading(entries))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable records or folders)."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.demo", description="The demonstration's table and figure."
    )
    parser.add_argument(
        "folder", nargs="?", type=existing_folder, default=DEFAULT_FOLDER, help="folder with one folder per run"
    )
    parser.add_argument("--out", type=Path, default=None, help="path of the figure; default: demo.png in the folder")
    args = parser.parse_args(argv)
    out: Path = args.out or args.folder / "demo.png"
    try:
        entries = load_demo(args.folder)
    except (LoadError, DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(table(entries))
    print("Time per step: computation alone, data on the device. DR, AP and CP take many steps on each batch.")
    print(f"Hardware: {entries[0].runs['device'].iloc[0]}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Without the software's version in the file, the same records give the same bytes.
        figure(entries).savefig(out, dpi=150, metadata={"Software": None})
    except OSError as error:
        print(f"error: the figure cannot be written to {shown_path(out)}: {error}", file=sys.stderr)
        return 1
    print(f"written: {shown_path(out)}")
    return 0


def _heading(entries: Sequence[Entry]) -> str:
    first = entries[0].runs.iloc[0]
    architecture = f"{family_label(first['model'])} {model_label(first['model'])}"
    return f"{dataset_label(first['dataset'])}, {architecture}: {len(entries)} methods"


def _text(value: Sample, spec: str) -> str:
    if value.mean is None:
        return "-"
    return f"{value.mean:{spec}}" + ("" if value.std is None else f" ± {value.std:{spec}}")


def _curve(run_folder: Path) -> Curve:
    events = load_events(run_folder)
    step, train_s, accuracy = (events[name].to_numpy(float) for name in ("step", "train_s", "validation_accuracy"))
    return Curve(step=step, train_s=train_s, accuracy=100.0 * accuracy)


def _spread(curves: Sequence[NDArray[np.float64]]) -> float:
    lasts = [float(curve.max()) for curve in curves if curve.size and np.isfinite(curve).all()]  # the timed ones
    return max(lasts) / min(lasts) if lasts and min(lasts) > 0 else 1.0


def _draw(axis: Axes, entry: Entry, x: NDArray[np.float64], y: NDArray[np.float64], label: str | None) -> None:
    look = method_style(entry.method)
    axis.plot(
        x,
        y,
        label=label,
        color=look.color,
        linestyle=look.linestyle,
        linewidth=1.6,
        marker=look.marker,
        markersize=5,
        markevery=max(1, len(x) // _MARKERS_PER_CURVE),
    )


if __name__ == "__main__":
    sys.exit(main())
