"""Our records beside the paper's cells: one row per cell, engine, device and configuration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.published import UNITS, CellKey, Published, PublishedCell
from analysis.statistics import MARGINS, Judgement, Sample, Verdict, judge, sample

PAPER_PRESET = "paper"
# Keys of a record's configuration that a cell's runs may differ in: a name changes nothing, and a run that the limit of
# steps, which the paper does not have, cut short is marked, as is one on other data than the published ones.
FREE = frozenset({"seed", "schema_version", "protocol.name", "protocol.max_steps", "dataset.subset", "dataset.altered"})


class CompareError(ValueError):
    """Records that contradict each other; the message names their files."""


@dataclass(frozen=True)
class Ours:
    """Our runs of one cell: same engine, device, data and configuration, different seeds.

    Accuracies in percent, ``steps_k`` in thousands of steps to 99 % of the best validation accuracy, ``time_s`` the
    seconds to get there. ``ms_per_step`` is the paper's definition of time per step, ``device_ms`` the device time and
    ``end_to_end_ms`` the whole training loop, all in milliseconds. ``sgd_ratio`` and ``device_sgd_ratio`` divide
    ``ms_per_step`` and ``device_ms`` by SGD's on the same architecture, data and device. ``steps_run`` are all steps
    until a run ended. ``run_ids`` have the order of ``seeds``.
    """

    engine: str | None
    device: str
    subset: bool
    altered: bool
    n_train: int
    config_digest: str
    data_sha256: str
    seeds: tuple[int, ...]
    run_ids: tuple[str, ...]
    cut: int  # runs that ended at the step limit, which the paper does not have
    accuracy: Sample
    train_accuracy: Sample
    steps_k: Sample
    steps_run: Sample
    time_s: Sample
    ms_per_step: Sample
    device_ms: Sample
    end_to_end_ms: Sample
    compile_s: Sample
    evaluation_s: Sample
    sgd_ratio: float | None = None
    device_sgd_ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table: the paper's cell, SGD's share of its time per step, and ours (None: no record).

    ``judgements``, by metric, are of the one row of a cell that is judged: the paper's operators, all data, most seeds.
    """

    published: PublishedCell
    published_sgd_ratio: float
    ours: Ours | None
    # True where the cell has runs of more than one configuration, which then need their digest to be told apart.
    ambiguous: bool = False
    judgements: Mapping[str, Judgement] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Rows in the paper's order, the devices behind them, and how many records were left out for which reason."""

    table: int
    rows: tuple[Row, ...]
    devices: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Number of cells without a record of the engine that the paper's tables use."""
        return self.cells - len({r.published.key for r in self.rows if r.ours and r.ours.engine != "exact"})

    @property
    def cells(self) -> int:
        """Number of the paper's cells among the rows."""
        return len({row.published.key for row in self.rows})

    @property
    def judged(self) -> dict[CellKey, Row]:
        """The rows that are judged, by cell."""
        return {row.published.key: row for row in self.rows if row.judgements}

    def verdicts(self, metric: str = "accuracy") -> Counter[Verdict]:
        """Returns how many of the judged cells have which verdict."""
        return Counter(row.judgements[metric].verdict for row in self.judged.values())

    def only(self, dataset: str | None) -> Comparison:
        """Returns the rows of one data set, judged as in the whole table; all of them for None."""
        return replace(self, rows=tuple(row for row in self.rows if dataset in (None, row.published.dataset)))


def compare(records: pd.DataFrame, published: Published, table: int) -> Comparison:
    """Puts the records of ``load_records`` beside the paper's cells of one table.

    Only records of preset ``paper``, with the configuration that ``published.yaml`` expects and the table's engine (or
    ``exact``, as extra rows), enter; ``left_out`` counts the rest, by what is different. Runs of different devices,
    data or configurations are never averaged together: each has its own row.

    Raises CompareError, naming the files, when one seed was run twice in one configuration.
    """
    left_out = _reasons_left_out(records, published)
    enters = pd.Series([reason is None for reason in left_out], index=records.index, dtype=bool)
    groups = grouped(records.loc[enters])
    sgd_ms = {c.key[:2]: c.ms_per_step[0] for c in published.cells if c.method == "sgd"}
    rows: list[Row] = []
    for cell in (c for c in published.cells if c.table == table):
        ratio = cell.ms_per_step[0] / sgd_ms[cell.key[:2]]
        baselines = [ours_of(g) for g in groups.get((cell.dataset, cell.model, "sgd"), [])]
        ours = [_with_ratios(ours_of(g), baselines) for g in groups.get(cell.key, [])]
        ours.sort(key=lambda o: (o.engine == "exact", o.device, o.subset, o.config_digest))
        # A cell with an ablation only still shows that the row of the paper's own operators is missing.
        if all(o.engine == "exact" for o in ours):
            rows.append(Row(cell, ratio, None))
        variants = Counter((o.engine, o.device, o.subset) for o in ours)
        rows.extend(Row(cell, ratio, o, variants[(o.engine, o.device, o.subset)] > 1) for o in ours)
    devices = sorted({row.ours.device for row in rows if row.ours})
    counts = Counter(reason for reason in left_out if reason is not None)
    return Comparison(table, tuple(_judged(rows)), tuple(devices), dict(sorted(counts.items())))


def _judged(rows: Sequence[Row]) -> list[Row]:
    """Rows with their judgements; a cell is one test, so only one row is judged.

    One of complete runs comes before one that the limit of steps cut, then the one with the most seeds.
    """
    main: dict[CellKey, int] = {}
    for number, row in enumerate(rows):
        if row.ours and row.ours.engine != "exact" and not (row.ours.subset or row.ours.altered):
            best = rows[main[row.published.key]].ours if row.published.key in main else None
            if best is None or (not row.ours.cut, len(row.ours.seeds)) > (not best.cut, len(best.seeds)):
                main[row.published.key] = number
    chosen = sorted(main.values())
    found: dict[int, dict[str, Judgement]] = {number: {} for number in chosen}
    for metric, margin in MARGINS.items():
        pairs = [(getattr(rows[n].ours, metric), rows[n].published.sample(metric)) for n in chosen]
        cut = [bool(ours and ours.cut) for ours in (rows[n].ours for n in chosen)]
        for number, judgement in zip(chosen, judge(pairs, margin, cut), strict=True):
            found[number][metric] = judgement
    return [replace(row, judgements=found.get(number, {})) for number, row in enumerate(rows)]


def _reasons_left_out(records: pd.DataFrame, published: Published) -> list[str | None]:
    known = {cell.key for cell in published.cells}
    reasons: list[str | None] = []
    for record in records.to_dict("records"):
        cell = (record["dataset"], record["model"], record["method"])
        engines = (None,) if record["method"] in ("sgd", "adam") else ("published", "exact")
        engine = record["engine"] if isinstance(record["engine"], str) else None
        if record["preset"] != PAPER_PRESET:
            reasons.append(f"preset {record['preset']}")
        elif cell not in known:
            reasons.append(f"{'/'.join(cell)} is not a cell of the paper")
        elif engine not in engines:
            reasons.append(f"{cell[2]} with engine {engine}")
        elif changed := differences(json.loads(record["config"]), published.expected(*cell, engine)):
            # A preset is a name; one option on the command line changes what it stands for.
            reasons.append(f"preset {PAPER_PRESET} with {', '.join(changed)}")
        else:
            reasons.append(None)
    return reasons


def differences(config: Mapping[str, Any], expected: Mapping[str, object]) -> list[str]:
    """Returns in words, sorted by key, in what a record's configuration is not as expected; FREE keys are not compared.

    ``config`` is nested by group or has dotted keys, as ``expected`` has. A key that only one of the two has is a
    difference.
    """
    found = dotted(config)
    texts: list[str] = []
    for key in sorted((found.keys() | expected.keys()) - FREE):
        if key not in found:
            texts.append(f"no {key}")
        elif key not in expected:
            texts.append(f"{key}={json.dumps(found[key])} (not in published.yaml)")
        elif found[key] != expected[key]:
            texts.append(f"{key}={json.dumps(found[key])} instead of {json.dumps(expected[key])}")
    return texts


def dotted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration that is nested by group with dotted keys."""
    found: dict[str, Any] = {}
    for group, values in config.items():
        if isinstance(values, dict):
            found |= {f"{group}.{key}": value for key, value in values.items()}
        else:
            found[group] = values
    return found


def grouped(records: pd.DataFrame) -> dict[Hashable, list[pd.DataFrame]]:
    """Returns by cell what may be averaged: runs of one engine, device, data and configuration.

    Raises CompareError, naming the files, when one seed was run twice in one configuration.
    """
    groups: dict[Hashable, list[pd.DataFrame]] = {}
    variant = ["engine", "device", "subset", "data_sha256", "config_digest"]
    for key, runs in records.groupby(["dataset", "model", "method"], sort=True):
        groups[key] = [group for _, group in runs.groupby(variant, sort=True, dropna=False)]
    for group in (group for variants in groups.values() for group in variants):
        twice = group[group["seed"].duplicated(keep=False)]
        if len(twice):
            raise CompareError(f"one seed was run twice in one configuration: {', '.join(twice['path'])}")
    return groups


def ours_of(group: pd.DataFrame) -> Ours:
    """Returns the numbers of one of the groups of ``grouped``, without ratios to SGD."""

    def of(column: str, scale: float = 1.0, unit: float = 0.0) -> Sample:
        return sample([scale * value for value in ordered[column].tolist()], unit)

    ordered = group.sort_values("seed")
    first = ordered.iloc[0]
    return Ours(
        engine=first["engine"] if isinstance(first["engine"], str) else None,
        device=first["device"],
        subset=bool(first["subset"]),
        altered=bool(first["altered"]),
        n_train=int(first["n_train"]),
        config_digest=first["config_digest"],
        data_sha256=first["data_sha256"],
        cut=sum(reason != "patience" for reason in ordered["stopped_by"]),
        seeds=tuple(int(seed) for seed in ordered["seed"]),
        run_ids=tuple(ordered["run_id"]),
        accuracy=of("test_accuracy", 100.0),
        train_accuracy=of("train_accuracy", 100.0),
        steps_k=of("steps_to_99", 1e-3, UNITS["steps_k"]),
        steps_run=of("steps_run"),
        time_s=of("time_to_99_s"),
        ms_per_step=of("published_ms_per_step"),
        device_ms=of("device_ms_per_step"),
        end_to_end_ms=of("end_to_end_ms_per_step"),
        compile_s=of("compile_s"),
        evaluation_s=of("evaluation_s"),
    )


def _with_ratios(ours: Ours, baselines: Sequence[Ours]) -> Ours:
    same = [b for b in baselines if (b.device, b.data_sha256) == (ours.device, ours.data_sha256)]
    # Two SGD configurations on one device leave no single time to divide by.
    if len(same) != 1:
        return ours
    return replace(
        ours,
        sgd_ratio=_ratio(ours.ms_per_step, same[0].ms_per_step),
        device_sgd_ratio=_ratio(ours.device_ms, same[0].device_ms),
    )


def _ratio(time: Sample, baseline: Sample) -> float | None:
    return time.mean / baseline.mean if time.mean is not None and baseline.mean else None
