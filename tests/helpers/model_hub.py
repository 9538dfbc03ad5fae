"""A Hugging Face hub of one's own for models: takes commits, and gives out their files by branch or commit.

Large files and safetensors travel by the protocol of Git LFS: the client asks for addresses, uploads there, in parts if
the file is very large, has the upload verified, and commits the file's SHA-256 alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from helpers.serving import Answering, serving

LARGE = 10 << 20  # bytes from which on a file must be uploaded by LFS; safetensors always are
PART = 5 << 20  # of an upload in parts


@dataclass
class ModelHub:
    """A running hub: of each repository its commits, the newest last, each a mapping of file names to contents.

    Attributes:
        objects: uploads by their SHA-256, and parts of uploads by that and their number.
        loses: whether what is uploaded loses its last byte.
    """

    url: str
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    loses: bool = False

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add files to a repository; returns the name of the commit."""
        commits = self.repositories.setdefault(repository, {})
        name = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[name] = {**(list(commits.values())[-1] if commits else {}), **files}
        return name

    def files(self, repository: str) -> dict[str, bytes]:
        """The newest files of a repository."""
        return list(self.repositories[repository].values())[-1]

    def upload(self, found: dict[str, Any]) -> dict[str, Any]:
        """Where the client uploads an object of a batch request, and has it verified; nothing for what is there."""
        oid, size = found["oid"], found["size"]
        if oid in self.objects:
            return found
        place = f"{self.url}/lfs/{oid}"
        upload: dict[str, Any] = {"href": place}
        if size > PART:
            parts = {str(number): f"{place}/{number}" for number in range(1, -(-size // PART) + 1)}
            upload = {"href": f"{place}/complete", "header": {"chunk_size": str(PART), **parts}}
        return {**found, "actions": {"upload": upload, "verify": {"href": f"{place}/verify"}}}

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
                    self.answer([listed(file, content) for file, content in found[1].items()])
                case [owner, name, "resolve", revision, file]:
                    found = hub.find(f"{owner}/{name}", revision)
                    if found is None or file not in found[1]:
                        self.refuse("EntryNotFound")
                        return
                    content = found[1][file]
                    etag = sha256(content) if is_lfs(file, len(content)) else identity(content)
                    self.send(content, 200, **{"ETag": f'"{etag}"', "X-Repo-Commit": found[0]})
                case _:
                    self.refuse("EntryNotFound")

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            """An upload, or a part of one; the address is secret enough, so the client sends no token."""
            hub.requests.append(f"{self.command} {self.path}")
            assert "Authorization" not in self.headers
            body = self.body()
            hub.objects[self.path.removeprefix("/lfs/")] = body[:-1] if hub.loses else body
            self.send(b"", 200, ETag=f'"{sha256(body)}"')

        def do_POST(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.body()
            match urlsplit(self.path).path.strip("/").split("/"):
                case ["lfs", oid, "complete"]:
                    parts = [f"{oid}/{part['partNumber']}" for part in json.loads(body)["parts"]]
                    hub.objects[oid] = b"".join(hub.objects.pop(part) for part in parts)
                    self.answer({})
                    return
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
                    files = [(file["path"], is_lfs(file["path"], file["size"])) for file in json.loads(body)["files"]]
                    modes = [
                        {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                        for name, large in files
                    ]
                    self.answer({"files": modes})
                case [_, _, "info", "lfs", "objects", "batch"]:
                    requested = json.loads(body)
                    assert (requested["operation"], requested["hash_algo"]) == ("upload", "sha256")
                    self.answer({"objects": [hub.upload(found) for found in requested["objects"]]})
                case ["lfs", oid, "verify"]:
                    uploaded = hub.objects[oid]
                    if json.loads(body) == {"oid": sha256(uploaded), "size": len(uploaded)}:
                        self.answer({})
                    else:
                        del hub.objects[oid]
                        self.answer({"error": "the upload is damaged"}, 422)
                case ["api", "models", owner, name, "commit", _]:
                    lines = [json.loads(line) for line in body.splitlines()]
                    files = {
                        line["value"]["path"]: base64.b64decode(line["value"]["content"])
                        for line in lines
                        if line["key"] == "file"
                    }
                    large = [line["value"] for line in lines if line["key"] == "lfsFile"]
                    files |= {file["path"]: hub.objects[file["oid"]] for file in large}
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


def is_lfs(name: str, size: int) -> bool:
    """Whether the hub keeps a file outside of git."""
    return name.endswith(".safetensors") or size >= LARGE


def listed(name: str, content: bytes) -> dict[str, Any]:
    """A file as lists of files name it."""
    found = {"type": "file", "path": name, "size": len(content), "oid": identity(content)}
    if is_lfs(name, len(content)):
        found["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return found


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def identity(content: bytes) -> str:
    """As git names a file, which the client checks small ones by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
