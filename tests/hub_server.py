"""A small Hugging Face Hub over HTTP: what the real client calls to make repositories, commit, list and download.

It keeps everything in memory. Who sends ``Authorization: Bearer TOKEN`` may do all, others may read what is public.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_token_of_the_owner"
READ_TOKEN = "hf_token_that_may_only_read"


class Repository:
    """Commits of one repository, newest last; each maps paths to contents."""

    def __init__(self, private: bool = False, gated: bool = False) -> None:
        self.private = private
        self.gated = gated
        self.commits: dict[str, dict[str, bytes]] = {}
        self.head = ""
        self.commit({".gitattributes": b""})

    def commit(self, files: dict[str, bytes]) -> str:
        text = json.dumps([self.head, sorted((name, content.hex()) for name, content in files.items())])
        self.head = hashlib.sha1(text.encode()).hexdigest()
        self.commits[self.head] = files
        return self.head

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


class HubServer:
    """The server, in a thread; ``with HubServer() as hub: ... hub.url``.

    Attributes:
        repositories: By ``owner/name``; those of datasets by ``datasets/owner/name``.
        requests: Method and path of every request so far.
        refuse_commits: Whether commits are answered with status 500.
        commits_before: How many more commits are made before they are; ``None``: any number.
        failing_downloads: How many of the next downloads of episodes are answered with status 503.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.refuse_commits = False
        self.commits_before: int | None = None
        self.failing_downloads = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _AnswerError(Exception):
    def __init__(self, status: int, code: str = "", **body: str) -> None:
        super().__init__(status, code)
        self.status, self.code, self.body = status, code, body


def _handler(hub: HubServer):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):
            hub.requests.append(f"{self.command} {unquote(self.path)}")

        def do_GET(self):
            self._serve({})

        def do_HEAD(self):
            self._serve({})

        def do_POST(self):
            self._serve(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def _serve(self, body):
            headers = {}
            try:
                status, content, headers = 200, *self._answer(unquote(urlsplit(self.path).path), body)
            except _AnswerError as error:
                status, content = error.status, json.dumps({"error": error.code, **error.body}).encode()
                headers = {"X-Error-Code": error.code} if error.code else {}
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _answer(self, path, body):
            # As the Hub writes addresses: "models/" stands in those of its API alone, "datasets/" in all.
            path = path.replace("/api/models/", "/api/", 1)
            name = r"((?:datasets/)?[^/]+/[^/]+)"
            routes = {
                r"/api/repos/create": lambda: self._create(json.loads(body)),
                r"/api/validate-yaml": lambda: _json({"errors": [], "warnings": []}),
                rf"/api/{name}": self._info,
                rf"/api/{name}/revision/(.+)": self._info,
                rf"/api/{name}/tree/([^/]+)": self._tree,
                rf"/api/{name}/preupload/main": lambda name: self._preupload(name, json.loads(body)),
                rf"/api/{name}/commit/main": lambda name: self._commit(name, body),
                rf"/{name}/resolve/([^/]+)/(.+)": self._resolve,
            }
            for pattern, answer in routes.items():
                if match := re.fullmatch(pattern, path):
                    return answer(*match.groups())
            raise _AnswerError(404)

        @property
        def _token(self):
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

        def _create(self, asked):
            if self._token != TOKEN:
                raise _AnswerError(403 if self._token else 401)
            folder = "datasets/" if asked.get("type") == "dataset" else ""
            name = f"{folder}{asked['organization']}/{asked['name']}"
            if name in hub.repositories:
                raise _AnswerError(409, url=f"{hub.url}/{name}")
            hub.repositories[name] = Repository(asked.get("private") or asked.get("visibility") == "private")
            return _json({"url": f"{hub.url}/{name}", "name": name})

        def _repository(self, name):
            repository = hub.repositories.get(name)
            if repository is None or (repository.private and self._token not in (TOKEN, READ_TOKEN)):
                raise _AnswerError(404 if self._token else 401, "RepoNotFound")
            return repository

        def _files(self, name, revision):
            repository = self._repository(name)
            if repository.gated:
                raise _AnswerError(403, "GatedRepo")
            commit = repository.head if revision in (None, "main") else revision
            if commit not in repository.commits:
                raise _AnswerError(404, "RevisionNotFound")
            return commit, repository.commits[commit]

        def _tree(self, name, revision):
            files = sorted(self._files(name, revision)[1].items())
            return _json(
                [{"type": "file", "path": path, "size": len(data), "oid": _blob(data)} for path, data in files]
            )

        def _resolve(self, name, revision, path):
            commit, files = self._files(name, revision)
            if path not in files:
                raise _AnswerError(404, "EntryNotFound")
            if hub.failing_downloads and self.command == "GET" and path.startswith("episodes/"):
                hub.failing_downloads -= 1
                raise _AnswerError(503)
            return files[path], {"ETag": f'"{_blob(files[path])}"', "X-Repo-Commit": commit}

        def _preupload(self, name, asked):
            self._may_write(name)
            paths = [file["path"] for file in asked["files"]]
            return _json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

        def _info(self, name, revision=None):
            commit, files = self._files(name, revision)
            siblings = [{"rfilename": file} for file in sorted(files)]
            private = hub.repositories[name].private
            return _json({"id": name, "sha": commit, "private": private, "siblings": siblings, "tags": []})

        def _may_write(self, name):
            self._repository(name)
            if self._token != TOKEN:
                raise _AnswerError(403)

        def _commit(self, name, body):
            self._may_write(name)
            if hub.refuse_commits or hub.commits_before == 0:
                raise _AnswerError(500)
            if hub.commits_before is not None:
                hub.commits_before -= 1
            files = dict(self._repository(name).files)
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del files[entry["value"]["path"]]
                elif entry["key"] != "header":
                    raise _AnswerError(400)
            commit = self._repository(name).commit(files)
            return _json({"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    return Handler


def _json(value):
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def _blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
