"""What every data set has in common: the arrays in memory and their cache on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from experiments.config import UsageError

NAMES = ("train_x", "train_y", "test_x", "test_y")


@dataclass(frozen=True)
class Dataset:
    """A data set in host memory.

    Attributes:
        name: as in the configuration.
        num_classes: labels are 0 .. num_classes - 1.
        train_x: (n, d) float32, standardised by `standardise`.
        train_y: (n,) int32, or (n, positions) int32 for a label at every position.
        test_x: (m, d) float32, standardised with the numbers of the training set.
        test_y: (m,) int32, or (m, positions) int32.
        sha256: of the raw arrays, the same on every machine.
        subset: whether this is only a part of the published data set.
        split: which training samples validate: random ones, or the last in order.
    """

    name: str
    num_classes: int
    train_x: NDArray[Any]
    train_y: NDArray[np.int32]
    test_x: NDArray[Any]
    test_y: NDArray[np.int32]
    sha256: str
    subset: bool = False
    split: Literal["random", "last"] = "random"

    def limited(self, limit: int | None) -> Dataset:
        """The first so many samples of training and test set, a subset; None: all."""
        if limit is None or limit >= max(len(self.train_y), len(self.test_y)):
            return self
        return dataclasses.replace(
            self,
            train_x=self.train_x[:limit],
            train_y=self.train_y[:limit],
            test_x=self.test_x[:limit],
            test_y=self.test_y[:limit],
            subset=True,
        )


def standardise(train: NDArray, test: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flatten images to (n, d) float32 and standardise both sets by the training set's scalar mean and deviation.

    The training set is the official one, validation part included, so that the numbers do not depend on the seed.
    """
    train = train.reshape(len(train), -1)
    test = test.reshape(len(test), -1)
    mean = np.float32(train.mean(dtype=np.float64))
    deviation = np.float32(train.std(dtype=np.float64))
    return (train.astype(np.float32) - mean) / deviation, (test.astype(np.float32) - mean) / deviation


def digest(arrays: Mapping[str, NDArray]) -> str:
    """SHA-256 over names, types, shapes and values."""
    sha = hashlib.sha256()
    for name in NAMES:
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.data)
    return sha.hexdigest()


def write_cache(folder: Path, arrays: Mapping[str, NDArray]) -> str:
    """Write arrays and `meta.json` into `folder`, which appears complete or not at all; returns the digest."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sha256 = digest(arrays)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = Path(scratch) / folder.name
        fresh.mkdir()
        for name in NAMES:
            np.save(fresh / f"{name}.npy", arrays[name])
        shapes = {name: list(arrays[name].shape) for name in NAMES}
        (fresh / "meta.json").write_text(json.dumps({"sha256": sha256, "shapes": shapes}, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    return sha256


def read_cache(folder: Path, command: str) -> tuple[dict[str, NDArray], str]:
    """Read what `write_cache` wrote.

    Args:
        folder: where.
        command: the command that prepares this data set, for the error messages.

    Raises:
        UsageError: nothing there, or it is damaged.
    """
    meta = folder / "meta.json"
    if not meta.exists():
        raise UsageError(f"the data set '{folder.name}' is not prepared (no {meta}). Prepare it:\n  {command}")
    expected = json.loads(meta.read_text())["sha256"]
    try:
        arrays = {name: np.load(folder / f"{name}.npy") for name in NAMES}
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(
            f"the prepared data in {folder} are damaged ({error}). Prepare them again:\n  {command}"
        ) from error
    found = digest(arrays)
    if found != expected:
        raise UsageError(
            f"the prepared data in {folder} are damaged: SHA-256 expected {expected}, found {found}. "
            f"Prepare them again:\n  {command}"
        )
    return arrays, found
