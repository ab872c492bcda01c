"""A W&B server on loopback, as much of one as its client needs: it keeps the runs that it is sent."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Sent:
    """A run as the server has it."""

    fields: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    times_begun: int = 0


class Server(ThreadingHTTPServer):
    """Answers runs, or as it is told to.

    Attributes:
        runs: by id.
        operations: names of what was asked, in order; `broken` for each that a broken one was asked.
        artifacts: the content of their files, by name of the artifact and of the file.
        broken: answer everything with an error.
        refused: operations that are answered with an error.
        deaf: let runs begin, and never answer what follows.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, Sent] = {}
        self.operations: list[str] = []
        self.views: list[dict[str, Any]] = []
        self.artifacts: dict[str, dict[str, bytes]] = {}
        self.broken = self.deaf = False
        self.refused: set[str] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may end without a word."""

    def answer(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that an operation returns."""
        self.operations.append(name)
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {"model": self._model(variables["name"])}
        if name == "UpsertBucket":
            return {"upsertBucket": self._upsert(variables)}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": f"{self.url}/upload/{each}"} for each in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name.casefold().startswith("upsertview"):
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "Vmlldzox", "name": "nw-abc-v"}, "inserted": True}}
        if name == "ArtifactType":
            return {"project": None}
        if "Artifact" in name:
            return self._artifact(name, variables)
        if name == "GetProjects":
            project = {"id": "p", "name": "pjax", "entityName": "me", "createdAt": "2026-01-01", "isBenchmark": False}
            project["user"] = None
            page = {"endCursor": None, "hasNextPage": False}
            return {"models": {"edges": [{"node": project, "cursor": "c"}], "pageInfo": page, "totalCount": 1}}
        return {}

    def _artifact(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input", variables)
        if name == "CreateArtifact":
            collection = given["artifactCollectionName"]
            self.artifacts[collection] = {}
            artifact = {"id": collection, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if name == "CreateArtifactManifest":
            address = f"{self.url}/manifest/{variables['artifactID']}" if variables["includeUpload"] else None
            file = {"id": "f", "uploadUrl": address, "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": file}}}
        if name == "CreateArtifactFiles":
            nodes = [
                {
                    **{"storagePath": each["name"], "uploadHeaders": [], "uploadMultipartUrls": None},
                    **{"uploadUrl": f"{self.url}/artifact/{each['artifactID']}/{each['name']}"},
                    **{"artifact": {"id": each["artifactID"]}},
                }
                for each in given["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}

    def _model(self, run: str) -> dict[str, Any] | None:
        if run not in self.runs:
            return None
        sent = self.runs[run]
        bucket = {
            "id": run,
            "name": run,
            "displayName": run,
            "summaryMetrics": json.dumps(sent.summary),
            "logLineCount": 0,
            "historyLineCount": len(sent.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in sent.history[-1:]]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"id": "p", "name": "pjax", "entity": {"id": "e", "name": "me"}, "bucket": bucket}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"] or variables["id"]
        sent = self.runs.setdefault(run, Sent())
        sent.fields |= {key: value for key, value in variables.items() if value is not None}
        sent.times_begun += 1
        project = {"id": "p", "name": variables["project"] or "pjax", "entity": {"id": "e", "name": "me"}}
        return {
            "bucket": {
                **{"id": run, "name": run, "displayName": run, "description": None, "config": "{}"},
                **{"sweepName": None, "historyLineCount": len(sent.history), "project": project},
            },
            "inserted": sent.times_begun == 1,
        }

    def stream(self, run: str, content: dict[str, Any]) -> None:
        """What a client streams of a run."""
        sent = self.runs[run]
        files = content.get("files", {})
        if "wandb-history.jsonl" in files:
            chunk = files["wandb-history.jsonl"]
            del sent.history[chunk["offset"] :]
            sent.history += [json.loads(line) for line in chunk["content"]]
        if "wandb-summary.json" in files:
            sent.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        if content.get("complete"):
            sent.exit_code = content["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.broken:
            self.server.operations.append("broken")
            return self._send(500, {})
        if self.path.endswith("/graphql"):
            query = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            name = found[1] if found else ""
            if name in self.server.refused:
                return self._send(403, {"errors": [{"message": f"no {name} for you"}]})
            data = self.server.answer(name, query.get("variables") or {})
            return self._send(200, {"data": data})
        if self.server.deaf:
            time.sleep(600)
        if match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.server.stream(match[1], json.loads(body))
        elif match := re.fullmatch(r"/artifact/([^/]+)/(.+)", self.path):
            self.server.artifacts[match[1]][match[2]] = body
        elif match := re.fullmatch(r"/upload/wandb-summary.json", self.path):
            self.server.operations.append("summary")
        return self._send(200, {})

    do_PUT = do_PATCH = do_GET = do_POST

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server, for as long as the block lasts."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
