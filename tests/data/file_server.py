"""A file server on loopback with the manners of real ones, good and bad, a memory of what it was asked, and files for it."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image


@dataclass
class FileServer:
    """Serves `files` by path.

    Args:
        port: on 127.0.0.1.
        files: content by path.
        breaks: each number is one answer that ends after so many bytes; later ones are whole.
        refusals: each number is one answer with that status.
        redirects: path -> (path, headers of the redirect).
        web_pages: paths that are sent as text/html.
        dates: False: neither ETag nor Last-Modified.
        ranges: False: every answer is the whole file.
    """

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    redirects: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    web_pages: set[str] = field(default_factory=set)
    dates: bool = True
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def make_handler(state: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            keep = state.breaks.pop(0) if status in (200, 206) and state.breaks else len(content)
            state.sent += min(keep, len(content))  # before: the client has them sooner than this thread goes on
            self.wfile.write(content[:keep])
            if keep < len(content):
                self.close_connection = True

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append((self.path, asked))
            if state.refusals:
                return self.answer(state.refusals.pop(0), {})
            if self.path in state.redirects:
                target, headers = state.redirects[self.path]
                return self.answer(302, {"Location": target, **headers})
            if self.path not in state.files:
                return self.answer(404, {})
            content = state.files[self.path]
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            headers = {"ETag": tag} if state.dates else {}
            headers["Content-Type"] = "text/html" if self.path in state.web_pages else "application/octet-stream"
            if asked and state.ranges and self.headers.get("If-Range", tag) == tag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                return self.answer(206, headers, content[start:])
            return self.answer(200, headers, content)

    return Handler


@contextmanager
def serve_files() -> Iterator[FileServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    state = FileServer(server.server_address[1])
    server.RequestHandlerClass = make_handler(state)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_zip(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    """A zip file of these contents by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def picture(format: str = "JPEG") -> bytes:
    """A small red image file."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(buffer, format)
    return buffer.getvalue()
