"""The paper's milliseconds per step beside those of a device that `step` has measured.

    python -m benchmarks published results/benchmarks/step-h100.json [MORE.json ...]

Ours is one of 50 steps in one program on a batch that is on the device. The paper's is an H100 GPU's, and its
steps of SGD and Adam, which cost the same for every network of a data set, seem to count the way of each batch from the
host. So "times" says how much sooner a step ends here, not how much better a method is: compare methods by "/ SGD".
Several files must be of one device.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.published import load_published
from benchmarks.compare import load

METHODS = {"sgd": "SGD", "adam": "Adam", "dr": "DR published", "ap": "AP published", "cp": "CP published"}
"""Rows of `step` by the paper's methods."""


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Every cell of Tables 2 to 4: milliseconds, ours and published, and each over its SGD's; "-" if not measured."""
    lines = [f"{'':36}{'published':>11}{'ours':>9}{'times':>8}{'published / SGD':>18}{'ours / SGD':>12}"]
    cells = {cell.key: cell.ms_per_step[0] for cell in load_published().cells}
    for (dataset, model, method), published in cells.items():
        measured = results.get(f"{dataset} {model}", {})
        sgd, m = measured.get("SGD"), measured.get(METHODS[method])
        ours = f"{'-':>9}{'-':>8}" if m is None else f"{m['step_ms']:9.3f}{published / m['step_ms']:7.1f}x"
        ratio = "-" if m is None or sgd is None else f"{m['step_ms'] / sgd['step_ms']:.2f}"
        theirs = published / cells[dataset, model, "sgd"]
        lines.append(f"{f'{dataset} {model} {method}':36}{published:11.2f}{ours}{theirs:18.2f}{ratio:>12}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written by `step --json`")
    options = parser.parse_args(arguments)
    documents = {path: load(path) for path in options.files}
    first, *_ = documents.values()
    results = {}
    for path, document in documents.items():
        if document["benchmark"] != "step":
            raise SystemExit(f"error: {path} is of benchmark {document['benchmark']}, not of step")
        if document["environment"] != first["environment"]:
            raise SystemExit(f"error: {path} is of another device, or other versions, than {options.files[0]}")
        results |= document["results"]
    environment = first["environment"]
    print(f"Milliseconds per step, {environment['device']} (jax {environment['jax']}); published: an H100 with 96 GB")
    print(table(results))


if __name__ == "__main__":
    main()
