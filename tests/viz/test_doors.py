"""Names that the page answers to, and clients that are slow, endless, many, or speak no HTTP."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from llava_prumerge.ground.errors import InputError
from llava_prumerge.viz import demo_server
from llava_prumerge.viz.demo import main
from llava_prumerge.viz.demo_server import DemoServer
from llava_prumerge.viz.doors import LOOPBACK, Doors, GuardedServer, host_name

OPEN = "https://page.example"


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("localhost:7860", None, True),
        ("LOCALHOST", "http://localhost", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("[::1]:7860", "http://[::1]:7860", True),
        ("localhost:7860", "http://localhost:3000", False),
        ("localhost:7860", "null", False),
        ("localhost:7860", OPEN, False),
        ("page.example", OPEN, False),
        ("localhost.page.example", None, False),
        ("10.0.0.5:7860", None, False),
        ("", None, False),
        ("localhost:port", None, False),
        ("user@localhost", None, False),
        ("[", None, False),
    ],
)
def test_loopback_answers_to_its_own_names_alone(host: str, origin: str | None, answered: bool) -> None:
    refused = Doors().refusal(host, origin)
    assert (refused is None) == answered
    assert answered or "\n" not in str(refused)


def test_a_proxys_name_is_given_by_hand() -> None:
    doors = Doors(allowed=("Page.example",))
    assert doors.refusal("page.example", OPEN) is None
    assert doors.refusal("localhost:7860", OPEN) is None, "proxies may set the host anew"
    assert doors.refusal("page.example", "https://other.example") is not None
    assert doors.refusal("other.example", None) is not None


def test_a_host_that_others_reach_answers_to_numbers_but_not_to_foreign_names() -> None:
    doors = Doors("0.0.0.0")
    assert doors.is_open and doors.refusal("192.168.1.7:7860", "http://192.168.1.7:7860") is None
    assert doors.refusal("rebound.example:7860", None) is not None
    assert Doors("gpu7.cluster").refusal("gpu7.cluster:7860", None) is None
    assert not Doors().is_open and host_name("http://x:99999999") is None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DemoServer]:
    """A page without a model: none of these requests reaches one."""
    made = DemoServer(0, None, None, "none")  # type: ignore[arg-type]
    thread = threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def connect(server: DemoServer) -> socket.socket:
    return socket.create_connection((LOOPBACK, server.server_port), timeout=20)


def page_is_served(server: DemoServer) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=20)
    connection.request("GET", "/")
    return connection.getresponse().status == 200


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\xff\xfe?question=secret HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"A" * 70_000 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    b"POST /ask?question=secret HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9e9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nOrigin: \x00\r\n\r\n",
)


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_garbage_ends_and_is_no_traceback(server: DemoServer, number: int, caplog, capfd) -> None:
    caplog.set_level("DEBUG", "llava_prumerge.viz.demo")
    with connect(server) as client:
        client.sendall(GARBAGE[number])
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
    assert page_is_served(server)
    assert "Traceback" not in capfd.readouterr().err and "secret" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_a_client_that_drips_without_end_is_let_go(server: DemoServer) -> None:
    server.reading_seconds = 0.5
    started = time.monotonic()
    with connect(server) as client, pytest.raises(OSError):
        client.sendall(
            b"POST /ask?question=w HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n"
        )
        while time.monotonic() - started < 15:
            client.sendall(b"x")
            time.sleep(0.02)
    assert time.monotonic() - started < 15 and page_is_served(server)
    while server.ends and time.monotonic() - started < 60:  # the answer is there before its thread has ended
        time.sleep(0.02)
    assert not server.ends


def test_an_idle_client_is_let_go(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_server.DemoHandler, "timeout", 0.2)
    with connect(server) as client:
        client.sendall(b"GET / HT")
        assert client.recv(100) == b""
    assert page_is_served(server)


def test_too_many_clients_are_turned_away_and_room_comes_back(server: DemoServer) -> None:
    server._room = threading.BoundedSemaphore(2)
    with connect(server) as first, connect(server) as second:
        for client in (first, second):
            client.sendall(b"GET /")
        deadline = time.monotonic() + 10
        while len(server.ends) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        with connect(server) as third, contextlib.suppress(ConnectionResetError):
            assert third.recv(100) == b""
    deadline = time.monotonic() + 10
    while server.ends and time.monotonic() < deadline:
        time.sleep(0.01)
    assert page_is_served(server)


def test_the_page_forgets_before_it_asks() -> None:
    """Beside an error nothing of an earlier answer or image may stand."""
    script = (demo_server.PAGE / "page.js").read_text("utf-8")
    asked = script[script.index('at("form").onsubmit') :]
    assert asked.index("clear();") < asked.index("choose an image first") < asked.index("await ask(")
    chosen = script[script.index("const choose") :]
    assert chosen.index("clear(); forget();") < chosen.index("file.size > limit") < chosen.index("image = file")


def test_an_address_that_cannot_be_served_is_one_line() -> None:
    with GuardedServer((LOOPBACK, 0), BaseHTTPRequestHandler) as first:
        place = f"{LOOPBACK}:{first.server_port}"
        with pytest.raises(
            InputError, match=f"^{place} cannot be served: Address already in use; see --host and --port$"
        ):
            GuardedServer((LOOPBACK, first.server_port), BaseHTTPRequestHandler)


@pytest.mark.parametrize("port", ["-1", "65536", "7e3"])
def test_a_port_that_is_none_is_refused_before_the_model_is_loaded(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["no-model", "--port", port]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "--port" in told and told.count("\n") == 1
