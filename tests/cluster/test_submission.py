"""What is submitted, and what is refused at once: no SLURM needed."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import config, planned
from experiments.cells import plan
from experiments.cluster import manifest, queue, submit
from experiments.cluster.manifest import Manifest
from experiments.cluster.profile import ClusterConfig
from experiments.cluster.queue import sbatch_options
from experiments.config import ROOT, UsageError
from tests.cluster.conftest import DEMO

PRINTS = "#!/bin/sh\necho 7\n"


@pytest.fixture
def slurmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for commands that take the place of SLURM's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{Path(shutil.which('git') or '/usr/bin/git').parent}")
    # SLURM's own may lie beside git.
    for name in ("sbatch", "squeue"):
        write_command(folder / name, PRINTS if name == "sbatch" else "#!/bin/sh\n")
    return folder


def write_command(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o755)


@pytest.mark.parametrize(
    "more", [[], ["tracker=wandb", "jobs=2"], ["sweep=table4", "preset=smoke", "method=adam,dr", "model=rnn_1x256"]]
)
def test_a_submission_has_every_value_and_reads_no_configuration(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [each for each in DEMO if each.partition("=")[0] not in {other.partition("=")[0] for other in more}]
    runs = plan([*given, *more, f"paths.results={tmp_path / 'runs'}"])
    folder = tmp_path / "submission"
    folder.mkdir()
    manifest.write(folder, submit.arranged(runs, 3), None)
    monkeypatch.setattr(config, "CONF", tmp_path / "nowhere")
    found = manifest.read(folder)
    thawed = [run for number in range(len(found.tasks)) for run in found.planned(number)]
    assert [run.overrides for run in thawed] == [run.overrides for run in runs]
    for ours, theirs in zip(thawed, runs, strict=True):
        assert type(ours.config.method) is type(theirs.config.method)
        assert ours.config.data_dir == theirs.config.data_dir
        ours.config.paths.data = theirs.config.paths.data
        assert ours.config == theirs.config


def test_a_submission_names_the_code_that_changed(
    frozen: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = frozen()
    written.check_code()
    now = {**written.code, "baselines/mlp.py": "other", "experiments/new.py": "new"}
    del now["pjax/nn.py"]
    monkeypatch.setattr(manifest, "fingerprint", lambda: now)
    with pytest.raises(UsageError, match=r"\(commit 000000000000\): baselines/mlp.py, experiments/new.py, pjax/nn.py"):
        written.check_code()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no submission: it has no manifest.json"),
        ("{", "is damaged"),
        ('{"format": 0}', "was written by another version of this code; submit its runs anew"),
        ('{"format": 1, "cluster": {}}', "is damaged"),
    ],
)
def test_what_is_no_submission_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        manifest.read(tmp_path)


def test_a_task_that_there_is_not_is_refused(frozen: Callable[..., Manifest]) -> None:
    with pytest.raises(UsageError, match="has no task 5: they go from 0 to 4"):
        frozen().planned(5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cluster=nowhere", "default"),
        ("cluster.cpus=0", "cluster.cpus=0 is not positive"),
        ("cluster.gpus=-1", "cluster.gpus=-1 is negative"),
        ("cluster.signal_s=28800", "cluster.signal_s=28800 is not within cluster.time_min=480"),
        ("cluster.local=scratch", "cluster.local=scratch is not an absolute path"),
        ('cluster.options=["-p x"]', "options of sbatch begin with --"),
        ('cluster.options=["--array=1"]', "are what a submission says itself"),
        ("cluster.nodes=2", "cluster.processes=1 is no multiple of cluster.nodes=2"),
        ("cluster.processes=3", "protocol.batch_size=256 cannot be split among cluster.processes=3"),
        ("cluster.partitions=x", "cluster.partition\n"),
    ],
)
def test_a_wrong_profile_is_named_by_key(argument: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan([*DEMO, argument])
    assert message in str(error.value)


def test_a_full_disk_is_named_and_leaves_no_submission(
    slurmless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan([*DEMO, f"paths.results={tmp_path / 'runs'}", f"cluster.folder={tmp_path / 'submissions'}"])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(UsageError, match=r"cluster.folder=.*submissions cannot hold a submission: .*No space left"):
        submit.submit(runs)
    assert slurmless.exists()
    assert not list((tmp_path / "submissions").iterdir())


def test_sbatch_hears_the_profile(frozen: Callable[..., Manifest]) -> None:
    profile = [
        "partition=gpu",
        "account=us",
        "gpus=2",
        "cpus=8",
        "memory_gb=16",
        "time_min=90",
        "signal_s=60",
        "width=3",
    ]
    options = sbatch_options(frozen(*(f"cluster.{each}" for each in profile), 'cluster.options=["--constraint=a100"]'))
    assert {"--partition=gpu", "--account=us", "--gres=gpu:2", "--cpus-per-task=8", "--time=90"} < set(options)
    assert {"--mem=15259M", "--signal=B:USR1@60", "--array=0-4%3", "--constraint=a100"} < set(options)
    assert not [each for each in sbatch_options(frozen()) if "None" in each or "partition" in each or "gres" in each]


def test_set_up_commands_come_before_python(frozen: Callable[..., Manifest]) -> None:
    script = submit.setup_script(frozen('cluster.setup=["module load cuda"]', "cluster.attempts=3"))
    assert script.splitlines()[0] == "PJAX_ATTEMPTS=3"
    assert "\nmodule load cuda\n" in script
    split = submit.setup_script(frozen("cluster.processes=4", "cluster.nodes=2", "cluster.cpus=8"))
    assert "PJAX_LAUNCH='srun --ntasks=4 --cpus-per-task=8'" in split


def test_a_shells_variables_are_not_hydras(tmp_path: Path) -> None:
    (run, *_) = plan([*DEMO, f"paths.results={tmp_path / 'runs'}"])
    setup = ["export PATH=${HOME}/bin:$PATH", r"echo \${x}"]
    cluster = dataclasses.replace(run.config.cluster, setup=setup)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, cluster=cluster))
    manifest.write(tmp_path, [[run]], None)
    (found,) = manifest.read(tmp_path).planned(0)
    assert found.config.cluster.setup == setup


def test_set_up_commands_have_to_succeed(frozen: Callable[..., Manifest], tmp_path: Path) -> None:
    def tried(*setup: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "setup.sh"
        script.write_text(submit.setup_script(dataclasses.replace(written, cluster=replaced(setup))))
        command = ["bash", "-c", f". {script}; trap - ERR; echo $PJAX_ATTEMPTS"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def replaced(setup: tuple[str, ...]) -> ClusterConfig:
        return dataclasses.replace(written.cluster, setup=[*setup])

    written = frozen()
    assert tried("export A=$NOTHING", "if false; then :; fi").stdout == "20\n"
    failed = tried("no-such-module", "true")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "error: a set-up command of the profile failed (cluster.setup)" in failed.stderr


def test_without_slurm_the_error_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: Callable[..., Manifest]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch on this machine; go to a SLURM login node, or try out slurm/local"):
        submit.submit(plan([*DEMO, f"cluster.folder={tmp_path}"]))


def test_data_that_are_not_prepared_are_told_before_anything_is_submitted(slurmless: Path, tmp_path: Path) -> None:
    where = [f"paths.data={tmp_path / 'data'}", f"cluster.folder={tmp_path / 'submissions'}"]
    with pytest.raises(UsageError, match="make data DATASET=mnist RAW="):
        submit.submit(plan(["sweep=table2", "dataset=mnist", "method=sgd", *where]))
    assert not (tmp_path / "submissions").exists()


def test_what_slurm_refuses_leaves_nothing(slurmless: Path, tmp_path: Path) -> None:
    write_command(
        slurmless / "sbatch", '#!/bin/sh\n[ "$1" = --version ] || { echo "invalid partition" >&2; exit 1; }\n'
    )
    where = [f"paths.results={tmp_path / 'runs'}", f"cluster.folder={tmp_path / 'submissions'}"]
    with pytest.raises(UsageError, match="sbatch refused: invalid partition; the profile is conf/cluster/"):
        submit.submit(plan([*DEMO, *where]))
    assert not list((tmp_path / "submissions").iterdir())


def test_what_slurm_may_have_taken_stays(slurmless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ANSWER_SECONDS", 0.5)
    write_command(slurmless / "sbatch", '#!/bin/sh\n[ "$1" = --version ] || exec /bin/sleep 5\n')
    where = [f"paths.results={tmp_path / 'runs'}", f"cluster.folder={tmp_path / 'submissions'}"]
    with pytest.raises(UsageError, match=r"sbatch has not answered for .* It may have the submission all the same"):
        submit.submit(plan([*DEMO, *where]))
    (folder,) = (tmp_path / "submissions").iterdir()
    assert len(manifest.read(folder).runs) == 10


def test_status_says_what_slurm_does_not(slurmless: Path, tmp_path: Path) -> None:
    where = [f"paths.results={tmp_path / 'runs'}", f"cluster.folder={tmp_path / 'submissions'}"]
    assert submit.submit(plan([*DEMO, *where])) == []
    write_command(slurmless / "squeue", "#!/bin/sh\necho 'no answer from the controller' >&2; exit 1\n")
    command = [sys.executable, "-m", "experiments.status", *DEMO, *where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "what is in the queue is not known: squeue refused: no answer from the controller" in done.stdout
    assert "10 missing" in done.stdout


def test_a_plan_is_made_once_until_its_configuration_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    asked = [*DEMO, f"paths.results={tmp_path / 'runs'}"]
    monkeypatch.setattr(planned, "plan", lambda arguments: [made.append(arguments), *plan(arguments)][1:])
    first = planned.planned(asked)
    assert planned.planned(asked) == first == plan(asked)
    assert len(made) == 1
    # How runs are done changes nothing in which they are.
    how = ["jobs=2", "cluster.cpus=7", "tracker=wandb"]
    found = planned.planned([*asked, *how])
    assert len(made) == 1
    assert [run.config for run in found] == [run.config for run in plan([*asked, *how])]
    with pytest.raises(UsageError, match=r"together=yes and jobs=2: one program or several processes"):
        planned.planned([*asked, "together=yes", "jobs=2"])
    with pytest.raises(UsageError, match=r"protocol\.batch_size=256 cannot be split among cluster\.processes=3"):
        planned.planned([*asked, "cluster.processes=3"])
    made.clear()
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr(planned, "CONF", tmp_path / "conf")
    monkeypatch.setattr(planned, "ROOT", tmp_path)
    planned.planned(asked)
    (tmp_path / "conf" / "other.yaml").write_text("a: 1\n")
    planned.planned(asked)
    assert len(made) == 2
    for path in (tmp_path / "runs" / ".cache").iterdir():
        path.write_bytes(b"damaged")
    assert planned.planned(asked) == first


def test_seeds_that_share_a_program_share_a_task() -> None:
    tasks = submit.arranged(plan(["sweep=demo", "preset=demo", "seeds=4", "together=yes", "method=sgd,adam"]), 2)
    assert [[run.config.seed for run in each] for each in tasks] == [[0], [1, 2, 3], [0], [1, 2, 3]]
    assert [len(each) for each in submit.arranged(plan([*DEMO]), 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("given", "module"), [([], "reproduce"), (["LAUNCHER=local"], "reproduce"), (["LAUNCHER=slurm"], "cluster.submit")]
)
def test_make_submits(given: list[str], module: str) -> None:
    command = ["make", "-n", "-o", ".venv/.locked", "reproduce", "CLUSTER=here", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=without_make())
    assert f"-m experiments.{module} 'sweep=table2'" in done.stdout
    assert "'cluster=here'" in done.stdout


def test_make_knows_its_launchers() -> None:
    command = ["make", "-n", "-o", ".venv/.locked", "reproduce", "LAUNCHER=slrum"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=without_make())
    assert done.returncode
    assert re.search(r"LAUNCHER=slrum: one of local slurm", done.stderr)


def without_make() -> dict[str, str]:
    """The environment without what a make that runs the tests hands down."""
    return {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")}


def test_the_local_cluster_says_what_is_not_installed(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("env", "bash", "dirname", "hostname", "mkdir", "sed", "cut"):
        (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    script = (ROOT / "slurm" / "local-cluster").read_text().replace("PATH=$PATH:/usr/sbin:/sbin\n", "")
    write_command(tmp_path / "local-cluster", script)
    command = [str(tmp_path / "local-cluster"), "start", str(tmp_path / "cluster")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": str(tools)})
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: not installed: munged slurmctld slurmd sbatch squeue scontrol sinfo. On Debian"
    )
    assert "slurm/local-cluster start DIR" in subprocess.run(command[:1], capture_output=True, text=True).stderr
