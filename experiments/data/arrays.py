"""What every data set has in common: the arrays in memory and their cache on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from experiments.config import UsageError
from experiments.storage import refused

VALUES_AT_ONCE = 2**22
"""How many values `standardise` holds in double precision."""

KINDS = {"subset": "only a part of the published set", "altered": "an altered copy of the published set"}
"""What the keys of a data set's configuration say of it."""


@dataclass(frozen=True)
class Dataset:
    """A data set in host memory.

    Attributes:
        name: as in the configuration.
        num_classes: labels are 0 .. num_classes - 1.
        train_x: (n, *features); float32, standardised by `standardise`: images (n, height, width, channels), rows
            (n, features). Or tokens: (n, length) int32.
        train_y: (n,) int32; of tokens (n, length) int32, a label at each place.
        test_x: (m, *features), of train_x's type, standardised with the numbers of the training set.
        test_y: (m,) or (m, length) int32.
        sha256: of the raw arrays, the same on every machine.
        subset: whether this is only a part of the published data set.
        altered: whether this is not a true copy of the published data set.
        split: which training samples make the validation set: random ones, or the last.
    """

    name: str
    num_classes: int
    train_x: NDArray[Any]
    train_y: NDArray[np.int32]
    test_x: NDArray[Any]
    test_y: NDArray[np.int32]
    sha256: str
    subset: bool = False
    altered: bool = False
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


def standardise(
    train: NDArray, test: NDArray, *, per_feature: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Standardise both sets to float32 by the training set's mean and deviation.

    The training set is the official one, validation part included, so that the numbers do not depend on the seed.

    Args:
        train: (n, *features), of any number type; may be memory-mapped.
        test: (m, *features).
        per_feature: every feature by its own numbers, instead of all by the same. A constant feature becomes 0.
    """
    axis = 0 if per_feature else None
    count = len(train) if per_feature else train.size
    mean = np.asarray(sum(part.sum(axis, dtype=np.float64) for part in _parts(train)) / count)
    variance = sum(np.square(part - mean).sum(axis) for part in _parts(train)) / count
    deviation = np.sqrt(variance).astype(np.float32)
    mean, deviation = mean.astype(np.float32), np.where(deviation > 0, deviation, np.float32(1))

    def standardised(array: NDArray) -> NDArray[np.float32]:
        result = np.empty(array.shape, np.float32)
        for into, part in zip(_parts(result), _parts(array), strict=True):
            into[:] = (part.astype(np.float32) - mean) / deviation
        return result

    return standardised(train), standardised(test)


def _parts(array: NDArray) -> Iterator[NDArray]:
    """Views of some rows each, few enough to be converted."""
    rows = max(1, VALUES_AT_ONCE // max(1, array[:1].size))
    return (array[start : start + rows] for start in range(0, len(array), rows))


def digest(arrays: Mapping[str, NDArray]) -> str:
    """SHA-256 over names, types, shapes and values, in the mapping's order."""
    sha = hashlib.sha256()
    for name, values in arrays.items():
        array = np.ascontiguousarray(values)
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.data)
    return sha.hexdigest()


def expect(name: str, arrays: Mapping[str, NDArray], sha256: str) -> None:
    """Check that arrays are those in the original files.

    Raises:
        UsageError: another digest, which a changed reader or source has.
    """
    if (found := digest(arrays)) != sha256:
        raise UsageError(f"the arrays of {name} are not those of its original files: SHA-256 {found}, not {sha256}")


def same_as_said(key: str, said: bool, found: bool, what: str) -> None:
    """Check that data are what `dataset.subset` or `dataset.altered` says.

    Raises:
        UsageError: they are not.
    """
    if said != found:
        is_or_not = "" if found else "not "
        raise UsageError(f"{what}: they are {is_or_not}{KINDS[key]}; say dataset.{key}={str(found).lower()}")


class DamagedData(UsageError):
    """Prepared data that are not what was written."""


@dataclass(frozen=True)
class Cached:
    """What a cache holds.

    Attributes:
        arrays: memory-mapped, by name.
        sha256: their digest.
        altered: whether they are not those that were published.
    """

    arrays: dict[str, NDArray]
    sha256: str
    altered: bool


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block ends without an error.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            fresh, earlier = Path(scratch) / folder.name, Path(scratch) / "earlier"
            fresh.mkdir()
            yield fresh
            if folder.exists():
                folder.rename(earlier)
            try:
                fresh.rename(folder)
            except OSError:
                if earlier.exists():
                    earlier.rename(folder)
                raise
    except OSError as error:
        if error.filename and not Path(error.filename).is_relative_to(folder.parent):
            raise  # of an original file, which it names
        raise UsageError(f"the data are not prepared: {refused(folder, error)}; what was there is kept") from error


def write_cache(folder: Path, arrays: Mapping[str, NDArray], *, altered: bool = False) -> str:
    """Write arrays and `meta.json` into `folder`, which appears complete or not at all; returns the digest."""
    with replacing(folder) as fresh:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array)
        return write_meta(fresh, arrays, altered=altered)


def write_meta(folder: Path, arrays: Mapping[str, NDArray], *, altered: bool = False) -> str:
    """Write `meta.json` beside arrays that lie in `folder` already; returns their digest."""
    sha256 = digest(arrays)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    meta = {"sha256": sha256, "shapes": shapes, "altered": altered}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return sha256


def read_cache(folder: Path, command: str) -> Cached:
    """Map what `write_cache` wrote into memory.

    Args:
        folder: where.
        command: the command that prepares this data set, for the error messages.

    Raises:
        UsageError: nothing there.
        DamagedData: something else is.
    """
    path = folder / "meta.json"
    if not path.exists():
        raise UsageError(
            f"the data set '{folder.name}' is not prepared (no {path}). Prepare it; without RAW "
            f"its files are downloaded:\n  {command}"
        )
    try:
        meta = json.loads(path.read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["shapes"]}
        found, expected = digest(arrays), meta["sha256"]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DamagedData(
            f"the prepared data in {folder} are damaged ({error}). Prepare them again:\n  {command}"
        ) from error
    if found != expected:
        raise DamagedData(
            f"the prepared data in {folder} are damaged: SHA-256 expected {expected}, found {found}. "
            f"Prepare them again:\n  {command}"
        )
    return Cached(arrays, found, meta.get("altered", False))
