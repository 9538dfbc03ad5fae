"""A Hugging Face hub of one's own for models: takes commits, and gives out their files by branch or commit."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from helpers.serving import Answering, serving


@dataclass
class ModelHub:
    """A running hub: of each repository its commits, the newest last, each a mapping of file names to contents."""

    url: str
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add files to a repository; returns the name of the commit."""
        commits = self.repositories.setdefault(repository, {})
        name = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[name] = {**(list(commits.values())[-1] if commits else {}), **files}
        return name

    def files(self, repository: str) -> dict[str, bytes]:
        """The newest files of a repository."""
        return list(self.repositories[repository].values())[-1]

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The name and files of a commit; of the newest one for `main`."""
        commits = self.repositories.get(repository, {})
        name = list(commits)[-1] if commits and revision == "main" else revision
        return (name, commits[name]) if name in commits else None


@contextmanager
def serve_model_hub() -> Generator[ModelHub]:
    """A hub on this machine, empty at first."""

    class Handler(Answering):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            match unquote(urlsplit(self.path).path).strip("/").split("/", 5):
                case ["api", "models", owner, name, "revision", revision]:
                    found = hub.find(f"{owner}/{name}", revision)
                    if found is None:
                        known = f"{owner}/{name}" in hub.repositories
                        self.refuse("RevisionNotFound" if known else "RepoNotFound")
                        return
                    siblings = [{"rfilename": file} for file in found[1]]
                    self.answer({"id": f"{owner}/{name}", "sha": found[0], "siblings": siblings})
                case ["api", "models", owner, name, "tree", revision]:
                    found = hub.find(f"{owner}/{name}", revision.split("/")[0])
                    assert found is not None
                    self.answer(
                        [
                            {"type": "file", "path": file, "size": len(content), "oid": identity(content)}
                            for file, content in found[1].items()
                        ]
                    )
                case [owner, name, "resolve", revision, file]:
                    found = hub.find(f"{owner}/{name}", revision)
                    if found is None or file not in found[1]:
                        self.refuse("EntryNotFound")
                        return
                    content = found[1][file]
                    self.send(content, 200, **{"ETag": f'"{identity(content)}"', "X-Repo-Commit": found[0]})
                case _:
                    self.refuse("EntryNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != "Bearer hf_secret":
                self.send(b"{}", 401, **{"X-Error-Message": "Invalid username or password."})
                return
            match urlsplit(self.path).path.strip("/").split("/"):
                case ["api", "repos", "create"]:
                    requested = json.loads(body)
                    name = f"{requested['organization']}/{requested['name']}"
                    hub.repositories.setdefault(name, {})
                    self.answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
                case ["api", "validate-yaml"]:  # the header of a model card
                    assert json.loads(body)["content"].startswith("---\n")
                    self.answer({"errors": [], "warnings": []})
                case ["api", "models", _, _, "preupload", _]:
                    files = [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                    self.answer({"files": files})
                case ["api", "models", owner, name, "commit", _]:
                    lines = [json.loads(line) for line in body.splitlines()]
                    files = {
                        line["value"]["path"]: base64.b64decode(line["value"]["content"])
                        for line in lines
                        if line["key"] == "file"
                    }
                    commit = hub.commit(f"{owner}/{name}", files)
                    url = f"{hub.url}/{owner}/{name}/commit/{commit}"
                    self.answer({"success": True, "commitOid": commit, "commitUrl": url})
                case _:
                    self.refuse("EntryNotFound")

        def refuse(self, code: str) -> None:
            self.send(b'{"error": "not found"}', 404, **{"X-Error-Code": code})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = ModelHub(f"http://127.0.0.1:{server.server_port}")
    with serving(server):
        yield hub


def identity(content: bytes) -> str:
    """As git names a file, which the client checks small ones by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
