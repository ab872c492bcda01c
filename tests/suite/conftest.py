"""Short runs on the digits, in folders of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import training
from experiments.cells import Planned
from experiments.compose import compose_run
from experiments.records import Event
from experiments.runner import execute, folder_of

SHORT = ("dataset=digits", "model=mlp_1x32", "protocol.evaluate_every=50", "protocol.max_steps=200")


def compose_short(folder: Path, *overrides: str) -> Planned:
    """A run of 200 steps with results in `folder`; further overrides come after."""
    arguments = (*SHORT, f"paths.results={folder}", *overrides)
    return Planned("test", compose_run(arguments), arguments)


@pytest.fixture
def short(tmp_path: Path) -> Callable[..., Planned]:
    """`compose_short` with results under `tmp_path`."""
    return lambda *overrides: compose_short(tmp_path / "runs", *overrides)


@pytest.fixture(scope="session")
def compose_in() -> Callable[..., Planned]:
    """`compose_short`, for fixtures that outlive a test."""
    return compose_short


class Cut(KeyboardInterrupt):
    """What ends a run in a test."""


@pytest.fixture(scope="session")
def cut_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs that were cut, by method."""
    return tmp_path_factory.mktemp("cut")


@pytest.fixture
def cut_run(short: Callable[..., Planned], cut_once: Path, compiled_once: None) -> Callable[[str], Planned]:
    """A run by its method, cut at step 150 before it was saved there: it is saved at steps 100 and 50."""

    def cut(event: Event) -> None:
        if event.step == 150:
            raise Cut

    def make(method: str) -> Planned:
        planned = short(f"method={method}", "checkpoint_every_s=0")
        folder = folder_of(planned.config)
        if (cut_once / folder.name).exists():
            shutil.copytree(cut_once / folder.name, folder)
            return planned
        with pytest.raises(Cut):
            execute(planned.config, planned.overrides, cut)
        shutil.copytree(folder, cut_once / folder.name)
        return planned

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that do the same runs again and again: programs are compiled once, and one clock is not measured."""
    monkeypatch.setattr(training, "published_ms_per_step", lambda *_: 0.1)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)  # JAX's default
    compilation_cache.reset_cache()
