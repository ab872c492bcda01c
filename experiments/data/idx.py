"""The IDX format of the MNIST family."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.config import UsageError

UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes.

    Args:
        content: the file: gzip around two zero bytes, the type, the number of dimensions, each dimension as four
            big-endian bytes, then the values in row-major order.
        path: where it came from, for the error messages.

    Raises:
        UsageError: it is no such file.
    """
    try:
        data = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a complete gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE:
        raise UsageError(f"{path} is not an IDX file of unsigned bytes: it begins with {data[:4].hex(' ')}")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise UsageError(f"{path} ends within its header")
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise UsageError(f"{path} announces an array of shape {shape} but has {len(data) - header} bytes of values")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
