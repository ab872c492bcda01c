"""Data: the real files come in whole and checked, or not at all."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.config import DatasetConfig, UsageError
from experiments.data import digits, load, prepare
from experiments.data.arrays import read_cache, standardise, write_cache
from experiments.data.idx import parse_idx
from experiments.data.mnist import FILES

MNIST = DatasetConfig(name="mnist", num_classes=10, test_fraction=None)
DIGITS = DatasetConfig(name="digits", num_classes=10, test_fraction=0.2)


def test_mnist_from_the_original_files(shared: Path, tmp_path: Path) -> None:
    assert "prepared mnist" in prepare(MNIST, tmp_path, shared / "data")
    assert np.load(tmp_path / "mnist" / "train_x.npy", mmap_mode="r").dtype == np.uint8
    data = load(MNIST, tmp_path)
    assert data.train_x.shape == (60_000, 784)
    assert data.test_x.shape == (10_000, 784)
    assert data.train_x.dtype == data.test_x.dtype == np.float32
    np.testing.assert_allclose(data.train_x.mean(dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_x.std(dtype=np.float64), 1, atol=1e-5)
    # The class counts of the official training and test sets.
    assert np.bincount(data.train_y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert "already prepared" in prepare(MNIST, tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


def test_a_truncated_file_is_named_with_both_checksums(shared: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, _ in FILES.values():
        shutil.copy(shared / "data" / "mnist" / name, raw / name)
    name, expected = FILES["test_x"]
    content = (raw / name).read_bytes()
    (raw / name).chmod(0o644)
    (raw / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError) as caught:
        prepare(MNIST, tmp_path / "data", raw)
    assert str(raw / name) in str(caught.value)
    assert expected in str(caught.value)
    assert f"{len(content) // 2} bytes" in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / FILES["train_x"][0]).touch()
    with pytest.raises(UsageError) as caught:
        prepare(MNIST, tmp_path / "data", tmp_path)
    assert FILES["train_x"][0] not in str(caught.value)
    assert all(FILES[key][0] in str(caught.value) for key in ("train_y", "test_x", "test_y"))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"raw=.*absent is not a folder") as caught:
        prepare(MNIST, tmp_path, tmp_path / "absent")
    assert all(name in str(caught.value) for name, _ in FILES.values())


def test_without_a_folder_the_files_and_the_command_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(MNIST, tmp_path, None)
    assert "make data DATASET=mnist RAW=" in str(caught.value)
    assert all(name in str(caught.value) for name, _ in FILES.values())


def idx(shape: tuple[int, ...], values: bytes, *, magic: bytes = b"\0\0\x08") -> bytes:
    """A gzipped IDX file."""
    header = magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return gzip.compress(header + values)


def test_idx_round_trip() -> None:
    values = np.arange(24, dtype=np.uint8)
    np.testing.assert_array_equal(parse_idx(idx((2, 3, 4), values.tobytes()), Path("a")), values.reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx((2, 3), bytes(6))[:-9], "complete gzip"),
        (b"plain text", "complete gzip"),
        (idx((2, 3), bytes(6), magic=b"\0\0\x0d"), "unsigned bytes"),
        (gzip.compress(b""), "unsigned bytes"),
        (idx((2, 3), bytes(5)), r"shape \(2, 3\) but has 5 bytes"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "ends within its header"),
    ],
    ids=["cut", "plain", "floats", "empty", "short", "header"],
)
def test_idx_errors_name_the_file(content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_idx(content, Path("folder/file.gz"))
    assert "folder/file.gz" in str(caught.value)


def arrays() -> dict[str, np.ndarray]:
    """A data set of five samples."""
    x = np.arange(20, dtype=np.uint8).reshape(5, 4)
    return {"train_x": x[:3], "train_y": x[:3, 0], "test_x": x[3:], "test_y": x[3:, 0]}


def test_a_damaged_cache_is_an_error(tmp_path: Path) -> None:
    sha256 = write_cache(tmp_path / "set", arrays())
    assert read_cache(tmp_path / "set", "make data")[1] == sha256
    np.save(tmp_path / "set" / "test_y.npy", np.zeros(2, np.uint8))
    with pytest.raises(UsageError, match=rf"SHA-256 expected {sha256}(.|\n)*make data"):
        read_cache(tmp_path / "set", "make data")
    (tmp_path / "set" / "test_y.npy").write_bytes(b"")
    with pytest.raises(UsageError, match=r"damaged(.|\n)*make data"):
        read_cache(tmp_path / "set", "make data")
    assert write_cache(tmp_path / "set", arrays()) == sha256
    assert read_cache(tmp_path / "set", "make data")[1] == sha256


def test_standardise_uses_the_training_numbers_for_both() -> None:
    train, test = standardise(np.array([[[0, 2]], [[2, 0]]], np.uint8), np.array([[[3, 1]]], np.uint8))
    np.testing.assert_array_equal(train, [[-1, 1], [1, -1]])
    np.testing.assert_array_equal(test, [[2, 0]])


@pytest.mark.parametrize("num_classes", [5, 9, 0])
def test_labels_without_a_class_are_refused(num_classes: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(DatasetConfig(name="digits", num_classes=num_classes, test_fraction=0.2), tmp_path)
    assert f"dataset.num_classes={num_classes} " in str(caught.value)
    assert "'digits'" in str(caught.value)
    assert "from 0 to 9" in str(caught.value)


@pytest.mark.parametrize("split", ["train_y", "test_y"])
@pytest.mark.parametrize(("label", "span"), [(10, "from 0 to 10"), (-1, "from -1 to 9")])
def test_labels_of_both_splits_are_checked(
    split: str, label: int, span: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = load(DIGITS, tmp_path)
    labels = getattr(data, split).copy()
    labels[0] = label
    monkeypatch.setattr(digits, "load", lambda config, data_dir: dataclasses.replace(data, **{split: labels}))
    with pytest.raises(UsageError, match=span):
        load(DIGITS, tmp_path)


def test_digits_are_split_once_and_for_all(tmp_path: Path) -> None:
    data, again = load(DIGITS, tmp_path), load(DIGITS, tmp_path)
    assert (len(data.train_y), len(data.test_y)) == (1437, 360)
    assert data.sha256 == again.sha256
    np.testing.assert_array_equal(data.train_x, again.train_x)


def test_a_limit_takes_the_first_samples_and_says_so() -> None:
    whole, part = load(DIGITS, Path()), load(dataclasses.replace(DIGITS, limit=400), Path())
    assert (whole.subset, part.subset) == (False, True)
    for name, size in (("train_x", 400), ("train_y", 400), ("test_x", 360), ("test_y", 360)):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:size])
    assert not load(dataclasses.replace(DIGITS, limit=5000), Path()).subset
