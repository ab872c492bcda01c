"""Prepare a data set: `python -m experiments.data dataset=mnist raw=<folder>`; behind `make data`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.config import UsageError, compose_run
from experiments.data import prepare


def main() -> int:
    """Prepare the data set named on the command line; returns the exit status, 2 for a wrong request."""
    parser = argparse.ArgumentParser(prog="python -m experiments.data", description=__doc__)
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="key=value",
        help="dataset=NAME, raw=FOLDER of original files, paths.data=FOLDER",
    )
    arguments = parser.parse_args().arguments
    raw = [value.removeprefix("raw=") for value in arguments if value.startswith("raw=")]
    try:
        config = compose_run([value for value in arguments if not value.startswith("raw=")])
        print(prepare(config.dataset, config.data_dir, Path(raw[-1]) if raw else None))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
