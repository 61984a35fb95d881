"""A stand-in for the hub's API at HTTP level: repositories, uploads in one commit, nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was asked for, and what is stored by repository and path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.agents: list[str] = []
        self.url = ""


def handler(hub: Hub, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def reply(self, status: int, value: Any = None) -> None:
            raw = json.dumps({} if value is None else value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_PUT(self) -> None:
            self.store(self.body())

        def store(self, raw: bytes) -> None:
            hub.objects[self.path.rpartition("/")[2]] = raw
            self.reply(200)

        def do_GET(self) -> None:
            self.reply(404, {"error": "not here"})

        def do_POST(self) -> None:
            raw = self.body()
            given = self.headers.get("Authorization")
            hub.tokens.add(given)
            if given != f"Bearer {token}":
                self.reply(401, {"error": "Invalid username or password."})
                return
            if self.path == "/api/repos/create":
                asked = json.loads(raw)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.files.setdefault(name, {})
                hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
                self.reply(200, {"url": f"{hub.url}/{name}"})
            elif self.path.endswith("/preupload/main"):
                files = json.loads(raw)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                     "shouldIgnore": False, "oid": None}
                    for f in files
                ]  # fmt: skip
                self.reply(200, {"files": modes})
            elif self.path.endswith("/info/lfs/objects/batch"):
                wanted = json.loads(raw)["objects"]
                objects = [
                    {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}, "authenticated": True}
                    for o in wanted
                ]
                self.reply(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                self.commit(raw)
            elif self.path.endswith("/validate-yaml") or "validate" in self.path:
                self.reply(200, {"errors": [], "warnings": []})
            else:
                self.reply(404, {"error": self.path})

        def commit(self, raw: bytes) -> None:
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            stored = hub.files[name]
            for line in raw.splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "file":
                    stored[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "lfsFile":
                    found = hub.objects[value["oid"]]
                    assert hashlib.sha256(found).hexdigest() == value["oid"]
                    stored[value["path"]] = found
            oid = hashlib.sha1(raw).hexdigest()
            self.reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})

    return Handler


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """A hub on 127.0.0.1 that takes this token alone."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub, token))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
