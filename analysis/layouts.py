"""What the tables say, cell by cell: one structure that Markdown, LaTeX, the terminal and the report all draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.compare import Comparison, Ours, Row
from analysis.statistics import PAPER_SEEDS, Judgement, Sample
from analysis.style import dataset_label, method_label, model_label

MISSING = "—"
TITLES = {2: "MLP performance", 3: "CNN performance", 4: "RNN performance"}
# (field, header, digits) of the four metrics that the paper prints.
METRICS = (
    ("accuracy", "Accuracy (%)", 1),
    ("steps_k", "Steps (k)", 1),
    ("time_s", "Time (s)", 1),
    ("ms_per_step", "Time/step (ms)", 2),
)


@dataclass(frozen=True)
class Column:
    """A column: its header and what stands in it; ``ours`` are numbers that runs made."""

    header: str
    kind: Literal["text", "ours", "published", "verdict"]


@dataclass(frozen=True)
class Line:
    """A row: what stands in it, and the cell of the paper with our runs behind it (None: of no table of the paper)."""

    row: Row | None
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A table: a name for files, a caption, its columns and lines. The first two columns name the place."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def places(self) -> list[tuple[str, ...]]:
        """Returns the cells of every line, data set and architecture blank where they repeat those above."""
        found: list[tuple[str, ...]] = []
        above: tuple[str, ...] = ("", "")
        for line in self.lines:
            dataset, model = line.cells[:2]
            again = dataset == above[0]
            found.append(("" if again else dataset, "" if again and model == above[1] else model, *line.cells[2:]))
            above = line.cells[:2]
        return found


_Cell = Callable[[Row], str]


def layouts(comparison: Comparison) -> list[Layout]:
    """Returns the tables for one of the paper's: in its layout; accuracy and steps beside the published; times."""
    return [paper_layout(comparison), *judged_layouts(comparison), time_layout(comparison)]


def paper_layout(comparison: Comparison) -> Layout:
    """Returns our numbers in the layout of the paper's table."""
    columns = [(Column(label, "ours"), _ours(name, digits)) for name, label, digits in METRICS]
    return _layout("paper", "in the paper's layout", comparison, columns)


def brief_layout(comparison: Comparison) -> Layout:
    """Returns the essence of the other layouts, narrow enough for a terminal."""
    columns: list[tuple[Column, _Cell]] = [(Column("Seeds", "ours"), _seeds)]
    for name, label, digits in METRICS[:2]:
        columns += [
            (Column(f"{label} ours", "ours"), _ours(name, digits)),
            (Column(f"{label} published", "published"), _published(name, digits)),
        ]
        if name == "accuracy":
            columns.append((Column("Difference [95\u00a0%]", "published"), _difference(name, digits)))
        columns.append((Column("Verdict", "verdict"), _verdict(name)))
    columns.append((Column("x SGD ours", "ours"), lambda row: ratio(row.ours and row.ours.sgd_ratio)))
    columns.append((Column("x SGD published", "published"), lambda row: ratio(row.published_sgd_ratio)))
    return _layout("brief", "ours beside published", comparison, columns)


def judged_layouts(comparison: Comparison) -> list[Layout]:
    """Returns what does not depend on the hardware, a table each for accuracy and steps.

    Ours, published, the difference with its interval, the margin and the verdict.
    """
    found: list[Layout] = []
    for name, label, digits in METRICS[:2]:
        columns: list[tuple[Column, _Cell]] = [
            (Column("Seeds", "ours"), _seeds),
            (Column(f"{label} ours", "ours"), _ours(name, digits)),
            (Column(f"{label} published", "published"), _published(name, digits)),
            (Column("Difference [95\u00a0%]", "published"), _difference(name, digits)),
            (Column("Margin", "published"), _margin(name)),
            (Column("Verdict", "verdict"), _verdict(name)),
        ]
        if name == "accuracy":
            columns.append((Column("Train accuracy (%) ours", "ours"), _ours("train_accuracy", 1)))
        title = "test accuracy" if name == "accuracy" else "steps to 99 % of the best validation accuracy"
        found.append(_layout(name.removesuffix("_k"), f"{title}, ours beside published", comparison, columns))
    return found


def time_layout(comparison: Comparison) -> Layout:
    """Returns times: absolute ones of different hardware stand side by side, and only ratios on one device compare."""
    columns: list[tuple[Column, _Cell]] = []
    for name, label, digits in METRICS[:1:-1]:
        columns.append((Column(f"{label} ours", "ours"), _ours(name, digits)))
        columns.append((Column(f"{label} published", "published"), _published(name, digits)))
        if name == "ms_per_step":
            columns.append((Column("x SGD ours", "ours"), lambda row: ratio(row.ours and row.ours.sgd_ratio)))
            columns.append((Column("x SGD published", "published"), lambda row: ratio(row.published_sgd_ratio)))
            columns.append((Column("Device time/step (ms) ours", "ours"), _ours("device_ms", 3)))
            device = Column("x SGD device ours", "ours")
            columns.append((device, lambda row: ratio(row.ours and row.ours.device_sgd_ratio)))
    columns.append((Column("Compile (s) ours", "ours"), _ours("compile_s", 1)))
    return _layout("time", "times, each side's on its own hardware", comparison, columns)


def _layout(name: str, caption: str, comparison: Comparison, columns: Sequence[tuple[Column, _Cell]]) -> Layout:
    place = [Column(header, "text") for header in ("Dataset", "Architecture", "Method")]
    lines = [
        Line(
            row,
            (
                dataset_label(row.published.dataset),
                model_label(row.published.model),
                _method(row, comparison),
                *(cell(row) for _, cell in columns),
            ),
        )
        for row in comparison.rows
    ]
    title = f"Table {comparison.table}: {TITLES[comparison.table]}, {caption}"
    return Layout(name, title, (*place, *(column for column, _ in columns)), tuple(lines))


def device_letter(device: str, devices: Sequence[str]) -> str:
    """Returns the letter that stands for a device where a table has several."""
    return chr(ord("A") + devices.index(device))


def mean_std(value: Sample | None, digits: int) -> str:
    """Returns ``mean ± std``, the mean alone of one run, or the mark of what is missing."""
    if value is None or value.mean is None:
        return MISSING
    return f"{value.mean:.{digits}f}" + ("" if value.std is None else f" ± {value.std:.{digits}f}")


def signed(value: float, digits: int) -> str:
    """Returns the number with its sign; a rounded -0.0 is +0.0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def ratio(value: float | None) -> str:
    """Returns the ratio with two digits, or the mark of what is missing."""
    return MISSING if value is None else f"{value:.2f}"


def difference_text(judgement: Judgement, digits: int) -> str:
    """Returns a difference with its 95 % interval, or the mark of what is missing."""
    if judgement.estimate is None:
        return MISSING
    low, high = judgement.estimate.interval()
    value = judgement.estimate.value
    return f"{signed(value, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def _method(row: Row, comparison: Comparison) -> str:
    if row.ours is None:
        return method_label(row.published.method, None)
    ours = row.ours
    label = method_label(row.published.method, ours.engine)
    return variant_label(label, ours.device, comparison.devices, row.ambiguous and ours.config_digest) + marks(ours)


def variant_label(label: str, device: str, devices: Sequence[str], config: str | Literal[False]) -> str:
    """Returns a method's label with its device's letter, where a table has several, and a configuration's digest."""
    letter = f" ({device_letter(device, devices)})" if len(devices) > 1 else ""
    return label + letter + (f" config {config}" if config else "")


def marks(ours: Ours) -> str:
    """Returns the marks behind a method's label: few seeds, a subset or an altered copy of the data, the step limit."""
    few = " *" if len(ours.seeds) < PAPER_SEEDS else ""
    return few + (" †" if ours.subset else "") + (" §" if ours.altered else "") + (" ‡" if ours.cut else "")


def _seeds(row: Row) -> str:
    return MISSING if row.ours is None else str(len(row.ours.seeds))


def _ours(name: str, digits: int) -> _Cell:
    return lambda row: mean_std(_sample(row.ours, name), digits)


def _sample(ours: Ours | None, name: str) -> Sample | None:
    return None if ours is None else getattr(ours, name)


def _published(name: str, digits: int) -> _Cell:
    def text(row: Row) -> str:
        mean, std = getattr(row.published, name)
        return f"{mean:.{digits}f} ± {std:.{digits}f}"

    return text


def _difference(name: str, digits: int) -> _Cell:
    def text(row: Row) -> str:
        if name in row.judgements and row.judgements[name].estimate:
            return difference_text(row.judgements[name], digits)
        value = _sample(row.ours, name)
        if value is None or value.mean is None:
            return MISSING
        return signed(value.mean - getattr(row.published, name)[0], digits)

    return text


def _margin(name: str) -> _Cell:
    return lambda row: f"± {row.judgements[name].margin:.2f}" if row.judgements else MISSING


def _verdict(name: str) -> _Cell:
    def text(row: Row) -> str:
        if row.judgements:
            return str(row.judgements[name].verdict)
        return "missing" if row.ours is None else "not judged"

    return text
