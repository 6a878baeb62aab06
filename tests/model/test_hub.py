"""Models by name, against a server on this machine that speaks like the Hugging Face Hub."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stnet.errors import CheckpointError
from stnet.model import hub

ROOT = Path(__file__).resolve().parents[2]


class Hub(BaseHTTPRequestHandler):
    """One model repository, kept in memory; every commit is called after its contents."""

    files: dict[str, dict[str, bytes]]  # by commit
    heads: dict[str, str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        revision = parts[3] if len(parts) > 4 and parts[2] == "resolve" else "main"
        commit = self.heads.get(revision, revision)
        if parts[:2] != ["owner", "model"] and parts[:4] != ["api", "models", "owner", "model"]:
            self._say(404, {"error": "no such repository"}, **{"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api":
            self._say(200, {"id": "owner/model", "sha": self.heads["main"], "siblings": []})
        elif commit not in self.files:
            self._say(404, {"error": "no such revision"}, **{"X-Error-Code": "RevisionNotFound"})
        else:
            content = self.files[commit][parts[-1]]
            tag = hashlib.sha256(content).hexdigest()
            self._say(200, content, **{"ETag": f'"{tag}"', "X-Repo-Commit": commit})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/preupload/main") or "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            self._say(200, {"files": [one | {"shouldIgnore": False} for one in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            new = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
            }
            commit = hashlib.sha1(b"".join(new.values())).hexdigest()
            self.files[commit] = new
            self.heads["main"] = commit
            address = f"http://{self.headers['Host']}/owner/model/commit/{commit}"
            self._say(200, {"commitUrl": address, "commitOid": commit, "pullRequestUrl": None})
        elif self.path == "/api/repos/create":
            self._say(200, {"url": f"http://{self.headers['Host']}/owner/model", "id": "owner/model"})
        else:
            self._say(200, {"errors": [], "warnings": []})  # of the card

    def log_message(self, *_):
        pass

    def _say(self, status: int, content: bytes | dict, **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


PUSH_AND_LOAD = """
import sys, torch, stnet
from stnet.errors import CheckpointError
from stnet.model.checkpoint import fingerprint
model = stnet.load(sys.argv[1])
address = model.push_to_hub("owner/model", message="first")
assert fingerprint(stnet.load(address)) == fingerprint(stnet.load("hf://owner/model")) == fingerprint(model)
print(address)
for wrong in ("hf://owner/other", "hf://owner/model@nowhere", "hf://model"):
    try:
        stnet.load(wrong)
    except CheckpointError as error:
        print(error)
"""
LOAD = "import sys, stnet; print(stnet.load(sys.argv[1]).config.queries)"


@pytest.mark.integration
def test_a_model_is_pushed_and_loaded_by_its_name(tmp_path):
    pytest.importorskip("huggingface_hub")
    Hub.files, Hub.heads = {}, {"main": ""}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(ROOT),
    }

    def run(code: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **settings, **more}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = run(PUSH_AND_LOAD, "tiny")
    assert done.returncode == 0, done.stderr
    address, *errors = done.stdout.splitlines()
    commit = address.removeprefix("hf://owner/model@")
    assert set(Hub.files[commit]) == {"model.safetensors", "README.md"}
    card = Hub.files[commit]["README.md"].decode()
    assert 'stnet.load("hf://owner/model")' in card and "Not a medical device" in card
    assert "hf://owner/other: no such model" in errors[0] and "@nowhere: no such model, revision" in errors[1]
    assert "hf://model: expected hf://owner/name" in errors[2]
    server.shutdown()
    offline = run(LOAD, "hf://owner/model", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and offline.stdout.strip().isdigit(), offline.stderr


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"hf://a/b: needs huggingface_hub; pip install 'stnet\[hub\]'"):
        hub.download("hf://a/b")
