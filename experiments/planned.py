"""The runs of a command line, composed once: Hydra takes a tenth of a second for a cell, and status is asked often.

What was planned is kept in `results/.cache`, by the arguments and by all that it depends on: the files of `conf/` and
the code that reads them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import pickle
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from experiments.cells import Planned, plan
from experiments.config import CONF, ROOT

CACHE = ROOT / "results" / ".cache"
KEPT = 20
"""Plans; the oldest go."""
PACKAGES = ("hydra-core", "omegaconf")


def planned(arguments: Sequence[str]) -> list[Planned]:
    """What `cells.plan` says, which is only asked if it has not been asked the same before.

    Raises:
        UsageError: as `cells.plan` does; that is not kept.
    """
    path = CACHE / f"plan-{_key(arguments)}.pickle"
    # Whatever is wrong with a cache, the answer is known without it.
    with suppress(Exception):
        return pickle.loads(path.read_bytes())
    runs = plan(arguments)
    with suppress(OSError):
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{hashlib.sha256(repr(id(runs)).encode()).hexdigest()[:8]}")
        scratch.write_bytes(pickle.dumps(runs))
        scratch.replace(path)
        for old in sorted(CACHE.glob("plan-*.pickle"), key=lambda each: each.stat().st_mtime, reverse=True)[KEPT:]:
            old.unlink(missing_ok=True)
    return runs


def _key(arguments: Sequence[str]) -> str:
    sha = hashlib.sha256(repr([*arguments, *map(importlib.metadata.version, PACKAGES)]).encode())
    code = [path for folder in ("experiments", "baselines") for path in (ROOT / folder).rglob("*.py")]
    for path in [*sorted(CONF.rglob("*.yaml")), *sorted(code)]:
        sha.update(f"{_name(path)}\n".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:24]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
