"""Prepare a data set: `python -m experiments.data dataset=mnist raw=<folder>`; behind `make data`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from experiments.compose import compose_run
from experiments.config import UsageError
from experiments.data import prepare
from experiments.data.originals import Source

OWN = ("raw", "source")
"""Keys that are no part of a run's configuration."""


def main() -> int:
    """Prepare the data set named on the command line; returns the exit status, 2 for what cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m experiments.data", description=__doc__)
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="key=value",
        help="dataset=NAME, raw=FOLDER of original files (without it they are downloaded), source=files or tfds, "
        "dataset.subset=true, dataset.altered=true, paths.data=FOLDER",
    )
    arguments = parser.parse_args().arguments
    own = dict(argument.split("=", 1) for argument in arguments if argument.startswith(tuple(f"{key}=" for key in OWN)))
    try:
        source = own.get("source", "files")
        if source not in get_args(Source):
            raise UsageError(f"source={source}: {' or '.join(get_args(Source))}")
        config = compose_run([argument for argument in arguments if argument.partition("=")[0] not in OWN])
        raw = Path(own["raw"]) if own.get("raw") else None
        print(prepare(config.dataset, config.data_dir, raw, source))
    except (UsageError, OSError) as error:  # OSError: no space, no permission; it names the file
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is downloaded", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
