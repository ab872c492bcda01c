"""HIGGS: a CSV becomes arrays, exactly, in pieces; a wrong line is named; a subset is only taken as one."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

from experiments.config import DatasetConfig, UsageError
from experiments.data import higgs, load, prepare

WHOLE = DatasetConfig("higgs", num_classes=2, test_fraction=0.2, subset=False, altered=False)
SUBSET = dataclasses.replace(WHOLE, subset=True)


def table(rows: int = 25) -> np.ndarray:
    """Rows of a class and 28 features with the precision of float32."""
    rng = np.random.default_rng(0)
    return np.column_stack([np.arange(rows) % 2, rng.normal(2, 3, (rows, 28)).astype(np.float32)])


def lines(values: np.ndarray) -> list[str]:
    """As published: 19 digits."""
    return [",".join(f"{value:.18e}" for value in row) for row in values]


def write(folder: Path, content: list[str], name: str = "HIGGS.csv") -> Path:
    """A folder with a CSV."""
    folder.mkdir(exist_ok=True)
    data = ("\n".join(content) + "\n").encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def test_the_real_subset_is_taken_when_the_configuration_says_so(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has 51,233 of the 11,000,000 rows(.|\n)*dataset\.subset=true") as caught:
        prepare(WHOLE, tmp_path, shared / "data")
    assert "make data DATASET=higgs SUBSET=yes RAW=" in str(caught.value)
    assert not (tmp_path / "higgs").exists()
    prepare(SUBSET, tmp_path, shared / "data")
    with pytest.raises(UsageError, match=r"they are only a part of the published set; say dataset\.subset=true"):
        load(WHOLE, tmp_path)
    data = load(SUBSET, tmp_path)
    assert (data.subset, data.altered, data.split) == (True, False, "random")
    # A fifth of 51,233 rows is 10,246.6.
    assert data.train_x.shape == (40_986, 28)
    assert data.test_x.shape == (10_247, 28)
    assert data.train_x.dtype == data.test_x.dtype == np.float32
    np.testing.assert_allclose(data.train_x.mean(0, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_x.std(0, dtype=np.float64), 1, atol=1e-5)
    assert np.bincount(data.train_y).tolist() == [19_293, 21_693]
    assert np.bincount(data.test_y).tolist() == [4_803, 5_444]
    assert data.sha256 == "e12e2bb91d4e0d2dc7d3e1d39522ad0bc4dd1a9fcac4a0ff7d4d2b5e44c7a406"
    with gzip.open(shared / "data" / "higgs" / "higgs_uci_subset.csv.gz", "rt") as file:
        first = [float(field) for field in next(file).split(",")]
    x = np.load(tmp_path / "higgs" / "x.npy", mmap_mode="r")
    assert x[0].tolist() == np.array(first[1:], np.float32).tolist()
    assert data.train_y[0] == first[0]


@pytest.mark.parametrize("name", ["HIGGS.csv", "HIGGS.csv.gz", "folder/my_higgs.csv"])
def test_a_csv_is_converted_exactly_in_pieces(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(higgs, "AT_ONCE", 4)
    values = table()
    (tmp_path / "raw" / "folder").mkdir(parents=True)
    prepare(SUBSET, tmp_path / "data", write(tmp_path / "raw", lines(values), name))
    x, y = (np.load(tmp_path / "data" / "higgs" / f"{name}.npy") for name in "xy")
    assert (x.dtype, y.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(x, values[:, 1:])
    np.testing.assert_array_equal(y, values[:, 0])
    data = load(SUBSET, tmp_path / "data")
    assert (len(data.train_y), len(data.test_y)) == (20, 5)
    np.testing.assert_array_equal(data.test_y, values[20:, 0])


def test_the_last_rows_of_the_whole_set_are_its_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(higgs, "ROWS", 25)
    monkeypatch.setattr(higgs, "TESTS", 3)
    raw = write(tmp_path / "raw", lines(table()))
    with pytest.raises(UsageError, match=r"is not HIGGS: 12 of its 25 rows have class 1 instead of 5,829,123"):
        prepare(WHOLE, tmp_path / "data", raw)
    monkeypatch.setattr(higgs, "SIGNALS", 12)
    with pytest.raises(UsageError, match=r"they are not only a part .*say dataset\.subset=false"):
        prepare(SUBSET, tmp_path / "data", raw)
    assert not (tmp_path / "data" / "higgs").exists()
    prepare(WHOLE, tmp_path / "data", raw)
    data = load(WHOLE, tmp_path / "data")
    assert (len(data.train_y), len(data.test_y), data.subset) == (22, 3, False)


@pytest.mark.parametrize("name", ["HIGGS.csv", "HIGGS.csv.gz"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (",".join(["1", *["0.5"] * 27]), "line 12 has 28 columns instead of 29"),
        (",".join(["1", *["0.5"] * 29]), "line 12 has 30 columns instead of 29"),
        ("", "line 12 has 1 columns instead of 29"),
        (",".join(["1", "nan", *["0.5"] * 27]), "line 12, column 2 is not a finite number: 'nan'"),
        (",".join(["1", "", *["0.5"] * 27]), "line 12, column 2 is not a finite number: ''"),
        (",".join(["1", *["0.5"] * 27, "-inf"]), "line 12, column 29 is not a finite number: '-inf'"),
        (",".join(["1", *["0.5"] * 27, "1e39"]), "line 12, column 29 is not a finite number: '1e39'"),
        (",".join(["0", *["0.5"] * 26, "True", "1"]), "line 12, column 28 is not a finite number: 'True'"),
        (",".join(["0", *["0.5"] * 26, '"1', "1"]), "line 12, column 28 is not a finite number: '\"1'"),
        (",".join(["2", *["0.5"] * 28]), "line 12 has class 2, and classes are 0 and 1"),
        (",".join(["0.5", *["0.5"] * 28]), "line 12 has class 0.5, and classes are 0 and 1"),
    ],
    ids=["short", "long", "blank", "nan", "empty", "infinite", "too large", "word", "quote", "class", "half a class"],
)
def test_a_wrong_line_is_named(
    line: str, message: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(higgs, "AT_ONCE", 4)
    content = lines(table())
    content[11] = line
    raw = write(tmp_path / "raw", content, name)
    with pytest.raises(UsageError) as caught:
        prepare(SUBSET, tmp_path / "data", raw)
    assert str(raw / name) in str(caught.value)
    assert message in str(caught.value)
    assert not (tmp_path / "data" / "higgs").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".higgs.lock"]


def test_other_columns_are_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", lines(table()[:, :20]))
    with pytest.raises(UsageError, match="line 1 has 20 columns instead of 29"):
        prepare(SUBSET, tmp_path / "data", raw)


def test_a_header_is_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [",".join(f"feature_{i}" for i in range(29)), *lines(table())])
    with pytest.raises(UsageError, match=r"line 1, column 1 is not a finite number: 'feature_0'"):
        prepare(SUBSET, tmp_path / "data", raw)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "HIGGS.csv").touch()
    with pytest.raises(UsageError, match=r"HIGGS\.csv: No columns to parse"):
        prepare(SUBSET, tmp_path / "data", tmp_path)


@pytest.mark.parametrize("damage", ["cut", "plain", "checksum"])
def test_a_damaged_gzip_file_is_named(damage: str, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", lines(table(400)), "HIGGS.csv.gz")
    content = (raw / "HIGGS.csv.gz").read_bytes()
    half = len(content) // 2
    broken = {"cut": content[:half], "plain": b"1,2", "checksum": content[:-8] + bytes(8)}
    (raw / "HIGGS.csv.gz").write_bytes(broken[damage])
    with pytest.raises(UsageError, match=r"HIGGS\.csv\.gz is not a complete gzip file"):
        prepare(SUBSET, tmp_path / "data", raw)


def test_a_truncated_csv_is_no_whole_line(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", lines(table()))
    content = (raw / "HIGGS.csv").read_bytes()
    (raw / "HIGGS.csv").write_bytes(content[:-300])
    with pytest.raises(UsageError, match=r"line 25 has \d+ columns instead of 29"):
        prepare(SUBSET, tmp_path / "data", raw)


def test_folders_without_one_csv_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks HIGGS\.csv\.gz \(or HIGGS\.csv\)"):
        prepare(SUBSET, tmp_path / "data", tmp_path)
    write(tmp_path, lines(table()))
    write(tmp_path, lines(table()), "HIGGS.csv.gz")
    with pytest.raises(UsageError, match="more than one CSV of HIGGS"):
        prepare(SUBSET, tmp_path / "data", tmp_path)
    prepare(SUBSET, tmp_path / "data", tmp_path / "HIGGS.csv")
    with pytest.raises(UsageError, match="absent is neither a folder nor a file"):
        prepare(SUBSET, tmp_path / "data", tmp_path / "absent")


def test_tfds_is_no_source_of_higgs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="read from its CSV, because TFDS shuffles it"):
        prepare(SUBSET, tmp_path, tmp_path, "tfds")


@pytest.mark.parametrize(
    ("fraction", "message"), [(None, r"dataset\.test_fraction=null"), (0.001, r"0\.001 of 25 rows leaves nothing")]
)
def test_a_subset_needs_a_fraction(fraction: float | None, message: str, tmp_path: Path) -> None:
    prepare(SUBSET, tmp_path / "data", write(tmp_path / "raw", lines(table())))
    with pytest.raises(UsageError, match=message):
        load(dataclasses.replace(SUBSET, test_fraction=fraction), tmp_path / "data")
