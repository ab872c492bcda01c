"""Runs that were cut: they go on from their last evaluation, and end as if nothing had happened."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import checkpoint, runner
from experiments.cells import Planned
from experiments.config import RunConfig
from experiments.records import Event, saved_steps
from experiments.runner import Status, execute, execute_together, folder_of, resumable_step, status_of
from experiments.status import grid, look
from tests.kill import CASES, check, outcome
from tests.suite.conftest import Cut

pytestmark = pytest.mark.usefixtures("compiled_once")

SAVED = "checkpoint_every_s=0"
"""Save at every evaluation."""


def ignore(event: Event) -> None:
    """Nobody watches."""


def attempts(planned: Planned) -> list[tuple[int, str, int]]:
    """Its `attempts.jsonl`: attempt, what, step."""
    lines = (folder_of(planned.config) / "attempts.jsonl").read_text().splitlines()
    return [(line["attempt"], line["what"], line["step"]) for line in map(json.loads, lines)]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, compose_in: Callable[..., Planned]
) -> Callable[[str], dict[str, Any]]:
    """The outcome of a run that nothing cut, by method."""
    found: dict[str, dict[str, Any]] = {}

    def of(method: str) -> dict[str, Any]:
        if method not in found:
            planned = compose_in(tmp_path_factory.mktemp("undisturbed"), f"method={method}")
            execute(planned.config, planned.overrides, ignore)
            found[method] = outcome(planned)
        return found[method]

    return of


@pytest.mark.parametrize("method", ["adam", "dr"])
def test_a_cut_run_goes_on_and_ends_equal_to_the_bit(
    method: str,
    cut_run: Callable[[str], Planned],
    undisturbed: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = cut_run(method)
    folder = folder_of(planned.config)
    assert saved_steps(folder) == [100, 50]
    assert (status_of(planned.config), resumable_step(planned.config)) == (Status.CUT, 100)
    seen: list[int] = []
    record = execute(planned.config, planned.overrides, lambda event: seen.append(event.step))
    assert record is not None
    assert seen == [150, 200], "what was done is not done again"
    assert f"{folder.name}: goes on from step 100 (attempt 2)" in capsys.readouterr().out
    assert outcome(planned) == undisturbed(method)
    expected = [(1, "started", 0), (1, "interrupted", 150), (2, "resumed", 100), (2, "finished", 200)]
    assert attempts(planned) == expected
    assert not (folder / "checkpoint").exists()
    assert record.clocks is not None
    assert record.clocks.attempts == 2


def test_clocks_are_sums_over_the_attempts(cut_run: Callable[[str], Planned]) -> None:
    planned = cut_run("adam")
    snapshot = checkpoint.load(folder_of(planned.config), 100)
    record = execute(planned.config, planned.overrides, ignore)
    assert record is not None
    assert record.clocks is not None
    for name in ("compile_s", "train_s", "evaluation_s", "checkpoint_s"):
        assert getattr(record.clocks, name) > snapshot.clocks[name] > 0
    lines = (folder_of(planned.config) / "events.jsonl").read_text().splitlines()
    for name in ("train_s", "wall_s"):
        times = [json.loads(line)[name] for line in lines]
        assert all(earlier < later for earlier, later in itertools.pairwise(times))
    # The loop's time counts checkpoints, and they are told.
    loop_s = record.clocks.end_to_end_ms_per_step * 200 / 1e3
    assert record.clocks.train_s + (record.clocks.checkpoint_s or 0) <= loop_s
    assert record.started <= record.finished


def test_a_run_that_goes_on_on_another_device_has_its_numbers_and_no_clocks(
    cut_run: Callable[[str], Planned],
    undisturbed: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = cut_run("adam")
    folder = folder_of(planned.config)
    for step in saved_steps(folder):
        snapshot = checkpoint.load(folder, step)
        shutil.rmtree(folder / "checkpoint" / str(step))
        checkpoint.save(folder, dataclasses.replace(snapshot, device="1 x another"))
    record = execute(planned.config, planned.overrides, ignore)
    assert record is not None
    assert record.clocks is None
    assert record.metrics.time_to_99_s is None
    assert "begun on another device (1 x another): the record will have no clocks" in capsys.readouterr().out
    assert outcome(planned) == undisturbed("adam")


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("method", ["adam", "dr"])
def test_a_killed_run_ends_equal_to_the_bit(method: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    print("\n".join(check((*CASES["mlp"], f"method={method}"), tmp_path, 2, random.Random(seed))))


def spoil(file: Path) -> None:
    """Turn a byte in the middle of a file over."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def damage(folder: Path, how: str) -> None:
    """Damage a checkpoint."""
    if how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "truncated":
        file = files_of(folder)[-1]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "flipped":
        spoil(files_of(folder)[-1])
    elif how == "a file more":
        (folder / "arrays" / "more").write_text("")
    elif how == "no checksums":
        (folder / "sha256.json").write_text("{")
    else:
        raise ValueError(how)


@pytest.mark.parametrize("how", ["empty", "truncated", "flipped", "a file more", "no checksums"])
def test_a_damaged_checkpoint_is_not_read(how: str, cut_run: Callable[[str], Planned]) -> None:
    folder = folder_of(cut_run("adam").config)
    damage(folder / "checkpoint" / "100", how)
    with pytest.raises(checkpoint.Damaged, match="its checksums ") as damaged:
        checkpoint.load(folder, 100)
    assert str(folder.parent) not in str(damaged.value), "a machine's folder must not be published"
    assert checkpoint.load(folder, 50).step == 50


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    cut_run: Callable[[str], Planned],
    undisturbed: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = cut_run("adam")
    folder = folder_of(planned.config)
    damage(folder / "checkpoint" / "100", "flipped")
    execute(planned.config, planned.overrides, ignore)
    output = capsys.readouterr().out
    assert f"{folder.name}: the checkpoint of step 100 is of no use: its checksums do not fit: arrays/" in output
    assert "; the one of step 50 is tried" in output
    assert "goes on from step 50" in output
    assert attempts(planned)[2:4] == [(2, "checkpoint of no use", 100), (2, "resumed", 50)]
    assert outcome(planned) == undisturbed("adam")


def test_a_run_without_a_whole_checkpoint_starts_over(
    cut_run: Callable[[str], Planned],
    undisturbed: Callable[[str], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = cut_run("adam")
    folder = folder_of(planned.config)
    for step in (50, 100):
        damage(folder / "checkpoint" / str(step), "truncated")
    record = execute(planned.config, planned.overrides, ignore)
    assert record is not None
    assert record.clocks is not None
    assert "there is no other, so the run starts over" in capsys.readouterr().out
    assert attempts(planned)[2:] == [
        (2, "checkpoint of no use", 100),
        (2, "checkpoint of no use", 50),
        (2, "started", 0),
        (2, "finished", 200),
    ]
    assert record.clocks.attempts == 1, "nothing of the first attempt is in the record"
    assert outcome(planned) == undisturbed("adam")


def test_no_flipped_byte_is_trained_from(cut_run: Callable[[str], Planned], tmp_path: Path) -> None:
    """Whatever a flipped byte does, the numbers are those that were written, or there are none."""
    folder = folder_of(cut_run("adam").config)
    written = checkpoint.load(folder, 100)
    copy = tmp_path / folder.name
    for victim in files_of(folder / "checkpoint" / "100"):
        if victim.stat().st_size == 0:
            continue
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "checkpoint" / "100", copy / "checkpoint" / "100")
        spoil(copy / "checkpoint" / victim.relative_to(folder / "checkpoint"))
        try:
            read = checkpoint.load(copy, 100)
        except checkpoint.Damaged:
            continue
        jax.tree.map(np.testing.assert_array_equal, (read.state, read.best), (written.state, written.best))
        assert (read.events, read.patience, read.clocks) == (written.events, written.patience, written.clocks)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"FORMAT": 0}, "it was written by another version of this code"),
        ({"other run": True}, "it is another run's"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    change: dict[str, Any], reason: str, cut_run: Callable[[str], Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(cut_run("adam").config)
    if "FORMAT" in change:
        monkeypatch.setattr(checkpoint, "FORMAT", 0)
    else:
        folder = folder.rename(folder.with_name("other"))
    with pytest.raises(checkpoint.Damaged, match=reason):
        checkpoint.load(folder, 100)


def test_a_checkpoint_of_other_shapes_is_told_and_the_run_starts_over(
    cut_run: Callable[[str], Planned], undisturbed: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a change of the code: Adam's state for SGD."""
    planned, other = cut_run("sgd"), cut_run("adam")
    folder = folder_of(planned.config)
    for step in (50, 100):
        snapshot = checkpoint.load(folder_of(other.config), step)
        shutil.rmtree(folder / "checkpoint" / str(step))
        checkpoint.save(folder, snapshot)
    execute(planned.config, planned.overrides, ignore)
    assert "the checkpoint of step 100 is of no use: it has other arrays than this code" in capsys.readouterr().out
    assert outcome(planned) == undisturbed("sgd")


def group(short: Callable[..., Planned], *seeds: int) -> list[tuple[RunConfig, tuple[str, ...]]]:
    """Seeds that become one program, saved at every evaluation."""
    planned = [short("method=adam", SAVED, f"seed={seed}") for seed in seeds]
    return [(each.config, each.overrides) for each in planned]


def events_of(config: RunConfig) -> list[dict[str, Any]]:
    lines = (folder_of(config) / "events.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "wall_s"} for line in lines]


def no_look(_: RunConfig, event: Event) -> None:
    """Nobody watches."""


def cut_after(seed: int, step: int) -> Callable[[RunConfig, Event], None]:
    def on_event(config: RunConfig, event: Event) -> None:
        if (config.seed, event.step) == (seed, step):
            raise Cut

    return on_event


def test_seeds_that_share_a_program_go_on_together_and_end_equal_to_the_bit(
    short: Callable[..., Planned], tmp_path: Path
) -> None:
    runs = group(short, 1, 2, 3)
    with pytest.raises(Cut):
        execute_together(runs, cut_after(3, 150))
    # The newest checkpoint of one is lost: all go on from the one before.
    shutil.rmtree(folder_of(runs[1][0]) / "checkpoint" / "100")
    execute_together(runs, no_look)
    for config, _ in runs:
        resumed = [
            line for line in (folder_of(config) / "attempts.jsonl").read_text().splitlines() if "resumed" in line
        ]
        assert [json.loads(line)["step"] for line in resumed] == [50]
    again = [(short("method=adam", SAVED, f"seed={s}", f"paths.results={tmp_path / 'again'}")) for s in (1, 2, 3)]
    execute_together([(each.config, each.overrides) for each in again], no_look)
    for (config, _), other in zip(runs, again, strict=True):
        assert events_of(config) == events_of(other.config)
        record = json.loads((folder_of(config) / "record.json").read_text())
        assert record["clocks"] is None
        assert record["metrics"]["time_to_99_s"] is None


def test_seeds_that_were_not_cut_together_become_programs_of_their_own(
    short: Callable[..., Planned], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = group(short, 1, 2), group(short, 3)
    with pytest.raises(Cut):
        execute_together(old, cut_after(2, 150))
    seen: list[tuple[int, int]] = []
    outcomes = execute_together([*old, *new], lambda config, event: seen.append((config.seed, event.step)))
    assert "become 2 programs: 2 from step 100, 1 from step 0" in capsys.readouterr().out
    assert seen == [(1, 150), (2, 150), (1, 200), (2, 200), *((3, step) for step in (0, 50, 100, 150, 200))]
    assert [status_of(config) for config, _ in (*old, *new)] == [Status.DONE] * 3
    # A run that shared its clocks in an earlier attempt has none; the new one had a program of its own.
    assert [bool(getattr(each, "clocks", None)) for each in outcomes] == [False, False, True]


def test_a_seed_that_had_shared_its_program_goes_on_alone_without_clocks(short: Callable[..., Planned]) -> None:
    (first, second) = group(short, 1, 2)
    with pytest.raises(Cut):
        execute_together([first, second], cut_after(2, 150))
    record = execute(*first, ignore)
    assert record is not None
    assert record.clocks is None
    assert record.metrics.time_to_99_s is None


def test_a_diverged_seed_stays_diverged_when_the_others_go_on(cut_run: Callable[[str], Planned]) -> None:
    planned = cut_run("adam")
    folder = folder_of(planned.config)
    snapshot = checkpoint.load(folder, 100)
    shutil.rmtree(folder / "checkpoint" / "100")
    checkpoint.save(folder, dataclasses.replace(snapshot, diverged=("the loss is not finite", 100)))
    with pytest.raises(runner.RunFailed, match="failed at step 100: Diverged: the loss is not finite"):
        execute(planned.config, planned.overrides, ignore)
    assert status_of(planned.config) is Status.FAILED
    assert saved_steps(folder) == [], "from its checkpoints it would diverge again"


def test_status_shows_from_where_cut_runs_go_on(
    cut_run: Callable[[str], Planned], short: Callable[..., Planned]
) -> None:
    planned = [cut_run("adam"), short("method=sgd")]
    columns = [list(column.cells) for column in grid(look(planned)).columns]
    assert columns[2:] == [["[cyan]1 cut at 100[/]"], ["[dim]1 missing[/]"]]
