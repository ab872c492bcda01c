"""HIGGS at its full size: time and peak memory of `make data` and of loading, on a CSV of random rows.

    python -m benchmarks higgs [--rows 11000000] [--folder DIR]

Writes a CSV in HIGGS's format, 29 columns of 19 digits (8 GB, and 1.2 GB for the arrays made from it), converts and
loads it in a process each, compares the arrays with what was written, and removes all of it. Peak memory is the
process's resident set, pages of mapped files included; more than 8 GB is an error.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.config import ROOT
from experiments.data.higgs import COLUMNS, ROWS, SIGNALS

BLOCK = 20_000
"""Different rows; the CSV repeats them."""
LIMIT_GB = 8

LOAD = """
import sys
from experiments.compose import compose_run
from experiments.data import load
config = compose_run(sys.argv[1:])
data = load(config.dataset, config.data_dir)
print(f"train {data.train_x.shape}, test {data.test_x.shape}")
"""


def lines(x: np.ndarray, signals: int) -> bytes:
    """The lines of a block, the first `signals` of which have class 1."""
    rows = (",".join(f"{value:.18e}" for value in (float(i < signals), *row)) for i, row in enumerate(x.tolist()))
    return ("\n".join(rows) + "\n").encode()


def write_csv(path: Path, x: np.ndarray, rows: int) -> None:
    """Repeat a block; of all rows as many have class 1 as HIGGS has."""
    signals, rest = divmod(SIGNALS * rows // ROWS, rows // BLOCK)
    block = lines(x, signals)
    with path.open("wb") as file:
        for _ in range(rows // BLOCK - 1):
            file.write(block)
        file.write(lines(x, signals + rest))


def measure(title: str, *arguments: str) -> None:
    """Run Python in a process of its own and print its time and memory.

    Raises:
        SystemExit: it failed, or took more memory than it may.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read().strip()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds, peak = time.perf_counter() - start, 1024 * usage.ru_maxrss / 1e9
    if process.returncode:
        raise SystemExit(f"error: {title} failed")
    print(f"{title:10}{seconds:8.1f} s{peak:8.2f} GB   {output.partition(' in ')[0]}", flush=True)
    if peak > LIMIT_GB:
        raise SystemExit(f"error: more than {LIMIT_GB} GB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"a multiple of {BLOCK} (default {ROWS})")
    parser.add_argument("--folder", type=Path, help="where there is room for 10 GB (default: that of temporary files)")
    options = parser.parse_args(arguments)
    if options.rows <= 0 or options.rows % BLOCK:
        parser.error(f"--rows {options.rows} is no multiple of {BLOCK}")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="higgs-") as name:
        folder = Path(name)
        x = np.random.default_rng(0).normal(1, 1, (BLOCK, COLUMNS - 1)).astype(np.float32)
        start = time.perf_counter()
        write_csv(folder / "HIGGS.csv", x, options.rows)
        size = (folder / "HIGGS.csv").stat().st_size / 1e9
        print(
            f"a CSV of {options.rows:,} rows, {size:.2f} GB, written in {time.perf_counter() - start:.1f} s", flush=True
        )
        keys = ["dataset=higgs", f"paths.data={folder / 'data'}"]
        keys += [] if options.rows == ROWS else ["dataset.subset=true"]
        measure("convert", "-m", "experiments.data", *keys, f"raw={folder / 'HIGGS.csv'}")
        found = np.load(folder / "data" / "higgs" / "x.npy", mmap_mode="r").reshape(-1, *x.shape)
        if not all(np.array_equal(part, x) for part in found):
            raise SystemExit("error: the arrays are not what was written")
        print("the arrays are what was written")
        measure("load", "-c", LOAD, *keys)


if __name__ == "__main__":
    main()
