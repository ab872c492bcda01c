"""MNIST from its four original files, directly or through TFDS (LeCun and Cortes, CC BY-SA 3.0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.config import DatasetConfig
from experiments.data.arrays import Dataset, expect, read_cache, standardise, write_cache
from experiments.data.idx import parse_idx
from experiments.data.originals import Original, Source, command, originals
from experiments.data.tfds import examples, stacked

# The copy that TFDS reads; the authors' own address asks for a password.
ADDRESS = "https://storage.googleapis.com/cvdf-datasets/mnist"
FILES = {
    name: Original(file, size, sha256, f"{ADDRESS}/{file}")
    for name, file, size, sha256 in (
        (
            "train_x",
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train_y",
            "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "test_x",
            "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "test_y",
            "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
}
DIGEST = "555319c7af51b1d0412da8d146a60df37d7d52d25074e034842ea5ccefa65ac1"
"""Of the arrays in these files."""

OFFICIAL_SPLIT = True


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None, source: Source) -> None:
    """Cache the images and labels as uint8 arrays.

    Raises:
        UsageError: a file is missing, damaged or another one, or cannot be downloaded.
    """
    paths = originals("mnist", list(FILES.values()), data_dir, raw)
    if source == "tfds":
        splits = examples("mnist", data_dir, paths.values())
        arrays = stacked(splits["train"], splits["test"])
        arrays |= {name: arrays[name][..., 0] for name in ("train_x", "test_x")}
    else:
        files = {name: paths[file.name] for name, file in FILES.items()}
        arrays = {name: parse_idx(path.read_bytes(), path) for name, path in files.items()}
    expect("mnist", arrays, DIGEST)
    write_cache(data_dir / "mnist", arrays)


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """MNIST with its official split, images (n, 28, 28, 1).

    Raises:
        UsageError: the data are not prepared or damaged.
    """
    cached = read_cache(data_dir / "mnist", command("mnist"))
    arrays = cached.arrays
    train_x, test_x = standardise(arrays["train_x"][..., None], arrays["test_x"][..., None])
    train_y, test_y = arrays["train_y"].astype(np.int32), arrays["test_y"].astype(np.int32)
    return Dataset("mnist", config.num_classes, train_x, train_y, test_x, test_y, cached.sha256)
