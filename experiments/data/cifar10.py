"""CIFAR-10 from its archive or the six files in it, directly or through TFDS (Krizhevsky 2009; no licence stated)."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.config import DatasetConfig, UsageError
from experiments.data.arrays import Dataset, read_cache, same_as_said, standardise, write_cache
from experiments.data.originals import Original, Source, command, find, originals
from experiments.data.tfds import examples, stacked

ARCHIVE = Original(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)
BATCHES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
"""The files in the archive and their SHA-256; the last has the test images."""
LABELS = "3edb456524d5918aefded81f5aef7c32efab2a788211df998a4eb0c8957baa1f"
"""SHA-256 of the published labels, one byte each, in the order of the files."""
IMAGES, CLASSES, SHAPE = 10_000, 10, (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image: its label, then its red, green and blue values, each row by row."""

ACCEPTS = ("altered",)
OFFICIAL_SPLIT = True


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None, source: Source) -> None:
    """Cache the images and labels as uint8 arrays.

    Raises:
        UsageError: a file is missing, damaged, or not the published one although `altered` is not set.
    """
    if source == "tfds":
        paths = originals("cifar10", [ARCHIVE], data_dir, raw)
        splits = examples("cifar10", data_dir, paths.values())
        batches = _batches_of(stacked(splits["train"], splits["test"]))
    else:
        batches = _read(data_dir, raw)
    for name, content in batches.items():
        if len(content) != IMAGES * RECORD:
            raise UsageError(f"{name} has {len(content):,} bytes instead of {IMAGES * RECORD:,}: it is not complete")
    altered = [name for name, content in batches.items() if hashlib.sha256(content).hexdigest() != BATCHES[name]]
    if altered and not config.altered:
        raise UsageError(
            f"{', '.join(altered)}: the right size, but not as published (SHA-256). To use such a copy all the same, "
            f"say so, and every record will: dataset.altered=true, or\n  {command('cifar10', ALTERED='yes')}"
        )
    same_as_said("altered", config.altered, bool(altered), "the given files of CIFAR-10")
    records = {name: _parse(content, name) for name, content in batches.items()}
    *train, test = records.values()
    arrays = {
        "train_x": np.concatenate([x for x, _ in train]),
        "train_y": np.concatenate([y for _, y in train]),
        "test_x": test[0],
        "test_y": test[1],
    }
    labels = np.concatenate([arrays["train_y"], arrays["test_y"]])
    if hashlib.sha256(labels.tobytes()).hexdigest() != LABELS:
        counts = ", ".join(str(count) for count in np.bincount(labels, minlength=CLASSES))
        raise UsageError(
            f"these are other images than CIFAR-10's, or in another order: their labels are not the published ones "
            f"({counts} images of the classes, instead of 6000 of each)"
        )
    write_cache(data_dir / "cifar10", arrays, altered=bool(altered))


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """CIFAR-10 with its official split, images (n, 32, 32, 3).

    Raises:
        UsageError: the data are not prepared, damaged, or altered although the configuration does not say so.
    """
    cached = read_cache(data_dir / "cifar10", command("cifar10"))
    same_as_said("altered", config.altered, cached.altered, f"the data in {data_dir / 'cifar10'}")
    arrays = cached.arrays
    train_x, test_x = standardise(arrays["train_x"], arrays["test_x"])
    train_y, test_y = arrays["train_y"].astype(np.int32), arrays["test_y"].astype(np.int32)
    return Dataset(
        "cifar10", config.num_classes, train_x, train_y, test_x, test_y, cached.sha256, altered=cached.altered
    )


def _read(data_dir: Path, raw: Path | None) -> dict[str, bytes]:
    """The six files: those in `raw`, or in the archive there, or in the downloaded archive."""
    if raw is not None and not (found := find(raw, [ARCHIVE.name])):
        found = find(raw, BATCHES)
        missing = [name for name in BATCHES if name not in found]
        if missing:
            raise UsageError(
                f"{raw} has neither {ARCHIVE.name} nor {', '.join(missing)}. Put the archive or its six files there, "
                f"then:\n  {command('cifar10')}"
            )
        return {name: found[name].read_bytes() for name in BATCHES}
    path = originals("cifar10", [ARCHIVE], data_dir, raw)[ARCHIVE.name]
    with tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        files = {name: archive.extractfile(members[name]) for name in BATCHES}
        return {name: file.read() for name, file in files.items() if file}


def _parse(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (10000, 32, 32, 3) and labels of a file of the right size."""
    records = np.frombuffer(content, np.uint8).reshape(IMAGES, RECORD)
    labels = records[:, 0]
    if (wrong := np.flatnonzero(labels >= CLASSES)).size:
        raise UsageError(
            f"{name}: image {wrong[0]} has label {labels[wrong[0]]}, and labels go from 0 to {CLASSES - 1}"
        )
    return records[:, 1:].reshape(IMAGES, *SHAPE).transpose(0, 2, 3, 1), labels


def _batches_of(arrays: Mapping[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """The six files that hold these images and labels, for their checksums."""
    x = np.concatenate([arrays["train_x"], arrays["test_x"]]).transpose(0, 3, 1, 2)
    records = np.column_stack([np.concatenate([arrays["train_y"], arrays["test_y"]]), x.reshape(len(x), -1)])
    return {name: records[IMAGES * i : IMAGES * (i + 1)].tobytes() for i, name in enumerate(BATCHES)}
