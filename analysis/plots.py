"""Figures 3, 4 and 6: accuracy against steps, DR with depth and skip connections, step time with depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from analysis.claims import DepthTimes, kind
from analysis.compare import Comparison, Row
from analysis.load import load_events
from analysis.published import CellKey, Published, PublishedCell
from analysis.statistics import PAPER_SEEDS
from analysis.style import GRID, METHODS, MORE_METHODS, MethodStyle, dataset_label, method_style, model_label

FIGURE_3_METHODS = ("sgd", "adam", "dr", "ap")  # the paper leaves CP out, which lies on AP
_MARKERS_PER_CURVE = 8
Line: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64]]"  # of a seed: where, and how accurate (%)


@dataclass(frozen=True)
class Curves:
    """Validation accuracy (%) of a cell's runs at counted steps: one line per seed, as long as the seed ran."""

    row: Row
    lines: tuple[Line, ...]

    @property
    def label(self) -> str:
        """Returns the method's name."""
        return method_style(self.row.published.method).label


def shown_rows(comparisons: Sequence[Comparison]) -> dict[CellKey, Row]:
    """Returns the row of each cell that figures show: the judged one, or else the first with the paper's operators."""
    rows: dict[CellKey, Row] = {}
    for row in (row for comparison in comparisons for row in comparison.rows):
        if row.ours and row.ours.engine != "exact" and (row.judgements or row.published.key not in rows):
            rows[row.published.key] = row
    return rows


def load_curves(rows: Sequence[Row], records: pd.DataFrame) -> dict[CellKey, Curves]:
    """Reads the events of the rows' runs. Raises LoadError, naming the file, for one that cannot be used."""
    folders = {run_id: Path(path).parent for run_id, path in zip(records["run_id"], records["path"], strict=True)}
    found: dict[CellKey, Curves] = {}
    for row in rows:
        assert row.ours is not None
        lines = []
        for run_id in row.ours.run_ids:
            events = load_events(folders[run_id])
            lines.append((events["step"].to_numpy(float), 100 * events["validation_accuracy"].to_numpy(float)))
        found[row.published.key] = Curves(row, tuple(lines))
    return found


def figure_3(curves: dict[CellKey, Curves], published: Published) -> Figure:
    """Returns validation accuracy against steps: a row of panels per data set and family that has runs."""
    places: dict[tuple[str, str], list[PublishedCell]] = {}
    for cell in published.cells:
        places.setdefault((kind(cell.model)[0], cell.dataset), []).append(cell)
    filled = {
        place: list(dict.fromkeys(cell.model for cell in cells))
        for place, cells in places.items()
        if any(cell.key in curves and cell.method in FIGURE_3_METHODS for cell in cells)
    }
    if not filled:
        return _nothing("No runs of the paper's cells yet: `make reproduce TABLE=2` makes them.")
    figure = Figure(figsize=(10.0, 1.0 + 2.8 * len(filled)), layout="constrained")
    grid = figure.subplots(len(filled), 3, squeeze=False, sharey="row")
    for axes, ((family, dataset), models) in zip(grid, filled.items(), strict=True):
        # Lines of one row share their limits, which a panel without any must not widen.
        for axis, model in zip(axes, models, strict=True):
            chosen = [curves[key] for m in FIGURE_3_METHODS if (key := (dataset, model, m)) in curves]
            _title(axis, f"{dataset_label(dataset)}, {family.upper()} {model_label(model)}", chosen)
            _fill(axis, chosen)
        axes[0].set_ylabel("Validation accuracy (%)")
    for axis in grid[-1]:
        axis.set_xlabel("Steps (thousands)")
    legend(figure, list(grid.flat))
    return figure


def figure_4(curves: dict[CellKey, Curves], published: Published) -> Figure:
    """Returns Douglas-Rachford on MNIST's MLPs: shallow, deep, deep with skip connections."""
    cells = [c for c in published.cells if (c.dataset, c.method, c.table) == ("mnist", "dr", 2)]
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    axes: NDArray[np.object_] = figure.subplots(1, 3, sharey=True)
    for axis, cell in zip(axes, cells, strict=True):
        mean, std = cell.accuracy
        axis.axhspan(mean - std, mean + std, color="0.85", zorder=0)
        axis.axhline(mean, color="0.45", linestyle=(0, (2, 2)), label="published test accuracy ± std", zorder=1)
        chosen = [curves[cell.key]] if cell.key in curves else []
        _title(axis, f"MNIST, MLP {model_label(cell.model)}", chosen)
        axis.set_xlabel("Steps (thousands)")
        _fill(axis, chosen)
    axes[0].set_ylabel("Validation accuracy (%)")
    legend(figure, list(axes))
    return figure


def figure_6(depths: Sequence[DepthTimes]) -> Figure:
    """Returns step time against hidden layers with fitted lines, a panel per device."""
    if not depths:
        command = "python -m benchmarks.depth --json results/benchmarks/depth-cpu.json"
        return _nothing(f"No times yet: `{command}` makes them.")
    figure = Figure(figsize=(4.2 + 3.4 * len(depths), 3.9), layout="constrained")
    for axis, depth in zip(figure.subplots(1, len(depths), squeeze=False)[0], depths, strict=True):
        for method, rows in depth.times.items():
            look, slope = method_style(method), depth.slope(method)
            assert slope.mean is not None
            assert slope.std is not None
            layers = np.array(list(rows), dtype=float)
            middle, low, high = np.array(list(rows.values())).T
            error = slope.std / np.sqrt(slope.n)
            axis.errorbar(
                layers,
                middle,
                yerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)],
                fmt=look.marker,
                color=look.color,
                markersize=5,
                capsize=2,
                linewidth=1,
            )
            ends = np.array([0.0, layers.max()])
            axis.plot(
                ends,
                depth.intercept(method) + slope.mean * ends,
                color=look.color,
                linestyle=look.linestyle,
                marker=look.marker,
                markevery=[],
                label=f"{look.label}: {slope.mean:.2f} ± {error:.2f} µs per layer",
            )
        axis.set_title(f"{depth.device}")
        axis.set_xlabel(f"Hidden layers of width {depth.width}")
        axis.set_ylabel("Time per step (µs)")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper left", handlelength=3.0)
        axis.grid(visible=True, **GRID)
    return figure


def _draw(axis: Axes, curves: Curves) -> None:
    draw_band(axis, [(x / 1000, y) for x, y in curves.lines], method_style(curves.row.published.method), curves.label)


def draw_band(axis: Axes, lines: Sequence[Line], look: MethodStyle, label: str) -> None:
    """Draws the mean over seeds with a band of one standard deviation while all run, then each seed by itself."""
    # The axis is logarithmic. A seed that shared its program with others has no times.
    lines = [(x[x > 0], y[x > 0]) for x, y in lines if np.any(x > 0)]
    if not lines:
        return
    length = min(len(x) for x, _ in lines)
    # Seeds are evaluated at the same steps, but not after the same time.
    x = np.stack([x[:length] for x, _ in lines]).mean(axis=0)
    together = np.stack([y[:length] for _, y in lines])
    mean = together.mean(axis=0)
    if len(lines) > 1:
        std = together.std(axis=0, ddof=1)
        axis.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.2, linewidth=0)
    axis.plot(
        x,
        mean,
        label=label,
        color=look.color,
        linestyle=look.linestyle,
        marker=look.marker,
        # Evenly along the logarithmic axis.
        markevery=sorted({int(i) for i in np.searchsorted(x, np.geomspace(x[0], x[-1], _MARKERS_PER_CURVE))}),
    )
    for rest_x, rest_y in lines:
        if len(rest_x) > length:
            axis.plot(rest_x[length - 1 :], rest_y[length - 1 :], color=look.color, linewidth=0.7, alpha=0.8)


def _title(axis: Axes, title: str, curves: Sequence[Curves]) -> None:
    """A panel's title, with what is less than in the paper below it: seeds, and data."""
    few = {one.label: len(one.lines) for one in curves if len(one.lines) < PAPER_SEEDS}
    if len(few) == len(curves) and len(set(few.values())) == 1:
        number = next(iter(few.values()))
        notes = [f"{number} seed{'s' if number > 1 else ''}"]
    else:
        notes = [f"{label}: {number} seed{'s' if number > 1 else ''}" for label, number in few.items()]
    parts = [one.label for one in curves if one.row.ours and one.row.ours.subset]
    notes += [f"{', '.join(parts)} on a subset of the data"] if parts else []
    copies = [one.label for one in curves if one.row.ours and one.row.ours.altered]
    notes += [f"{', '.join(copies)} on an altered copy of the data"] if copies else []
    axis.set_title(title + (f"\n{'; '.join(notes)}" if notes else ""))


def _fill(axis: Axes, curves: Sequence[Curves]) -> None:
    for one in curves:
        _draw(axis, one)
    if curves:
        logarithmic(axis)
    else:
        axis.text(0.5, 0.5, "no runs yet", transform=axis.transAxes, ha="center", va="center", color="0.4")
        axis.set_xticks([])


def logarithmic(axis: Axes) -> None:
    """Makes the horizontal axis logarithmic, with plain numbers and a grid."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(visible=True, **GRID)


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Draws one legend below all panels, where no curve can run under it."""
    shown: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        shown = dict(zip(labels, handles, strict=True)) | shown
    order = [style.label for style in (METHODS | MORE_METHODS).values()]
    names = sorted(shown, key=lambda name: order.index(name) if name in order else len(order))
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 5), handlelength=3.5, frameon=False)


def _nothing(text: str) -> Figure:
    figure = Figure(figsize=(8.0, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.3")
    return figure
