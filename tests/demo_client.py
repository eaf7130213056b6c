"""A client of the demo's server: an image, requests with exactly the wanted headers, and events of an answer as they come."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from llava_prumerge.viz.demo_server import DemoServer
from llava_prumerge.viz.doors import LOOPBACK

OWN_BLOCK = {"vision": {"name": "prumerge", "budget": 5}}


def photo(kind: str = "PNG") -> bytes:
    """Wider than high, so that it is padded; the left half is noise."""
    pixels = np.zeros((40, 64, 3), dtype=np.uint8)
    pixels[:, :32] = np.random.default_rng(0).integers(0, 255, (40, 32, 3))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def request(
    server: DemoServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request with exactly these headers (underscores stand for dashes), Host and Content-Length apart."""
    connection = http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=120)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), content


def ask(
    server: DemoServer, body: bytes | None = None, headers: dict[str, str] | None = None, **fields: object
) -> tuple[int, dict]:
    given = {"question": "w3 w4 w5", "new_tokens": 4, **fields}
    sent = {"Content_Type": "image/png", **(headers or {})}
    status, _, content = request(server, "POST", f"/ask?{urlencode(given)}", photo() if body is None else body, **sent)
    return status, json.loads(content)


Event = tuple[str, dict]


def events(lines: Iterator[bytes]) -> Iterator[Event]:
    """Server-sent events: kind and data, the number under "number" where there is one."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "event" in fields:
            yield (
                fields["event"],
                json.loads(fields["data"]) | ({"number": int(fields["id"])} if "id" in fields else {}),
            )
            fields = {}


def question(server: DemoServer, path: str = "/ask", body: bytes | None = None, **fields: object) -> bytes:
    """A request for events, as bytes."""
    given, image = {"question": "w3 w4 w5", "method": "none", **fields}, photo() if body is None else body
    head = f"POST {path}?{urlencode(given)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    return f"{head}Accept: text/event-stream\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image


def connect(server: DemoServer, ahead: int = 1 << 16) -> socket.socket:
    """A connection of which so many bytes are read ahead."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ahead)
    client.settimeout(60)
    client.connect((LOOPBACK, server.server_port))
    return client


def stream(server: DemoServer, sent: bytes) -> Iterator[Event]:
    """The events that come back for a request."""
    with connect(server) as client:
        client.sendall(sent)
        lines = client.makefile("rb")
        status = lines.readline()
        assert b" 200 " in status, status + lines.read()
        while lines.readline().strip():
            pass
        yield from events(lines)
