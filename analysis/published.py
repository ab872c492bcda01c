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

    ``protocol`` has ``batch_size`` (samples), ``validation_fraction``, ``evaluate_every`` (steps) and ``patience``
    (evaluations).
    """

    text: str
    protocol: dict[str, float]
    cells: tuple[PublishedCell, ...]

    @property
    def tables(self) -> tuple[int, ...]:
        """Table numbers, in order."""
        return tuple(dict.fromkeys(cell.table for cell in self.cells))


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
    source = raw["source"]
    return Published(text=source["text"], protocol=source["protocol"], cells=tuple(cells))


def _pair(values: list[float]) -> tuple[float, float]:
    mean, std = values
    return float(mean), float(std)
