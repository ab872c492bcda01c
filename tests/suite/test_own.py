"""What docs/own.md tells a user to write works as printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PARTS = ("analysis", "baselines", "conf", "experiments", "pjax_core")
TEXT = (ROOT / "docs" / "own.md").read_text()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite with the files of the page."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"^`([\w/.]+)`\n\n```(?:python|yaml)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert len(files) == 7
    for path, content in files:
        assert not (folder / path).exists()
        (folder / path).write_text(content)
    return folder


def run(checkout: Path, command: str) -> subprocess.CompletedProcess[str]:
    assert command.startswith("python -m ")
    words = [sys.executable, *command.split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        words, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_the_commands_of_the_page_work_in_their_order(checkout: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 6
    shown = []
    for command in commands:
        done = run(checkout, command)
        assert done.returncode == 0, done.stdout + done.stderr
        shown.append(done.stdout)
    records = [*(checkout / "results" / "runs").glob("*/record.json")]
    # Each run of its own is another one than the sweep's, whose limit of steps is part of the name.
    assert len(records) == 4 + 2 * 2
    assert shown[-1].count("1 done") == 4
    assert "missing" not in shown[-1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("method=difference_map method.options.gamma=1", "method.options"),
        ("method=difference_map method.options.beta=0", "method.options: beta=0"),
        ("method=difference_map method.steps_per_update=10", "an update of method 'difference_map' is 50 steps"),
        ("method=difference_map method.file=mlp", "unknown method.file=mlp. Known: difference_map"),
        ("model=maxout preset=quick", "preset=quick says nothing of model.family=maxout"),
        ("dataset=tumours dataset.name=arrays", "Known data sets: cifar10, digits, higgs, mnist, shakespeare, tumours"),
    ],
)
def test_what_is_wrong_in_a_file_of_ones_own_is_named(checkout: Path, command: str, said: str) -> None:
    done = run(checkout, f"python -m experiments.run dataset=digits model=mlp_1x32 {command}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
