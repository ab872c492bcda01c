"""The paper's Tables 2-4, read from ``published.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PUBLISHED_YAML = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class PublishedCell:
    """One row of the paper's tables; every metric is (mean, std) as printed, the std with ``ddof=0``.

    ``accuracy`` in percent, ``steps_k`` in thousands of steps, ``time_s`` in seconds, ``ms_per_step`` in milliseconds.
    """

    table: int
    dataset: str
    model: str
    method: str
    accuracy: tuple[float, float]
    steps_k: tuple[float, float]
    time_s: tuple[float, float]
    ms_per_step: tuple[float, float]


@dataclass(frozen=True)
class Published:
    """All 87 cells in the paper's order, the date printed on the text that they come from, and how they were trained.

    ``protocol`` has the expected values by key; ``choices`` those of every other group of a record's configuration, by
    the name chosen and by key.
    """

    text: str
    protocol: dict[str, object]
    choices: dict[str, dict[str, dict[str, object]]]
    cells: tuple[PublishedCell, ...]

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
    return Published(raw["source"]["text"], training["protocol"], choices, tuple(cells))


def _pair(values: list[float]) -> tuple[float, float]:
    mean, std = values
    return float(mean), float(std)
