"""The code of the documentation runs as printed, and what it says of files is complete."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGES = {
    "engine.md": ("4:dot_general 0.1", "nodes: 3 x parameter", "2 devices"),
    "beyond.md": ("exclusive or: loss 0.0",),
    "extending.md": ("ProjectionReport(primitive='leaky_relu'", "constraint  leaky_relu  ", "accuracy"),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path):
    """In a process of its own, because it registers primitives; warnings are errors as in all tests."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= (1 if page == "beyond.md" else 4)
    strict = {"JAX_PLATFORMS": "cpu", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)],
        env=os.environ | strict | devices | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for line in PAGES[page]:
        assert line in done.stdout, done.stdout


def test_every_page_with_code_is_run():
    elsewhere = {"own.md"}  # tests/suite/test_own.py
    with_code = {page.name for page in (ROOT / "docs").glob("*.md") if "```python" in page.read_text()}
    assert PAGES.keys() | elsewhere == with_code


def test_the_engines_files_are_all_in_its_table():
    table = re.findall(r"^\|.*\|$", (ROOT / "docs" / "engine.md").read_text(), re.MULTILINE)
    named = set(re.findall(r"`(pjax\w*/\w+\.py)`", "\n".join(table)))
    files = [file for package in ("pjax", "pjax_core") for file in (ROOT / package).glob("[a-z]*.py")]
    assert named == {f"{file.parent.name}/{file.name}" for file in files}
