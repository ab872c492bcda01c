"""What a method's settings are worth: accuracies by the values of one key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from analysis.compare import CompareError, dotted
from analysis.layouts import MISSING, Column, Layout, Line, mean_std
from analysis.load import Failure, shared_part
from analysis.style import dataset_label, method_label
from analysis.variants import Variant, differing, network, settings


@dataclass(frozen=True)
class _Ended:
    """Runs of one configuration in a pivot: their accuracy, or that they failed."""

    method: str
    config: dict[str, Any]
    device: str
    text: str


def _ended(
    places: dict[tuple[str, str], list[Variant]], failures: Sequence[Failure]
) -> dict[tuple[str, str], list[_Ended]]:
    """Configurations that have a finished run, and then those that have none but failed ones."""
    ended: dict[tuple[str, str], list[_Ended]] = {}
    for place, found in places.items():
        ended[place] = [_Ended(o.method, o.config, o.ours.device, mean_std(o.ours.accuracy, 1)) for o in found]
    for failure in failures:
        dataset, model, method = failure.cell
        one = _Ended(method, dotted(shared_part(failure.config)), failure.device, "failed")
        alike = ended.setdefault((dataset, model), [])
        if not any(replace(other, text=one.text) == one for other in alike):
            alike.append(one)
    return ended


def pivots(places: dict[tuple[str, str], list[Variant]], failures: Sequence[Failure], key: str) -> list[Layout]:
    """Returns for each network its test accuracies, a row for each method and its other settings.

    Raises CompareError where no run says the key.
    """
    found: list[Layout] = []
    ended = _ended(places, failures)
    for (dataset, model), alike in ended.items():
        having = [one for one in alike if key in one.config]
        values = sorted(
            {one.config[key] for one in having},
            key=lambda value: (isinstance(value, str), str(value) if isinstance(value, str) else value or 0),
        )
        others = differing(having) - {key}
        # Accuracies hardly depend on it: devices are told apart where a configuration ran on several.
        several = any((a.method, a.config) == (b.method, b.config) for a, b in combinations(having, 2))
        rows: dict[tuple[str, ...], dict[Any, str]] = {}
        for one in having:
            said = [*settings(one, others), *([one.device] if several else [])]
            rows.setdefault((method_label(one.method, None), ", ".join(said)), {})[one.config[key]] = one.text
        if not rows:
            continue
        names = ("Dataset", "Architecture", "Method", "Settings")
        columns = [Column(name, "text") for name in names] + [Column(f"{value}", "ours") for value in values]
        lines = [
            Line(
                None,
                (
                    dataset_label(dataset),
                    network(model),
                    *row,
                    *(cells.get(value, MISSING) for value in values),
                ),
            )
            for row, cells in sorted(rows.items())
        ]
        caption = f"{dataset_label(dataset)}, {network(model)}: test accuracy (%) by {key}"
        found.append(Layout(f"{dataset}-{model}", caption, tuple(columns), tuple(lines)))
    if ended and not found:
        raise CompareError(f"no run has the key {key}")
    return found
