"""Data sets in memory: prepared once by `make data`, read by every run through `load`.

A data set is one module here with two functions, `prepare(config, data_dir, raw)` and `load(config, data_dir)`, and one
entry in `DATASETS`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

from experiments.config import DatasetConfig, UsageError
from experiments.data import digits, mnist
from experiments.data.arrays import Dataset

__all__ = ["DATASETS", "Dataset", "load", "prepare"]

DATASETS: dict[str, ModuleType] = {"digits": digits, "mnist": mnist}


def _module(config: DatasetConfig) -> ModuleType:
    if config.name not in DATASETS:
        raise UsageError(f"no loader for data set '{config.name}'. Known data sets: {', '.join(sorted(DATASETS))}")
    return DATASETS[config.name]


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """Read a prepared data set into host memory, standardised; the first samples of it if the configuration says so.

    Raises:
        UsageError: the data are missing or damaged, and the message names the command that prepares them; or
            `num_classes` is too small for their labels.
    """
    data = _module(config).load(config, data_dir).limited(config.limit)
    labels = np.concatenate([data.train_y, data.test_y])
    smallest, largest = int(labels.min()), int(labels.max())
    # JAX has no error for a label without a class: its one-hot row would be zero, and the run would mean nothing.
    if smallest < 0 or largest >= config.num_classes:
        raise UsageError(
            f"dataset.num_classes={config.num_classes} does not fit the labels of data set '{config.name}': they go "
            f"from {smallest} to {largest}, and should lie in 0 to dataset.num_classes - 1"
        )
    return data


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None) -> str:
    """Import a data set from the folder `raw` of original files into `data_dir`; returns what was done, for a person.

    Raises:
        UsageError: files are missing, incomplete or altered; the message names them and says what to do.
    """
    return _module(config).prepare(config, data_dir, raw)
