"""Data sets in memory: prepared once by `make data`, read by every run through `load`.

A data set is one file here, by its name (docs/own.md). It has `load(config, data_dir)`, which returns a `Dataset`;
`prepare(config, data_dir, raw, source)`, which writes its cache, unless it needs none; in `ACCEPTS` the keys `subset`
and `altered` of its configuration, where other copies than the published one may be used; and `OFFICIAL_SPLIT = True`
where no `test_fraction` has a meaning.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType

from filelock import FileLock, Timeout

from experiments.config import DatasetConfig, UsageError, blaming
from experiments.data.arrays import KINDS, DamagedData, Dataset
from experiments.data.originals import Source

__all__ = ["Dataset", "accepted", "known", "load", "prepare"]


def known() -> list[str]:
    """The data sets: the files of this folder with a `load`."""
    return [name for name in _files() if hasattr(_module(name), "load")]


def accepted(name: str) -> tuple[str, ...]:
    """Which of the keys `subset` and `altered` a data set may have; none for one that there is not."""
    if name not in _files():
        return ()
    with blaming(f"dataset={name}"):
        return getattr(_module(name), "ACCEPTS", ())


def _files() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _checked(config: DatasetConfig) -> ModuleType:
    """The module of a data set, whose configuration makes sense."""
    # Only a file of the folder is imported, whatever the name says.
    module = _module(config.name) if config.name in _files() else None
    if not hasattr(module, "load"):
        raise UsageError(f"no loader for data set '{config.name}'. Known data sets: {', '.join(known())}")
    assert module is not None
    if config.test_fraction is not None and getattr(module, "OFFICIAL_SPLIT", False):
        raise UsageError(f"dataset.test_fraction={config.test_fraction}: {config.name} has an official test split")
    for key, kind in KINDS.items():
        if getattr(config, key) and key not in accepted(config.name):
            raise UsageError(f"dataset.{key}=true: {kind} cannot be used as data set '{config.name}'")
    return module


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """Read a prepared data set into host memory, standardised; the first samples of it if the configuration says so.

    Raises:
        UsageError: the configuration contradicts itself; the data are missing, damaged or not the copy that it says,
            and the message names the command that prepares them; or `num_classes` is too small for their labels.
    """
    with blaming(f"dataset={config.name}"):
        data = _checked(config).load(config, data_dir).limited(config.limit)
    parts = data.train_y, data.test_y
    smallest, largest = min(int(labels.min()) for labels in parts), max(int(labels.max()) for labels in parts)
    # JAX has no error for a label without a class: its one-hot row would be zero, and the run would mean nothing.
    if smallest < 0 or largest >= config.num_classes:
        raise UsageError(
            f"dataset.num_classes={config.num_classes} does not fit the labels of data set '{config.name}': they go "
            f"from {smallest} to {largest}, and should lie in 0 to dataset.num_classes - 1"
        )
    return data


def _is_whole(config: DatasetConfig, data_dir: Path) -> bool:
    """Whether prepared data can be read; damaged ones are told of. Others than the configuration says are an error."""
    try:
        load(config, data_dir)
    except DamagedData as error:
        print(f"{str(error).partition(' Prepare them')[0]} They are prepared again.", flush=True)
        return False
    return True


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None = None, source: Source = "files") -> str:
    """Import a data set into `data_dir`; returns what was done, for a person.

    Args:
        config: the data set.
        data_dir: the folder of prepared data.
        raw: the folder of its original files; None: they are downloaded, unless the set is prepared already.
        source: who reads the files.

    Raises:
        UsageError: files are missing, incomplete or altered, or another process does the same; the message names them
            and says what to do.
    """
    module = _checked(config)
    if not hasattr(module, "prepare"):
        return f"{config.name} need no preparation"
    folder, done = data_dir / config.name, "prepared"
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(data_dir / f".{config.name}.lock", timeout=0):
            if raw is None and source == "files" and (folder / "meta.json").exists() and _is_whole(config, data_dir):
                done = "already prepared:"
            else:
                module.prepare(config, data_dir, raw, source)
    except Timeout as error:
        raise UsageError(f"another process prepares data set '{config.name}' in {data_dir}; wait for it") from error
    meta = json.loads((folder / "meta.json").read_text())
    sizes = ", ".join(f"{name} {tuple(shape)}" for name, shape in meta["shapes"].items())
    return f"{done} {config.name} in {folder}: {sizes} (SHA-256 of the arrays {meta['sha256']})"
