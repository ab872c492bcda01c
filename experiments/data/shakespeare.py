"""Tiny Shakespeare, characters to predict, from its file or through TFDS (public domain; collected by Karpathy)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.config import DatasetConfig, UsageError
from experiments.data.arrays import Dataset, expect, read_cache, write_cache
from experiments.data.originals import Original, Source, command, originals
from experiments.data.tfds import examples

FILE = Original(
    "input.txt",
    1_115_394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
)
DIGEST = "4401a03ff7a6bb69cdd9a68c2278b531373fdd5cc7ae2454dab41bc356b08767"
"""Of the array of its bytes."""
WINDOW = 64
"""Characters of a sample."""


def prepare(config: DatasetConfig, data_dir: Path, raw: Path | None, source: Source) -> None:
    """Cache the text as an array of bytes.

    Raises:
        UsageError: the file is missing, damaged or another one, or cannot be downloaded.
    """
    (path,) = originals("shakespeare", [FILE], data_dir, raw).values()
    if source == "tfds":
        splits = examples("tiny_shakespeare", data_dir, [path])
        content = b"".join(splits[split][0]["text"] for split in ("train", "validation", "test"))
    else:
        content = path.read_bytes()
    arrays = {"text": np.frombuffer(content, np.uint8)}
    expect("shakespeare", arrays, DIGEST)
    write_cache(data_dir / "shakespeare", arrays)


def load(config: DatasetConfig, data_dir: Path) -> Dataset:
    """Windows of 64 characters and the characters that follow each, (n, 64) both, as places in the sorted alphabet.

    The end of the text, `test_fraction` of its characters, is the test set, and the last windows of the rest are for
    validation. Windows do not overlap; what does not fill one at the end of either part is left out.

    Raises:
        UsageError: the data are not prepared or damaged, or `test_fraction` is missing.
    """
    if config.test_fraction is None:
        raise UsageError(
            "dataset.test_fraction=null, but the text has no official split: say dataset.test_fraction=0.2"
        )
    cached = read_cache(data_dir / "shakespeare", command("shakespeare"))
    _, tokens = np.unique(cached.arrays["text"], return_inverse=True)
    cut = round((1 - config.test_fraction) * len(tokens))
    (train_x, train_y), (test_x, test_y) = (windows(part.astype(np.int32)) for part in (tokens[:cut], tokens[cut:]))
    if not len(train_x) or not len(test_x):
        raise UsageError(f"dataset.test_fraction={config.test_fraction} leaves no window of {WINDOW} characters")
    return Dataset("shakespeare", config.num_classes, train_x, train_y, test_x, test_y, cached.sha256, split="last")


def windows(tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Consecutive windows of tokens, and for each token the one after it."""
    end = (len(tokens) - 1) // WINDOW * WINDOW
    return tokens[:end].reshape(-1, WINDOW), tokens[1 : end + 1].reshape(-1, WINDOW)
