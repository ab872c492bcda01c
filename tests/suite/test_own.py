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

PARTS = ("analysis", "baselines", "conf", "experiments", "pjax", "pjax_core")
MIXED = """# @package _global_
hydra:
  sweeper:
    params:
      dataset: digits,tumours
      model: mlp_1x32,maxout
      method: sgd,difference_map
"""
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


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("path", "broken", "arguments", "said"),
    [
        (
            "baselines/maxout.py",
            "import nothing_like_it",
            "model=maxout,mlp_1x32 dataset=digits method=sgd",
            "model.family=maxout: ModuleNotFoundError: No module named 'nothing_like_it' (baselines/maxout.py, line 1)",
        ),
        (
            "experiments/data/tumours.py",
            "def load(config, data_dir): return {}['x']",
            "dataset=tumours,digits model=mlp_1x32 method=sgd",
            "dataset=tumours: KeyError: 'x' (experiments/data/tumours.py, line 1)",
        ),
        (
            "baselines/difference_map.py",
            "def METHOD(**options): return 1 / 0",
            "method=difference_map,sgd dataset=digits model=mlp_1x32",
            "method.options: ZeroDivisionError: division by zero (baselines/difference_map.py, line 1)",
        ),
    ],
)
def test_a_broken_file_of_ones_own_costs_no_other_run(
    checkout: Path, tmp_path: Path, path: str, broken: str, arguments: str, said: str
) -> None:
    whole = (checkout / path).read_text()
    (checkout / "conf" / "sweep" / "mixed.yaml").write_text(MIXED)
    sweep = f"sweep=mixed {arguments} seeds=1 preset=demo protocol.max_steps=100 protocol.evaluate_every=50"
    try:
        (checkout / path).write_text(broken + "\n")
        done = run(checkout, f"python -m experiments.reproduce {sweep} paths.results={tmp_path}")
    finally:
        (checkout / path).write_text(whole)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    (finished,) = (record.parent.name for record in tmp_path.glob("*/record.json"))
    assert finished.startswith("digits-mlp_1x32-sgd")
    assert "1 of 2 runs did not finish; the other" in done.stderr


def test_the_operators_are_part_of_a_method_that_takes_them(checkout: Path) -> None:
    code = (
        "from experiments.compose import compose_run\nfrom experiments.records import run_id\n"
        "print(*(run_id(compose_run(['method=difference_map', f'engine={e}'])) for e in ('published', 'exact')))"
    )
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    assert [name.split("-")[3] for name in done.stdout.split()] == ["published", "exact"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("method=difference_map method.options.gamma=1", "method.options"),
        ("method=difference_map method.options.beta=0", "method.options: ValueError: beta=0"),
        ("method=difference_map method.steps_per_update=10", "an update of method 'difference_map' is 50 steps"),
        ("method=difference_map method.file=mlp", "unknown method.file=mlp. Known: difference_map"),
        ("model=maxout preset=quick", "preset=quick says nothing of model.family=maxout"),
        ("dataset=tumours dataset.name=arrays", "Known data sets: cifar10, digits, higgs, mnist, shakespeare, tumours"),
    ],
)
def test_what_is_wrong_in_a_file_of_ones_own_is_named(checkout: Path, command: str, said: str) -> None:
    done = run(checkout, f"python -m experiments.run {command}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
