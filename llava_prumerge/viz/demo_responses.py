"""How the demo's server answers: JSON, bodies in pieces, headers that keep them private, and no question in any log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

PIECE = 8192  # bytes that are sent at once

logger = logging.getLogger("llava_prumerge.viz.demo")


class Responder(BaseHTTPRequestHandler):
    """What all answers of the demo have in common."""

    unread = 0  # bytes of a refused body to read and forget
    server_version, sys_version = "llava_prumerge", ""

    def send_json(
        self, content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        """One JSON object."""
        self.send_body(json.dumps(content).encode(), "application/json", status, headers or {})

    def send_body(self, body: bytes, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        """A whole response; the connection ends with it, read body or not."""
        self.send_head(kind, status, {"Content-Length": str(len(body)), **headers})
        self.send_slowly(body)
        while self.unread > 0:  # a client that is still sending would not see the answer if the connection broke now
            block = self.rfile.read(min(self.unread, 1 << 16))
            self.unread = self.unread - len(block) if block else 0

    def send_head(self, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        """The head of a response that is not stored, sniffed or framed."""
        self.close_connection = True
        self.send_response(status)
        common = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {"Content-Type": kind, **common, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_slowly(self, content: bytes) -> None:
        """Bytes in pieces: a client has `timeout` seconds for each of them, not for all."""
        for start in range(0, len(content), PIECE):
            self.wfile.write(content[start : start + PIECE])

    def log_message(self, format: str, *arguments: object) -> None:
        """To our logger; questions stand in addresses and stay out of it."""
        logger.debug("%s %s", getattr(self, "command", None), self.told_path())

    def told_path(self) -> str:
        """The path of the address, without what is asked; of what is no request, nothing."""
        return getattr(self, "path", "").partition("?")[0][:80]

    def without_question(self, text: str) -> str:
        """A text in which the question, if it occurs, is left out."""
        asked = parse_qs(getattr(self, "path", "").partition("?")[2]).get("question", [])
        for question in filter(None, (part.strip() for part in asked)):
            text = text.replace(question, "[the question]").replace(repr(question)[1:-1], "[the question]")
        return text
