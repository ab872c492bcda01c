"""Runs that the paper's tables do not take: a table for each preset, on the terminal and as Markdown and CSV.

These are all runs of other presets than the paper's, and with its preset those of cells that it does not have.

``python -m analysis.overview [results/quick] [--out results/quick]``

Nothing is judged here. The published accuracy stands beside ours for orientation: the preset is not its protocol.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compare import PAPER_PRESET, Ours, differences, dotted, grouped, ours_of
from analysis.layouts import MISSING, Column, Layout, Line, marks, mean_std, variant_label
from analysis.load import Failure, load_failures, load_records, shared_part
from analysis.published import CellKey, Published, PublishedCell, load_published
from analysis.style import METHODS, dataset_label, family_label, method_label, model_label
from analysis.tables import hardware_notes, mark_notes, markdown, plain, plain_sample, terminal_table
from analysis.terminal import existing_folder, print_table, shown_path

DEFAULT_RUNS = Path("results/quick")
# Longer messages are whole in the run's FAILED.json.
_MESSAGE = 300


class OverviewError(ValueError):
    """A folder without runs of other presets; the message says what makes some."""


@dataclass(frozen=True)
class Entry:
    """The runs of one cell, engine, device, data and configuration; ``ours`` are finished ones (None: all failed).

    ``config`` has dotted keys and no seed. ``published`` is None where the paper has no such cell.
    """

    cell: CellKey
    engine: str | None
    device: str
    config: dict[str, Any]
    published: PublishedCell | None
    ours: Ours | None = None
    failures: tuple[Failure, ...] = ()
    # True where the cell has runs of more than one configuration, which then need their digest to be told apart.
    ambiguous: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Names of data set and architecture."""
        return dataset_label(self.cell[0]), model_label(self.cell[1])

    @property
    def runs(self) -> int:
        """Number of runs, failed ones among them."""
        return len(self.ours.seeds if self.ours else ()) + len(self.failures)


@dataclass(frozen=True)
class Overview:
    """All runs of one preset, in the paper's order of cells, then those of other cells."""

    preset: str
    entries: tuple[Entry, ...]

    @property
    def devices(self) -> list[str]:
        """The devices behind the rows."""
        return sorted({entry.device for entry in self.entries})

    @property
    def present(self) -> list[Ours]:
        """Our numbers, of the rows that have some."""
        return [entry.ours for entry in self.entries if entry.ours]


def overviews(records: pd.DataFrame, failures: Sequence[Failure], published: Published) -> list[Overview]:
    """Returns what the presets have that is not the paper's, one by one, by name.

    Runs of different devices, data or configurations are never averaged together: each has its own row. A failed run
    belongs to the row with its configuration and device, or has one of its own.

    Raises CompareError, naming the files, when one seed was run twice in one configuration.
    """
    cells = {cell.key for cell in published.cells}

    def other(preset: str, cell: CellKey) -> bool:
        return preset != PAPER_PRESET or cell not in cells

    keys = records[["preset", "dataset", "model", "method"]].itertuples(index=False)
    records = records.loc[[other(preset, (data, model, method)) for preset, data, model, method in keys]]
    failures = [failure for failure in failures if other(failure.preset, failure.cell)]
    presets = sorted({*records["preset"], *(failure.preset for failure in failures)})
    return [
        Overview(
            preset,
            _entries(records.loc[records["preset"] == preset], [f for f in failures if f.preset == preset], published),
        )
        for preset in presets
    ]


def _entries(records: pd.DataFrame, failures: Sequence[Failure], published: Published) -> tuple[Entry, ...]:
    cells = {cell.key: cell for cell in published.cells}
    found: list[Entry] = []
    for group in (group for variants in grouped(records).values() for group in variants):
        first, ours = group.iloc[0], ours_of(group)
        cell: CellKey = (first["dataset"], first["model"], first["method"])
        config = dotted(shared_part(json.loads(first["config"])))
        found.append(Entry(cell, ours.engine, ours.device, config, cells.get(cell), ours))
    for failure in sorted(failures, key=lambda failure: failure.seed):
        own = Entry(failure.cell, failure.engine, failure.device, dotted(shared_part(failure.config)), None)
        own = replace(own, published=cells.get(own.cell))
        alike = [n for n, entry in enumerate(found) if replace(entry, ours=None, failures=()) == own]
        # A failed run does not say which data it had: with runs on several, it is none of theirs.
        alike = alike if len(alike) < 2 else [n for n in alike if found[n].ours is None]
        if not alike:
            alike = [len(found)]
            found.append(own)
        found[alike[0]] = replace(found[alike[0]], failures=(*found[alike[0]].failures, failure))
    places, methods = list(cells), list(METHODS)

    def order(entry: Entry) -> tuple[object, ...]:
        method, ours = entry.cell[2], entry.ours
        place = places.index(entry.cell) if entry.cell in cells else len(places)
        number = methods.index(method) if method in methods else len(methods)
        variant = (entry.engine == "exact", entry.device, ours is None)
        within = (ours.subset, ours.config_digest) if ours else (entry.failures[0].run_id,)
        return place, *entry.cell[:2], number, method, *variant, *within

    def shown(entry: Entry) -> tuple[object, ...]:
        return entry.cell, entry.engine, entry.device, bool(entry.ours and entry.ours.subset)

    counts = Counter(shown(entry) for entry in found)
    return tuple(replace(entry, ambiguous=counts[shown(entry)] > 1) for entry in sorted(found, key=order))


def layout(overview: Overview) -> Layout:
    """Returns the table of a preset."""
    columns: list[tuple[Column, Callable[[Entry], str]]] = [
        (Column("Seeds", "ours"), _seeds),
        (Column("Test accuracy (%) ours", "ours"), lambda e: mean_std(e.ours and e.ours.accuracy, 1)),
        (Column("Test accuracy (%) published", "published"), _published),
        (Column("Steps run", "ours"), lambda e: _count(e.ours and e.ours.steps_run.mean)),
        (Column("Batch size", "ours"), lambda e: _count(e.config.get("protocol.batch_size"))),
        (Column("Training samples", "ours"), lambda e: _count(e.ours and e.ours.n_train)),
        (Column("Device time/step (ms) ours", "ours"), lambda e: mean_std(e.ours and e.ours.device_ms, 3)),
    ]
    place = [Column(header, "text") for header in ("Dataset", "Architecture", "Method")]
    lines = [
        Line(None, (*entry.place, _method(entry, overview, marked=True), *(cell(entry) for _, cell in columns)))
        for entry in overview.entries
    ]
    caption = f"Preset {overview.preset}: means of our runs; published accuracy for orientation"
    return Layout(overview.preset, caption, (*place, *(column for column, _ in columns)), tuple(lines))


def _method(entry: Entry, overview: Overview, *, marked: bool) -> str:
    ours = entry.ours
    digest = ours.config_digest if ours and entry.ambiguous else False
    label = variant_label(method_label(entry.cell[2], entry.engine), entry.device, overview.devices, digest)
    return label + (marks(ours) if ours and marked else "")


def _seeds(entry: Entry) -> str:
    seeds = [str(seed) for seed in entry.ours.seeds] if entry.ours else []
    return ", ".join([*seeds, *([f"failed: {len(entry.failures)} of {entry.runs}"] if entry.failures else [])])


def _published(entry: Entry) -> str:
    return MISSING if entry.published is None else "{:.1f} ± {:.1f}".format(*entry.published.accuracy)


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def notes(overview: Overview, published: Published) -> list[str]:
    """Returns the lines below a table: failed runs, what the preset changes, marks, hardware, seeds, missing cells."""
    entries, preset = overview.entries, overview.preset
    failed = sum(len(entry.failures) for entry in entries)
    lines = [f"Failed: {failed} of {sum(entry.runs for entry in entries)} runs. They enter no mean."] if failed else []
    lines += [_failed(overview, entry, failure) for entry in entries for failure in entry.failures]
    lines += _changes(overview, published)
    lines += mark_notes(overview.present)
    lines += hardware_notes(overview.devices)
    seeds = sorted({seed for ours in overview.present for seed in ours.seeds})
    lines.append(
        f"Seeds: {', '.join(map(str, seeds)) or 'none finished'}. ± is the standard deviation over a row's seeds,"
        f" ddof = 1 for ours and 0 for the published (text of {published.text})."
    )
    lines.append(
        "Steps run are all steps until a run ended. Device time/step is the computation alone, data on the device."
    )
    lines.append(
        "The published accuracy is that of the paper's protocol, here for orientation: no difference is judged."
    )
    if preset != PAPER_PRESET and (
        missing := len(published.cells) - len({entry.cell for entry in entries if entry.published})
    ):
        command = f"`make reproduce TABLE=all PRESET={preset}`"
        lines.append(f"Not listed: {missing} of the paper's {len(published.cells)} cells without a run. {command}")
        lines[-1] += " makes them."
    return lines


def _failed(overview: Overview, entry: Entry, failure: Failure) -> str:
    error = " ".join(failure.error.replace("`", "'").split())
    error = error if len(error) <= _MESSAGE else f"{error[:_MESSAGE]} ..."
    where = " ".join([*entry.place, _method(entry, overview, marked=False)])
    return f"{where}, seed {failure.seed}, failed at step {failure.step:,}: `{error}` ({failure.run_id})."


def _changes(overview: Overview, published: Published) -> list[str]:
    """What the configurations say, in words: of a family of networks, or of cells where those of a family differ."""
    said = [(entry, family_label(entry.cell[1]), _changed(entry, published)) for entry in overview.entries]
    several = {family for family, count in Counter(family for family, _ in {s[1:] for s in said}).items() if count > 1}
    named: dict[str, list[str]] = {}
    for entry, family, text in said:
        name = family
        if family in several:
            name = " ".join([*entry.place, _method(entry, overview, marked=False)])
        if name not in named.setdefault(text, []):
            named[text].append(name)
    start = f"Preset {overview.preset}"
    rest = "the rest of the protocol is the paper's, which has no limit of steps"
    return [f"{start}, {', '.join(names)}: {text}; {rest}." for text, names in named.items()]


def _changed(entry: Entry, published: Published) -> str:
    config: dict[str, Any] = dict(entry.config)
    expected: dict[str, Any] = published.expected(*entry.cell, entry.engine)
    words: list[str] = []
    for key, text in (
        ("protocol.batch_size", "batches of {} samples instead of {}"),
        ("protocol.evaluate_every", "an evaluation every {} steps instead of {}"),
    ):
        ours, theirs = config.pop(key, None), expected.pop(key)
        if ours != theirs:
            words.append(text.format(_count(ours), _count(theirs)))
    words.append(f"at most {_count(config.pop('protocol.max_steps', None))} steps")
    if limit := config.pop("dataset.limit", None):
        words.append(f"the first {limit:,} samples of the training and of the test set, where there are more")
    # Of data sets, networks and methods that are not the paper's nothing is expected.
    groups = zip(("dataset", "model", "method", "engine"), (*entry.cell, entry.engine), strict=True)
    foreign = tuple(f"{group}." for group, name in groups if name not in published.choices[group])
    known = [{key: each[key] for key in each if not key.startswith(foreign)} for each in (config, expected)]
    return ", ".join([*words, *differences(*known)])


def csv_text(found: Sequence[Overview], command: str) -> str:
    """Returns all rows as CSV, with unrounded means and deviations; an empty field is missing.

    The first line is a comment (``#``) with the command that made the file.
    """
    out = io.StringIO()
    out.write(f"# made by: {command}\n")
    header = ["preset", "dataset", "model", "method", "engine", "device", "subset", "altered", "n_train", "config"]
    header += ["batch_size", "max_steps", "n_seeds", "seeds", "n_failed", "failed_seeds", "n_step_limit"]
    for name in ("accuracy", "accuracy_published", "steps_run", "device_ms"):
        header += [f"{name}_mean", f"{name}_std"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for overview in found:
        for entry in overview.entries:
            ours = entry.ours
            values: list[object] = [overview.preset, *entry.cell, entry.engine or "", entry.device]
            if ours:
                flags = (str(flag).lower() for flag in (ours.subset, ours.altered))
                values += [*flags, ours.n_train, ours.config_digest]
            else:
                values += ["", "", "", ""]
            values += [entry.config.get(f"protocol.{key}", "") for key in ("batch_size", "max_steps")]
            for seeds in (ours.seeds if ours else (), [failure.seed for failure in entry.failures]):
                values += [len(seeds), " ".join(map(str, seeds))]
            values.append(ours.cut if ours else "")
            values += plain_sample(ours, "accuracy")
            values += map(plain, entry.published.accuracy if entry.published else (None, None))
            values += [*plain_sample(ours, "steps_run"), *plain_sample(ours, "device_ms")]
            writer.writerow(values)
    return out.getvalue()


def write_overview(runs: Path, out: Path, *, mixed: bool = False) -> list[Path]:
    """Prints the tables and writes ``overview.md`` and ``overview.csv``; returns the files' paths.

    The same records give the same bytes. Raises LoadError and CompareError, which name the offending record, and
    OverviewError where there is nothing to show.
    """
    published = load_published()
    records = load_records(runs, mixed=mixed)
    found = overviews(records, load_failures(runs), published)
    if not found:
        beside = f" ({len(records)} of preset {PAPER_PRESET}, which `make tables` shows)" if len(records) else ""
        raise OverviewError(
            f"no runs of other presets or cells than the paper's under {shown_path(runs)}{beside};"
            " `make reproduce TABLE=2 PRESET=quick` makes some"
        )
    parts = ["python", "-m", "analysis.overview", shown_path(runs), "--out", shown_path(out)]
    command = shlex.join([*parts, *(["--mixed-versions"] if mixed else [])])
    sections: list[str] = []
    for overview in found:
        below = notes(overview, published)
        print_table(terminal_table(layout(overview)))
        print("\n".join([f"Preset {overview.preset}:", *below]))
        sections += [markdown(layout(overview)), *(f"- {note}" for note in below), ""]
    texts = {
        ".md": "\n".join(
            ["# Runs of other presets or cells than the paper's", "", *sections, f"Made by `{command}`.", ""]
        ),
        ".csv": csv_text(found, command),
    }
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for suffix, text in texts.items():
        path = (out / "overview").with_suffix(suffix)
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)
    print(f"written: {', '.join(map(shown_path, written))}")
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (1 with a message on standard error for unusable records or folders)."""
    parser = argparse.ArgumentParser(prog="python -m analysis.overview", description="Runs of other presets.")
    parser.add_argument(
        "runs", nargs="?", type=existing_folder, default=DEFAULT_RUNS, help="folder with one folder per run"
    )
    parser.add_argument("--out", type=Path, help="folder for the files; default: that of the runs")
    parser.add_argument("--mixed-versions", action="store_true", help="read records of other schema versions too")
    args = parser.parse_args(argv)
    out: Path = args.out or args.runs
    try:
        write_overview(args.runs, out, mixed=args.mixed_versions)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the overview cannot be written to {shown_path(out)}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
