"""A server on this machine, for as long as a test needs it."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Answering(BaseHTTPRequestHandler):
    """Answers in whole, and says nothing on stderr."""

    protocol_version = "HTTP/1.1"

    def answer(self, content: Any, status: int = 200) -> None:
        """Send JSON."""
        self.send(json.dumps(content).encode(), status, **{"Content-Type": "application/json"})

    def body(self) -> bytes:
        """What was sent, also where it was sent in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def send(self, content: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(server: ThreadingHTTPServer) -> Generator[None]:
    """Serve in a thread while the block runs."""
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
