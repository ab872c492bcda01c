"""The wheel ships `pjax` and `pjax_core` whole, and nothing else, and works away from the source folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"pjax", "pjax_core"}


def pip(*arguments: str, cwd: Path) -> None:
    """Run pip without a network."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_the_wheel_installs_and_imports_elsewhere(tmp_path: Path) -> None:
    # Built from a copy: a build in the checkout would leave folders there, and ship what an earlier build left.
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    # A stranger beside the package: the wheel must not pick it up.
    (source / "experiments").mkdir()
    (source / "experiments" / "__init__.py").touch()
    for path in ROOT.iterdir():
        if path.is_file() and path.name.startswith(("pyproject", "README", "LICENSE")):
            shutil.copy(path, source)
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path), ".", cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel), cwd=tmp_path)

    def files(folder: Path) -> set[str]:
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in paths if "__pycache__" not in path.parts}

    for package in PACKAGES:
        assert files(target / package) == files(ROOT / package)
        assert (target / package / "py.typed").exists()
    assert {path.name.partition("-")[0] for path in target.iterdir()} == PACKAGES  # the metadata's name is pjax, too

    code = "import pjax; from pjax import nn, optim; print(pjax.__file__)"
    away = tmp_path / "away"
    away.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=away,
        env={"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(target)
