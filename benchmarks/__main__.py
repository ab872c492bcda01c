"""Speed and memory as ratios against a baseline in the same run.

python -m benchmarks step | memory | depth | compile | compare [--help] [options]
"""

import importlib
import sys
from collections.abc import Sequence

NAMES = ("step", "memory", "depth", "compile", "compare")


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that the first argument names with the others, ``python -m benchmarks.<name>``."""
    if arguments and arguments[0] in NAMES:
        importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
        return
    print((__doc__ or "").strip())
    for name in NAMES:
        summary = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").partition("\n")[0]
        print(f"\n  {name:9}{summary}")
    if arguments and arguments[0] not in ("-h", "--help"):
        sys.exit(f"\nerror: {arguments[0]!r} is no benchmark; choose {', '.join(NAMES)}")


if __name__ == "__main__":
    main(sys.argv[1:])
