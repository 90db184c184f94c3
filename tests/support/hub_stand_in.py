"""A stand-in on the loopback address for the hub that models are fetched from: as much of it as huggingface-hub asks for."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """repos   repository -> its files' names -> their bytes
    tokens    repository -> what must be shown for it; whoever has none is told that there is no such repository
    gated     repositories whose files are for some alone
    broken    answers that are errors: parts of paths -> status
    asked     the requests: method, path, token
    """

    def __init__(self) -> None:
        self.repos: dict[str, Mapping[str, bytes]] = {}
        self.tokens: dict[str, str] = {}
        self.gated: set[str] = set()
        self.broken: dict[str, int] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.address = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that is to ask here, and keep files in a folder."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *what: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            hub.asked.append((self.command, path, token))
            for part, status in hub.broken.items():
                if part in path:
                    self.say(status, b"{}")
                    return
            parts = path.removeprefix("/api/models").strip("/").split("/")
            repo = "/".join(parts[:2])
            if repo not in hub.repos or token != hub.tokens.get(repo, token):
                self.say(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
                return
            files = hub.repos[repo]
            if path.startswith("/api/models/"):
                about = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.say(200, json.dumps(about).encode(), {"content-type": "application/json"})
            elif repo in hub.gated:
                self.say(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            elif "/".join(parts[4:]) not in files:
                self.say(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                data = files["/".join(parts[4:])]
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.say(200, data, {"etag": tag, "X-Repo-Commit": COMMIT, "accept-ranges": "bytes"})

        def say(self, status: int, data: bytes, headers: Mapping[str, str] = {}) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


@contextlib.contextmanager
def hub_stand_in() -> Iterator[Hub]:
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
