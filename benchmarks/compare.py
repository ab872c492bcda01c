"""Two JSON files of one benchmark beside each other: what changed by how much.

    python -m benchmarks.compare OLD.json NEW.json [--match TEXT]

Prints every number that both have, and new over old. Times of different machines, or of one machine at different
times, compare only as far as their baselines do: see that SGD's row is near 1 first.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def numbers(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested dictionaries by their path."""
    for key, value in tree.items():
        path = f"{name} / {key}" if name else key
        if isinstance(value, dict):
            yield from numbers(value, path)
        elif isinstance(value, int | float):
            yield path, float(value)


def load(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON.

    Raises:
        SystemExit: the file is missing or is no benchmark's.
    """
    try:
        document = json.loads(path.read_text())
        found = {key: document[key] for key in ("benchmark", "environment", "results")}
        if not isinstance(found["results"], dict):
            raise TypeError("results hold no numbers by name")
        return found
    except OSError as error:
        raise SystemExit(f"error: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} was not written by --json of a benchmark ({error})") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--match", default="", help="only rows that contain this text, for example step_ms")
    options = parser.parse_args(arguments)
    old, new = load(options.old), load(options.new)
    if old["benchmark"] != new["benchmark"]:
        raise SystemExit(
            f"error: {options.old} is of benchmark {old['benchmark']}, {options.new} of {new['benchmark']}"
        )
    for key in sorted({*old["environment"], *new["environment"]}):
        before, after = old["environment"].get(key), new["environment"].get(key)
        if before != after:
            print(f"note: {key} differs: {before} and {after}")
    before, after = dict(numbers(old["results"])), dict(numbers(new["results"]))
    rows = [name for name in before if name in after and options.match in name]
    width = max(map(len, rows), default=0)
    for name in rows:
        ratio = f"{after[name] / before[name]:10.2f}x" if before[name] else ""
        print(f"{name:{width}}{before[name]:12.4g}{after[name]:12.4g}{ratio}")
    left_out = len(set(before) ^ set(after))
    print(f"{len(rows)} rows" + (f"; {left_out} numbers are in one file only" if left_out else ""))


if __name__ == "__main__":
    main()
