"""A Hugging Face Hub on this machine, as far as pushing and pulling datasets ask it.

The client under test is the real `huggingface_hub`; this answers it, with files in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """files: by repository and path. tags: commit by repository and tag. token: who may write."""

    def __init__(self, token: str = ""):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.token, self.broken = token, ""  # broken: a path that is not given out
        self.private: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def commit(self, repo: str) -> str:
        told = b"".join(k.encode() + v for k, v in sorted(self.files[repo].items()))
        return hashlib.sha1(told).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def _say(self, status: int, body: object = None, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _missing(self, kind: str) -> None:
        self._say(404, {"error": kind}, X_Error_Code=kind, X_Error_Message=kind)

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body, hub, words = self._read(), self.server, self.path.strip("/").split("/")
        if self.path == "/api/validate-yaml":
            return self._say(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization", "") != f"Bearer {hub.token}":
            return self._say(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if repo in hub.files:
                return self._say(409, {"url": f"{hub.url}/datasets/{repo}"})
            hub.files[repo], hub.tags[repo] = {}, {}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(repo)
            return self._say(200, {"url": f"{hub.url}/datasets/{repo}"})
        repo, what = "/".join(words[2:4]), words[4]
        if what == "preupload":
            told = [
                {**f, "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._say(200, {"files": told})
        if what == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            oid = hub.commit(repo)
            return self._say(
                200, {"commitUrl": f"{hub.url}/datasets/{repo}/commit/{oid}", "commitOid": oid}
            )
        if what == "tag":
            tag = json.loads(body)["tag"]
            if tag in hub.tags[repo]:
                return self._say(409, {"error": "there is one"})
            hub.tags[repo][tag] = hub.commit(repo)
            return self._say(200, {})
        self._missing("EntryNotFound")

    def do_DELETE(self) -> None:
        words = self.path.strip("/").split("/")
        self.server.tags["/".join(words[2:4])].pop(words[5])
        self._say(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, words = self.server, self.path.partition("?")[0].strip("/").split("/")
        api = words[0] == "api"
        repo = "/".join(words[1 + api : 3 + api])
        if repo not in hub.files:
            return self._missing("RepoNotFound")
        files, commit = hub.files[repo], hub.commit(repo)
        if api and words[4:5] == ["refs"]:
            tags = [
                {"name": t, "ref": f"refs/tags/{t}", "targetCommit": c}
                for t, c in hub.tags[repo].items()
            ]
            return self._say(200, {"branches": [], "tags": tags, "converts": []})
        if api and words[4:5] == ["tree"]:
            tree = [
                {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for p, b in files.items()
            ]
            return self._say(200, tree)
        if api:
            revision = words[5] if len(words) > 5 else "main"
            if revision not in ("main", commit, *hub.tags[repo]):
                return self._missing("RevisionNotFound")
            names = [{"rfilename": n} for n in files]
            return self._say(200, {"id": repo, "sha": commit, "siblings": names, "private": False})
        path = "/".join(words[5:])
        if path not in files:
            return self._missing("EntryNotFound")
        if path == hub.broken and self.command == "GET":
            return self._say(400, {"error": "broken"})
        raw = files[path]
        self._say(200, raw, ETag=f'"{hashlib.sha1(raw).hexdigest()}"', X_Repo_Commit=commit)
