"""The cells of a table and the runs that fill them, from the command line of `reproduce` and `status`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.config import RunConfig, UsageError, choices, compose_run, sweep_params

HELP = """key=value: sweep (%s), seeds (how many, default 5), together (yes: all seeds of a cell but the first, whose
clocks count, as one program; default no), dataset, model and method to narrow the sweep (several
separated by commas), and anything that experiments.run accepts, such as preset=paper, engine=exact,
protocol.max_steps=20000 or retry_failed=true"""


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
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("arguments", nargs="*", metavar="key=value", help=HELP % ", ".join(choices("sweep")))
    return plan(parser.parse_args().arguments)


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
    sweep = given.pop("sweep", "table2")
    seeds = given.pop("seeds", "5")
    if not seeds.isdecimal() or int(seeds) < 1:
        raise UsageError(f"seeds={seeds} is not a positive number")
    together = given.pop("together", "no")
    if together not in ("yes", "no"):
        raise UsageError(f"together={together}: yes or no")
    axes = sweep_params(sweep)
    for axis, known in axes.items():
        if axis in given:
            axes[axis] = given.pop(axis).split(",")
            unknown = [value for value in axes[axis] if value not in known]
            if unknown:
                raise UsageError(f"sweep {sweep} has no {axis} '{unknown[0]}'. It has: {', '.join(known)}")
    common = [f"{key}={value}" for key, value in given.items()]
    planned = []
    for values in itertools.product(*axes.values()):
        cell = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
        # Composing takes a tenth of a second, so a cell is composed once and not once per seed.
        config = compose_run([*cell, *common])
        for seed in range(int(seeds)):
            overrides = (*cell, f"seed={seed}", *common)
            planned.append(Planned(sweep, dataclasses.replace(config, seed=seed), overrides, together == "yes"))
    return planned


def main() -> int:
    """Print the runs that the command line asks for, one a line, as quoted arguments of `experiments.run`."""
    try:
        for run in parse("python -m experiments.cells", main.__doc__ or ""):
            print(shlex.join(run.overrides))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
