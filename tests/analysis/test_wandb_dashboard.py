"""The dashboard's payload, and that W&B's own client sends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analysis.published import load_published
from tests.processes import running, send
from tests.wandb_server import serving

ROOT = Path(__file__).resolve().parents[2]


def dashboard(home: Path, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """Its output goes to files: W&B's service, which outlives it, would hold on to a pipe."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_SILENT": "true"}
    env |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url} if url else {}
    command = [sys.executable, "-m", "analysis.wandb_dashboard", "--entity", "team", *arguments]
    said, told = home / "stdout", home / "stderr"
    with said.open("w") as stdout, told.open("w") as stderr:
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=stdout, stderr=stderr, timeout=120, check=False)
    return subprocess.CompletedProcess(command, done.returncode, said.read_text(), told.read_text())


def without_ids(text: str) -> str:
    """The package makes up names for panels and sets of runs."""
    return re.sub(r'"(__id__|id|ref)": ?("\w*"|\{[^{}]*\})', "", text)


def test_every_row_of_the_tables_has_its_section_and_every_table_its_verdicts(tmp_path: Path) -> None:
    done = dashboard(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    grids = [block for block in found["report"]["blocks"] if block["type"] == "panel-grid"]
    shown = [tuple(each["value"] for each in grid["metadata"]["runSets"][0]["filters"]["filters"]) for grid in grids]
    published = load_published()
    assert shown == list(dict.fromkeys((cell.dataset, cell.model) for cell in published.cells))
    for grid in grids:
        curves, by_time, bars = (panel["config"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"])
        assert (curves["xAxis"], by_time["xAxis"]) == ("step", "train_s")
        assert curves["metrics"] == by_time["metrics"] == ["validation_accuracy"]
        assert (curves["groupArea"], bars["metrics"]) == ("stddev", ["summary_metrics.ms_per_step"])
    text = json.dumps(found["report"])
    assert text.count("| Dataset | Architecture | Method | Seeds |") == len(published.tables)
    assert [section["name"] for section in found["workspace"]["section"]["panelBankConfig"]["sections"]] == [
        "Curves, mean and deviation over seeds",
        "The tables' columns",
    ]


def test_what_is_sent_is_what_the_dry_run_printed(tmp_path: Path) -> None:
    printed = json.loads(dashboard(tmp_path, "--dry-run").stdout)
    with serving() as server:
        done = dashboard(tmp_path, url=server.url)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    sent = [json.loads(view["spec"]) for view in server.views]
    for ours, theirs in zip((printed["workspace"], printed["report"]), sent, strict=True):
        assert without_ids(json.dumps(ours, sort_keys=True)) == without_ids(json.dumps(theirs, sort_keys=True))


def test_what_the_server_refuses_is_an_error(tmp_path: Path) -> None:
    with serving() as server:
        dashboard(tmp_path, url=server.url)
        assert len(server.views) == 2
        for name in sorted({*server.operations}):
            server.refused = {name}
            done = dashboard(tmp_path, url=server.url)
            assert done.returncode == 1, name
            assert "error: W&B did not take the dashboard" in done.stderr
            assert name == "Viewer" or f"no {name} for you" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found by Linux's /proc")
def test_a_server_that_fails_is_an_error_and_wandbs_service_is_not_waited_for(tmp_path: Path) -> None:
    over = threading.Event()

    def stop_service() -> None:
        while "broken" not in server.operations and not over.wait(0.1):
            pass
        # It answers no more, as one that hangs.
        send(signal.SIGSTOP, _services(tmp_path))

    with serving() as server:
        server.broken = True
        thread = threading.Thread(target=stop_service)
        thread.start()
        try:
            done = dashboard(tmp_path, url=server.url)
        finally:
            over.set()
            thread.join()
            stopped = _services(tmp_path)
            send(signal.SIGKILL, stopped)
    assert done.returncode == 1
    assert "error: W&B did not take the dashboard" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(stopped) == 1


def _services(home: Path) -> list[int]:
    """W&B's services that processes with this home have started."""
    ours = f"HOME={home}".encode()
    return [pid for pid, command, variables in running() if ours in variables and b"wandb-core" in command]
