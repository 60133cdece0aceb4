"""A Hugging Face Hub on 127.0.0.1, as far as uploading and loading repos needs one; repos live in memory.

    with LoopbackHub() as hub:
        ...  # in a process or a `monkeypatch` with hub.environment
        hub.files("dataset", "org/name")  # {path: content}

Requests it does not know are answered 404 and kept in `hub.unknown`, so that a test can see what a client misses.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
LARGE = (".parquet", ".safetensors", ".bin", ".arrow", ".npy", ".model")  # uploaded through LFS, as on the Hub


class LoopbackHub:
    """The server; `environment` points huggingface_hub and datasets to it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[str] = []
        self.unknown: list[str] = []
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": "hf_loopback", "HF_HUB_DISABLE_XET": "1"}
        self.environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}

    def files(self, kind: str, name: str, revision: str = "main") -> Files:
        return self.repos[kind, name].revision(revision)[1]

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Repo:
    """Commits (id -> files), the newest last, and branches or tags that name them."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, Files] = {}
        self.refs: dict[str, str] = {}
        self.commit({".gitattributes": b""})

    def commit(self, files: Files) -> str:
        commit_id = hashlib.sha1(f"commit {len(self.commits)} {id(self)}".encode()).hexdigest()
        self.commits[commit_id] = files
        self.refs["main"] = commit_id
        return commit_id

    def revision(self, name: str) -> tuple[str, Files]:
        commit_id = self.refs.get(name, name)
        return commit_id, self.commits[commit_id]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """How the Hub describes a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        entry["lfs"]["sha256"] = entry["lfs"]["oid"]
    return entry


def _kind(word: str | None) -> str:
    return (word or "models").rstrip("/").removesuffix("s")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                try:
                    return method(self, **match.groupdict())
                except KeyError:
                    break
        else:
            self.hub.unknown.append(f"{self.command} {path}")
        known = any(f"/{name}" in path for _, name in self.hub.repos)
        code = "EntryNotFound" if known else "RepoNotFound"
        self._send(404, {"error": code}, **{"X-Error-Code": code, "X-Error-Message": code})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _send(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def whoami(self) -> None:
        self._send(200, {"type": "user", "name": "loopback", "orgs": [], "auth": {}})

    def validate_yaml(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'loopback'}/{asked['name']}"
        exists = (kind, name) in self.hub.repos
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos.setdefault((kind, name), Repo(bool(private)))
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        self._send(409 if exists else 200, {"url": url, "id": name})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repo = self.hub.repos[_kind(kind), name]
        commit_id, files = repo.revision(revision or "main")
        siblings = [_entry(path, content) for path, content in files.items()]
        about = {"id": name, "modelId": name, "sha": commit_id, "private": repo.private, "tags": [], "downloads": 0}
        self._send(200, {**about, "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z"})

    def refs(self, kind: str, name: str) -> None:
        refs = self.hub.repos[_kind(kind), name].refs.items()
        branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit_id} for ref, commit_id in refs]
        self._send(200, {"branches": branches, "tags": [], "converts": []})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        files = self.hub.repos[_kind(kind), name].revision(revision)[1]
        prefix = f"{folder}/" if folder else ""
        below = {path: content for path, content in files.items() if path.startswith(prefix)}
        if folder and not below:
            raise KeyError(folder)
        deep = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        entries = [_entry(path, content) for path, content in below.items() if deep or "/" not in path[len(prefix) :]]
        parts = [path[len(prefix) :].split("/")[:-1] for path in below]
        folders = {
            prefix + "/".join(p[:end]) for p in parts for end in range(1, len(p) + 1 if deep else min(len(p), 1) + 1)
        }
        directories = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        self._send(200, entries + directories)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        files = self.hub.repos[_kind(kind), name].revision(revision)[1]
        asked = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
        self._send(200, [_entry(path, files[path]) for path in asked["paths"] if path in files])

    def preupload(self, kind: str, name: str, revision: str) -> None:
        commit_id, files = self.hub.repos[_kind(kind), name].revision(revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _entry(file["path"], files[file["path"]])["oid"] if file["path"] in files else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": modes, "commitOid": commit_id})

    def lfs_batch(self) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.large_files:
                item["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}}
        self._send(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, digest: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == digest
        if right:
            self.hub.large_files[digest] = self.body
        self._send(200 if right else 400)

    def commit(self, kind: str, name: str, revision: str) -> None:
        repo = self.hub.repos[_kind(kind), name]
        files = dict(repo.revision(revision)[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large_files[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case "deletedFolder":
                    files = {path: content for path, content in files.items() if not path.startswith(value["path"])}
        commit_id = repo.commit(files)
        url = f"{self.hub.endpoint}/{name}/commit/{commit_id}"
        self._send(200, {"success": True, "commitOid": commit_id, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        commit_id, files = self.hub.repos[_kind(kind), name].revision(revision)
        if path not in files:
            return self._send(404, {}, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_id})
        content, entry = files[path], _entry(path, files[path])
        etag = f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"'
        headers = {"X-Repo-Commit": commit_id, "ETag": etag, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not span:
            return self._send(200, content, **headers)
        first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], **headers)


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/validate-yaml", _Handler.validate_yaml),
    (r"/api/repos/create", _Handler.create),
    (_REPO, _Handler.info),
    (_REPO + r"/revision/(?P<revision>[^/]+)", _Handler.info),
    (_REPO + r"/refs", _Handler.refs),
    (_REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (_REPO + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (_REPO + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (_REPO + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    (r"/(?:(?:datasets|spaces)/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"/lfs/(?P<digest>[0-9a-f]{64})", _Handler.lfs_upload),
    (r"/(?P<kind>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
