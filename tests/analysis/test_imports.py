"""Reading results needs neither the engine nor the harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_analysis_imports_no_engine_and_no_harness() -> None:
    modules = [f"analysis.{path.stem}" for path in sorted((ROOT / "analysis").glob("*.py")) if path.stem != "__init__"]
    code = (
        f"import sys, json, {', '.join(modules)}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "analysis" in loaded
    ours = {"pjax", "pjax_core", "experiments", "baselines", "benchmarks"}
    assert loaded.isdisjoint({"jax", "jaxlib", "flax", "optax"} | ours)
