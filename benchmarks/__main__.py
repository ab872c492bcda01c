"""Speed and memory as ratios against a baseline in the same run.

python -m benchmarks NAME [--help] [options]
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

NAMES = (
    "step",
    "published",
    "profile",
    "memory",
    "depth",
    "batch",
    "compile",
    "seeds",
    "displacement",
    "layers",
    "suite-overhead",
    "tracker",
    "higgs",
    "compare",
)


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name.replace('-', '_')}")


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that the first argument names with the others, a module of that name."""
    if arguments and arguments[0] in NAMES:
        _module(arguments[0]).main(arguments[1:])
        return
    print((__doc__ or "").strip())
    for name in NAMES:
        summary = (_module(name).__doc__ or "").partition("\n")[0]
        print(f"\n  {name:15}{summary}")
    if arguments and arguments[0] not in ("-h", "--help"):
        sys.exit(f"\nerror: {arguments[0]!r} is no benchmark; choose {', '.join(NAMES)}")


if __name__ == "__main__":
    main(sys.argv[1:])
