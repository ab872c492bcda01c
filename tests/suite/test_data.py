"""Data in memory and their cache: whole, checked, standardised, as the configuration says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from experiments.config import DatasetConfig, UsageError
from experiments.data import accepted, digits, known, load, mnist, prepare
from experiments.data.arrays import read_cache, standardise, write_cache

DIGITS = DatasetConfig("digits", num_classes=10, test_fraction=0.2, subset=False, altered=False)


def arrays() -> dict[str, np.ndarray]:
    """A data set of five samples."""
    x = np.arange(20, dtype=np.uint8).reshape(5, 4)
    return {"train_x": x[:3], "train_y": x[:3, 0], "test_x": x[3:], "test_y": x[3:, 0]}


def test_a_damaged_cache_is_an_error(tmp_path: Path) -> None:
    sha256 = write_cache(tmp_path / "set", arrays())
    assert read_cache(tmp_path / "set", "make data").sha256 == sha256
    np.save(tmp_path / "set" / "test_y.npy", np.zeros(2, np.uint8))
    with pytest.raises(UsageError, match=rf"SHA-256 expected {sha256}(.|\n)*make data"):
        read_cache(tmp_path / "set", "make data")
    (tmp_path / "set" / "test_y.npy").write_bytes(b"")
    with pytest.raises(UsageError, match=r"damaged(.|\n)*make data"):
        read_cache(tmp_path / "set", "make data")
    assert write_cache(tmp_path / "set", arrays()) == sha256
    cached = read_cache(tmp_path / "set", "make data")
    assert cached.sha256 == sha256
    assert not cached.altered
    for name, array in arrays().items():
        np.testing.assert_array_equal(cached.arrays[name], array)
    (tmp_path / "set" / "meta.json").write_text("{}")
    with pytest.raises(UsageError, match=r"damaged(.|\n)*make data"):
        read_cache(tmp_path / "set", "make data")


def test_damaged_data_are_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {"train_x": np.zeros((3, 4, 4), np.uint8), "test_x": np.ones((2, 4, 4), np.uint8)}
    images["train_x"][0] = 9
    whole = {**images, "train_y": np.arange(3, dtype=np.uint8), "test_y": np.arange(2, dtype=np.uint8)}
    monkeypatch.setattr(mnist, "prepare", lambda *_: write_cache(tmp_path / "mnist", whole))
    config = dataclasses.replace(DIGITS, name="mnist", test_fraction=None)
    assert prepare(config, tmp_path).startswith("prepared mnist")
    assert prepare(config, tmp_path).startswith("already prepared: mnist")
    np.save(tmp_path / "mnist" / "test_y.npy", np.zeros(2, np.uint8))
    with pytest.raises(UsageError, match="damaged"):
        load(config, tmp_path)
    assert prepare(config, tmp_path).startswith("prepared mnist")
    said = capsys.readouterr().out
    assert "are damaged: SHA-256 expected" in said
    assert said.endswith("They are prepared again.\n")
    assert load(config, tmp_path).test_y.tolist() == [0, 1]
    # Another copy than asked for is no damage.
    with pytest.raises(UsageError, match="subset"):
        prepare(dataclasses.replace(config, subset=True), tmp_path)


def test_standardise_uses_the_training_numbers_for_both() -> None:
    train, test = standardise(np.array([[[0, 2]], [[2, 0]]], np.uint8), np.array([[[3, 1]]], np.uint8))
    np.testing.assert_array_equal(train, [[[-1, 1]], [[1, -1]]])
    np.testing.assert_array_equal(test, [[[2, 0]]])


def test_standardise_in_parts_is_standardise(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(3, 2, (50, 4, 3)).astype(np.float32)
    whole = standardise(x[:40], x[40:])
    monkeypatch.setattr("experiments.data.arrays.VALUES_AT_ONCE", 30)
    for one, other in zip(whole, standardise(x[:40], x[40:]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_features_are_standardised_each_by_itself() -> None:
    x = np.array([[0, 5, 10], [4, 5, 30], [2, 9, 20]], np.float32)
    train, test = standardise(x[:2], x[2:], per_feature=True)
    np.testing.assert_array_equal(train, [[-1, 0, -1], [1, 0, 1]])
    np.testing.assert_array_equal(test, [[0, 4, 0]])  # a constant feature has no deviation to divide by


@pytest.mark.parametrize("num_classes", [5, 9, 0])
def test_labels_without_a_class_are_refused(num_classes: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(dataclasses.replace(DIGITS, num_classes=num_classes), tmp_path)
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
    assert data.train_x.shape == (1437, 8, 8, 1)
    assert data.test_x.shape == (360, 8, 8, 1)
    assert data.split == "random"
    assert data.sha256 == again.sha256
    np.testing.assert_array_equal(data.train_x, again.train_x)


def test_a_limit_takes_the_first_samples_and_says_so() -> None:
    whole, part = load(DIGITS, Path()), load(dataclasses.replace(DIGITS, limit=400), Path())
    assert (whole.subset, part.subset) == (False, True)
    for name, size in (("train_x", 400), ("train_y", 400), ("test_x", 360), ("test_y", 360)):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:size])
    assert not load(dataclasses.replace(DIGITS, limit=5000), Path()).subset


def test_digits_need_no_preparation(tmp_path: Path) -> None:
    assert prepare(DIGITS, tmp_path) == "digits need no preparation"


def test_digits_without_a_fraction_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset\.test_fraction=null"):
        load(dataclasses.replace(DIGITS, test_fraction=None), tmp_path)


@pytest.mark.parametrize("key", ["subset", "altered"])
@pytest.mark.parametrize("name", known())
def test_another_copy_is_only_taken_where_there_is_one(name: str, key: str, tmp_path: Path) -> None:
    fraction = None if name in ("mnist", "cifar10") else 0.2
    config = DatasetConfig(name, 10, fraction, subset=key == "subset", altered=key == "altered")
    expected = (
        rf"data set '{name}' is not prepared"
        if key in accepted(name)
        else rf"dataset\.{key}=true: .* cannot be used as data set '{name}'"
    )
    with pytest.raises(UsageError, match=expected):
        load(config, tmp_path)


def test_a_set_is_prepared_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".mnist.lock"),
        pytest.raises(UsageError, match="another process prepares data set 'mnist'"),
    ):
        prepare(DatasetConfig("mnist", 10, None, False, False), tmp_path, tmp_path)
