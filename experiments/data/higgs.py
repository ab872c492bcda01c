"""HIGGS from its CSV (Baldi, Sadowski and Whiteson 2014; CC BY 4.0), read once, in pieces, into arrays on disk.

TFDS has the set too, but shuffled, and the test set is the last 500,000 rows of the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.config import DatasetConfig, UsageError
from experiments.data.arrays import Dataset, read_cache, replacing, same_as_said, standardise, write_meta
from experiments.data.originals import Original, Source, command, originals
from experiments.progress import byte_bars

FILE = Original(
    "HIGGS.csv.gz",
    2_816_407_858,
    "ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698",
    "https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz",
)
ROWS, SIGNALS, TESTS = 11_000_000, 5_829_123, 500_000
"""Of the whole file: its rows, those of class 1, and those at its end that make the test set."""
COLUMNS = 29
"""The class, then 28 features."""
AT_ONCE = 100_000
"""Rows in memory."""

ACCEPTS = ("subset",)


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None, source: Source) -> None:
    """Convert the CSV to a float32 array of features and a uint8 array of classes, in the order of the file.

    Raises:
        UsageError: the file is missing, wrong anywhere, or not the whole set although `subset` is not set.
    """
    if source == "tfds":
        raise UsageError(f"HIGGS is read from its CSV, because TFDS shuffles it:\n  {command('higgs', 'CSV')}")
    path = originals("higgs", [FILE], data_dir, None)[FILE.name] if raw is None else _csv(raw)
    with replacing(data_dir / "higgs") as folder:
        convert(path, folder)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "y")}
        n = len(arrays["y"])
        if n != ROWS and not config.subset:
            raise UsageError(
                f"{path} has {n:,} of the {ROWS:,} rows of HIGGS. To use a subset, whose last rows make the test set, "
                f"say so, and every record will: dataset.subset=true, or\n  {command('higgs', 'CSV', SUBSET='yes')}"
            )
        same_as_said("subset", config.subset, n != ROWS, str(path))
        if n == ROWS and (signals := int(arrays["y"].sum(dtype=np.int64))) != SIGNALS:
            raise UsageError(
                f"{path} is not HIGGS: {signals:,} of its {ROWS:,} rows have class 1 instead of {SIGNALS:,}"
            )
        write_meta(folder, arrays)


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """HIGGS (n, 28), each feature standardised by itself; the last rows of the file are the test set.

    Raises:
        UsageError: the data are not prepared, damaged, or a subset although the configuration does not say so.
    """
    if config.subset and config.test_fraction is None:
        raise UsageError(
            "dataset.test_fraction=null, but a subset has no official split: say dataset.test_fraction=0.2"
        )
    cached = read_cache(data_dir / "higgs", command("higgs", "CSV"))
    x, y = cached.arrays["x"], cached.arrays["y"].astype(np.int32)
    subset = len(y) != ROWS
    same_as_said("subset", config.subset, subset, f"the data in {data_dir / 'higgs'}")
    tests = round(config.test_fraction * len(y)) if subset and config.test_fraction else TESTS
    cut = len(y) - tests
    if not 0 < cut < len(y):
        raise UsageError(f"dataset.test_fraction={config.test_fraction} of {len(y)} rows leaves nothing for one part")
    train_x, test_x = standardise(x[:cut], x[cut:], per_feature=True)
    return Dataset("higgs", config.num_classes, train_x, y[:cut], test_x, y[cut:], cached.sha256, subset=subset)


def _csv(raw: Path) -> Path:
    """The file itself, or the only CSV with HIGGS in its name in a folder, or in a folder there."""
    if raw.is_file():
        return raw
    if not raw.is_dir():
        raise UsageError(f"raw={raw} is neither a folder nor a file. Put {FILE.name} or HIGGS.csv into a folder")
    paths = [
        path for path in sorted([*raw.glob("*"), *raw.glob("*/*")]) if path.is_file() and "higgs" in path.name.lower()
    ]
    found = [path for path in paths if path.name.endswith((".csv", ".csv.gz"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError("more than one CSV of HIGGS; name one with RAW=:\n  " + "\n  ".join(map(str, found)))
    raise UsageError(f"{raw} lacks {FILE.name} (or HIGGS.csv). Put it there, then:\n  {command('higgs', 'CSV')}")


def convert(path: Path, folder: Path) -> None:
    """Write `x.npy` (n, 28) float32 and `y.npy` (n,) uint8 from a CSV of numbers, plain or gzipped, without header.

    The published values have the precision of float32, so that nothing is lost.

    Raises:
        UsageError: a line that is not a class, 0 or 1, and 28 finite numbers, or a file that ends too early.
    """
    done = 0
    try:
        with _Rows(folder / "x.npy", (COLUMNS - 1,), np.float32) as x, _Rows(folder / "y.npy", (), np.uint8) as y:
            try:
                for features, labels in _pieces(path):
                    x.append(features)
                    y.append(labels)
                    done += len(labels)
            except ValueError as error:  # as pandas' own errors are
                raise UsageError(f"{path}{_what_is_wrong(path, done) or f': {error}'}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path} is not a complete gzip file: {error}") from error


def _pieces(path: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Features and classes of some rows each."""
    # Imported here, because only a conversion should pay for it.
    import pandas as pd

    with (
        byte_bars() as progress,
        progress.open(path, "rb", description=path.name) as file,
        gzip.open(file) if path.suffix == ".gz" else file as lines,
        # Quotes and blank lines are no part of the format: a row is a line.
        pd.read_csv(
            lines, header=None, chunksize=AT_ONCE, dtype=np.float64, skip_blank_lines=False, quoting=csv.QUOTE_NONE
        ) as tables,
    ):
        for table in tables:
            values = table.to_numpy()
            labels = values[:, 0]
            with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
                features = values[:, 1:].astype(np.float32)
            if values.shape[1] != COLUMNS or not np.isfinite(features).all() or not np.isin(labels, (0, 1)).all():
                raise ValueError("wrong values")
            yield features, labels.astype(np.uint8)


class _Rows:
    """A .npy file that rows are appended to; its header is written again at the end, when their number is known."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._file, self._shape, self._dtype, self._rows = path.open("wb"), shape, np.dtype(dtype), 0

    def __enter__(self) -> _Rows:
        self._write_header()
        return self

    def _write_header(self) -> None:
        # NumPy pads the header so that the first dimension can grow.
        self._file.seek(0)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: NDArray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._rows += len(rows)

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._write_header()


def _what_is_wrong(path: Path, start: int) -> str | None:
    """The first wrong line from line `start` (counted from 0) on, in words; None if there is none."""
    with path.open("rb") as file, gzip.open(file) if path.suffix == ".gz" else file as opened:
        lines = io.TextIOWrapper(opened, errors="replace")
        for number, line in enumerate(islice(lines, start, None), start + 1):
            fields = line.rstrip("\r\n").split(",")
            if len(fields) != COLUMNS:
                return f", line {number} has {len(fields)} columns instead of {COLUMNS}: {line[:60].strip()!r}"
            for column, field in enumerate(fields, 1):
                with np.errstate(over="ignore"):
                    value = _number(field)
                if not math.isfinite(value):
                    return f", line {number}, column {column} is not a finite number: {field!r} (a header is none)"
                if column == 1 and value not in (0, 1):
                    return f", line {number} has class {field}, and classes are 0 and 1"
    return None


def _number(field: str) -> float:
    try:
        return float(np.float32(float(field)))
    except ValueError:
        return math.nan
