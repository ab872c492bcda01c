"""A tracker beside runs: it hears everything, and nothing that befalls it befalls them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import tracking
from experiments.cells import Planned
from experiments.config import ROOT, UsageError
from experiments.runner import folder_of
from experiments.tracking import tracked
from tests.wandb_server import serving


def environment(home: Path, url: str, *, key: bool) -> dict[str, str]:
    folders = {f"WANDB_{name}_DIR": str(home) for name in ("CONFIG", "CACHE", "DATA")}
    own = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_BASE_URL": url}
    kept = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    return {**kept, **folders, **own, **({"WANDB_API_KEY": "0" * 40} if key else {})}


def do(planned: Planned, url: str, home: Path, *, key: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.run", *planned.overrides]
    env = environment(home, url, key=key)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_a_run_is_heard_of_whole_and_stays_what_it_is(short: Callable[..., Planned], tmp_path: Path) -> None:
    planned = short("method=sgd", "tracker=wandb", "tracker.project=mine", "tracker.wait_s=120")
    folder = folder_of(planned.config)
    # No part of the run's identity, and none of the command that repeats it.
    assert folder == folder_of(short("method=sgd").config)
    with serving() as server:
        done = do(planned, server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(server.runs) == [folder.name]
    sent, lines = server.runs[folder.name], (folder / "events.jsonl").read_text().splitlines()
    assert [line["step"] for line in sent.history] == [json.loads(line)["step"] for line in lines]
    assert sent.summary["accuracy"] == pytest.approx(
        100 * json.loads((folder / "record.json").read_text())["metrics"]["test_accuracy"]
    )
    assert sent.fields["project"] == "mine"
    assert "tracker" not in (folder / "command.sh").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("server_is", ["silent", "broken", "absent", "without a key"])
def test_a_run_ends_whatever_the_server_does(server_is: str, short: Callable[..., Planned], tmp_path: Path) -> None:
    waits = ["tracker.start_timeout_s=600", "tracker.finish_timeout_s=1"]
    planned = short("method=sgd", "tracker=wandb", *waits)
    with socket.create_server(("127.0.0.1", 0)) as hole, serving() as server:
        server.broken = True
        silent = f"http://127.0.0.1:{hole.getsockname()[1]}"
        url = {"silent": silent, "absent": "http://127.0.0.1:9"}.get(server_is, server.url)
        done = do(planned, url, tmp_path, key=server_is != "without a key")
    assert done.returncode == 0, done.stderr
    assert (folder_of(planned.config) / "record.json").exists()
    assert "error" not in done.stderr


def _tracker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(tracking, "_command", lambda *_: [sys.executable, "-c", code])


def test_the_end_of_runs_is_not_held_up(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    over = tmp_path / "over"
    _tracker(monkeypatch, f"import pathlib, time\nwhile not pathlib.Path({str(over)!r}).exists(): time.sleep(0.05)")
    start = time.perf_counter()
    with tracked([short("tracker=wandb").config], lambda _: None):
        pass
    # It would stay for ever.
    assert time.perf_counter() - start < 20
    over.touch()


def test_a_tracker_is_told_of_the_end_and_its_lines_are_shown(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    _tracker(monkeypatch, "import sys\nprint('begun', flush=True)\nsys.stdin.read()\nprint('ended', flush=True)")
    said: list[str] = []
    with tracked([short("tracker=wandb", "tracker.wait_s=60").config], said.append):
        assert "ended" not in said
    assert said == ["begun", "ended"]


def test_a_tracker_that_cannot_start_is_said(
    short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "_command", lambda *_: [str(tmp_path / "none")])
    said: list[str] = []
    with tracked([short("tracker=wandb").config], said.append):
        pass
    assert len(said) == 1
    assert "nothing is sent" in said[0]
    assert "make wandb-sync" in said[0]


def test_without_a_tracker_there_is_no_process(short: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with tracked([short().config], lambda _: None), tracked([], lambda _: None):
        pass


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tracker=comet"], "none\n\twandb"),
        (["tracker=wandb", "tracker.mode=later"], "tracker.mode=later is none of auto, online, offline"),
        (["tracker=wandb", "tracker.wait_s=-1"], "tracker.wait_s=-1.0 is not a number of seconds"),
        (["tracker.project=x"], "unknown key 'tracker.project'"),
    ],
)
def test_wrong_trackers_are_named(short: Callable[..., Planned], overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        short(*overrides)
