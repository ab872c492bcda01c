"""The cells of a table and the runs that fill them, from the command line of `reproduce` and `status`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.compose import check_said_once, choices, compose_run, reading_once, sweep_cells
from experiments.config import RunConfig, UsageError
from experiments.records import run_id

HELP = """key=value: sweep (one or several of %s, separated by commas), seeds (how many; else what the preset says, 5
for preset=paper), together (yes: all seeds of a cell but the first, whose clocks count, as one program; default no),
dataset, model and method to narrow the sweep (several separated by commas), and anything that
experiments.run accepts, such as preset=quick, engine=exact, protocol.max_steps=20000 or retry_failed=true"""


MOST_SEEDS = 10_000
"""Of a cell in one sweep, which is planned whole."""


@dataclass(frozen=True)
class Planned:
    """A run, the sweep that asks for it and the arguments it was composed from; may it be one program with others?"""

    sweep: str
    config: RunConfig
    overrides: tuple[str, ...]
    together: bool = False


def parse(prog: str, description: str) -> list[Planned]:
    """The runs that the command line asks for, in the order of the sweep's file, seeds innermost.

    Raises:
        UsageError: an unknown sweep, choice or key.
    """
    return plan(read(prog, description))


def read(prog: str, description: str) -> list[str]:
    """The `key=value` arguments of the command line, whose help says which there are.

    Raises:
        UsageError: a key is there twice.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("arguments", nargs="*", metavar="key=value", help=HELP % ", ".join(choices("sweep")))
    arguments = parser.parse_args().arguments
    check_said_once(arguments)
    return arguments


def plan(arguments: Sequence[str]) -> list[Planned]:
    """The runs of a sweep; see `HELP` for the arguments.

    Raises:
        UsageError: an unknown sweep, choice or key.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UsageError(f"'{argument}' is not of the form key=value")
        given[key] = value
    if "seed" in given:
        raise UsageError(f"seed={given['seed']}: say how many seeds, for example seeds=5")
    if "task" in given:
        raise UsageError(f"task={given['task']}: narrow by dataset and model, for example dataset=mnist")
    sweeps = given.pop("sweep", "table2").split(",")
    seeds = given.pop("seeds", None)
    if seeds is not None and not (seeds.isdecimal() and 1 <= int(seeds) <= MOST_SEEDS):
        raise UsageError(f"seeds={seeds} is not a number from 1 to {MOST_SEEDS:,}")
    together = given.pop("together", "no")
    if together not in ("yes", "no"):
        raise UsageError(f"together={together}: yes or no")
    cells = _narrowed({sweep: sweep_cells(sweep) for sweep in sweeps}, given)
    kept = _for_some(given, {cell["dataset"] for _, cell in cells})
    planned: dict[str, Planned] = {}
    # Composing takes a tenth of a second, so a cell is composed once and not once per seed.
    with reading_once():
        composed = [(sweep, *_composed(chosen, given, kept)) for sweep, chosen in cells]
    for sweep, cell, common, config in composed:
        if together == "yes" and config.jobs > 1:
            raise UsageError(f"together=yes and jobs={config.jobs}: one program or several processes, not both")
        for seed in range(int(seeds) if seeds else config.preset.seeds):
            overrides = (*cell, f"seed={seed}", *common)
            run = Planned(sweep, dataclasses.replace(config, seed=seed), overrides, together == "yes")
            # Sweeps may have cells in common.
            planned.setdefault(run_id(run.config), run)
    return [*planned.values()]


def _composed(
    chosen: dict[str, str], given: dict[str, str], kept: dict[str, set[str]]
) -> tuple[list[str], list[str], RunConfig]:
    """A cell's own arguments, what else is said of it, and the run that both make, but for its seed."""
    cell = [f"{key}={value}" for key, value in chosen.items()]
    common = [f"{key}={value}" for key, value in given.items() if chosen["dataset"] in kept.get(key, chosen.values())]
    return cell, common, compose_run([*cell, *common])


def _for_some(given: dict[str, str], datasets: set[str]) -> dict[str, set[str]]:
    """What is said of copies of data, and for which data sets: those that may have such ones, or else all refuse it."""
    keys = [f"dataset.{key}" for key in ("subset", "altered") if f"dataset.{key}" in given]
    if not keys:
        return {}
    from experiments.data import accepted

    accepting = {key: {name for name in datasets if key.removeprefix("dataset.") in accepted(name)} for key in keys}
    return {key: names or datasets for key, names in accepting.items()}


def _narrowed(sweeps: dict[str, list[dict[str, str]]], given: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The cells of all sweeps that have one of the given values on every axis, which is taken from what is given."""
    cells = [(sweep, cell) for sweep, found in sweeps.items() for cell in found]
    names = f"sweep {','.join(sweeps)}"
    chosen = {axis: given.pop(axis).split(",") for axis in [*given] if any(axis in cell for _, cell in cells)}
    for axis, values in chosen.items():
        known = list(dict.fromkeys(cell[axis] for _, cell in cells if axis in cell))
        unknown = [value for value in values if value not in known]
        if unknown:
            others = [name for name in choices("sweep") if _has(name, axis, unknown[0])]
            elsewhere = f". There it is: sweep={','.join(others)}" if others else ""
            raise UsageError(f"{names} has no {axis} '{unknown[0]}'. It has: {', '.join(known)}{elsewhere}")
    kept = [(s, cell) for s, cell in cells if all(cell.get(axis) in values for axis, values in chosen.items())]
    if not kept:
        asked = " ".join(f"{axis}={','.join(values)}" for axis, values in chosen.items())
        raise UsageError(f"{names} has each of these, but no cell with all: {asked}")
    return kept


def _has(sweep: str, axis: str, value: str) -> bool:
    return any(cell.get(axis) == value for cell in sweep_cells(sweep))
