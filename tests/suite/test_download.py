"""Downloads: cut, resumed, wrong, refused; from a server on this machine."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.config import DatasetConfig, UsageError
from experiments.data import cifar10, higgs, mnist, prepare, shakespeare
from experiments.data.download import download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What it sends, and how badly; the offsets it was asked for."""

    url: str = ""
    content: bytes = CONTENT
    cut_after: int | None = None  # bytes of each answer but the last
    cuts: int = 0  # answers still to be cut
    ranges: bool = True
    status: int = 200
    shift: int = 0  # by how much the part that is sent is another one
    failures: int = 0  # answers with 503 first
    asked: list[int] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0"])[0])
            state.asked.append(start)
            if state.failures:
                state.failures -= 1
                return self.send_error(503)
            if state.status != 200:
                return self.send_error(state.status)
            start = start if state.ranges else 0
            start += state.shift if start else 0
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cuts:
                state.cuts -= 1
                body = body[: state.cut_after]
            self.wfile.write(body)
            return None

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/file.bin"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield state
        http.shutdown()


def fetch(server: Server, path: Path, **changes: Any) -> None:
    """Download with a short patience."""
    download(server.url, path, **{"size": len(CONTENT), "sha256": SHA256, "patience_s": 0.6, **changes})


def test_a_file_comes_whole(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "new" / "file.bin")
    assert (tmp_path / "new" / "file.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert server.asked == [0]


def test_a_cut_connection_is_taken_up_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 1_000_000, 2
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [0, 1_000_000, 2_000_000]


def test_a_second_call_goes_on_from_what_the_first_left(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 0, 1000
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:700_000])
    with pytest.raises(UsageError, match="700,000 of 3,000,000 bytes are there, and the same command goes on"):
        fetch(server, tmp_path / "file.bin")
    server.cuts = 0
    server.asked.clear()
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [700_000]


def test_a_server_that_only_starts_at_the_beginning_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after, server.cuts = False, 1_000_000, 1
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [0, 1_000_000]


def test_another_part_than_asked_for_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts, server.shift = 1_000_000, 1, 5
    with pytest.raises(UsageError, match="another part of the file than it was asked for; 1,000,000 of 3,000,000"):
        fetch(server, tmp_path / "file.bin")
    server.shift = 0
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures = 1
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_another_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UsageError, match=f"SHA-256 expected {SHA256}, found {found}"):
        fetch(server, tmp_path / "file.bin")
    assert not list(tmp_path.iterdir())


def test_a_shorter_file_ends_with_an_error(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:1000]
    with pytest.raises(UsageError, match="1,000 of 3,000,000 bytes"):
        fetch(server, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_a_file_that_is_not_there_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UsageError, match="HTTP 404 Not Found"):
        fetch(server, tmp_path / "file.bin", patience_s=60)
    assert server.asked == [0]


def test_a_server_that_is_silent_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(UsageError, match="timed out"):
            fetch(Server(f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"), tmp_path / "file.bin")
        assert time.monotonic() - start < 10


def test_a_closed_port_is_an_error_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(UsageError, match=r"Connection refused; 0 of 3,000,000 bytes"):
        download(f"http://127.0.0.1:{port}/file.bin", tmp_path / "file.bin", size=len(CONTENT), sha256=SHA256)
    assert time.monotonic() - start < 10


SETS = [
    (mnist.FILES["train_x"], "mnist"),
    (cifar10.ARCHIVE, "cifar10"),
    (higgs.FILE, "higgs"),
    (shakespeare.FILE, "shakespeare"),
]


@pytest.mark.parametrize(("file", "name"), SETS, ids=[name for _, name in SETS])
def test_without_a_network_file_place_and_command_are_named(
    file: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(UsageError) as caught:
        prepare(DatasetConfig(name, 10, None, False, False), tmp_path)
    message = str(caught.value)
    assert f"{file.url} cannot be downloaded" in message
    assert "Name or service not known" in message
    assert f"put {file.name} ({file.size:,} bytes) into a folder" in message
    assert f"make data DATASET={name} RAW=<folder" in message
    assert not (tmp_path / name).exists()


def test_a_full_disk_is_said_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"cannot write .*file\.part: No space left .* make room"):
        fetch(server, tmp_path / "file")
