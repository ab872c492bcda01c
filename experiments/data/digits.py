"""The 8x8 digits that scikit-learn carries: 1797 real images, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.config import DatasetConfig, UsageError
from experiments.data.arrays import Dataset, digest, standardise

# The split is part of the data set, so it does not follow a run's seed.
SPLIT_SEED = 0


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """The digits (n, 8, 8, 1), split once and for all into training and test set.

    Raises:
        UsageError: `test_fraction` is missing.
    """
    # Imported here because scikit-learn takes a second, which only runs on digits should pay.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if config.test_fraction is None:
        raise UsageError("dataset.test_fraction=null, but digits have no official split: say dataset.test_fraction=0.2")
    x, y = (np.asarray(part, np.uint8) for part in load_digits(return_X_y=True))
    split = train_test_split(np.arange(len(y)), test_size=config.test_fraction, random_state=SPLIT_SEED, stratify=y)
    train, test = (np.asarray(part) for part in split)
    sha256 = digest({"train_x": x[train], "train_y": y[train], "test_x": x[test], "test_y": y[test]})
    train_x, test_x = standardise(x[train].reshape(-1, 8, 8, 1), x[test].reshape(-1, 8, 8, 1))
    train_y, test_y = y[train].astype(np.int32), y[test].astype(np.int32)
    return Dataset("digits", config.num_classes, train_x, train_y, test_x, test_y, sha256)
