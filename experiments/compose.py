"""How choices on the command line become runs: keys and their checks, Hydra's composition, sweeps and their cells.

This module imports no JAX, so that `--help` and wrong arguments are answered at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.config import CONF, RunConfig, UsageError, register_schemas, to_run_config

GROUPS = ("dataset", "model", "method", "engine", "protocol", "preset", "tracker", "cluster")
PAIR = ("dataset", "model")
"""What a choice of the group `task` names together: most pairs stand in no table, and some make no sense."""


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The run that `python -m experiments.run <overrides>` would do.

    Raises:
        UsageError: an unknown choice, key or value; the message lists the known ones.
    """
    register_schemas()
    check_keys(overrides)
    try:
        with reading_once():
            return to_run_config(compose(config_name="config", overrides=list(overrides)))
    except HydraException as error:
        raise UsageError(explain(error)) from error


@contextmanager
def reading_once() -> Iterator[None]:
    """Let Hydra look for its plugins and for `conf/` once for all that is composed in the block."""
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():
            stack.enter_context(initialize_config_dir(config_dir=str(CONF), version_base="1.3"))
        yield


def explain(error: HydraException) -> str:
    """Hydra's message with its cause, which it keeps to itself, and without its search path, which helps nobody."""
    message = str(error).partition("Config search path:")[0].rstrip()
    schema = getattr(error.__cause__, "object_type", None)
    if message.startswith("Could not override") and dataclasses.is_dataclass(schema):
        # The key exists, but for another choice of its group: Hydra's hint to append it with + would mislead.
        key = str(getattr(error.__cause__, "full_key", ""))
        prefix = key[: key.rfind(".") + 1]
        known = sorted(prefix + item.name for item in dataclasses.fields(schema))
        return f"unknown key '{key}': the choice made for its group has no such key. It has:\n  " + "\n  ".join(known)
    cause = str(error.__cause__).partition("\n")[0] if error.__cause__ else ""
    return f"{message}: {cause}" if cause else message


def known_keys(schema: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """All keys that can be set on the command line, dotted, groups included."""
    hints = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        key, kind = prefix + item.name, hints[item.name]
        if not dataclasses.is_dataclass(kind):
            yield key
            continue
        if key in GROUPS:
            yield key
        yield from sorted({name for sub in _family(kind) for name in known_keys(sub, key + ".")})  # type: ignore[arg-type]


def _family(schema: type) -> Iterator[type]:
    """A schema and all that refine it."""
    yield schema
    for sub in schema.__subclasses__():
        yield from _family(sub)


def check_said_once(arguments: Iterable[str]) -> None:
    """Reject a command line that says a key twice, of which Hydra would take the last.

    Raises:
        UsageError: naming both.
    """
    by_key: dict[str, list[str]] = {}
    for argument in arguments:
        by_key.setdefault(argument.partition("=")[0].lstrip("+~"), []).append(argument)
    for key, said in by_key.items():
        if len(said) > 1:
            raise UsageError(f"{' and '.join(said)}: say {key} once")


def check_keys(overrides: Iterable[str]) -> None:
    """Reject keys that no run has, before Hydra does so without naming those that exist.

    Raises:
        UsageError: an override without `=`, or an unknown key; the message lists the known keys.
    """
    known = {*known_keys(), "task"}
    keys = {override.partition("=")[0] for override in overrides}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if not equals:
            raise UsageError(f"'{override}' is not of the form key=value")
        if key == "task" or (key == "sweep" and value in choices("sweep") and "task" in sweep_params(value)):
            for other in keys.intersection(PAIR):
                raise UsageError(f"'{override}' names data sets and models together: leave out {other}, or say task=")
        if key == "sweep" and not override.startswith("+"):
            raise UsageError(f"a sweep is added: write +{override}, together with -m")
        if key == "sweep" or key.startswith(("hydra.", "hydra/", "method.options.")):
            continue
        if key not in known:
            raise UsageError(f"unknown key '{key}'. Known keys:\n  " + "\n  ".join(sorted(known)))
        if override.startswith(("+", "~")):
            # Hydra would add the key to a choice that has none, and nothing would ever read it.
            raise UsageError(f"'{override}': keys are set, not added or removed; write {key}=value")


def choices(group: str) -> list[str]:
    """The names that a group can be set to: the files of `conf/<group>/`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def sweep_params(name: str) -> dict[str, list[str]]:
    """The axes of a sweep and their values, in the order of the file.

    Args:
        name: a file of `conf/sweep/`, without its ending.

    Raises:
        UsageError: there is no such sweep; the message lists those there are.
    """
    if name not in choices("sweep"):
        raise UsageError(f"unknown sweep '{name}'. Known sweeps: {', '.join(choices('sweep'))}")
    params: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / f"{name}.yaml"))
    axes = params["hydra"]["sweeper"]["params"]
    return {key: [value.strip() for value in str(values).split(",")] for key, values in axes.items()}


def sweep_cells(name: str) -> list[dict[str, str]]:
    """The cells of a sweep in the order of its file: choices by group, a task resolved to data set and model.

    Raises:
        UsageError: there is no such sweep.
    """
    axes = sweep_params(name)
    cells = []
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        cells.append({**task_pair(cell.pop("task")), **cell} if "task" in cell else cell)
    return cells


def task_pair(name: str) -> dict[str, str]:
    """The data set and the model that a file of `conf/task/` names."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{name}.yaml"))
    chosen = {key.removeprefix("override /"): value for entry in content["defaults"] for key, value in entry.items()}
    return {group: chosen[group] for group in PAIR}
