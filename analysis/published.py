"""The paper's Tables 2-4, read from ``published.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis.statistics import Sample, published_sample

PUBLISHED_YAML = Path(__file__).with_name("published.yaml")

# A cell's data set, model and method.
CellKey = tuple[str, str, str]
# What a mean is rounded to: by printing, but steps by the 1000 between two evaluations, theirs and ours.
UNITS = {"accuracy": 0.1, "steps_k": 1.0, "time_s": 0.1, "ms_per_step": 0.01}


@dataclass(frozen=True)
class PublishedCell:
    """One row of the paper's tables; every metric is (mean, std) as printed, the std with ``ddof=0``.

    ``accuracy`` in percent, ``steps_k`` in thousands of steps, ``time_s`` in seconds, ``ms_per_step`` in milliseconds.
    ``line`` is that of the paper's text, from 1.
    """

    table: int
    line: int
    dataset: str
    model: str
    method: str
    accuracy: tuple[float, float]
    steps_k: tuple[float, float]
    time_s: tuple[float, float]
    ms_per_step: tuple[float, float]

    @property
    def key(self) -> CellKey:
        """Names the cell among all 87."""
        return self.dataset, self.model, self.method

    def sample(self, metric: str) -> Sample:
        """Returns a metric as a sample of 5 runs, its deviation with ``ddof=1``."""
        mean, std = getattr(self, metric)
        return published_sample(mean, std, UNITS[metric])


@dataclass(frozen=True)
class Claim:
    """A statement of the paper's text and what it means on records; ``analysis.claims`` judges it.

    ``line`` and ``quote`` are the text's, ``means`` says in words what is tested. The rest is the test; see
    ``published.yaml``.
    """

    id: str
    line: int
    quote: str
    means: str
    every: str
    metric: str
    over: dict[str, list[str]]
    terms: list[tuple[float, dict[str, str]]]
    above: float
    within: float | None


@dataclass(frozen=True)
class Published:
    """All 87 cells in the paper's order, the text that they come from, its claims, and how the cells were trained.

    ``text`` is the date printed on it, ``sha256`` its digest. ``protocol`` has the expected values by key; ``choices``
    those of every other group of a record's configuration, by the name chosen and by key.
    """

    text: str
    sha256: str
    protocol: dict[str, object]
    choices: dict[str, dict[str, dict[str, object]]]
    cells: tuple[PublishedCell, ...]
    claims: tuple[Claim, ...]

    @property
    def tables(self) -> tuple[int, ...]:
        """Table numbers, in order."""
        return tuple(dict.fromkeys(cell.table for cell in self.cells))

    def expected(self, dataset: str, model: str, method: str, engine: str | None) -> dict[str, object]:
        """Returns what a record's configuration must say to stand in a cell, by dotted key.

        Only the name is expected of a choice that ``published.yaml`` does not describe.
        """
        expected = {f"protocol.{key}": value for key, value in self.protocol.items()}
        for group, name in {"dataset": dataset, "model": model, "method": method, "engine": engine}.items():
            if name is not None:
                values = self.choices[group].get(name, {})
                expected |= {f"{group}.name": name} | {f"{group}.{key}": value for key, value in values.items()}
        return expected


@cache
def load_published() -> Published:
    """Reads ``published.yaml`` once."""
    raw: dict[str, Any] = yaml.safe_load(PUBLISHED_YAML.read_text(encoding="utf-8"))
    cells = [
        PublishedCell(
            table=table,
            line=row["line"],
            dataset=row["dataset"],
            model=row["model"],
            method=row["method"],
            accuracy=_pair(row["accuracy"]),
            steps_k=_pair(row["steps_k"]),
            time_s=_pair(row["time_s"]),
            ms_per_step=_pair(row["ms_per_step"]),
        )
        for table, rows in raw["tables"].items()
        for row in rows
    ]
    training = raw["training"]
    choices = {group: training[group] for group in ("dataset", "model", "method", "engine")}
    for group, ours in raw["suite"].items():
        choices[group] = {name: values | ours.get(name, {}) for name, values in choices[group].items()}
    source = raw["source"]
    claims = tuple(_claim(claim) for claim in raw["claims"])
    return Published(source["text"], source["sha256"], training["protocol"], choices, tuple(cells), claims)


def _claim(raw: dict[str, Any]) -> Claim:
    over = {key: value if isinstance(value, list) else [value] for key, value in raw["over"].items()}
    terms = [(float(term.pop("times")), term) for term in (dict(term) for term in raw["terms"])]
    names = {key: raw[key] for key in ("id", "line", "quote", "means", "every", "metric")}
    return Claim(**names, over=over, terms=terms, above=raw.get("above", 0.0), within=raw.get("within"))


def _pair(values: list[float]) -> tuple[float, float]:
    mean, std = values
    return float(mean), float(std)
