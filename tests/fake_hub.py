"""A fake Hub on loopback: what huggingface_hub calls to make a repository, commit to it, and read it back.

It is strict where the Hub is: writes need the token, card metadata must be YAML, a commit may name only LFS objects that
were uploaded with the content their hash says. `faults` maps a route's name to a status it answers with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_standInTokenOfTheTests000000000"
COMMIT = "c0ffee" * 6 + "c0ff"
NAME = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = (  # method, pattern, name; a name is a method of the handler
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{NAME}/preupload/main", "preupload"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "store"),
    ("POST", rf"/api/models/{NAME}/commit/main", "commit"),
    ("GET", rf"/api/models/{NAME}(/revision/(main|{COMMIT}))?", "info"),
    ("GET", rf"/api/models/{NAME}/tree/(main|{COMMIT})(/(?P<folder>.+))?", "tree"),
    ("HEAD", rf"/{NAME}/resolve/(main|{COMMIT})/(?P<path>.+)", "resolve"),
    ("GET", rf"/{NAME}/resolve/(main|{COMMIT})/(?P<path>.+)", "resolve"),
)
OPEN_ROUTES = ("info", "tree", "resolve", "validate", "store")  # the Hub's storage takes signed addresses, not tokens


@dataclass
class FakeHub:
    """The server's state.

    Attributes:
        address: http://127.0.0.1:PORT.
        repositories: files of each.
        objects: LFS objects by hash.
        faults: status by route.
        requests: "METHOD route" of everything asked, in order.
        private: repositories made private.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """What points huggingface_hub here."""
        return {"HF_ENDPOINT": self.address, "HF_HUB_DISABLE_XET": "1"} | ({"HF_TOKEN": token} if token else {})


class Handler(BaseHTTPRequestHandler):
    """One request; the routes' methods return status, JSON (or bytes) and headers."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.body = b"".join(self.chunks()) if chunked else self.rfile.read(length)
        path = self.path.partition("?")[0]
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if method == self.command and found:
                return self.reply(name, found.groupdict())
        self.hub.requests.append(f"{self.command} {path}")
        return self.send(404, {"error": "no such route"}, {"X-Error-Code": "EntryNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def reply(self, name: str, found: dict[str, str]) -> None:
        self.hub.requests.append(f"{self.command} {name}")
        if name in self.hub.faults:
            status = self.hub.faults[name]
            words = {500: "Internal Error - we are working on it", 403: "You have no write access"}[status]
            return self.send(status, {"error": words}, {"X-Error-Message": words})
        if name not in OPEN_ROUTES and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            words = "Invalid username or password."
            return self.send(401, {"error": words}, {"X-Error-Message": words})
        if "repo" in found and found["repo"] not in self.hub.repositories:
            return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self.send(*getattr(self, name)(**{key: value for key, value in found.items() if value is not None}))

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def create(self) -> tuple[int, Any]:
        given = self.json()
        name = f"{given['organization']}/{given['name']}"
        address = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.repositories:
            return 409, {**address, "error": "You already created this model repo"}
        self.hub.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        if given.get("visibility") == "private" or given.get("private"):
            self.hub.private.add(name)
        return 200, address

    def validate(self) -> tuple[int, Any]:
        try:
            metadata = yaml.safe_load(self.json()["content"].split("---\n")[1])
            sound = isinstance(metadata, dict) and isinstance(metadata["license"], str)
            sound &= all(result["metrics"] for entry in metadata.get("model-index", []) for result in entry["results"])
        except (yaml.YAMLError, IndexError, KeyError, TypeError):
            sound = False
        return (200, {"warnings": []}) if sound else (400, {"errors": [{"message": "metadata is not valid"}]})

    def preupload(self, repo: str) -> tuple[int, Any]:
        mode = lambda name: "lfs" if name.endswith(".safetensors") else "regular"  # noqa: E731
        files = [{"path": file["path"], "uploadMode": mode(file["path"])} for file in self.json()["files"]]
        return 200, {"files": [{**file, "shouldIgnore": False} for file in files]}

    def batch(self, repo: str) -> tuple[int, Any]:
        objects = []
        for item in self.json()["objects"]:
            action = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
            objects.append(item | ({} if item["oid"] in self.hub.objects else {"actions": action}))
        return 200, {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> tuple[int, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return 400, {"error": "content and hash differ"}
        self.hub.objects[oid] = self.body
        return 200, {}

    def commit(self, repo: str) -> tuple[int, Any]:
        files = dict(self.hub.repositories[repo])
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return 422, {"error": f"LFS object {value['oid']} is missing"}
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.hub.repositories[repo] = files
        return 200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}

    def info(self, repo: str) -> tuple[int, Any]:
        names = [{"rfilename": name} for name in self.hub.repositories[repo]]
        return 200, {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": names, "tags": [], "downloads": 0}

    def tree(self, repo: str, folder: str = "") -> tuple[int, Any, dict[str, str]]:
        if folder:
            return 404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"}
        rows = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.hub.repositories[repo].items()
        ]
        return 200, rows, {}

    def resolve(self, repo: str, path: str) -> tuple[int, Any, dict[str, str]]:
        content = self.hub.repositories[repo].get(path)
        if content is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}


@contextmanager
def running() -> Iterator[FakeHub]:
    """A fake Hub that runs while the block does."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
