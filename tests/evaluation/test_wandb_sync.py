"""What ``wandb sync`` makes of the segments of an offline run, told by a stand-in of wandb's server."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb

from taskformer.evaluation import read_offline_runs


class Server(ThreadingHTTPServer):
    """Keeps the history of runs as wandb's server does: lines in the order of their offsets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.history = defaultdict(list)

    def answer(self, operation, variables):
        """Answer the questions that the upload of a run asks."""
        name = variables.get("name")
        place = {"id": "p", "name": "of tests", "entity": {"id": "e", "name": "me"}}
        if operation == "RunResumeStatus":
            lines = self.history.get(name)
            state = {"name": name, "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]", "config": "{}",
                     "summaryMetrics": "{}", "wandbConfig": '{"t": 1}', "tags": []}  # fmt: skip
            state |= {"historyLineCount": len(lines or []), "historyTail": json.dumps((lines or [])[-1:])}
            return {"model": place | {"bucket": state if lines else None}}
        if operation == "UpsertBucket":
            bucket = {"id": name, "name": name, "displayName": name, "config": "{}", "project": place}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            url = f"http://127.0.0.1:{self.server_port}/upload"
            files = [{"name": file, "uploadUrl": url} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}


class Handler(BaseHTTPRequestHandler):
    """Takes what is uploaded."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        reply = {}
        if self.path == "/graphql":
            asked = json.loads(content)
            reply = {"data": self.server.answer(asked["operationName"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            lines = self.server.history[self.path.split("/")[-2]]
            for name, chunk in (json.loads(content).get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    lines[chunk["offset"] :] = chunk["content"]
        self.reply(reply)

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.reply({})

    def do_GET(self):
        self.reply({})

    def reply(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow  # starts wandb's program, about 10 s
def test_segments_are_joined_as_they_are_read(server, tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # it reads variables once in a process
    for losses in ([3.0, 1.0], [2.0, 0.5, 0.25]):
        run = wandb.init(project="of tests", id="one", resume="allow", dir=tmp_path)
        for loss in losses:
            run.log({"loss": loss})
        run.finish()
    wandb.teardown()
    (run,) = read_offline_runs(tmp_path)

    keep = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    ours = {"BASE_URL": f"http://127.0.0.1:{server.server_port}", "API_KEY": "a" * 40, "ERROR_REPORTING": "false"}
    environment = keep | {"HOME": str(tmp_path)} | {f"WANDB_{name}": value for name, value in ours.items()}
    segments = sorted(map(str, Path(tmp_path, "wandb").glob("offline-run-*")), reverse=True)  # it sorts them itself
    command = [sys.executable, "-m", "wandb", "sync", *segments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in server.history["one"]]
    assert [(row["_step"], row["loss"]) for row in found] == [(0, 3.0), (1, 1.0), (2, 2.0), (3, 0.5), (4, 0.25)]
    assert [(row["_step"], row["loss"]) for row in found] == [(row["_step"], row["loss"]) for row in run.history]
