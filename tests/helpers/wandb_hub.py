"""A Weights & Biases of one's own, as far as one artifact needs it: its versions, its manifest and its files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from helpers.serving import Answering, serving

KEY = "0" * 40  # of somebody called me
COLLECTION = {
    "__typename": "ArtifactSequence",
    "name": "model",
    "project": {"id": "p", "internalId": "1", "name": "lab", "entity": {"name": "me"}},
}
ALIAS = {"__typename": "ArtifactAlias", "id": "a", "alias": "best"}
ARTIFACT = {
    "__typename": "Artifact",
    "id": "QXJ0",
    "artifactSequence": COLLECTION,
    "versionIndex": 3,
    "artifactType": {"name": "model"},
    "description": None,
    "metadata": "{}",
    "ttlDurationSeconds": -2,
    "ttlIsInherited": False,
    "tags": [],
    "historyStep": None,
    "state": "COMMITTED",
    "size": 5,
    "digest": "d" * 32,
    "commitHash": "c",
    "fileCount": 1,
    "createdAt": "2026-01-01T00:00:00Z",
    "updatedAt": None,
    "aliases": [{**ALIAS, "artifactCollection": COLLECTION}],
}
MEMBERSHIP = {
    "__typename": "ArtifactCollectionMembership",
    "id": "m",
    "versionIndex": 3,
    "createdAt": "2026",
    "aliases": [ALIAS],
    "artifactCollection": COLLECTION,
    "artifact": ARTIFACT,
}


@contextmanager
def serve_artifact(files: Mapping[str, bytes]) -> Generator[str]:
    """The artifact me/lab/model:best, which is its version 3, with these files; gives the address."""
    digests = {name: base64.b64encode(hashlib.md5(content).digest()).decode() for name, content in files.items()}
    manifest = {
        "version": 1,
        "storagePolicy": "wandb-storage-policy-v1",
        "storagePolicyConfig": {"storageLayout": "V2"},
        "contents": {
            name: {"digest": digests[name], "size": len(content), "birthArtifactID": "QXJ0"}
            for name, content in files.items()
        },
    }

    class Handler(Answering):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = re.search(rb"(?:query|mutation) (\w+)", body)
            self.answer({"data": answer(found[1].decode(), body)} if found else {})

        def do_GET(self) -> None:
            name = self.path.removeprefix("/files/")
            content = files[name] if name in files else json.dumps(manifest).encode()
            self.send(content, 200, **{"Content-Type": "application/json"})

    def answer(operation: str, body: bytes) -> dict[str, Any]:
        if operation == "ArtifactMembershipByName":
            is_there = json.loads(body)["variables"]["name"].partition(":")[0] == "model"
            return {"project": {"artifactCollectionMembership": MEMBERSHIP if is_there else None}}
        if operation == "FetchArtifactManifest":
            return {"artifact": {"currentManifest": {"file": {"directUrl": f"{url}/files/manifest.json"}}}}
        if operation == "GetArtifactMembershipFileUrls":
            edges = [
                {"node": {"__typename": "File", "name": name, "directUrl": f"{url}/files/{name}"}} for name in files
            ]
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            membership = {"files": {"edges": edges, "pageInfo": page}}
            collection = {"__typename": "ArtifactSequence", "artifactMembership": membership}
            return {"project": {"artifactCollection": collection}}
        viewer = {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"features": []}}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield url
