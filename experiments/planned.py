"""The runs of a command line, composed once: Hydra takes a tenth of a second for a cell, and status is asked often.

What was planned is kept in `.cache` of the results, by the arguments that say which runs and by all that they depend
on: the files of `conf/` and the code that reads them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import pickle
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.cells import Planned, plan
from experiments.compose import compose_run
from experiments.config import CONF, ROOT, validate

KEPT = 20
"""Plans; the oldest go."""
PACKAGES = ("hydra-core", "omegaconf")
HOW = ("cluster", "tracker", "memory_gb", "checkpoint_every_s", "retry_failed", "jobs")
"""Keys that say how runs are done, and not which: the same for all cells, whatever their choices."""


def planned(arguments: Sequence[str]) -> list[Planned]:
    """What `cells.plan` says, which is only asked if it has not been asked for the same runs before.

    Raises:
        UsageError: as `cells.plan` does; that is not kept.
    """
    return _kept(arguments, _planned)


def _planned(arguments: Sequence[str]) -> list[Planned]:
    how = [each for each in arguments if each.partition("=")[0].partition(".")[0] in HOW]
    if "together=yes" in arguments:
        # One program or several processes: only a plan of both can say so.
        how = [each for each in how if not each.startswith("jobs=")]
    if not how:
        return plan(arguments)
    runs = _kept([each for each in arguments if each not in how], plan)
    asked = compose_run([*runs[0].overrides, *how])
    values = {key: getattr(asked, key) for key in HOW}
    done = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, **values), overrides=(*run.overrides, *how))
        for run in runs
    ]
    for run in done:
        validate(run.config)
    return done


def _kept(arguments: Sequence[str], make: Callable[[Sequence[str]], list[Planned]]) -> list[Planned]:
    results = [value for key, _, value in (each.partition("=") for each in arguments) if key == "paths.results"]
    folder = ROOT / (results[0] if results else "results") / ".cache"
    path = folder / f"plan-{_key(arguments)}.pickle"
    # Whatever is wrong with a cache, and a damaged file can raise anything, the answer is known without it.
    with suppress(Exception):
        return pickle.loads(path.read_bytes())
    runs = make(arguments)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="plan-", delete=False) as scratch:
            scratch.write(pickle.dumps(runs))
        Path(scratch.name).replace(path)
        for old in sorted(folder.glob("plan-*"), key=lambda each: each.stat().st_mtime, reverse=True)[KEPT:]:
            old.unlink(missing_ok=True)
    return runs


def _key(arguments: Sequence[str]) -> str:
    sha = hashlib.sha256(repr([*arguments, *map(importlib.metadata.version, PACKAGES)]).encode())
    code = [path for folder in ("experiments", "baselines") for path in (ROOT / folder).rglob("*.py")]
    for path in [*sorted(CONF.rglob("*.yaml")), *sorted(code)]:
        sha.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:24]
