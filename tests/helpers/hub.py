"""A Hugging Face hub of one's own: serves a local Minari store as Minari's publisher lays it out there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.serving import Answering, serving

COMMIT = "0" * 40
OWNER = "farama-minari"


@dataclass
class Hub:
    """A running hub and what it was asked for."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve_hub(store: Path) -> Generator[Hub]:
    """Serve the datasets of a store, one repository per first part of their ids."""
    for repository in store.iterdir():
        ids = [str(data.parent.relative_to(store)) for data in repository.rglob("data")]
        namespaces = sorted({dataset_id.rpartition("/")[0] for dataset_id in ids} - {repository.name})
        listing = json.dumps({"datasets": ids, "namespaces": namespaces})
        (repository / "namespace_metadata.json").write_text(listing)

    class Handler(Answering):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            url = urlsplit(self.path)
            match unquote(url.path).strip("/").split("/", 6):
                case ["api", "datasets"]:
                    search = parse_qs(url.query).get("search", [""])[0]
                    self.answer([{"id": f"{OWNER}/{path.name}"} for path in store.iterdir() if search in path.name])
                case ["api", "datasets", owner, name, "revision", _] if owner == OWNER:
                    siblings = [{"rfilename": entry["path"]} for entry in files(store / name)]
                    self.answer({"id": f"{OWNER}/{name}", "sha": COMMIT, "siblings": siblings})
                case ["api", "datasets", owner, name, "tree", *_] if owner == OWNER:
                    self.answer(files(store / name))
                case ["datasets", owner, name, "resolve", _, *path] if owner == OWNER:
                    self.send_file(store.joinpath(name, *path))
                case _:
                    self.answer({"error": "not found"}, 404)

        do_HEAD = do_GET

        def send_file(self, path: Path) -> None:
            if path.is_file():
                self.send(path.read_bytes(), 200, ETag=f'"{identity(path)}"')
            else:
                self.send(b"", 404, **{"X-Error-Code": "EntryNotFound"})

        def send(self, content: bytes, status: int, **headers: str) -> None:
            super().send(content, status, **headers, **{"X-Repo-Commit": COMMIT})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    with serving(server):
        yield hub


def files(repository: Path) -> list[dict[str, Any]]:
    """The files of a repository as the hub lists them."""
    return [
        {
            "type": "file",
            "path": str(path.relative_to(repository)),
            "size": path.stat().st_size,
            "oid": identity(path),
        }
        for path in sorted(repository.rglob("*"))
        if path.is_file()
    ]


def identity(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
