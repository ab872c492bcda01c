"""Figures 3-7, as PNG, PDF and SVG, each with a caption file that names its command.

``python -m analysis.figures [results/runs] [--benchmarks results/benchmarks] [--graphs results/graphs]
[--out results/figures]``
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis import drawings, plots
from analysis.claims import DEFAULT_BENCHMARKS, BenchmarkError, load_depth
from analysis.compare import CompareError, compare
from analysis.drawings import DEFAULT_GRAPHS, GraphError
from analysis.load import LoadError, load_records
from analysis.published import load_published
from analysis.statistics import PAPER_SEEDS
from analysis.style import RC
from analysis.tables import DEFAULT_RUNS
from analysis.terminal import existing_folder, shown_path

DEFAULT_OUT = Path("results/figures")
FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Drawn:
    """A figure with its title and caption."""

    number: int | str  # the paper's, or the name of a figure that it does not have
    figure: Figure
    title: str
    caption: str


def draw_figures(runs: Path, benchmarks: Path, graphs: Path, *, mixed: bool = False) -> list[Drawn]:
    """Returns Figures 3-7 from what records, benchmarks and graphs there are.

    Raises LoadError, CompareError, BenchmarkError and GraphError, which name the offending file.
    """
    published = load_published()
    records = load_records(runs, mixed=mixed)
    comparisons = [compare(records, published, number) for number in published.tables]
    rows = list(plots.shown_rows(comparisons).values())
    depths = load_depth(benchmarks)
    with mpl.rc_context(RC):
        curves = plots.load_curves(rows, records)
        return [
            Drawn(
                3,
                plots.figure_3(curves, published),
                "Validation accuracy against training steps",
                "Mean over seeds with a band of one standard deviation while all of them run; then each seed by"
                f" itself, as a thin line. A panel says where it has fewer than the paper's {PAPER_SEEDS} seeds."
                " CP is left out, as in the paper.",
            ),
            Drawn(
                4,
                plots.figure_4(curves, published),
                "Depth and skip connections: Douglas-Rachford on MNIST",
                "Validation accuracy, drawn as in Figure 3. Grey: the published test accuracy with its deviation.",
            ),
            Drawn(
                5,
                drawings.figure_5(drawings.load_graph(graphs / "rnn.json")),
                "The RNN as the paper constructs it: a local copy of the parameters per unrolled cell",
                "The traced graph of the RNN 1 x 256 on three characters, its cell called once per character with the"
                " same parameters. Every edge from a parameter's node to a cell carries a copy of it, on which that"
                " cell's projections work; the parameter's node averages the copies. The engine itself does not unroll"
                " `lax.scan` (docs/engine.md)."
                f" Traced by `{drawings.COMMAND}`; its own picture is {shown_path(graphs)}/rnn.svg.",
            ),
            Drawn(
                6,
                plots.figure_6(depths),
                "Time per step against depth: SGD, CP and AP on MLPs of width 16 and one MNIST-sized sample",
                "Medians with quartiles, and least-squares lines with the standard error of their slope. Measured by "
                "`python -m benchmarks.depth --json results/benchmarks/depth-cpu.json`, on the device in the title.",
            ),
            Drawn(
                7,
                drawings.figure_7(graphs / "mlp.svg"),
                "The graph of Listing 1: 32 MNIST images, 16 hidden units",
                f"Traced and drawn by `{drawings.COMMAND}`. A and B are the sides of the bipartition.",
            ),
        ]


def write_figures(drawn: Sequence[Drawn], command: str, out: Path) -> list[Path]:
    """Writes each figure in every format, with the command in its metadata, and its caption; returns the paths.

    The same records give the same bytes: no file has a date or a version.
    """
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with mpl.rc_context(RC):
        for one in drawn:
            numbered = isinstance(one.number, int)
            title = f"Figure {one.number}: {one.title}" if numbered else one.title
            made = f"made by: {command}"
            metadata: dict[str, dict[str, str | None]] = {
                "png": {"Software": None, "Title": title, "Description": made},
                "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Title": title, "Subject": made},
                "svg": {"Date": None, "Creator": None, "Title": title, "Description": made},
            }
            stem = out / (f"figure{one.number}" if numbered else str(one.number))
            for suffix in FORMATS:
                one.figure.savefig(stem.with_suffix(f".{suffix}"), metadata=metadata[suffix])
                written.append(stem.with_suffix(f".{suffix}"))
            text = f"**{title}.** {one.caption}\n\nMade by `{command}`.\n"
            stem.with_suffix(".md").write_text(text, encoding="utf-8", newline="\n")
            written.append(stem.with_suffix(".md"))
    return written


def command_of(runs: Path, benchmarks: Path, graphs: Path, out: Path, *, mixed: bool = False) -> str:
    """Returns the command that makes the figures, without what is the default."""
    parts = ["python", "-m", "analysis.figures"]
    parts += [shown_path(runs)] if shown_path(runs) != str(DEFAULT_RUNS) else []
    for option, path, default in (
        ("--benchmarks", benchmarks, DEFAULT_BENCHMARKS),
        ("--graphs", graphs, DEFAULT_GRAPHS),
        ("--out", out, DEFAULT_OUT),
    ):
        parts += [option, shown_path(path)] if shown_path(path) != str(default) else []
    return shlex.join([*parts, *(["--mixed-versions"] if mixed else [])])


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say where records, benchmarks and graphs lie."""
    parser.add_argument(
        "runs", nargs="?", type=existing_folder, default=DEFAULT_RUNS, help="folder with one folder per run"
    )
    parser.add_argument(
        "--benchmarks", type=existing_folder, default=DEFAULT_BENCHMARKS, help="folder with depth-*.json"
    )
    parser.add_argument(
        "--graphs", type=existing_folder, default=DEFAULT_GRAPHS, help="folder of `python -m experiments.graphs`"
    )
    parser.add_argument("--mixed-versions", action="store_true", help="read records of other schema versions too")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable files or folders)."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description="Figures 3-7.")
    add_sources(parser)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the figures")
    args = parser.parse_args(argv)
    try:
        drawn = draw_figures(args.runs, args.benchmarks, args.graphs, mixed=args.mixed_versions)
        command = command_of(args.runs, args.benchmarks, args.graphs, args.out, mixed=args.mixed_versions)
        write_figures(drawn, command, args.out)
    except (LoadError, CompareError, BenchmarkError, GraphError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the figures cannot be written to {shown_path(args.out)}: {error}", file=sys.stderr)
        return 1
    for one in drawn:
        print(f"Figure {one.number}: {shown_path(args.out)}/figure{one.number}.{{{','.join(FORMATS)},md}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
