"""The IDX format: read exactly, or refused with the file's name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.config import UsageError
from experiments.data.idx import parse_idx


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
