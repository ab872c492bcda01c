"""The dashboard's payload, and that W&B's own client sends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from analysis.published import load_published
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


def test_a_server_that_refuses_is_an_error_and_wandbs_service_is_not_waited_for(tmp_path: Path) -> None:
    services: list[int] = []

    def stop_service() -> None:
        while "refused" not in server.operations:
            time.sleep(0.1)
        services.extend(_services(tmp_path))
        for pid in services:
            # It answers no more, as one that hangs.
            os.kill(pid, signal.SIGSTOP)

    with serving() as server:
        server.broken = True
        thread = threading.Thread(target=stop_service, daemon=True)
        thread.start()
        try:
            done = dashboard(tmp_path, url=server.url)
        finally:
            for pid in services:
                os.kill(pid, signal.SIGKILL)
    assert services
    assert done.returncode == 1
    assert "error: W&B did not take the dashboard" in done.stderr
    assert "Traceback" not in done.stderr


def _services(home: Path) -> list[int]:
    """W&B's services that a process with this home has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = f"HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and b"wandb-core" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found
