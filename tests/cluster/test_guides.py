"""The commands of docs/cluster.md and docs/wandb.md, as they are printed there, on short runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config import ROOT
from tests.cluster.conftest import PATIENCE, squeue, wait
from tests.wandb_server import serving

pytestmark = pytest.mark.slow
SHORT = "MODEL=mlp_1x128 METHOD=sgd PRESET=smoke SEEDS=1"
"""What `make` is told beside, so that a table's row is one short run."""
FEW = "protocol.max_steps=200 protocol.evaluate_every=100"


def commands(guide: str) -> list[str]:
    """The commands of a guide without their comments, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / guide).read_text(), re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.fixture
def do(checkout: Path, tmp_path: Path) -> Callable[..., str]:
    """Do a command in a copy of the suite; returns what it says."""
    for name in ("Makefile", "analysis", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, checkout / name)
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    kept = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")}
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "PATH": f"{ROOT / '.venv/bin'}:{kept['PATH']}"}

    def run(command: str, status: int = 0, **variables: str) -> str:
        command = command.replace("make ", "make -o .venv/.locked ", 1)
        env = {**kept, **home, **variables}
        done = subprocess.run(
            command, shell=True, cwd=checkout, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == status, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


def test_the_guide_to_clusters(do: Callable[..., str], slurm: Path, shared: Path) -> None:
    data, reproduce, status, collect = (
        "make data DATASET=mnist",
        "make reproduce TABLE=2 DATASET=mnist LAUNCHER=slurm",
        "make status TABLE=2 DATASET=mnist",
        "make reproduce TABLE=2 DATASET=mnist",
    )
    hydra = "python -m experiments.run -m dataset=digits method=sgd,adam hydra/launcher=slurm cluster=default"
    # The fixture does the first and the last of these.
    ours = ["slurm/local-cluster start /tmp/cluster", "export SLURM_CONF=/tmp/cluster/slurm.conf"]
    ours.append("slurm/local-cluster stop /tmp/cluster")
    cancel = "scancel 1234_7"
    assert commands("cluster.md") == [*ours, data, reproduce, status, "squeue --me", cancel, collect, hydra]
    do(f"{data} RAW={shared / 'data'}")
    said = do(f"{reproduce} {SHORT}")
    assert "0 of 1 runs are finished, 1 submitted as job " in said
    job = said.partition("submitted as job ")[2].split()[0]
    assert f"job {job}, 1 runs in 1 tasks" in do(f"{status} {SHORT}")
    assert job in do("squeue --me")
    do(cancel.replace("1234_7", f"{job}_0"))
    wait(lambda: not squeue(), lambda: str(squeue()))
    do(f"{reproduce} {SHORT}")
    wait(lambda: not squeue(), lambda: str(squeue()))
    assert "1 done" in do(f"{status} {SHORT}")
    assert "1 of 1 runs are finished: nothing to do" in do(f"{collect} {SHORT}")
    small = "cluster.cpus=1 cluster.memory_gb=2 cluster.time_min=10"
    do(f"{hydra} {FEW} {small} paths.results=hydra")
    assert do("ls hydra/*/record.json").count("record.json") == 2


def test_the_guide_to_wandb(do: Callable[..., str], shared: Path) -> None:
    login, reproduce, one, sync, offline, inspect, dry, dashboard = commands("wandb.md")
    assert (login, sync) == ("wandb login", "make wandb-sync")
    with serving() as server:
        online = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
        do(f"make data DATASET=mnist RAW={shared / 'data'}")
        do(f"{reproduce} {SHORT}", **online)
        # Behind the command, and on a busy machine later than the next one's.
        wait(lambda: any(sent.summary.get("status") == "finished" for sent in server.runs.values()), str)
        do(f"{one} {FEW} tracker.wait_s=60", **online)
        assert [name.partition("-sgd")[0] for name in server.runs][:1] == ["mnist-mlp_1x128"]
        assert any(name.startswith("digits-") for name in server.runs)
        assert "W&B: 0 of 1 runs sent, 1 had nothing new" in do(sync, **online)
        do(f"{offline} {FEW} seed=1 tracker.wait_s=60")
        assert "finished" in do(inspect)
        asked = len(server.operations)
        assert '"section' in do(dry)
        assert len(server.operations) == asked
        addresses = [line for line in do(dashboard, **online).splitlines() if line.startswith("http")]
        assert [address.startswith(f"{server.url}/TEAM/pjax") for address in addresses] == [True] * 2
        assert server.views
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        absent = f"http://127.0.0.1:{free.getsockname()[1]}"
    # What was only written is sent from the folders.
    assert "W&B: 0 of" not in do(
        shlex.join(["make", "wandb-sync", "ARGS=--start-timeout 3"]), status=2, **online | {"WANDB_BASE_URL": absent}
    )
