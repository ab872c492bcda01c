"""What `published.yaml` expects of a record's configuration, against the configurations that `conf/` composes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from analysis.compare import FREE, differences
from analysis.published import load_published
from experiments.compose import choices, compose_run, sweep_cells
from experiments.records import cell_of, scientific_config

# Every cell with the table's engine, and every method with the others.
CELLS = [
    [f"{key}={value}" for key, value in {**cell, "engine": engine}.items()]
    for sweep in choices("sweep")
    if sweep.startswith("table")
    for cell in sweep_cells(sweep)
    for engine in choices("engine")
    if engine == "published" or cell["model"] == "mlp_1x128"
]


def expected(config: Any) -> dict[str, object]:
    cell = cell_of(config)
    return load_published().expected(cell.dataset, cell.model, cell.method, cell.engine)


@pytest.mark.parametrize("choice", CELLS, ids=lambda choice: "-".join(part.partition("=")[2] for part in choice))
def test_every_cell_of_a_table_composes_to_what_is_expected(choice: list[str]) -> None:
    config = compose_run(choice)
    cell = cell_of(config)
    assert (cell.dataset, cell.model, cell.method) in {(c.dataset, c.model, c.method) for c in load_published().cells}
    assert differences(scientific_config(config), expected(config)) == []


def changed(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key of a configuration with a copy in which it alone has another value."""
    for group, values in config.items():
        for key in values if isinstance(values, dict) else [None]:
            other = copy.deepcopy(config)
            place, last = (other, group) if key is None else (other[group], key)
            place[last] = "another"
            yield group if key is None else f"{group}.{key}", other


@pytest.mark.parametrize("method", load_published().choices["method"])
def test_another_value_of_any_key_is_a_difference(method: str) -> None:
    config = compose_run(["dataset=mnist", "model=mlp_1x128", f"method={method}"])
    for key, other in changed(scientific_config(config)):
        texts = differences(other, expected(config))
        assert len(texts) == (0 if key in FREE else 1), key
        assert all(text.startswith(f'{key}="another" instead of ') for text in texts)
