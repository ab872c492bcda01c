"""TensorFlow Datasets as a second source of the same arrays; only `make data SOURCE=tfds` comes here.

TFDS prepares a set from its original files, which it is given, and shuffles it; the order of the files is restored
here. TensorFlow, which it needs for that, is in an environment of its own (`requirements-tfds.lock.txt`), and no run
trains there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.config import UsageError


def examples(name: str, data_dir: Path, files: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """All examples of a TFDS set by split, each split in the order in which its builder reads the original files.

    Args:
        name: of the set in TFDS; its builder's keys must be 0, 1, 2, ... in each split, or it has one example there.
        data_dir: the folder of prepared data; TFDS works in `tfds` there.
        files: the checked original files, under their original names. TFDS checks them again.

    Raises:
        UsageError: TFDS is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what TensorFlow says about the processor helps nobody
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"source=tfds needs TFDS, which is in an environment of its own: make data SOURCE=tfds ({error})"
        ) from error
    manual = data_dir / "tfds" / "downloads" / "manual"
    manual.mkdir(parents=True, exist_ok=True)
    for path in files:
        link = manual / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    builder = tfds.builder(name, data_dir=data_dir / "tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    config = tfds.ReadConfig(interleave_cycle_length=1)  # one file after the other
    found: dict[str, list[dict[str, Any]]] = {}
    for split in builder.info.splits:
        shuffled = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False, read_config=config)))
        # TFDS writes by ascending hash of the key, salted with the name of the split.
        order = sorted(range(len(shuffled)), key=tfds.core.hashing.Hasher(split).hash_key)
        restored = dict(zip(order, shuffled, strict=True))
        found[split] = [restored[key] for key in range(len(shuffled))]
    return found


def stacked(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, NDArray[np.uint8]]:
    """Images and labels of both parts as arrays."""
    return {
        f"{part}_{short}": np.stack([example[name] for example in found]).astype(np.uint8)
        for part, found in (("train", train), ("test", test))
        for short, name in (("x", "image"), ("y", "label"))
    }
