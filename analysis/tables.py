"""Tables 2-4 in the paper's layout, ours beside published, on the terminal and as Markdown and CSV.

``python -m analysis.tables [results/runs] [--table 2] [--dataset mnist] [--out results/tables]``

Without ``--table``, the tables that have a record; all of them while there is none.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.table import Table

from analysis.compare import PAPER_SEEDS, CompareError, Comparison, Ours, Row, Stat, compare
from analysis.load import LoadError, load_records
from analysis.published import load_published
from analysis.style import dataset_label, method_label, model_label
from analysis.terminal import print_table, shown_path

MISSING = "—"
DEFAULT_RUNS = Path("results/runs")
DEFAULT_OUT = Path("results/tables")
_TITLES = {2: "MLP performance", 3: "CNN performance", 4: "RNN performance"}
# (field, header, digits) of the four metrics that the paper prints.
_METRICS = (
    ("accuracy", "Accuracy (%)", 1),
    ("steps_k", "Steps (k)", 1),
    ("time_s", "Time (s)", 1),
    ("ms_per_step", "Time/step (ms)", 2),
)


def title(table: int, dataset: str | None) -> str:
    """Returns the heading of a table, or of one data set's part of it."""
    part = f" ({dataset_label(dataset)})" if dataset else ""
    return f"Table {table}{part}: {_TITLES[table]}, ours beside published"


def file_stem(table: int, dataset: str | None) -> str:
    """Returns the name of a table's files without suffix; a part never overwrites the whole table."""
    return f"table{table}" + (f"-{dataset}" if dataset else "")


def markdown(comparison: Comparison, heading: str, notes: Sequence[str]) -> str:
    """Returns the table as Markdown: the paper's rows, each metric as ours, then published, and the notes below."""
    header = ["Dataset", "Architecture", "Method", "Seeds"]
    for name, label, _ in _METRICS:
        header += [f"{label} ours", f"{label} published"]
        if name == "accuracy":
            header += ["Difference (points)", "Train accuracy (%) ours"]
    header += ["x SGD ours", "x SGD published", "Device time/step (ms) ours", "x SGD device ours"]
    lines = [f"# {heading}", "", _line(header), _line(["---"] * 3 + ["---:"] * (len(header) - 3))]
    shown: tuple[str, ...] = ()
    for row in comparison.rows:
        place = (dataset_label(row.published.dataset), model_label(row.published.model))
        cells = [place[0] if place[:1] != shown[:1] else "", place[1] if place != shown else ""]
        shown = place
        cells += [_method(row, comparison), _seeds(row.ours)]
        for name, _, digits in _METRICS:
            cells += [_ours_metric(row.ours, name, digits), _published_metric(row, name, digits)]
            if name == "accuracy":
                cells += [_difference(row.ours), _ours_metric(row.ours, "train_accuracy", 1)]
        ours = row.ours
        cells += [_ratio(ours.sgd_ratio if ours else None), _ratio(row.published_sgd_ratio)]
        cells += [_ours_metric(ours, "device_ms", 3), _ratio(ours.device_sgd_ratio if ours else None)]
        lines.append(_line(cells))
    lines += ["", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def csv_text(comparison: Comparison, command: str) -> str:
    """Returns the table as CSV, one line per row with unrounded means and deviations; an empty field is missing.

    The first line is a comment (``#``) with the command that made the file.
    """
    metrics = [name for name, _, _ in _METRICS]
    extra = ["train_accuracy", "device_ms", "end_to_end_ms"]
    out = io.StringIO()
    out.write(f"# made by: {command}\n")
    writer = csv.writer(out, lineterminator="\n")
    header = ["table", "dataset", "model", "method", "engine", "device", "subset", "altered", "n_train", "config"]
    header += ["n_seeds", "seeds"]
    for name in metrics:
        header += [f"{name}_{part}" for part in ("mean", "std", "published_mean", "published_std")]
    for name in extra:
        header += [f"{name}_mean", f"{name}_std"]
    writer.writerow([*header, "accuracy_difference", "sgd_ratio", "device_sgd_ratio", "published_sgd_ratio"])
    for row in comparison.rows:
        cell, ours = row.published, row.ours
        values: list[object] = [cell.table, cell.dataset, cell.model, cell.method]
        if ours:
            seeds = " ".join(str(seed) for seed in ours.seeds)
            values += [ours.engine or "", ours.device, str(ours.subset).lower(), str(ours.altered).lower()]
            values += [ours.n_train, ours.config_digest, len(ours.seeds), seeds]
        else:
            values += ["", "", "", "", "", "", 0, ""]
        for name in metrics:
            values += [*_numbers(ours, name), *(_number(value) for value in getattr(cell, name))]
        for name in extra:
            values += _numbers(ours, name)
        last = (ours.accuracy_difference, ours.sgd_ratio, ours.device_sgd_ratio) if ours else (None, None, None)
        writer.writerow([*values, *(_number(value) for value in last), _number(row.published_sgd_ratio)])
    return out.getvalue()


def terminal_table(comparison: Comparison, heading: str) -> Table:
    """Returns the table for the terminal: per method our line (or lines), and the published one below it."""
    table = Table(
        title=heading,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("Dataset and\narchitecture", "Method"):
        table.add_column(name, no_wrap=True)
    names = ["Seeds", "Accuracy\n(%)", "Diff.\n(points)", "Train acc.\n(%)", "Steps\n(k)", "Time\n(s)"]
    for name in [*names, "Time/step\n(ms)", "x SGD", "Device\n(ms/step)", "x SGD\ndevice"]:
        table.add_column(name, justify="right", no_wrap=True)
    for (dataset, model), rows in groupby(comparison.rows, key=lambda r: (r.published.dataset, r.published.model)):
        place = [dataset_label(dataset), model_label(model)]  # one below the other, then blank
        for _, variants in groupby(rows, key=lambda r: r.published.method):
            for row in (several := list(variants)):
                _add_ours(table, place.pop(0) if place else "", row, comparison)
            _add_published(table, place.pop(0) if place else "", several[0])
        table.add_section()
    return table


def notes(comparison: Comparison, table: int, dataset: str | None, runs: Path, n_records: int) -> list[str]:
    """Returns the lines below a table: what is missing, marked or left out, the hardware, and what the columns are."""
    lines: list[str] = []
    target = f"`make reproduce TABLE={table}" + (f" DATASET={dataset}`" if dataset else "`")
    if n_records == 0:
        lines.append(f"No records under {shown_path(runs)}: every cell is missing ({MISSING}). {target} makes them.")
    elif comparison.missing:
        lines.append(f"Missing ({MISSING}): {comparison.missing} of {comparison.cells} cells. {target} makes them.")
    present = [row.ours for row in comparison.rows if row.ours]
    if any(len(ours.seeds) < PAPER_SEEDS for ours in present):
        lines.append(f"Marked *: fewer than the paper's {PAPER_SEEDS} seeds; one seed has no standard deviation.")
    sizes = sorted({ours.n_train for ours in present if ours.subset})
    if sizes:
        lines.append(f"Marked †: a subset of the data, {', '.join(f'{size:,}' for size in sizes)} training samples.")
    if any(ours.altered for ours in present):
        lines.append("Marked §: an altered copy of the data, not byte for byte the published one.")
    if cut := sum(ours.cut for ours in present):
        number = f"{cut} {'run' if cut == 1 else 'runs'}"
        lines.append(f"Marked ‡: {number} ended at the step limit, before early stopping would have ended them.")
    if len(comparison.devices) == 1:
        lines.append(f"Hardware of our runs: {comparison.devices[0]}.")
    elif comparison.devices:
        named = "; ".join(f"({_letter(device, comparison)}) {device}" for device in comparison.devices)
        lines.append(f"Hardware of our runs, never averaged together: {named}.")
    if comparison.left_out:
        total = sum(comparison.left_out.values())
        reasons = "; ".join(f"{reason}: {count}" for reason, count in comparison.left_out.items())
        lines.append(f"Left out: {total} of {n_records} records ({reasons}).")
    lines.append(
        "± is the standard deviation over seeds, ddof = 1 for ours and 0 for the published"
        f" (text of {load_published().text}). Difference = ours - published."
    )
    lines.append("Steps and Time (seconds on the device) are those to 99 % of a run's best validation accuracy.")
    lines.append(
        "Time/step follows the paper's definition: batches come from host memory, one dispatch for each. Device is the"
        " computation alone, data on the device. x SGD divides by SGD's time on the same architecture and device;"
        " absolute times of different hardware compare with nothing."
    )
    return lines


def tables_with_records(runs: Path, tables: Sequence[int], dataset: str | None) -> list[int]:
    """Returns those of the tables that have a record, and all of them when none has: a file of blanks tells nothing.

    Raises LoadError and CompareError, which name the offending record.
    """
    published, records = load_published(), load_records(runs)
    comparisons = {number: compare(records, published, number, dataset) for number in tables}
    return [number for number in tables if any(row.ours for row in comparisons[number].rows)] or list(tables)


def write_tables(runs: Path, tables: Sequence[int], dataset: str | None, out: Path) -> list[Path]:
    """Prints each table and writes its Markdown and CSV files; returns the files' paths.

    The same records give the same bytes. Raises LoadError and CompareError, which name the offending record.
    """
    published = load_published()
    records = load_records(runs)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number in tables:
        comparison = compare(records, published, number, dataset)
        below = notes(comparison, number, dataset, runs, len(records))
        print_table(terminal_table(comparison, title(number, dataset)))
        print("\n".join(below))
        command = _command(runs, number, dataset, out)
        stem = out / file_stem(number, dataset)
        texts = {
            ".md": markdown(comparison, title(number, dataset), [*below, f"Made by `{command}`."]),
            ".csv": csv_text(comparison, command),
        }
        for suffix, text in texts.items():
            path = stem.with_suffix(suffix)
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
        print(f"written: {', '.join(shown_path(path) for path in written[-len(texts) :])}\n")
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable records or folders)."""
    cells = load_published().cells
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description="Tables 2-4, ours beside published.")
    parser.add_argument("runs", nargs="?", type=Path, default=DEFAULT_RUNS, help="folder with one folder per run")
    parser.add_argument(
        "--table", type=int, choices=load_published().tables, help="one table; default: those that have a record"
    )
    parser.add_argument("--dataset", choices=list(dict.fromkeys(cell.dataset for cell in cells)))
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the Markdown and CSV files")
    args = parser.parse_args(argv)
    having = list(dict.fromkeys(cell.table for cell in cells if args.dataset in (None, cell.dataset)))
    if args.table is not None and args.table not in having:
        parser.error(f"table {args.table} has no {args.dataset}; it is in table {', '.join(map(str, having))}")
    try:
        tables = tables_with_records(args.runs, having, args.dataset) if args.table is None else [args.table]
        write_tables(args.runs, tables, args.dataset, args.out)
    except (LoadError, CompareError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the tables cannot be written to {shown_path(args.out)}: {error}", file=sys.stderr)
        return 1
    return 0


def _add_ours(table: Table, place: str, row: Row, comparison: Comparison) -> None:
    ours = row.ours
    accuracy, *others = [_ours_metric(ours, name, digits) for name, _, digits in _METRICS]
    cells = [place, _method(row, comparison), _seeds(ours), accuracy, _difference(ours)]
    cells += [_ours_metric(ours, "train_accuracy", 1), *others, _ratio(ours.sgd_ratio if ours else None)]
    table.add_row(*cells, _ours_metric(ours, "device_ms", 3), _ratio(ours.device_sgd_ratio if ours else None))


def _add_published(table: Table, place: str, row: Row) -> None:
    accuracy, *others = [_published_metric(row, name, digits) for name, _, digits in _METRICS]
    ratio = _ratio(row.published_sgd_ratio)
    table.add_row(place, "  published", "", accuracy, "", "", *others, ratio, style="dim")


def _command(runs: Path, table: int, dataset: str | None, out: Path) -> str:
    parts = ["python", "-m", "analysis.tables", shown_path(runs), "--table", str(table)]
    parts += ["--dataset", dataset] if dataset else []
    return shlex.join([*parts, "--out", shown_path(out)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _letter(device: str, comparison: Comparison) -> str:
    return chr(ord("A") + comparison.devices.index(device))


def _method(row: Row, comparison: Comparison) -> str:
    ours = row.ours
    label = method_label(row.published.method, ours.engine if ours else None)
    if ours is None:
        return label
    if len(comparison.devices) > 1:
        label += f" ({_letter(ours.device, comparison)})"
    if row.ambiguous:
        label += f" config {ours.config_digest}"
    return label + (" †" if ours.subset else "") + (" §" if ours.altered else "") + (" ‡" if ours.cut else "")


def _seeds(ours: Ours | None) -> str:
    if ours is None:
        return MISSING
    return f"{len(ours.seeds)}" + ("*" if len(ours.seeds) < PAPER_SEEDS else "")


def _ours_metric(ours: Ours | None, name: str, digits: int) -> str:
    stat: Stat | None = getattr(ours, name) if ours else None
    if stat is None or stat.mean is None:
        return MISSING
    return f"{stat.mean:.{digits}f}" + ("" if stat.std is None else f" ± {stat.std:.{digits}f}")


def _published_metric(row: Row, name: str, digits: int) -> str:
    mean, std = getattr(row.published, name)
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def _difference(ours: Ours | None) -> str:
    # Adding zero turns a rounded -0.0 into 0.0.
    return MISSING if ours is None else f"{round(ours.accuracy_difference, 1) + 0.0:+.1f}"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _numbers(ours: Ours | None, name: str) -> list[str]:
    if ours is None:
        return ["", ""]
    stat: Stat = getattr(ours, name)
    return [_number(stat.mean), _number(stat.std)]


if __name__ == "__main__":
    sys.exit(main())
