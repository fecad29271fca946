"""A hub on this machine: as much of the Hugging Face hub's HTTP interface as fetching a model or a
dataset and publishing a model use.

Repositories live in memory: `{("models", "owner/name"): {"path": bytes}}`, all at one commit.
Faults are planted by name: `busy["GET config.json"] = 2` answers 503 to the first two such
requests; `cut` are files whose first half is sent, once, before the connection breaks; `short` are
files of which half is sent as if it were the whole.

Publishing takes the token TOKEN, into OWNER's repositories only. Safetensors files go the way of
large ones: announced to the LFS interface, put where that says, named in the commit by their
sha256. (A client with HF_HUB_DISABLE_XET does that: the newer storage, Xet, is not here.)
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
TOKEN, OWNER = "hf_of_the_tester", "tester"


class Hub:
    """The server and what it has been asked: `hub.url`, `hub.asked` (method and path, in order)."""

    def __init__(self, repositories: dict[tuple[str, str], dict[str, bytes]]):
        self.repositories = repositories
        self.busy: dict[str, int] = {}
        self.cut: set[str] = set()
        self.short: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Silence: the tests look at `hub.asked`."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.body()
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.asked.append((self.command, path))
        for name, left in self.hub.busy.items():
            command, end = name.split()
            if left and self.command == command and path.endswith(end):
                self.hub.busy[name] -= 1
                return self.send(503, b"busy", {"Retry-After": "0"})
        parts = path.strip("/").split("/")
        account = parts[0] == "api" and parts[1] in ("whoami-v2", "repos", "validate-yaml")
        upload = parts[0] == "large" or parts[-1] == "batch"
        if account or upload or parts[4:5] in (["preupload"], ["commit"]):
            return self.publish(parts, body)
        if parts[0] == "api":
            return self.interface(parts[1], "/".join(parts[2:4]), parts[4:], body)
        kind = "models"
        if parts[0] == "datasets":
            kind, parts = parts[0], parts[1:]
        files = self.files(kind, "/".join(parts[:2]), parts[3])
        return files is not None and self.file(files, "/".join(parts[4:]))

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def publish(self, parts: list[str], body: bytes) -> None:
        """What a client asks between a login and a commit."""
        # Here no token is asked for: the address is the permission, as with the hub's storage.
        if parts[0] == "large":
            if hashlib.sha256(body).hexdigest() != parts[1]:
                return self.send(400, b"another sha256 than announced", {})
            self.hub.large[parts[1]] = body
            return self.send(200, b"", {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Invalid credentials in Authorization header")
        if parts[1] == "whoami-v2":
            return self.json({"type": "user", "name": OWNER, "auth": {"type": "access_token"}})
        if parts[1] == "validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if parts[1] == "repos":
            asked = json.loads(body)
            owner = asked.get("organization") or OWNER
            name = f"{owner}/{asked['name']}"
            if owner != OWNER:
                fault = f"You don't have the rights to create a model under {name}"
                return self.refuse(403, fault)
            status = 409 if ("models", name) in self.hub.repositories else 200
            self.hub.repositories.setdefault(("models", name), {})
            return self.json({"url": f"{self.hub.url}/{name}", "name": name}, status)
        if parts[-1] == "batch":
            objects = json.loads(body)["objects"]
            for file in objects:
                file["actions"] = {"upload": {"href": f"{self.hub.url}/large/{file['oid']}"}}
            return self.json({"transfer": "basic", "objects": objects})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            found = []
            for path in (file["path"] for file in json.loads(body)["files"]):
                mode = "lfs" if path.endswith(".safetensors") else "regular"
                found.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            return self.json({"files": found})
        files = self.hub.repositories["models", name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        address = f"{self.hub.url}/{name}/commit/{COMMIT}"
        self.json({"success": True, "commitOid": COMMIT, "commitUrl": address})

    def files(self, kind: str, name: str, revision: str) -> dict[str, bytes] | None:
        files = self.hub.repositories.get((kind, name))
        if files is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
        elif revision not in (COMMIT, "main"):
            self.refuse(404, "Invalid rev id", "RevisionNotFound")
            return None
        return files

    def interface(self, kind: str, name: str, rest: list[str], body: bytes) -> None:
        """/api/<kind>/<owner>/<name>/{revision,tree,paths-info}/<revision>/<path…>"""
        what, revision, *below = rest or ["revision", "main"]
        inside = "/".join(below)
        files = self.files(kind, name, revision)
        if files is None:
            return
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            facts = {"private": False, "tags": [], "downloads": 0, "likes": 0}
            self.json({"id": name, "sha": COMMIT, "siblings": siblings, **facts})
        elif what == "paths-info":
            asked = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
            found = [entry for path in asked["paths"] for entry in _entries(files, path)]
            self.json([entry for entry in found if entry["path"] in asked["paths"]])
        elif what == "tree":
            found = [entry for entry in _entries(files, inside) if entry["path"] != inside]
            if found or not inside:
                self.json(found)
            else:
                self.refuse(404, "Entry not found", "EntryNotFound")
        else:
            self.refuse(404, f"this hub has no {what}")

    def file(self, files: dict[str, bytes], path: str) -> None:
        content = files.get(path)
        if content is None:
            missing = {
                "X-Error-Code": "EntryNotFound",
                "X-Error-Message": "Entry not found",
                "X-Repo-Commit": COMMIT,
            }
            return self.send(404, b"", missing)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha1(content)}"', "Accept-Ranges": "bytes"}
        if self.command == "GET" and path in self.hub.short:
            return self.send(200, content[: len(content) // 2], headers)
        start = 0
        if ranged := self.headers.get("Range"):
            start = int(ranged.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and path in self.hub.cut
        self.hub.cut -= {path} if cut else set()
        self.send(206 if start else 200, content[start:], headers, cut=cut)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.send(status, b"{}", {"X-Error-Message": message, "X-Error-Code": code})

    def json(self, value: object, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entries(files: dict[str, bytes], folder: str) -> list[dict]:
    """Files and folders at or below `folder`, as the tree interface lists them."""
    below = {
        path: content
        for path, content in files.items()
        if path == folder or path.startswith(f"{folder}/" if folder else "")
    }
    folders = {
        "/".join(path.split("/")[:depth])
        for path in below
        for depth in range(1, path.count("/") + 1)
    }
    entries = [
        {"type": "directory", "path": path, "oid": _sha1(path.encode()), "size": 0}
        for path in sorted(folders)
    ]
    return entries + [
        {"type": "file", "path": path, "oid": _sha1(c), "size": len(c)}
        for path, c in sorted(below.items())
    ]
