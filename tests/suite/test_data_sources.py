"""Original files: the real ones come in whole and checked; wrong ones are refused by name."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.config import DatasetConfig, UsageError
from experiments.data import cifar10, load, mnist, prepare, shakespeare
from experiments.data.arrays import Dataset, read_cache, replacing, write_cache
from experiments.data.originals import Original, find
from experiments.data.tfds import examples

MNIST = DatasetConfig("mnist", num_classes=10, test_fraction=None, subset=False, altered=False)
CIFAR10 = dataclasses.replace(MNIST, name="cifar10")
SHAKESPEARE = DatasetConfig("shakespeare", num_classes=65, test_fraction=0.2, subset=False, altered=False)
MNIST_FILES = [file.name for file in mnist.FILES.values()]


def sha256(array: np.ndarray) -> str:
    """Of the values."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def check_standardised(data: Dataset) -> None:
    """Type, mean and deviation."""
    assert data.train_x.dtype == data.test_x.dtype == np.float32
    np.testing.assert_allclose(data.train_x.mean(dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_x.std(dtype=np.float64), 1, atol=1e-5)
    assert data.train_y.dtype == data.test_y.dtype == np.int32


def test_mnist_from_the_original_files(shared: Path, tmp_path: Path) -> None:
    assert prepare(MNIST, tmp_path, shared / "data").startswith("prepared mnist in")
    assert np.load(tmp_path / "mnist" / "train_x.npy", mmap_mode="r").dtype == np.uint8
    data = load(MNIST, tmp_path)
    assert data.train_x.shape == (60_000, 28, 28, 1)
    assert data.test_x.shape == (10_000, 28, 28, 1)
    check_standardised(data)
    # The class counts of the official training and test sets.
    assert np.bincount(data.train_y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # In committed records.
    assert data.sha256 == "555319c7af51b1d0412da8d146a60df37d7d52d25074e034842ea5ccefa65ac1"
    assert (data.split, data.subset, data.altered) == ("random", False, False)
    assert prepare(MNIST, tmp_path).startswith("already prepared: mnist in")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mnist.lock", "mnist"]


def test_shakespeare_from_the_original_file(shared: Path, tmp_path: Path) -> None:
    prepare(SHAKESPEARE, tmp_path, shared / "data")
    data = load(SHAKESPEARE, tmp_path)
    text = (shared / "data" / "tiny_shakespeare" / "input.txt").read_text()
    characters = "".join(sorted(set(text)))
    assert len(characters) == 65

    def decoded(tokens: np.ndarray) -> str:
        return "".join(characters[token] for token in tokens.ravel())

    # 80 % of 1,115,394 characters are 892,315.2.
    train, test = text[:892_315], text[892_315:]
    assert data.train_x.shape == data.train_y.shape == (13_942, 64)
    assert data.test_x.shape == data.test_y.shape == (3_485, 64)
    assert {array.dtype for array in (data.train_x, data.train_y, data.test_x, data.test_y)} == {np.dtype(np.int32)}
    for part, x, y in ((train, data.train_x, data.train_y), (test, data.test_x, data.test_y)):
        assert part.startswith(decoded(x))
        assert part[1:].startswith(decoded(y))
        assert len(part) - x.size <= 64
    assert data.split == "last"
    assert data.sha256 == "4401a03ff7a6bb69cdd9a68c2278b531373fdd5cc7ae2454dab41bc356b08767"
    assert np.bincount(data.train_y.ravel())[:8].tolist() == [31496, 136176, 1738, 1, 3, 5044, 15814, 1563]


def test_an_altered_copy_of_cifar10_is_taken_when_the_configuration_says_so(shared: Path, tmp_path: Path) -> None:
    altered = dataclasses.replace(CIFAR10, altered=True)
    with pytest.raises(
        UsageError, match=r"data_batch_1\.bin, .*not as published(.|\n)*dataset\.altered=true"
    ) as caught:
        prepare(CIFAR10, tmp_path, shared / "data")
    assert "make data DATASET=cifar10 ALTERED=yes RAW=" in str(caught.value)
    assert not (tmp_path / "cifar10").exists()
    prepare(altered, tmp_path, shared / "data")
    with pytest.raises(UsageError, match=r"they are an altered copy .*say dataset\.altered=true"):
        load(CIFAR10, tmp_path)
    data = load(altered, tmp_path)
    assert (data.altered, data.subset, data.split) == (True, False, "random")
    assert data.train_x.shape == (50_000, 32, 32, 3)
    assert data.test_x.shape == (10_000, 32, 32, 3)
    check_standardised(data)
    assert np.bincount(data.train_y).tolist() == [5000] * 10
    assert np.bincount(data.test_y).tolist() == [1000] * 10
    # Of this copy, whose other images are exact.
    assert data.sha256 == "38d3c16b04c51c80e92f21915af96f1a5f071c7fbc8eff0fe209ad311b9d4231"
    # Channels last: the first image's first pixel is the first byte of each of its planes.
    record = (shared / "data" / "cifar10" / "cifar-10-batches-bin" / "data_batch_1.bin").read_bytes()[:3073]
    image = np.load(tmp_path / "cifar10" / "train_x.npy", mmap_mode="r")[0]
    assert image[0, 0].tolist() == [record[1], record[1025], record[2049]]
    assert image[0, 1].tolist() == [record[2], record[1026], record[2050]]
    assert data.train_y[0] == record[0]


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A folder with six files of four images each that count as published; changed bytes by file."""
    rng = np.random.default_rng(0)
    contents = {}
    for name in cifar10.BATCHES:
        records = rng.integers(0, 256, (4, cifar10.RECORD), np.uint8)
        records[:, 0] = rng.integers(0, 10, 4)
        contents[name] = bytearray(records.tobytes())
    labels = bytes(content[cifar10.RECORD * i] for content in contents.values() for i in range(4))
    monkeypatch.setattr(cifar10, "IMAGES", 4)
    monkeypatch.setattr(cifar10, "LABELS", hashlib.sha256(labels).hexdigest())
    monkeypatch.setattr(cifar10, "BATCHES", {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()})

    def make(**changes: tuple[int, int]) -> Path:
        folder = tmp_path / "raw" / "cifar-10-batches-bin"
        folder.mkdir(parents=True)
        for name, content in contents.items():
            for stem, (place, value) in changes.items():
                if name == f"{stem}.bin":
                    content[place] = value
            (folder / name).write_bytes(content)
        return tmp_path / "raw"

    return make


def test_published_files_need_no_word(small_cifar10: Callable[..., Path], tmp_path: Path) -> None:
    raw = small_cifar10()
    prepare(CIFAR10, tmp_path / "data", raw)
    assert not load(CIFAR10, tmp_path / "data").altered
    wrongly_said = dataclasses.replace(CIFAR10, altered=True)
    for call in (lambda: prepare(wrongly_said, tmp_path / "data", raw), lambda: load(wrongly_said, tmp_path / "data")):
        with pytest.raises(UsageError, match=r"they are not an altered copy .*say dataset\.altered=false"):
            call()


def test_the_archive_has_the_arrays_of_its_files(
    small_cifar10: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small_cifar10()
    prepare(CIFAR10, tmp_path / "files", raw)
    folder = tmp_path / "archive"
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(raw / "cifar-10-batches-bin", "cifar-10-batches-bin")
    with pytest.raises(UsageError, match=r"checksum of .*cifar-10-binary\.tar\.gz is wrong"):
        prepare(CIFAR10, tmp_path / "data", folder)
    content = (folder / "cifar-10-binary.tar.gz").read_bytes()
    published = Original("cifar-10-binary.tar.gz", len(content), hashlib.sha256(content).hexdigest(), "")
    monkeypatch.setattr(cifar10, "ARCHIVE", published)
    prepare(CIFAR10, tmp_path / "data", folder)
    assert load(CIFAR10, tmp_path / "data").sha256 == load(CIFAR10, tmp_path / "files").sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_2": (0, 10)}, r"data_batch_2\.bin: image 0 has label 10, and labels go from 0 to 9"),
        ({"test_batch": (2 * cifar10.RECORD, 255)}, r"test_batch\.bin: image 2 has label 255"),
    ],
)
def test_a_wrong_label_is_named(
    small_cifar10: Callable[..., Path], tmp_path: Path, change: dict[str, tuple[int, int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(dataclasses.replace(CIFAR10, altered=True), tmp_path / "data", small_cifar10(**change))


def test_an_altered_copy_has_the_published_labels(small_cifar10: Callable[..., Path], tmp_path: Path) -> None:
    raw = small_cifar10()
    path = raw / "cifar-10-batches-bin" / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[0] = (content[0] + 1) % 10
    path.write_bytes(content)
    with pytest.raises(UsageError, match="their labels are not the published ones"):
        prepare(dataclasses.replace(CIFAR10, altered=True), tmp_path / "data", raw)


def test_a_truncated_batch_is_named_with_both_sizes(small_cifar10: Callable[..., Path], tmp_path: Path) -> None:
    raw = small_cifar10()
    path = raw / "cifar-10-batches-bin" / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[:-1])
    # It is incomplete, not altered, whatever copy is asked for.
    for altered in (True, False):
        with pytest.raises(UsageError, match=r"data_batch_5\.bin has 12,291 bytes instead of 12,292"):
            prepare(dataclasses.replace(CIFAR10, altered=altered), tmp_path / "data", raw)


def test_a_split_of_ones_own_of_a_set_that_has_one_is_refused(tmp_path: Path) -> None:
    for config in (MNIST, CIFAR10):
        with pytest.raises(UsageError, match=rf"test_fraction=0\.3: {config.name} has an official test split"):
            load(dataclasses.replace(config, test_fraction=0.3), tmp_path)


def test_a_full_disk_is_named_when_data_are_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_cache(folder, {"x": np.arange(3)})
    with (
        pytest.raises(UsageError, match=r"not prepared: cannot write .*set: No space left .* MB free"),
        replacing(folder),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert read_cache(folder, "").arrays["x"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_missing_batches_are_named(small_cifar10: Callable[..., Path], tmp_path: Path) -> None:
    raw = small_cifar10()
    (raw / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(UsageError, match=r"has neither cifar-10-binary\.tar\.gz nor data_batch_4\.bin\. Put"):
        prepare(CIFAR10, tmp_path / "data", raw)


def test_a_truncated_file_is_named_with_both_checksums(shared: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in MNIST_FILES:
        shutil.copy(shared / "data" / "mnist" / name, raw / name)
    file = mnist.FILES["test_x"]
    content = (raw / file.name).read_bytes()
    (raw / file.name).chmod(0o644)
    (raw / file.name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError) as caught:
        prepare(MNIST, tmp_path / "data", raw)
    assert str(raw / file.name) in str(caught.value)
    assert file.sha256 in str(caught.value)
    assert f"{len(content) // 2} bytes" in str(caught.value)
    assert not (tmp_path / "data" / "mnist").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / MNIST_FILES[0]).touch()
    with pytest.raises(UsageError) as caught:
        prepare(MNIST, tmp_path / "data", tmp_path)
    assert MNIST_FILES[0] not in str(caught.value)
    assert all(name in str(caught.value) for name in MNIST_FILES[1:])


@pytest.mark.parametrize("config", [MNIST, CIFAR10, SHAKESPEARE], ids=lambda config: config.name)
def test_a_folder_that_is_none_is_named(config: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"raw=.*absent is not a folder"):
        prepare(config, tmp_path, tmp_path / "absent")


def test_another_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("To be, or not to be\n")
    with pytest.raises(
        UsageError, match=rf"checksum of .*input\.txt is wrong: SHA-256 expected {shakespeare.FILE.sha256}"
    ):
        prepare(SHAKESPEARE, tmp_path / "data", tmp_path)


def test_a_text_has_no_official_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset\.test_fraction=null"):
        load(dataclasses.replace(SHAKESPEARE, test_fraction=None), tmp_path)


def test_windows_of_a_text_do_not_overlap_and_know_the_next_character() -> None:
    x, y = shakespeare.windows(np.arange(200, dtype=np.int32))
    np.testing.assert_array_equal(x, np.arange(192).reshape(3, 64))
    np.testing.assert_array_equal(y, x + 1)
    # The last window needs a character after it.
    assert shakespeare.windows(np.arange(128, dtype=np.int32))[0].shape == (1, 64)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "input.txt").touch()
    with pytest.raises(UsageError, match="more than once") as caught:
        find(tmp_path, ["input.txt"])
    assert all(str(tmp_path / folder / "input.txt") in str(caught.value) for folder in ("a", "b/c"))


def test_without_tfds_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UsageError, match="make data SOURCE=tfds"):
        examples("mnist", tmp_path, [])


class ShufflingBuilder:
    """Does with 0, 1, 2, ... what TFDS does: by ascending MD5 of the name of the split and the key."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.info = SimpleNamespace(splits=sizes)

    def download_and_prepare(self, download_config: Any) -> None:
        assert download_config == {"try_download_gcs": False}

    def as_dataset(self, split: str, shuffle_files: bool, read_config: Any) -> list[dict[str, Any]]:
        keys = sorted(range(self.sizes[split]), key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest())
        return [{"number": key} for key in keys]


def test_the_order_that_tfds_shuffles_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TFDS itself: `make data DATASET=mnist SOURCE=tfds`, which ends with an error for another order."""

    class Hasher:
        def __init__(self, salt: str) -> None:
            self.salt = salt

        def hash_key(self, key: int) -> int:
            return int(hashlib.md5(f"{self.salt}{key}".encode()).hexdigest(), 16)

    builder = ShufflingBuilder({"train": 50, "test": 20})
    module = SimpleNamespace(
        builder=lambda name, data_dir: builder,
        download=SimpleNamespace(DownloadConfig=dict),
        ReadConfig=dict,
        as_numpy=iter,
        core=SimpleNamespace(hashing=SimpleNamespace(Hasher=Hasher)),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    original = tmp_path / "raw.gz"
    original.touch()
    found = examples("numbers", tmp_path / "data", [original])
    assert [example["number"] for example in builder.as_dataset("train", False, {})] != list(range(50))
    assert [example["number"] for example in found["train"]] == list(range(50))
    assert [example["number"] for example in found["test"]] == list(range(20))
    assert (tmp_path / "data" / "tfds" / "downloads" / "manual" / "raw.gz").resolve() == original


def test_cifar10_from_arrays_has_the_checksums_of_its_files(
    small_cifar10: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What TFDS returns is compared with the published files."""
    prepare(CIFAR10, tmp_path / "data", small_cifar10())
    parts = ("train", "test")
    cached = {
        part: [
            {"image": image, "label": label}
            for image, label in zip(
                *(np.load(tmp_path / "data" / "cifar10" / f"{part}_{axis}.npy") for axis in "xy"), strict=True
            )
        ]
        for part in parts
    }
    monkeypatch.setattr(cifar10, "originals", lambda *_: {})
    monkeypatch.setattr(cifar10, "examples", lambda *_: cached)
    prepare(CIFAR10, tmp_path / "tfds", None, "tfds")
    assert load(CIFAR10, tmp_path / "tfds").sha256 == load(CIFAR10, tmp_path / "data").sha256
    cached["train"].reverse()
    with pytest.raises(UsageError, match="not as published"):
        prepare(CIFAR10, tmp_path / "tfds", None, "tfds")
