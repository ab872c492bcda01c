"""Send what run folders say to W&B: behind `make wandb-sync`, and with --follow behind `tracker=wandb`.

    python -m analysis.wandb_sync [results/runs] [--run NAME ...] [--project pjax] [--entity TEAM] [--mode online]

The folders are the truth, and W&B has a copy of them: one W&B run for each run, with its name as id, so that sending
again adds nothing. What has been sent whole is noted in <folder>/.wandb and not sent again. With --follow the folders
are looked at until the standard input ends, which it does when whoever started this one ends, however that comes about.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import yaml

from analysis.load import LoadError, load_events
from analysis.wandb_client import Client, NotSent, leave
from analysis.wandb_results import send_results

LOOK_SECONDS = 2.0
"""Between two looks at the folders that are followed."""
LEASE_SECONDS = 30.0
"""A process that works on a run refreshes its `owner.lock` more often than this."""


class Sender:
    """Sends runs to one project."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._begun: dict[str, _Begun] = {}
        self._whole: dict[str, str] = {}

    def send(self, run: Path, *, last: bool = False) -> bool:
        """Send what is new in a run's folder; returns whether anything was.

        A run is ended at W&B when it has its record or failed, or at the last look.

        Raises:
            NotSent: W&B does not answer or refuses.
            LoadError: a file of the folder is damaged.
        """
        end = next((run / name for name in ("record.json", "FAILED.json") if (run / name).exists()), None)
        if self._sent(run, end) or not (end or _started(run)):
            return False
        # Before W&B begins the run: one whose files are damaged leaves no half of itself there.
        sent = self._begun[run.name].next if run.name in self._begun else 0
        events, summary = _events(run, sent, whole=end is not None), _summary(end)
        if run.name not in self._begun:
            lock = filelock.FileLock(self.client.folder / f"{run.name}.lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                return False  # another process sends it
            try:
                self._begun[run.name] = _Begun(self._begin(run), lock)
            except BaseException:
                lock.release()
                raise
        begun = self._begun[run.name]
        for i, event in enumerate(events, start=sent):
            # What W&B had before this process began.
            if i >= begun.next:
                begun.run.log(event, step=i)
        begun.next = max(begun.next, sent + len(events))
        if end or last:
            self._end(run, end, summary)
        return True

    def _sent(self, run: Path, end: Path | None) -> bool:
        """Whether the run's end is as it was when it was sent."""
        note = self.client.notes / f"{run.name}.json"
        if run.name not in self._whole and note.exists():
            self._whole[run.name] = json.loads(note.read_text(encoding="utf-8"))["end"]
        return run.name in self._whole and self._whole[run.name] == _digest(end)

    def _begin(self, run: Path) -> Any:
        config, environment = _read(run / "config.yaml"), _read(run / "environment.json")
        with _naming(run / "config.yaml"):
            groups = [group for group in ("dataset", "model", "method", "engine") if group in config]
            cell = {group: config[group]["name"] for group in groups}
            # The tables have the published engine.
            own = [cell["engine"]] if cell.get("engine") not in (None, "published") else []
            series = "-".join([cell["method"], *own])
            copy = [name for name in ("subset", "altered") if config["dataset"].get(name)]
            tags = [config["protocol"]["name"], *copy]
        with _naming(run / "environment.json"):
            where = {name: environment[name] for name in ("device", "commit")}
        begun = self.client.begin(
            run.name,
            group="-".join(cell.values()),
            job_type=cell["method"],
            tags=tags,
            # What charts are grouped by has names without dots, which W&B takes for levels.
            config={
                **config,
                **{f"cell_{group}": name for group, name in cell.items()},
                "cell_series": series,
                **where,
            },
        )
        # Every chart can have either axis.
        begun.define_metric("step")
        begun.define_metric("train_s", step_metric="step")
        begun.define_metric("*", step_metric="step")
        begun.define_metric("validation_accuracy", step_metric="step", summary="max")
        return begun

    def _end(self, run: Path, end: Path | None, summary: dict[str, Any]) -> None:
        begun = self._begun[run.name]
        begun.run.summary.update(summary)
        self.client.finish(begun.run, run.name, int(end is None or end.name != "record.json"))
        del self._begun[run.name]
        if end:
            self._whole[run.name] = _digest(end)
            self.client.notes.mkdir(parents=True, exist_ok=True)
            note = {"end": self._whole[run.name], "url": None if self.client.offline else begun.run.url}
            (self.client.notes / f"{run.name}.json").write_text(json.dumps(note) + "\n", encoding="utf-8")
        begun.lock.release()


class _Begun:
    """A run that W&B has begun, the lock of its sender, and the number of the event to send next."""

    def __init__(self, run: Any, lock: filelock.BaseFileLock) -> None:
        self.run, self.lock, self.next = run, lock, int(run.starting_step)


def _started(run: Path) -> bool:
    return all((run / name).exists() for name in ("config.yaml", "environment.json", "events.jsonl"))


def _goes_on(run: Path) -> bool:
    """Whether a process works on a run, or died less than a lease ago: its `owner.lock` is refreshed all the time."""
    with suppress(OSError):
        return time.time() - (run / "owner.lock").stat().st_mtime < LEASE_SECONDS
    return False


def _events(run: Path, start: int, *, whole: bool) -> list[dict[str, Any]]:
    """A run's evaluations from a number on, without what they leave open; none while the file is being written.

    Raises:
        LoadError: it is `whole`, and cannot be read.
    """
    try:
        frame = load_events(run, start)
    except LoadError:
        if whole:
            raise
        return []
    return [{str(key): value for key, value in row.items() if pd.notna(value)} for row in frame.to_dict("records")]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Damage to a file has the file's name."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise LoadError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _read(path: Path) -> Any:
    with _naming(path):
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)


def _summary(end: Path | None) -> dict[str, Any]:
    """The columns of the paper's tables, named and in the units of `published.yaml`, and how the run ended."""
    if end is None:
        return {"status": "cut"}
    content = _read(end)
    with _naming(end):
        if end.name == "FAILED.json":
            return {"status": "failed", "failure": f"{content['type']}: {content['message']}"}
        metrics, clocks = content["metrics"], content["clocks"] or {}
        found = {
            "status": "finished",
            "accuracy": 100 * metrics["test_accuracy"],
            "train_accuracy": 100 * metrics["train_accuracy"],
            "steps_k": metrics["steps_to_99"] / 1000,
            "time_s": metrics["time_to_99_s"],
            "ms_per_step": clocks.get("published_ms_per_step"),
            "device_ms_per_step": clocks.get("device_ms_per_step"),
            "parameters": content["parameters"],
        }
        return {key: value for key, value in found.items() if value is not None}


def _digest(path: Path | None) -> str:
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _say(message: str) -> None:
    # Whoever started this process may be gone.
    with suppress(OSError):
        print(f"W&B: {message}", flush=True)


def sync(sender: Sender, runs: Sequence[Path], folder: Path | None = None) -> int:
    """Send every run once, but for those that go on, and what was made of the `folder`; returns the exit status."""
    sent, left, broken = 0, 0, 0
    for run in runs:
        try:
            if _goes_on(run):
                left += 1
            else:
                sent += sender.send(run, last=True)
        except LoadError as error:
            broken += 1
            print(f"error: {error}", file=sys.stderr)
    where = f"written to {sender.client.folder}" if sender.client.offline else "sent"
    going = f", {left} go on and are left for later" if left else ""
    _say(f"{sent} of {len(runs)} runs {where}, {len(runs) - sent - left - broken} had nothing new{going}")
    if folder and (name := send_results(sender.client, folder)):
        _say(f"tables and figures {where} as artifacts of {name}")
    return 1 if broken else 0


def follow(sender: Sender, runs: Sequence[Path]) -> None:
    """Send runs as they go on, until the standard input ends.

    Raises:
        NotSent: W&B does not answer or refuses.
    """
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.buffer.read()
        ended.set()
        timer = threading.Timer(2 * sender.client.finish_timeout, _give_up)
        timer.daemon = True
        timer.start()

    threading.Thread(target=listen, daemon=True).start()
    last = False
    while not last:
        last = ended.wait(LOOK_SECONDS)
        for run in runs:
            # A file that is being written is read at the next look.
            with suppress(LoadError, OSError):
                sender.send(run, last=last)


def _give_up() -> None:
    _say("not everything was sent in time; `make wandb-sync` sends the rest")
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/runs"), help="of runs")
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME", help="only these; default: all that are there")
    parser.add_argument("--project", default="pjax")
    parser.add_argument("--entity", help="a user or a team; default: the key's own")
    parser.add_argument("--mode", choices=["online", "offline", "auto"], default="online", help="auto: with --follow")
    parser.add_argument(
        "--start-timeout", type=float, default=30, metavar="S", help="for the first answer (default 30)"
    )
    parser.add_argument("--finish-timeout", type=float, default=60, metavar="S", help="for a run's end (default 60)")
    parser.add_argument("--follow", action="store_true", help="until the standard input ends")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir() and not options.follow:
        parser.error(f"{options.folder} is not a folder of runs")
    runs = [options.folder / name for name in options.run]
    if missing := [run for run in runs if not run.is_dir() and not options.follow]:
        parser.error(f"there is no run {missing[0]}")
    runs = runs or sorted(path.parent for path in options.folder.glob("*/config.yaml"))
    # What there is to say, this module says.
    os.environ.setdefault("WANDB_SILENT", "true")
    if options.follow:
        # A run comes first. Where Linux shares a processor by sessions, its niceness is that of this one's, too.
        os.nice(19)
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text("19", encoding="utf-8")
        with suppress(OSError, AttributeError):
            # Linux's for what is to run when nothing else does: the run never waits for its turn to end.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    offline = options.mode == "offline"
    folder, times = options.folder / ".wandb", (options.start_timeout, options.finish_timeout)
    folder.mkdir(parents=True, exist_ok=True)
    sender = Sender(Client(options.project, options.entity, folder, offline, *times))
    try:
        if not options.follow:
            # W&B would ask for a key, without a word of what it asks for.
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return sync(sender, runs, None if options.run else options.folder)
        follow(sender, runs)
    except NotSent as error:
        if options.follow and options.mode == "auto":
            _say(f"{error}. Runs are written offline; `make wandb-sync` sends them later")
            # W&B's service holds on to what it could not begin, and only another process gets another service.
            os.environ.pop("WANDB_SERVICE", None)
            command = [sys.executable, "-m", "analysis.wandb_sync", *(arguments or sys.argv[1:]), "--mode", "offline"]
            os.execv(sys.executable, command)
        print(f"error: W&B: {error}; the run folders have everything", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    leave(main())
