"""The engine is complete without what stands on it."""

import subprocess
import sys

from tests.conftest import ROOT

ALONE = """
import importlib, pathlib, sys
import pjax_core
from pjax_core import rules

tables = ("projection_rules", "loss_rules", "bilinear_rules", "copy_rules", "decompositions", "elementwise")
known = {table: list(getattr(rules, table)) for table in tables}
assert all(known.values())
for file in sorted(pathlib.Path(pjax_core.__file__).parent.glob("[a-z]*.py")):
    importlib.import_module(f"pjax_core.{file.stem}")
above = {name.partition(".")[0] for name in sys.modules} & {"pjax", "baselines", "experiments", "flax", "optax"}
assert not above, above
import pjax

assert known == {table: list(getattr(rules, table)) for table in tables}
"""


def test_the_engine_imports_nothing_above_it_and_has_all_rules():
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
