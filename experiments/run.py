"""One run: `python -m experiments.run dataset=mnist model=mlp_4x128_skip method=dr seed=0`.

Several, one after the other: `python -m experiments.run -m +sweep=table2 'seed=range(5)'`. A failing run stops
no other.
"""

from __future__ import annotations

import functools
import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from experiments.compose import GROUPS, check_keys, check_said_once, choices, compose_run, explain, known_keys
from experiments.config import UsageError, register_schemas, to_run_config

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""The launcher that does runs in this process, one after the other."""
_errors: list[Exception] = []
"""What went wrong in the runs of this process, so that the last lines can say so."""


def _told() -> tuple[type[Exception], ...]:
    """What says by itself what went wrong. Imported late, as all that help needs not: it answers at once."""
    from experiments.runner import RunBusy, RunFailed
    from experiments.storage import StorageError

    return UsageError, RunBusy, RunFailed, StorageError


def _run(cfg: DictConfig) -> None:
    from experiments.progress import RunProgress, describe_record
    from experiments.records import run_id
    from experiments.runner import execute
    from experiments.tracking import tracked

    try:
        config = to_run_config(cfg)
        with RunProgress(1) as progress, tracked([config], progress.line):
            progress.start(config)
            record = execute(config, HydraConfig.get().overrides.task, functools.partial(progress.event, config))
            done = f"{run_id(config)} is finished: nothing to do" if record is None else describe_record(record)
            progress.end(config, done)
    except _told() as error:
        if HydraConfig.get().launcher["_target_"] != BASIC:
            # In a process of the launcher's, which has nothing of this one's. Hydra brings the first error back when
            # all runs have ended.
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise
        # Hydra would end a sweep with the first error's traceback; ours names every one.
        _errors.append(error)


def _help() -> str:
    """What can be said, which Hydra's own help takes three seconds for: it copies all that it knows for each group."""
    groups = "\n".join(f"  {group}: {', '.join(choices(group))}" for group in (*GROUPS, "task"))
    keys = "\n".join(f"  {key}" for key in sorted(known_keys()) if key not in GROUPS)
    return f"{__doc__}\nChoices:\n{groups}\n\nKeys:\n{keys}\n\n--hydra-help: what Hydra does"


def main() -> int:
    """Command line; returns 0 if every run is finished, 1 if one failed, 2 for a wrong request, 130 for Ctrl-C.

    Another signal that ends a run is 128 and its number: 143 for SIGTERM, 138 for SIGUSR1.
    """
    if {"--help", "-h"} & {*sys.argv[1:]}:
        print(_help())
        return 0
    register_schemas()
    # Hydra then raises its errors, where it would otherwise print them and exit with 1 itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    try:
        check_said_once(overrides)
        if flags:
            check_keys(overrides)
        else:
            # Composed once more below; here for messages that name the choices.
            compose_run(overrides)
        hydra.main(version_base="1.3", config_path="../conf", config_name="config")(_run)()
    except HydraException as error:
        _errors.append(UsageError(explain(error)))
    except _told() as error:
        _errors.append(error)
    except KeyboardInterrupt as error:
        print("interrupted; the same command goes on from the last checkpoint and skips finished runs", file=sys.stderr)
        return getattr(error, "status", 130)
    # The runs of a sweep often share what is wrong with them.
    for message in dict.fromkeys(map(str, _errors)):
        print(f"error: {message}", file=sys.stderr)
    if any(isinstance(error, UsageError) for error in _errors):
        return 2
    return 1 if _errors else 0


if __name__ == "__main__":
    sys.exit(main())
