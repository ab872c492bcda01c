"""MNIST from its four original files (LeCun and Cortes, CC BY-SA 3.0)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.config import DatasetConfig, UsageError
from experiments.data.arrays import Dataset, read_cache, standardise, write_cache
from experiments.data.idx import parse_idx

FILES = {
    "train_x": ("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train_y": ("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "test_x": ("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "test_y": ("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
COMMAND = "make data DATASET=mnist RAW=<folder with the four original files>"


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None) -> str:
    """Check the four files in `raw` (or in its folder `mnist`) and cache them as uint8 arrays.

    Raises:
        UsageError: no folder given, or a file is missing, damaged or another one.
    """
    names = [name for name, _ in FILES.values()]
    if raw is None:
        if (data_dir / "mnist" / "meta.json").exists():
            _, sha256 = read_cache(data_dir / "mnist", COMMAND)
            return f"mnist is already prepared in {data_dir / 'mnist'} (SHA-256 of the arrays {sha256})"
        raise UsageError(
            "where are the original files of MNIST? Put these four into one folder:\n  "
            + "\n  ".join(names)
            + f"\nand name the folder:\n  {COMMAND}"
        )
    if not raw.is_dir():
        raise UsageError(f"raw={raw} is not a folder. Put these four files into one:\n  " + "\n  ".join(names))
    folder = raw / "mnist" if (raw / "mnist").is_dir() else raw
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}. Put the four original files there, then:\n  {COMMAND}")
    arrays = {key: _read(folder / name, sha256) for key, (name, sha256) in FILES.items()}
    sha256 = write_cache(data_dir / "mnist", arrays)
    sizes = ", ".join(f"{key} {array.shape}" for key, array in arrays.items())
    return f"prepared mnist in {data_dir / 'mnist'}: {sizes} (SHA-256 of the arrays {sha256})"


def _read(path: Path, sha256: str) -> NDArray[np.uint8]:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UsageError(
            f"checksum of {path} is wrong: SHA-256 expected {sha256}, found {found} ({len(content)} bytes). "
            "The file is incomplete or not the original; get it again."
        )
    return parse_idx(content, path)


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """MNIST with its official split.

    Raises:
        UsageError: the data are not prepared or damaged.
    """
    arrays, sha256 = read_cache(data_dir / "mnist", COMMAND)
    train_x, test_x = standardise(arrays["train_x"], arrays["test_x"])
    train_y, test_y = arrays["train_y"].astype(np.int32), arrays["test_y"].astype(np.int32)
    return Dataset("mnist", config.num_classes, train_x, train_y, test_x, test_y, sha256)
