"""How long a run will take, from the clocks of finished runs of its cell on the same device."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import ROOT, RunConfig
from experiments.records import scientific_config
from experiments.storage import relative


@dataclass(frozen=True)
class Pace:
    """What a run of a cell takes.

    Attributes:
        ms_per_step: of a counted step, evaluations and checkpoints included.
        start_s: compilation.
        steps: how many a run is expected to take; None where none of the same protocol has ended, so that nobody knows
            when patience ends it.
    """

    ms_per_step: float
    start_s: float
    steps: int | None = None

    def seconds(self, max_steps: int, done: int = 0) -> float:
        """What is left of a run after so many steps; without an expectation the most that it can be."""
        steps = max(done, max_steps if self.steps is None else min(self.steps, max_steps))
        return self.start_s + (steps - done) * self.ms_per_step / 1e3


class Paces:
    """The clocks of finished runs, read once."""

    def __init__(self, folders: Iterable[Path], device: str | None) -> None:
        self._records: dict[str, list[dict[str, Any]]] = {}
        for path in sorted({path for folder in folders for path in folder.glob("*/record.json")}):
            try:
                record = json.loads(path.read_text())
                if record["clocks"] and device in (None, record["environment"]["device"]):
                    self._records.setdefault(_key(record["config"]), []).append(record)
            except (ValueError, KeyError, TypeError):
                # Times are told without it; what needs the record itself will name it.
                print(f"{relative(path)} is damaged and tells no times", file=sys.stderr)

    def of(self, config: RunConfig) -> Pace | None:
        """The median over runs of the same data, network, method and batch; None if there are none."""
        wanted = scientific_config(config)
        found = self._records.get(_key(wanted), [])
        if not found:
            return None
        alike = [record for record in found if record["config"]["protocol"] == wanted["protocol"]]
        ends = [record["metrics"]["steps_run"] for record in alike]
        return Pace(
            ms_per_step=statistics.median(map(_ms_per_step, found)),
            start_s=statistics.median(record["clocks"]["compile_s"] for record in found),
            steps=round(statistics.median(ends)) if ends else None,
        )


def known_paces(configs: Sequence[RunConfig], device: str | None = None) -> Paces:
    """The clocks, on a device or on any, in the folders of these runs and in all of `results`."""
    return Paces([*{config.results_dir for config in configs}, *sorted(ROOT.glob("results/*"))], device)


def pace_so_far(folder: Path) -> tuple[int, Pace | None]:
    """The last step that a run has been evaluated at, and its pace until then."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        # The last line may be in the making.
        with suppress(json.JSONDecodeError):
            event = json.loads(line)
            step = event["step"]
            return step, Pace(1e3 * event["wall_s"] / step, 0.0) if step else None
    return 0, None


def duration(seconds: float) -> str:
    """Seconds in words."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _ms_per_step(record: dict[str, Any]) -> float:
    clocks = record["clocks"]
    return clocks["end_to_end_ms_per_step"] + 1e3 * clocks["evaluation_s"] / record["metrics"]["steps_run"]


def _key(config: dict[str, Any]) -> str:
    """What a step's time depends on."""
    kept = {name: config.get(name) for name in ("dataset", "model", "method", "engine")}
    protocol = {name: config["protocol"][name] for name in ("batch_size", "evaluate_every")}
    return json.dumps({**kept, "protocol": protocol}, sort_keys=True)
