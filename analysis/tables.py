"""Tables 2-4, ours beside published, on the terminal and as Markdown, LaTeX and CSV.

``python -m analysis.tables [results/runs] [--table 2,3] [--dataset mnist] [--out results/tables]``

Without ``--table``, the tables that have a record; all of them while there is none. ``--dataset`` narrows what is
printed: the files always hold whole tables, over which the verdicts are corrected.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.table import Table

from analysis.compare import Comparison, Ours, Row, compare
from analysis.latex import PACKAGES, latex
from analysis.layouts import METRICS, MISSING, TITLES, Layout, brief_layout, device_letter, judged_layouts, layouts
from analysis.load import load_records
from analysis.published import load_published
from analysis.statistics import PAPER_SEEDS, Sample, Verdict
from analysis.style import VERDICT_COLOURS, dataset_label
from analysis.terminal import existing_folder, print_table, shown_path

DEFAULT_RUNS = Path("results/runs")
DEFAULT_OUT = Path("results/tables")
README_START, README_END = "<!-- summary: python -m analysis.tables --readme README.md -->", "<!-- end of summary -->"


def markdown(layout: Layout) -> str:
    """Returns a layout as a Markdown table under its caption."""
    return "\n".join([f"## {layout.caption}", "", *_table(layout), ""])


def summary(comparisons: Sequence[Comparison]) -> str:
    """Returns the headline and the accuracies of the cells that have runs, as README shows them."""
    lines: list[str] = []
    for comparison in comparisons:
        having = replace(comparison, rows=tuple(row for row in comparison.rows if row.ours))
        if having.rows:
            lines += [f"Table {comparison.table}: {headline(comparison)}", "", *_table(judged_layouts(having)[0]), ""]
    return "\n".join(lines) or "No runs yet.\n"


def write_readme(path: Path, text: str) -> None:
    """Puts a summary between README's marks. Raises ValueError where there are none."""
    before, start, rest = path.read_text(encoding="utf-8").partition(README_START)
    _, end, after = rest.partition(README_END)
    if not start or not end:
        raise ValueError(f"{path}: no place for the summary, between {README_START} and {README_END}")
    path.write_text(f"{before}{start}\n\n{text}\n{end}{after}", encoding="utf-8", newline="\n")


def csv_text(comparison: Comparison, command: str) -> str:
    """Returns the table as CSV, one line per row with unrounded means and deviations; an empty field is missing.

    The first line is a comment (``#``) with the command that made the file.
    """
    metrics = [name for name, _, _ in METRICS]
    extra = ["train_accuracy", "device_ms", "end_to_end_ms", "compile_s", "evaluation_s"]
    out = io.StringIO()
    out.write(f"# made by: {command}\n")
    writer = csv.writer(out, lineterminator="\n")
    header = ["table", "dataset", "model", "method", "engine", "device", "subset", "altered", "n_train", "config"]
    header += ["n_seeds", "seeds"]
    for name in metrics:
        header += [f"{name}_{part}" for part in ("mean", "std", "published_mean", "published_std")]
    for name in extra:
        header += [f"{name}_mean", f"{name}_std"]
    header += ["sgd_ratio", "device_sgd_ratio", "published_sgd_ratio"]
    judged = ("difference", "low", "high", "p_holm", "margin", "p_within", "power", "seeds_needed", "verdict", "reason")
    for name in ("accuracy", "steps_k"):
        header += [f"{name}_{part}" for part in judged]
    writer.writerow(header)
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
            values += [*plain_sample(row.ours, name), *(plain(value) for value in getattr(cell, name))]
        for name in extra:
            values += plain_sample(row.ours, name)
        ratios = (ours.sgd_ratio, ours.device_sgd_ratio) if ours else (None, None)
        values += [plain(value) for value in (*ratios, row.published_sgd_ratio)]
        for name in ("accuracy", "steps_k"):
            values += _judgement(row, name, len(judged))
        writer.writerow(values)
    return out.getvalue()


def terminal_table(layout: Layout) -> Table:
    """Returns a layout for the terminal, verdicts in colour."""
    table = Table(
        title=layout.caption,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in layout.columns:
        # The unit below the name, "ours" below the unit: narrow columns.
        header = column.header.replace(" (", "\n(").replace(" [", "\n[").replace(" ours", "\nours")
        justify = "left" if column.kind in ("text", "verdict") else "right"
        style = "dim" if column.kind == "published" else ""
        table.add_column(header.replace(" published", "\npublished"), justify=justify, no_wrap=True, style=style)
    for number, cells in enumerate(layout.places()):
        if number and (cells[0] or cells[1]):
            table.add_section()
        shown = [
            f"[{VERDICT_COLOURS[text]}]{text}[/]" if text in VERDICT_COLOURS else text.replace("[", r"\[")
            for text in cells
        ]
        table.add_row(*shown)
    return table


def headline(comparison: Comparison) -> str:
    """Returns the counts of a table's verdicts in one sentence."""
    counts, judged = comparison.verdicts(), len(comparison.judged)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    return f"Accuracy of {judged} of {comparison.cells} cells judged: {said}."


def notes(comparison: Comparison, runs: Path, n_records: int) -> list[str]:
    """Returns the lines below a table: what is missing, marked or left out, the hardware, and what the columns are."""
    lines: list[str] = [headline(comparison)]
    target = f"`make reproduce TABLE={comparison.table}`"
    if n_records == 0:
        lines.append(f"No records under {shown_path(runs)}: every cell is missing ({MISSING}). {target} makes them.")
    elif comparison.missing:
        lines.append(f"Missing ({MISSING}): {comparison.missing} of {comparison.cells} cells. {target} makes them.")
    present = [row.ours for row in comparison.rows if row.ours]
    lines += mark_notes(present, "; not judged")
    lines += hardware_notes(comparison.devices)
    if comparison.left_out:
        total = sum(comparison.left_out.values())
        reasons = "; ".join(f"{reason}: {count}" for reason, count in comparison.left_out.items())
        lines.append(f"Left out: {total} of {n_records} records ({reasons}).")
    lines.append(
        "± is the standard deviation over seeds, ddof = 1 for ours and 0 for the published"
        f" (text of {load_published().text}). Difference = ours - published, with Welch's 95 % interval; verdicts as"
        " docs/verdicts.md defines them, at 5 % over the table."
    )
    lines.append("Steps and Time (seconds on the device) are those to 99 % of a run's best validation accuracy.")
    lines.append(
        "Time/step follows the paper's definition: batches come from host memory, one dispatch for each. Device is the"
        " computation alone, data on the device. x SGD divides by SGD's time on the same architecture and device;"
        " absolute times of different hardware compare with nothing."
    )
    return lines


def mark_notes(present: Sequence[Ours], aside: str = "") -> list[str]:
    """Returns what the marks of our runs mean, those that occur; ``aside`` is what follows from other data."""
    lines: list[str] = []
    if any(len(ours.seeds) < PAPER_SEEDS for ours in present):
        lines.append(f"Marked *: fewer than the paper's {PAPER_SEEDS} seeds; one seed has no standard deviation.")
    sizes = sorted({ours.n_train for ours in present if ours.subset})
    if sizes:
        marked = f"Marked †: a subset of the data, {', '.join(f'{size:,}' for size in sizes)} training samples"
        lines.append(f"{marked}{aside}.")
    if any(ours.altered for ours in present):
        lines.append(f"Marked §: an altered copy of the data, not byte for byte the published one{aside}.")
    if cut := sum(ours.cut for ours in present):
        number = f"{cut} {'run' if cut == 1 else 'runs'}"
        lines.append(f"Marked ‡: {number} ended at the step limit, before early stopping would have ended them.")
    return lines


def hardware_notes(devices: Sequence[str]) -> list[str]:
    """Returns which devices our runs used, with their letters where there are several."""
    if len(devices) > 1:
        named = "; ".join(f"({device_letter(device, devices)}) {device}" for device in devices)
        return [f"Hardware of our runs, never averaged together: {named}."]
    return [f"Hardware of our runs: {device}." for device in devices]


def write_tables(
    runs: Path, tables: Sequence[int], dataset: str | None, out: Path, *, mixed: bool = False, show: bool = True
) -> list[Path]:
    """Prints tables and writes their Markdown, LaTeX and CSV files; returns the files' paths.

    ``tables`` are numbers; none: those that have a record.
    The same records give the same bytes. Raises LoadError and CompareError, which name the offending record.
    """
    published = load_published()
    records = load_records(runs, mixed=mixed)
    having = dict.fromkeys(cell.table for cell in published.cells if dataset in (None, cell.dataset))
    comparisons = [compare(records, published, number) for number in having if not tables or number in tables]
    if not tables:
        # A file of blanks tells nothing.
        comparisons = [c for c in comparisons if any(row.ours for row in c.only(dataset).rows)] or comparisons
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for comparison in comparisons:
        number = comparison.table
        if show:
            narrowed = comparison.only(dataset)
            print_table(terminal_table(brief_layout(narrowed)))
            part = f" ({dataset_label(dataset)} shown)" if dataset else ""
            print("\n".join([f"Table {number}{part}:", *notes(comparison, runs, len(records))]))
        command = _command(runs, number, out, mixed)
        below = [f"- {note}" for note in [*notes(comparison, runs, len(records)), f"Made by `{command}`."]]
        title = f"# Table {number}: {TITLES[number]}"
        drawn = layouts(comparison)
        packages = f"% \\usepackage{{{','.join(PACKAGES)}}}"
        texts = {
            ".md": "\n".join([title, "", *map(markdown, drawn), *below, ""]),
            ".tex": "\n".join(
                [f"% made by: {command}", packages, *(latex(t, f"tab:{number}-{t.name}") for t in drawn)]
            ),
            ".csv": csv_text(comparison, command),
        }
        for suffix, text in texts.items():
            path = (out / f"table{number}").with_suffix(suffix)
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
        if show:
            print(f"written: {', '.join(shown_path(path) for path in written[-len(texts) :])}\n")
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable records or folders)."""
    cells = load_published().cells
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description="Tables 2-4, ours beside published.")
    parser.add_argument(
        "runs", nargs="?", type=existing_folder, default=DEFAULT_RUNS, help="folder with one folder per run"
    )
    parser.add_argument(
        "--table", type=_numbers, default=(), help="one, or several like 2,3; default: those that have a record"
    )
    parser.add_argument(
        "--dataset", choices=list(dict.fromkeys(cell.dataset for cell in cells)), help="what is printed"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the files")
    parser.add_argument("--mixed-versions", action="store_true", help="read records of other schema versions too")
    parser.add_argument("--readme", type=Path, help="put the summary between this file's marks, and do no more")
    args = parser.parse_args(argv)
    having = list(dict.fromkeys(cell.table for cell in cells if args.dataset in (None, cell.dataset)))
    if without := [number for number in args.table if number not in having]:
        parser.error(f"table {_listed(without)} has no {args.dataset}; it is in table {_listed(having)}")
    try:
        if args.readme:
            records = load_records(args.runs, mixed=args.mixed_versions)
            write_readme(args.readme, summary([compare(records, load_published(), n) for n in having]))
            return 0
        write_tables(args.runs, args.table, args.dataset, args.out, mixed=args.mixed_versions)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = args.readme or args.out
        print(f"error: the tables cannot be written to {shown_path(place)}: {error}", file=sys.stderr)
        return 1
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    """The tables' numbers that stand in an argument."""
    known = {str(number): number for number in load_published().tables}
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in known]:
        tables = f"the paper's are {_listed(known)}; several are named like 2,3"
        raise argparse.ArgumentTypeError(f"there is no table {' and no table '.join(map(repr, unknown))}: {tables}")
    return tuple(known[word] for word in words)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _command(runs: Path, table: int, out: Path, mixed: bool) -> str:
    parts = ["python", "-m", "analysis.tables", shown_path(runs), "--table", str(table), "--out", shown_path(out)]
    return shlex.join([*parts, *(["--mixed-versions"] if mixed else [])])


def _table(layout: Layout) -> list[str]:
    aligned = ["---" if column.kind in ("text", "verdict") else "---:" for column in layout.columns]
    return [_line(cells) for cells in [[column.header for column in layout.columns], aligned, *layout.places()]]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(value: float | None) -> str:
    """Returns a number as the CSV files have it, not rounded to what tables print; None is an empty field."""
    return "" if value is None else f"{value:.6g}"


def plain_sample(ours: Ours | None, name: str) -> list[str]:
    """Returns mean and deviation of one of our numbers, as the CSV files have them."""
    value: Sample | None = ours and getattr(ours, name)
    return ["", ""] if value is None else [plain(value.mean), plain(value.std)]


def _judgement(row: Row, name: str, fields: int) -> list[str]:
    if name not in row.judgements:
        return [""] * fields
    found = row.judgements[name]
    estimate = found.estimate
    values = [estimate.value, *estimate.interval()] if estimate else [None, None, None]
    values += [found.p_holm, found.margin, found.p_within, found.power, found.seeds_needed]
    return [*map(plain, values), str(found.verdict), found.reason]


if __name__ == "__main__":
    sys.exit(main())
