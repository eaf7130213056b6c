"""An OpenAI-compatible endpoint on loopback that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], str | int | bytes]


ENDLESS = 1 << 20


@dataclass
class FakeEndpoint:
    """Its address and the requests it got.

    Attributes:
        reply: from a request's body to the text of the answer, to a status that is an error, or to bytes that are sent as they
            are, a piece of them again and again.
        model: the version that it says has answered.
    """

    reply: Reply
    model: str = "fake-judge-1"
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    sent: int = 0


@contextmanager
def running(reply: Reply) -> Iterator[FakeEndpoint]:
    """A fake endpoint that runs while the block does."""
    fake = FakeEndpoint(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            fake.requests.append(body)
            fake.keys.append(self.headers.get("Authorization"))
            said = fake.reply(body)
            if isinstance(said, bytes):
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):
                    for _ in range(ENDLESS):
                        fake.sent += self.wfile.write(said)
                return
            content = {"model": fake.model, "choices": [{"message": {"role": "assistant", "content": said}}]}
            payload = json.dumps(content).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *words: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
