"""One self-contained HTML page: did it reproduce, and what every number rests on.

``python -m analysis.report [results/runs] [--benchmarks results/benchmarks] [--graphs results/graphs]
[--out results/report.html]``
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from rich import box
from rich.table import Table

from analysis.beyond import Beyond, load_beyond
from analysis.claims import BenchmarkError, Finding, State, judge_ours, judge_published, load_depth
from analysis.compare import CompareError, Comparison, Ours, Row, compare
from analysis.drawings import GraphError
from analysis.figures import Drawn, add_sources, draw_figures
from analysis.layouts import MISSING, Column, Layout, judged_layouts, mean_std, signed, time_layout
from analysis.load import LoadError, load_failures, load_records
from analysis.overview import Overview, overviews
from analysis.overview import layout as other_layout
from analysis.overview import notes as other_notes
from analysis.published import CellKey, load_published
from analysis.statistics import MARGINS, PAPER_SEEDS, Verdict, contrast
from analysis.style import (
    METHODS,
    RC,
    VERDICT_COLOURS,
    VERDICT_SYMBOLS,
    dataset_label,
    method_label,
    method_style,
    model_label,
)
from analysis.tables import headline, notes
from analysis.terminal import print_table, shown_path

DEFAULT_OUT = Path("results/report.html")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class GridCell:
    """What the verdict grid says of one cell: the verdict or its absence, and where its runs stand on the page."""

    state: str
    seeds: int
    anchor: str | None
    title: str

    @property
    def symbol(self) -> str:
        """Returns the sign that says the same as the colour."""
        return VERDICT_SYMBOLS[self.state]


@dataclass(frozen=True)
class Grid:
    """Verdicts on accuracy: a row per data set and architecture, a column per method (None: no cell of the paper)."""

    rows: list[tuple[int, str, str, dict[str, GridCell | None]]]

    def counts(self) -> Counter[str]:
        """Returns how many cells have which state."""
        return Counter(cell.state for *_, cells in self.rows for cell in cells.values() if cell)


@dataclass(frozen=True)
class Context:
    """What one context of a claim says, by the paper's own tables and by our records, with links to our rows."""

    name: str
    theirs: State
    ours: State
    links: list[tuple[str, str]]


@dataclass(frozen=True)
class RunGroup:
    """The runs behind one row of the tables."""

    anchor: str
    title: str
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    comparisons: list[Comparison]
    grid: Grid
    claims: list[tuple[Finding, Finding, list[Context]]]  # by the paper's own tables, by our records, and where
    figures: list[Drawn]
    groups: list[RunGroup]
    environments: dict[str, dict[str, Any]]
    ablation: list[dict[str, str]]
    others: list[Overview]
    beyond: Beyond | None
    records: int
    runs: Path


def anchor(row: Row) -> str:
    """Returns the name of the place on the page where the runs of a row stand."""
    ours = row.ours
    assert ours is not None
    return f"runs-{ours.run_ids[0]}"


def verdict_grid(comparisons: Sequence[Comparison]) -> Grid:
    """Returns the state of every cell of the paper."""
    cells: dict[tuple[int, str, str], dict[str, GridCell | None]] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            key = row.published
            place = cells.setdefault((key.table, key.dataset, key.model), dict.fromkeys(METHODS))
            if place[key.method] is None or row.judgements:
                place[key.method] = _grid_cell(row)
    return Grid([(t, dataset_label(d), model_label(m), row) for (t, d, m), row in cells.items()])


def _grid_cell(row: Row) -> GridCell:
    name = f"{dataset_label(row.published.dataset)} {model_label(row.published.model)} "
    name += method_style(row.published.method).label
    if row.ours is None:
        return GridCell("missing", 0, None, f"{name}: no runs")
    seeds = len(row.ours.seeds)
    if not row.judgements:
        why = "not the paper's operators"
        if row.ours.subset or row.ours.altered:
            why = "a subset of the data" if row.ours.subset else "an altered copy of the data"
        return GridCell("not judged", seeds, anchor(row), f"{name}: not judged, {why}")
    found = row.judgements["accuracy"]
    return GridCell(str(found.verdict), seeds, anchor(row), f"{name}: {found.verdict}, {found.reason}, {seeds} seeds")


def build(runs: Path, benchmarks: Path, graphs: Path, beyond: Path | None = None, *, mixed: bool = False) -> Report:
    """Collects what the page shows; ``beyond`` is a folder of runs by other methods than the paper's, if there is one.

    Raises LoadError, CompareError, BenchmarkError and GraphError, which name the offending file.
    """
    published = load_published()
    records = load_records(runs, mixed=mixed)
    comparisons = [compare(records, published, number) for number in published.tables]
    theirs = {finding.claim.id: finding for finding in judge_published(published)}
    ours = judge_ours(published, comparisons, load_depth(benchmarks))
    rows = {key: row for comparison in comparisons for key, row in comparison.judged.items()}
    by_id: dict[str, Any] = {run["run_id"]: run for run in records.to_dict("records")}
    environments: dict[str, dict[str, Any]] = {}
    groups: list[RunGroup] = []
    for row in (row for comparison in comparisons for row in comparison.rows if row.ours):
        assert row.ours is not None
        cell = row.published
        title = (
            f"{dataset_label(cell.dataset)}, {model_label(cell.model)}, {method_label(cell.method, row.ours.engine)}"
        )
        details = [_run(by_id[run_id], environments) for run_id in row.ours.run_ids]
        groups.append(RunGroup(anchor(row), f"{title}, {row.ours.device}", details))
    return Report(
        comparisons=comparisons,
        grid=verdict_grid(comparisons),
        claims=[(t, o, _contexts(t, o, rows)) for t, o in ((theirs[found.claim.id], found) for found in ours)],
        figures=draw_figures(runs, benchmarks, graphs, mixed=mixed),
        groups=groups,
        environments=environments,
        ablation=_ablation(comparisons),
        others=overviews(records, load_failures(runs), published),
        beyond=load_beyond(beyond) if beyond and beyond.is_dir() else None,
        records=len(records),
        runs=runs,
    )


def _contexts(theirs: Finding, ours: Finding, rows: Mapping[CellKey, Row]) -> list[Context]:
    """The contexts of a claim: first those where our records agree, then those where they contradict."""
    found: list[Context] = []
    for their, our in zip(theirs.trials, ours.trials, strict=True):
        keys = [key for key in our.cells if key in rows]
        links = [(anchor(rows[key]), f"{model_label(key[1])} {method_style(key[2]).label}") for key in keys]
        found.append(Context(" ".join(map(_word, our.context.split())), their.state, our.state, links))
    return sorted(found, key=lambda context: (list(State).index(context.ours), list(State).index(context.theirs)))


def _word(name: str) -> str:
    family = name.upper() if name in ("mlp", "cnn", "rnn") else name
    return method_label(name, None) if name in METHODS else dataset_label(family)


def _run(run: dict[str, Any], environments: dict[str, dict[str, Any]]) -> dict[str, Any]:
    folder = Path(run["path"]).parent
    script = folder / "command.sh"
    lines = script.read_text(encoding="utf-8").splitlines() if script.is_file() else []
    environment = json.loads(run["environment"])
    commit, dirty = environment.pop("commit", None), environment.pop("dirty", None)
    text = json.dumps(environment, sort_keys=True)
    name = next((name for name, known in environments.items() if json.dumps(known, sort_keys=True) == text), None)
    if name is None:
        name = f"E{len(environments) + 1}"
        environments[name] = environment
    return {
        "id": run["run_id"],
        "folder": folder,
        "seed": run["seed"],
        "accuracy": f"{100 * run['test_accuracy']:.2f}",
        "validation": f"{100 * run['validation_accuracy']:.2f}",
        "steps": f"{run['steps_run']:,}",
        "stopped_by": run["stopped_by"],
        "command": lines[-1] if lines else None,
        "commit": f"{commit[:10]}{' with changes' if dirty else ''}" if commit else MISSING,
        "environment": name,
    }


def _ablation(comparisons: Sequence[Comparison]) -> list[dict[str, str]]:
    """The exact operators beside the paper's, on the same device and data."""
    found: list[dict[str, str]] = []
    for comparison in comparisons:
        exact = [row for row in comparison.rows if row.ours and row.ours.engine == "exact"]
        for row in exact:
            assert row.ours is not None
            alike = [
                other.ours
                for other in comparison.rows
                if other.published.key == row.published.key and other.ours and other.ours.engine == "published"
            ]
            same = [o for o in alike if (o.device, o.data_sha256) == (row.ours.device, row.ours.data_sha256)]
            found.append(_ablation_line(row, row.ours, same[0] if same else None))
    return found


def _ablation_line(row: Row, exact: Ours, plain: Ours | None) -> dict[str, str]:
    estimate = contrast([(1.0, exact.accuracy), (-1.0, plain.accuracy)]) if plain else None
    difference = MISSING
    if estimate:
        low, high = estimate.interval()
        difference = f"{signed(estimate.value, 1)} [{signed(low, 1)}, {signed(high, 1)}]"
    times = (exact.device_ms.mean, plain.device_ms.mean) if plain else (None, None)
    return {
        "place": _place(dataset_label(row.published.dataset), model_label(row.published.model)),
        "method": method_style(row.published.method).label,
        "published": mean_std(plain.accuracy if plain else None, 1),
        "exact": mean_std(exact.accuracy, 1),
        "seeds": f"{len(plain.seeds) if plain else 0} / {len(exact.seeds)}",
        "difference": difference,
        "time": f"{times[0] / times[1]:.2f}" if times[0] is not None and times[1] else MISSING,
    }


def page(report: Report, command: str, out: Path) -> str:
    """Returns the HTML; the same records give the same text. ``out`` is where links to folders start from."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["relative"] = lambda path: Path(os.path.relpath(path, out.parent)).as_posix()
    environment.filters["code"] = _code
    published = load_published()
    with mpl.rc_context(RC):
        figures = [(one, _data_uri(one)) for one in report.figures]
        curves = _data_uri(report.beyond.figure) if report.beyond else None
    return environment.get_template("report.html.jinja").render(
        report=report,
        counts=report.grid.counts(),
        states=[*Verdict, "not judged", "missing"],
        symbols=VERDICT_SYMBOLS,
        methods={name: style.label for name, style in METHODS.items()},
        tables=[(c, [*map(_filled, judged_layouts(c)), _filled(time_layout(c))]) for c in report.comparisons],
        others=[(_filled(other_layout(o)), other_notes(o, published)) for o in report.others],
        figures=figures,
        beyond=report.beyond and _filled(report.beyond.table),
        curves=curves,
        headline=headline,
        notes={c.table: notes(c, report.runs, report.records) for c in report.comparisons},
        anchor=anchor,
        clocks=_clocks(report.comparisons),
        published=published,
        margins=MARGINS,
        seeds=PAPER_SEEDS,
        place=_place,
        command=command,
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        js=Markup((_HERE / "report.js").read_text(encoding="utf-8")),
    )


def _filled(layout: Layout) -> tuple[Layout, list[tuple[Row | None, list[tuple[Column, str]]]]]:
    """A layout with its lines as pairs of column and cell; data set and architecture are one, which stays in sight."""
    columns = (Column("Cell", "text"), *layout.columns[2:])
    lines = [(line.row, (_place(*line.cells[:2]), *line.cells[2:])) for line in layout.lines]
    layout = replace(layout, columns=columns)
    return layout, [(row, list(zip(columns, cells, strict=True))) for row, cells in lines]


def _place(dataset: str, model: str) -> str:
    """The name of a cell, which breaks between the two only."""
    return " ".join([dataset, model.replace(" ", "\u00a0")])


def _clocks(comparisons: Sequence[Comparison]) -> list[dict[str, str]]:
    names = {"compile_s": 2, "device_ms": 3, "end_to_end_ms": 3, "ms_per_step": 3, "evaluation_s": 2}
    found: list[dict[str, str]] = []
    for row in (row for comparison in comparisons for row in comparison.rows):
        if row.ours is None or row.ours.device_ms.mean is None:
            continue
        place = _place(dataset_label(row.published.dataset), model_label(row.published.model))
        times = {name: mean_std(getattr(row.ours, name), digits) for name, digits in names.items()}
        label = method_label(row.published.method, row.ours.engine)
        found.append({"place": place, "method": label, "device": row.ours.device, "anchor": anchor(row)} | times)
    return found


def _code(text: str) -> Markup:
    """Text with what stands in backticks as code."""
    code = Markup("<code>{}</code>")
    parts = [code.format(part) if i % 2 else Markup.escape(part) for i, part in enumerate(text.split("`"))]
    return Markup("").join(parts)


def _data_uri(one: Drawn) -> str:
    out = io.BytesIO()
    one.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}"


def terminal_grid(grid: Grid) -> Table:
    """Returns the verdict grid for the terminal: a sign in the verdict's colour, and the number of seeds."""
    table = Table(title="Did it reproduce? Test accuracy, by cell", title_justify="left", title_style="bold")
    table.box = box.SIMPLE_HEAD
    for name in ("Table", "Dataset", "Architecture"):
        table.add_column(name, no_wrap=True)
    for style in METHODS.values():
        table.add_column(style.label, justify="center", no_wrap=True)
    above: tuple[int, str] | None = None
    for number, dataset, model, cells in grid.rows:
        if above not in (None, (number, dataset)):
            table.add_section()
        names = ["" if above and number == above[0] else str(number), "" if above == (number, dataset) else dataset]
        above = (number, dataset)
        signs = [
            f"[{VERDICT_COLOURS[cell.state]}]{cell.symbol}{f' {cell.seeds}' if cell.seeds else ''}[/]" if cell else ""
            for cell in cells.values()
        ]
        table.add_row(*names, model, *signs)
    return table


def print_summary(report: Report, out: Path) -> None:
    """Prints the grid, what its signs mean with their counts, the claims, and where the page is."""
    counts = report.grid.counts()
    print_table(terminal_grid(report.grid))
    signs = Table.grid(padding=(0, 2))
    signs.add_row(*(f"[{VERDICT_COLOURS[s]}]{VERDICT_SYMBOLS[s]} {s}: {counts[s]}[/]" for s in VERDICT_SYMBOLS))
    print_table(signs)
    outcomes = Counter(str(finding.outcome) for _, finding, _ in report.claims)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"The text's claims on our records: {said}.")
    print("A number is that of seeds. What the verdicts mean: docs/verdicts.md.")
    print(f"written: {shown_path(out)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable files or folders)."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="The report, one HTML page.")
    add_sources(parser)
    parser.add_argument("--beyond", type=Path, help="folder of runs by other methods; default: beside a folder `runs`")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="path of the page")
    args = parser.parse_args(argv)
    out: Path = args.out
    try:
        beyond = args.beyond or (args.runs.parent / "beyond" if args.runs.name == "runs" else None)
        report = build(args.runs, args.benchmarks, args.graphs, beyond, mixed=args.mixed_versions)
        command = ["python", "-m", "analysis.report", shown_path(args.runs)]
        command += [f"--{name}={shown_path(getattr(args, name))}" for name in ("benchmarks", "graphs", "out")]
        command += [f"--beyond={shown_path(args.beyond)}"] if args.beyond else []
        text = page(report, shlex.join(command), out)
    except (LoadError, CompareError, BenchmarkError, GraphError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        print(f"error: the report cannot be written to {shown_path(out)}: {error}", file=sys.stderr)
        return 1
    print_summary(report, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
