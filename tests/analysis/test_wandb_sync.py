"""What W&B's own client delivers of run folders, to a server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis import wandb_sync
from analysis.wandb_client import Client
from tests.wandb_server import Server, serving

ROOT = Path(__file__).resolve().parents[2]
KEY = "0" * 40


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Copies of two committed runs, without notes of what was sent."""
    runs = sorted((ROOT / "results" / "runs").glob("mnist-mlp_1x128-*"))[:2]
    return [Path(shutil.copytree(run, tmp_path / "runs" / run.name)) for run in runs]


def environment(home: Path, url: str | None, *, key: bool = True) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    found |= {"HOME": str(home), "NETRC": str(home / "netrc")}
    found |= {f"WANDB_{name}_DIR": str(home) for name in ("CONFIG", "CACHE", "DATA")}
    found |= {"WANDB_API_KEY": KEY} if key else {}
    return found | ({"WANDB_BASE_URL": url} if url else {})


def sync(
    folder: Path, url: str | None, *arguments: str, key: bool = True, **options
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analysis.wandb_sync", str(folder), *arguments]
    env = environment(folder.parent, url, key=key)
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False, **options
    )


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def history(server: Server, run: Path) -> list[dict]:
    """What the server has of a run's evaluations, but for W&B's own keys."""
    sent = server.runs[run.name].history
    assert [line["_step"] for line in sent] == list(range(len(sent)))
    return [{key: value for key, value in line.items() if not key.startswith("_")} for line in sent]


def told(run: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if value is not None} for line in lines(run)]


def test_every_number_arrives_once(two: list[Path], server: Server) -> None:
    folder = two[0].parent
    done = sync(folder, server.url)
    assert (done.returncode, done.stdout) == (0, "W&B: 2 of 2 runs sent, 0 had nothing new\n"), done.stderr
    assert set(server.runs) == {run.name for run in two}
    for run in two:
        record, sent = json.loads((run / "record.json").read_text()), server.runs[run.name]
        assert history(server, run) == told(run)
        assert sent.exit_code == 0
        assert sent.summary["accuracy"] == pytest.approx(100 * record["metrics"]["test_accuracy"])
        assert sent.summary["steps_k"] == record["metrics"]["steps_to_99"] / 1000
        assert sent.summary["status"] == "finished"
        if record["clocks"]:
            assert sent.summary["ms_per_step"] == record["clocks"]["published_ms_per_step"]
        assert sent.fields["groupName"] == "mnist-mlp_1x128-adam"
        assert sent.fields["jobType"] == "adam"
        # Nobody's host, folder or packages.
        assert "host" not in sent.fields
    axes = json.loads(server.runs[two[0].name].fields["config"])["_wandb"]["value"]["m"]
    assert {axis.get("1") for axis in axes} >= {"step", "train_s"}

    before, asked = {name: list(sent.history) for name, sent in server.runs.items()}, len(server.operations)
    done = sync(folder, server.url)
    assert done.stdout == "W&B: 0 of 2 runs sent, 2 had nothing new\n"
    assert server.operations[asked:] == []
    # From another machine, say, which does not know what was sent.
    shutil.rmtree(folder / ".wandb")
    assert sync(folder, server.url).returncode == 0
    assert {name: sent.history for name, sent in server.runs.items()} == before


def test_tables_and_figures_are_artifacts_of_a_run_of_their_own(two: list[Path], server: Server) -> None:
    folder = two[0].parent
    shutil.copytree(ROOT / "results" / "tables", folder.parent / "tables")
    (folder.parent / "figures").mkdir()
    shutil.copy(ROOT / "results" / "figures" / "figure6.png", folder.parent / "figures")
    done = sync(folder, server.url)
    (name,) = set(server.runs) - {run.name for run in two}
    assert done.stdout.splitlines()[-1] == f"W&B: tables and figures sent as artifacts of {name}", done.stderr
    assert (server.runs[name].fields["jobType"], server.runs[name].exit_code) == ("aggregate", 0)
    files = {
        kind: {path.name: path.read_bytes() for path in (folder.parent / kind).iterdir()} for kind in server.artifacts
    }
    assert set(files) == {"tables", "figures"}
    assert server.artifacts == files
    asked = len(server.operations)
    assert "artifacts" not in sync(folder, server.url).stdout
    assert server.operations[asked:] == []
    # Other tables are another run, and a folder without any has none.
    (folder.parent / "tables" / "table2.md").write_text("other")
    assert f"artifacts of {name}" not in (again := sync(folder, server.url).stdout)
    assert "artifacts of results-" in again


def test_a_cut_run_goes_on_where_it_was(two: list[Path], server: Server) -> None:
    run, whole = two[0], (two[0] / "events.jsonl").read_text().splitlines(keepends=True)
    record = (run / "record.json").read_text()
    (run / "record.json").unlink()
    (run / "events.jsonl").write_text("".join(whole[:5]))
    assert sync(run.parent, server.url, "--run", run.name).returncode == 0
    assert len(server.runs[run.name].history) == 5
    assert server.runs[run.name].summary["status"] == "cut"
    assert server.runs[run.name].exit_code == 1
    (run / "events.jsonl").write_text("".join(whole))
    (run / "record.json").write_text(record)
    assert sync(run.parent, server.url, "--run", run.name).returncode == 0
    assert history(server, run) == told(run)
    assert server.runs[run.name].summary["status"] == "finished"
    assert server.runs[run.name].exit_code == 0


def test_a_failed_run_says_why(two: list[Path], server: Server) -> None:
    run = two[0]
    (run / "record.json").unlink()
    # Before its first evaluation.
    (run / "events.jsonl").write_text("")
    (run / "FAILED.json").write_text(json.dumps({"type": "Diverged", "message": "not finite", "step": 3000}))
    assert sync(run.parent, server.url, "--run", run.name).returncode == 0
    sent = server.runs[run.name]
    assert (sent.summary["status"], sent.summary["failure"], sent.exit_code) == ("failed", "Diverged: not finite", 1)


@pytest.mark.parametrize("name", ["events.jsonl", "environment.json", "config.yaml", "record.json"])
@pytest.mark.matrix
def test_a_damaged_run_is_named_and_stops_no_other(two: list[Path], server: Server, name: str) -> None:
    (two[0] / name).write_text("{")
    done = sync(two[0].parent, server.url)
    assert done.returncode == 1
    assert f"{two[0].name}/{name}" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.runs[two[1].name].summary["status"] == "finished"
    assert two[0].name not in server.runs


def test_a_run_that_goes_on_is_not_ended(two: list[Path], server: Server) -> None:
    (two[0] / "record.json").unlink()
    (two[0] / "owner.lock").touch()
    done = sync(two[0].parent, server.url)
    assert done.stdout == "W&B: 1 of 2 runs sent, 0 had nothing new, 1 go on and are left for later\n"
    assert set(server.runs) == {two[1].name}


def test_an_end_that_is_not_taken_is_not_noted(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sender = wandb_sync.Sender(Client("p", None, two[0].parent / ".wandb", True, start_timeout=9, finish_timeout=9))
    fake = SimpleNamespace(starting_step=0, summary={}, log=lambda *_, **__: None, finish=lambda **_: 1 / 0)
    monkeypatch.setattr(sender, "_begin", lambda _: fake)
    (two[0].parent / ".wandb").mkdir()
    with pytest.raises(wandb_sync.NotSent, match=f"the end of {two[0].name} was not taken: division by zero"):
        sender.send(two[0])
    assert list((two[0].parent / ".wandb").glob("*/*.json")) == []


@pytest.mark.parametrize("more", [(), ("--follow",)])
def test_an_end_that_is_not_answered_is_given_up(two: list[Path], server: Server, more: tuple[str, ...]) -> None:
    run, server.deaf = two[0], True
    before = time.monotonic()
    done = sync(run.parent, server.url, "--run", run.name, "--finish-timeout", "3", *more, input="")
    assert time.monotonic() - before < 60
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert f"the end of {run.name} was not taken within 3 s" in said or "not everything was sent in time" in said
    server.deaf = False
    assert sync(run.parent, server.url, "--run", run.name).returncode == 0
    assert history(server, run) == told(run)


def test_offline_files_say_the_same(two: list[Path]) -> None:
    run = two[0]
    done = sync(run.parent, None, "--run", run.name, "--mode", "offline", key=False)
    assert done.returncode == 0, done.stderr
    (files,) = (run.parent / ".wandb" / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(files)]
    shown = subprocess.run(command, env=environment(run, None), capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, list[dict]] = {}
    for entry in map(json.loads, shown.stdout.splitlines()):
        found.setdefault(entry["type"], []).append(entry[entry["type"]])
    written = [line["item"] for line in found["history"]]
    assert [{key: value for key, value in line.items() if key[0] != "_"} for line in written] == told(run)
    begun, record = found["run"][0], json.loads((run / "record.json").read_text())
    assert begun["run_id"] == run.name
    assert begun["config"]["update"]["cell_series"] == record["cell"]["method"]
    summary = {key: value for part in found["summary"] for key, value in part["update"].items()}
    assert summary["accuracy"] == pytest.approx(100 * record["metrics"]["test_accuracy"])
    assert summary["status"] == "finished"
    assert found["exit"][0]["exit_code"] == 0
    # Written once, too.
    assert "1 had nothing new" in sync(run.parent, None, "--run", run.name, "--mode", "offline", key=False).stdout


@pytest.mark.matrix
@pytest.mark.parametrize("server_is", ["silent", "broken", "absent", "without a key"])
def test_what_cannot_be_sent_is_said_and_written(two: list[Path], server_is: str, server: Server) -> None:
    run, server.broken = two[0], server_is == "broken"
    with socket.create_server(("127.0.0.1", 0)) as hole:
        silent = f"http://127.0.0.1:{hole.getsockname()[1]}"
        url = {"silent": silent, "absent": "http://127.0.0.1:9"}.get(server_is, server.url)
        # The second is only waited for where nothing comes; a busy machine may need it for what comes.
        times = ["--start-timeout", "3", "--finish-timeout", "50", "--run", run.name]
        key = server_is != "without a key"
        done = sync(run.parent, url, *times, key=key)
        assert done.returncode == 1
        assert f"error: W&B: {run.name} cannot begin: " in done.stderr
        assert "the run folders have everything" in done.stderr
        done = sync(run.parent, url, *times, "--follow", "--mode", "auto", key=key)
    assert done.returncode == 0
    assert "Runs are written offline; `make wandb-sync` sends them later" in done.stdout
    assert len(list((run.parent / ".wandb" / "wandb").glob(f"offline-run-*{run.name}"))) == 1
    if server_is == "without a key":
        assert "wandb login" in done.stdout
    # And later it is sent.
    server.broken = False
    assert sync(run.parent, server.url, "--run", run.name).returncode == 0
    assert history(server, run) == told(run)


def test_wrong_requests_are_named(tmp_path: Path, two: list[Path]) -> None:
    done = sync(tmp_path / "nowhere", None)
    assert done.returncode == 2
    assert "nowhere is not a folder of runs" in done.stderr
    done = sync(two[0].parent, None, "--run", "mnist-mlp_9x9-sgd-s0-0")
    assert done.returncode == 2
    assert "there is no run" in done.stderr
