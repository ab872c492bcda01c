"""The command lines as a person meets them: wrong use, Ctrl-C, failures in a sweep, status."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments import reproduce
from experiments.cells import plan
from experiments.config import ROOT
from experiments.runner import folder_of


def call(module: str, arguments: Sequence[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python -m experiments.<module>`."""
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("run", ["dataset=nonsense"], "mnist"),
        ("run", ["-m", "method=sgd,nonsense"], "adam"),
        ("run", ["-m", "nonsense=1"], "protocol.patience"),
        ("run", ["-m", "method=ap", "method.relaxation=0.7"], "method.representation"),
        ("run", ["method=ap", "method.relaxation=0.7"], "method.representation"),
        ("reproduce", ["model=nonsense"], "mlp_4x128_skip"),
        ("status", ["model=nonsense"], "mlp_4x128_skip"),
        ("data", ["dataset=nonsense"], "mnist"),
        ("data", ["dataset=mnist", "source=nonsense"], "source=nonsense: files or tfds"),
        ("data", ["dataset=mnist", "dataset.subset=true"], "cannot be used as data set 'mnist'"),
        ("data", ["dataset=mnist", "raw=/absent"], "raw=/absent is not a folder"),
        ("run", ["dataset=mnist", "dataset.test_fraction=2"], "dataset.test_fraction=2.0 is not between 0 and 1"),
    ],
)
def test_wrong_use_fails_in_seconds_and_lists_the_choices(module: str, arguments: list[str], message: str) -> None:
    result = call(module, arguments, timeout=60)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["run", "reproduce"])
def test_a_run_without_data_names_the_command_and_leaves_no_trace(module: str, tmp_path: Path) -> None:
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.results={tmp_path / 'runs'}"]
    result = call(module, ["dataset=mnist", "model=mlp_1x128", *paths], timeout=60)
    assert result.returncode == 2
    assert "make data DATASET=mnist RAW=" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("module", ["run", "reproduce"])
@pytest.mark.parametrize(
    "override", ["method.window=0", "protocol.batch_size=100000", "dataset.num_classes=5"], ids=lambda text: text
)
def test_what_cannot_be_done_leaves_no_trace(module: str, override: str, tmp_path: Path) -> None:
    cell = ["dataset=digits", "model=mlp_1x32", "method=dr"]
    cell += ["sweep=demo"] if module == "reproduce" else []
    result = call(module, [*cell, override, f"paths.results={tmp_path / 'runs'}"], timeout=60)
    assert result.returncode == 2
    assert override in result.stderr
    if module == "reproduce":
        assert "stops digits-mlp_1x32-dr-published-s0-" in result.stderr
        assert result.stderr.endswith(" and 2 more\n5 of 5 runs did not finish.\n")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_reproduce_does_what_can_be_done_and_names_what_cannot(tmp_path: Path) -> None:
    # SGD has no operators that could refuse the value.
    cells = ["sweep=demo", "preset=demo", "method=sgd,dr", "seeds=1", "engine.prox_lambda=-1"]
    limits = ["protocol.evaluate_every=50", "protocol.max_steps=100"]
    result = call("reproduce", [*cells, *limits, f"paths.results={tmp_path}"])
    assert result.returncode == 2
    assert [path.parent.name[:19] for path in tmp_path.glob("*/record.json")] == ["digits-mlp_1x32-sgd"]
    assert "1 to run, 1 cannot be done as asked" in result.stdout
    assert "Digits 8x8, MLP 1 x 32: 1 methods" in result.stdout
    errors = result.stderr.splitlines()
    assert errors[-3].startswith("error: engine.prox_lambda=-1")
    assert errors[-2].startswith("  stops digits-mlp_1x32-dr-published-s0-")
    assert errors[-1] == "1 of 2 runs did not finish; the others did."


def recipe(*arguments: str, **environment: str) -> str:
    """The last command that `make` would run, with additions to its environment."""
    # The stamp is older than its lock in a fresh clone, and its recipe is not what is asked for here.
    command = ["make", "-n", "-o", ".venv/.locked", *arguments]
    settings = {**os.environ, **environment}
    # A make that runs the tests hands its own command line down.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"):
        settings.pop(name, None)
    output = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True).stdout
    return output.replace("\\\n", " ").strip().splitlines()[-1]


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


@needs_make
@pytest.mark.parametrize("raw", ["/tmp/my dir", "/tmp/it's; false"])
def test_make_hands_on_a_folder_with_a_space_whole(raw: str) -> None:
    assert shlex.split(recipe("data", f"RAW={raw}"))[1:] == ["-m", "experiments.data", "dataset=mnist", f"raw={raw}"]


@needs_make
def test_make_says_which_copy_of_the_data_is_meant() -> None:
    given = ["DATASET=higgs", "SUBSET=yes", "ALTERED=yes"]
    copy = ["dataset.subset=yes", "dataset.altered=yes"]
    assert shlex.split(recipe("data", *given))[1:] == ["-m", "experiments.data", "dataset=higgs", *copy]
    assert set(copy) < set(shlex.split(recipe("reproduce", *given)))


@needs_make
def test_tfds_has_an_environment_of_its_own() -> None:
    words = shlex.split(recipe("data", "SOURCE=tfds"))
    assert words == [".venv-tfds/bin/python", "-m", "experiments.data", "dataset=mnist", "source=tfds"]


@needs_make
@pytest.mark.parametrize("verb", ["data", "reproduce", "status", "tables", "figures", "report", "test"])
def test_make_takes_nothing_from_the_environment(verb: str) -> None:
    names = (
        "TABLE",
        "DATASET",
        "PRESET",
        "SEEDS",
        "MODEL",
        "METHOD",
        "ENGINE",
        "RAW",
        "SOURCE",
        "SUBSET",
        "ALTERED",
        "JOBS",
        "MEASURE",
        "ARGS",
    )
    assert recipe(verb, **dict.fromkeys(names, "foo")) == recipe(verb)
    assert "foo" not in recipe(verb)


@needs_make
def test_make_takes_its_command_line() -> None:
    words = shlex.split(recipe("reproduce", "TABLE=3", "MODEL=a,b", "METHOD=dr", "SEEDS=1"))
    assert words[3:] == ["sweep=table3", "preset=paper", "seeds=1", "model=a,b", "method=dr"]
    words = shlex.split(recipe("status", "TABLE=2,4", "DATASET=mnist", "PRESET=quick"))
    assert words[3:] == ["sweep=table2,table4", "dataset=mnist", "preset=quick"]
    assert shlex.split(recipe("reproduce", "JOBS=2"))[3:] == ["sweep=table2", "preset=paper", "jobs=2"]
    words = shlex.split(recipe("plan", "TABLE=all", "MEASURE=yes"))
    assert words[3:] == ["sweep=table2,table3,table4", "preset=paper", "measure=yes"]
    assert shlex.split(recipe("tables", "TABLE=all"))[1:] == ["-m", "analysis.tables"]
    assert shlex.split(recipe("tables"))[1:] == ["-m", "analysis.tables"]
    assert shlex.split(recipe("tables", "TABLE=2", "DATASET=mnist"))[3:] == ["--table", "2", "--dataset", "mnist"]
    assert shlex.split(recipe("tables", "TABLE=2,3"))[3:] == ["--table", "2,3"]
    words = shlex.split(recipe("reproduce", "TABLE=beyond"))
    assert words[2:] == ["experiments.reproduce", "sweep=beyond", "preset=beyond"]
    words = shlex.split(recipe("reproduce", "TABLE=quantized"))
    assert words[2:] == ["experiments.reproduce", "sweep=quantized", "preset=beyond"]
    shown = ["analysis.beyond", "results/beyond"]
    assert shlex.split(recipe("tables", "TABLE=beyond"))[2:] == shown
    assert shlex.split(recipe("tables", "TABLE=quantized"))[2:] == [*shown, "--model", "quantized_*"]
    words = shlex.split(recipe("tables", "TABLE=study", "DATASET=mnist"))
    assert words[2:-2] == ["analysis.beyond", "results/study", "--pivot", "method.target_scale"]
    assert words[-2:] == ["--dataset", "mnist"]
    words = shlex.split(recipe("tables", "TABLE=capped"))
    assert words[2:] == ["analysis.beyond", "results/capped"]


@needs_make
def test_make_refuses_a_variable_that_no_verb_knows() -> None:
    done = subprocess.run(
        ["make", "-n", "reproduce", "PRESTE=smoke"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no verb knows PRESTE; make's variables here: PYTHON" in done.stderr


@needs_make
def test_make_sets_up_no_environment_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".venv").symlink_to("theirs")
    (tmp_path / "requirements.lock.txt").touch()
    command = ["make", "-f", str(ROOT / "Makefile"), "setup", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: .venv is a link, and set-up would empty the environment that it leads to." in done.stderr
    assert list((tmp_path / "theirs").iterdir()) == []
    as_it_is = [*command, "-o", ".venv/.locked"]
    assert subprocess.run(as_it_is, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_ctrl_c_while_tables_are_made_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import os, signal, time\nprint('begun', flush=True)\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "slow.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["reproduce"])
    monkeypatch.setattr(reproduce, "parse", lambda *arguments: [])
    monkeypatch.setattr(reproduce, "run_missing", lambda planned: {})
    monkeypatch.setattr(reproduce, "_print_results", lambda planned: reproduce.analyse(["slow"]))
    before = time.monotonic()
    assert reproduce.main() == 130
    assert time.monotonic() - before < 50
    shown = capfd.readouterr()
    assert "begun" in shown.out
    assert "interrupted: all runs stay" in shown.err
    assert "Traceback" not in shown.err


def test_hydras_own_launcher_tells_what_went_wrong(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        "-m",
        "hydra/launcher=joblib",
        "dataset=mnist",
        "method=sgd,adam",
    ]
    command += [f"paths.data={tmp_path / 'none'}", f"paths.results={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("the data set 'mnist' is not prepared") >= 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["runs", "elsewhere"])
@pytest.mark.parametrize(
    ("arguments", "narrowed"),
    [
        (["sweep=table2", "seeds=1", "method=sgd"], ["--table", "2"]),
        (["sweep=table2,table3", "dataset=mnist", "method=sgd", "seeds=1"], ["--dataset", "mnist"]),
        (["sweep=demo", "preset=demo", "seeds=1"], None),
        (["sweep=demo", "seeds=1"], []),
        (["sweep=table2", "preset=quick", "dataset=mnist", "method=sgd"], []),
    ],
)
def test_reproduce_ends_with_what_its_runs_say(
    arguments: list[str], narrowed: list[str] | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / name
    planned = plan([*arguments, f"paths.results={runs}"])
    folder = folder_of(planned[0].config)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    commands: list[list[str]] = []

    def note(command: list[str]) -> int:
        commands.append(command)
        return 7 * (len(commands) == len(expected))

    out = tmp_path if name == "runs" else runs
    expected = [["analysis.demo", str(runs)]]
    if narrowed is not None:
        places = {"tables": out / "tables", "figures": out / "figures", "report": out / "report.html"}
        expected = [[f"analysis.{verb}", str(runs), "--out", str(place)] for verb, place in places.items()]
        expected[0][2:2] = narrowed
    if narrowed == []:
        expected[:-1] = [["analysis.overview", str(runs), "--out", str(out)]]
    monkeypatch.setattr(sys, "argv", ["reproduce"])
    monkeypatch.setattr(reproduce, "parse", lambda *arguments: planned)
    monkeypatch.setattr(reproduce, "run_missing", lambda planned: {})
    monkeypatch.setattr(reproduce, "analyse", note)
    assert reproduce.main() == 7
    assert commands == expected


@pytest.mark.parametrize(
    ("preset", "shown"), [("quick", ["overview", "report"]), ("beyond", ["beyond"]), ("paper", []), ("smoke", [])]
)
def test_only_the_table_of_another_preset_is_made_of_failed_runs_alone(
    preset: str, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["sweep=table2", "dataset=mnist", "method=sgd", "seeds=1", f"preset={preset}"]
    planned = plan([*arguments, f"paths.results={tmp_path}"])
    folder = folder_of(planned[0].config)
    folder.mkdir(parents=True)
    (folder / "FAILED.json").write_text("{}")
    commands: list[str] = []

    def note(command: list[str]) -> int:
        commands.append(command[0].removeprefix("analysis."))
        return 0

    monkeypatch.setattr(sys, "argv", ["reproduce"])
    monkeypatch.setattr(reproduce, "parse", lambda *arguments: planned)
    monkeypatch.setattr(reproduce, "run_missing", lambda planned: {})
    monkeypatch.setattr(reproduce, "analyse", note)
    assert reproduce.main() == 0
    assert commands == shown


@pytest.mark.parametrize("module", ["run", "reproduce", "status", "plan"])
def test_help_needs_no_jax(module: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('experiments.{module}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_status_shows_every_cell(tmp_path: Path) -> None:
    result = call("status", ["sweep=table2", "dataset=mnist", "seeds=2", f"paths.results={tmp_path}"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 missing") == 15


@pytest.mark.slow
def test_ctrl_c_keeps_finished_runs_and_the_next_start_continues(tmp_path: Path) -> None:
    long = ["protocol.evaluate_every=100", "protocol.max_steps=5000", "protocol.patience=1000"]
    arguments = ["sweep=demo", "preset=demo", "method=sgd", "seeds=2", *long, f"paths.results={tmp_path}"]
    # A shell starts background jobs with SIGINT ignored, and their children inherit that: ask for it.
    code = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('experiments.reproduce', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "-s1-" in line and line.endswith(": started\n"):
                # Its first evaluation: the second run is training, with a second or more to go.
                assert "step      0" in process.stdout.readline()
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted: 1 of 2 runs are finished and stay, and the next start goes on with" in output
    assert "Traceback" not in errors
    assert len(list(tmp_path.glob("*/record.json"))) == 1
    assert not list(tmp_path.glob("*/FAILED.json"))

    again = call("reproduce", arguments)
    assert again.returncode == 0, again.stderr
    assert "1 of 2 runs are finished, 1 to run." in again.stdout
    assert len(list(tmp_path.glob("*/record.json"))) == 2


@pytest.mark.slow
def test_hydra_sweep_goes_on_after_a_failure_and_names_it(tmp_path: Path) -> None:
    sweep = ["-m", "dataset=digits", "method=sgd", "method.learning_rate=1e30,0.1", f"paths.results={tmp_path}"]
    short = ["protocol.evaluate_every=50", "protocol.max_steps=100", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    result = call("run", [*sweep, *short])
    assert result.returncode == 1
    assert len(list(tmp_path.glob("*/record.json"))) == 1
    (failed,) = tmp_path.glob("*/FAILED.json")
    assert failed.parent.name in result.stderr.splitlines()[-1]
    # Hydra left nothing of its own where it was started.
    assert not list(ROOT.glob("*.log"))
    assert not (ROOT / "outputs").exists()
    assert not (ROOT / "multirun").exists()
