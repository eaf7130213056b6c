"""Answers word by word: ten people at once, slow clients, broken connections, and what is stopped, with a tiny model over sockets."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import numpy as np
import pytest
from demo_client import Event, ask, connect, photo, question, request, stream
from PIL import Image

from llava_prumerge.viz import demo_queue, demo_server
from llava_prumerge.viz.demo_queue import Busy, Question, Queue
from llava_prumerge.viz.demo_server import DemoServer

METHODS = ("none", "grid", "prumerge_plus", "fastv", "found")


def of_kind(events: list[Event], kind: str, side: int | None = None) -> list[dict]:
    return [told for name, told in events if name == kind and (side is None or told["side"] == side)]


def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.fixture
def slowly(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model waits before it answers, until the event is set."""
    go, answer = threading.Event(), server.model.answer

    def waiting(*args: object) -> object:
        assert go.wait(60)
        return answer(*args)

    monkeypatch.setattr(server.model, "answer", waiting)
    yield go
    go.set()
    until(lambda: server.queue._now is None and not server.queue._waiting)


def test_an_answer_comes_in_pieces_that_are_the_answer(server: DemoServer) -> None:
    events = list(stream(server, question(server, new_tokens=12, beside="fastv")))
    assert [kind for kind, _ in events[:2]] == ["queue", "begin"] and events[-1] == ("end", {})
    for side, method in enumerate(("none", "fastv")):
        pieces = [told["text"] for told in of_kind(events, "text", side)]
        (answer,) = of_kind(events, "answer", side)
        assert len(pieces) > 4 and "".join(pieces).strip() == answer["answer"]
        assert answer["answer"] == ask(server, method=method, new_tokens=12)[1]["answer"]
        assert [told["method"] for told in of_kind(events, "begin", side)] == [method]
    numbers = [told["number"] for _, told in events if "number" in told]
    assert numbers == list(range(1, len(numbers) + 1))


def test_pieces_are_sent_before_the_answer_is_whole(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model does not go on until the client has read the first piece."""
    read, said = threading.Event(), Question.say

    def say(self: Question, kind: str, **told: object) -> None:
        said(self, kind, **told)
        assert kind != "text" or read.wait(60), "no client has read this"

    monkeypatch.setattr(Question, "say", say)
    kinds = []
    for kind, _ in stream(server, question(server, new_tokens=6)):
        kinds.append(kind)
        if kind == "text":
            read.set()
    assert kinds.count("text") > 1 and kinds[-2:] == ["answer", "end"]


def test_ten_people_at_once_get_their_own_answers(server: DemoServer) -> None:
    """Half of them leave in the middle and come back; one reads a few bytes at a time; two send garbage."""
    wanted = {name: ask(server, method=name, new_tokens=8)[1] for name in METHODS}
    found: dict[int, list[Event]] = {}

    def person(number: int) -> None:
        sent = question(server, method=METHODS[number % 5], new_tokens=8)
        if number % 2:
            found[number] = list(stream(server, sent))
            return
        some: list[Event] = []
        for kind, told in stream(server, sent):
            some.append((kind, told))
            if kind == "text":
                break  # the connection ends here
        after = max(told["number"] for _, told in some if "number" in told)
        (name,) = {told["id"] for kind, told in some if kind == "queue"}
        back = f"GET /follow?{urlencode({'id': name, 'after': after})} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        found[number] = some + list(stream(server, back.encode()))

    def nuisance() -> None:
        with connect(server) as client:
            client.sendall(question(server)[:-5])  # an image that is cut off
        ask(server, body=b"no image")

    people = [threading.Thread(target=person, args=(number,)) for number in range(10)]
    people += [threading.Thread(target=nuisance) for _ in range(2)]
    for thread in people:
        thread.start()
    for thread in people:
        thread.join(120)
    assert sorted(found) == list(range(10))
    for number, events in found.items():
        (answer,), alone = of_kind(events, "answer"), wanted[METHODS[number % 5]]
        assert answer["answer"] == alone["answer"] and answer["stages"] == alone["stages"]
        assert "".join(told["text"] for told in of_kind(events, "text")).strip() == alone["answer"], "no piece twice"
        assert events[-1] == ("end", {})
    assert ask(server)[1]["tokens"]["kept"] == 5, "the checkpoint's own method is back"


def test_who_waits_is_told_how_many_are_before(server: DemoServer, slowly: threading.Event) -> None:
    first = stream(server, question(server))
    assert next(first)[1]["before"] == 0
    second = stream(server, question(server))
    told = next(second)
    assert told[0] == "queue" and told[1]["before"] == 1
    slowly.set()
    places = [one["before"] for kind, one in second if kind == "queue"]
    assert places in ([0], []) and list(first)[-1] == ("end", {})


@pytest.fixture
def narrow(server: DemoServer) -> Iterator[None]:
    """Little fits into the server's side of a connection."""
    before = server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    yield
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, before // 2)


def test_a_slow_client_takes_nobodys_time(server: DemoServer, narrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads nothing, while others are answered; then little by little, for longer than a single piece may take."""
    monkeypatch.setattr(demo_server.DemoHandler, "timeout", 1.5)
    with connect(server, 16384) as client:
        client.sendall(question(server, body=picture()))
        assert ask(server, method="none")[0] == 200
        started, received = time.monotonic(), b""
        while block := client.recv(8192):
            received += block
            time.sleep(0.1)
        assert time.monotonic() - started > 1.5 and len(received) > 60_000
    assert received.endswith(b"event: end\ndata: {}\n\n")


def picture() -> bytes:
    """Noise, whose drawing is large."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_client_that_takes_nothing_is_let_go(
    server: DemoServer, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_server.DemoHandler, "timeout", 1.0)
    before = len(server.asking)
    with connect(server, 16384) as client:
        client.sendall(question(server, body=picture()))
        until(lambda: len(server.asking) > before)
        until(lambda: len(server.asking) <= before)
    assert ask(server)[0] == 200


def test_what_nobody_follows_is_given_up(
    server: DemoServer, slowly: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first client leaves for good: its answer ends early, and the one after it has its turn."""
    monkeypatch.setattr(server.queue, "grace", 0.5)
    monkeypatch.setattr(demo_server, "HEARTBEAT_SECONDS", 0.05)
    some = stream(server, question(server, new_tokens=500))
    name = next(some)[1]["id"]
    asked = server.queue.find(name)
    some.close()
    until(lambda: not asked.is_wanted())
    slowly.set()
    assert ask(server)[1]["new_tokens"] == 4
    (answer,) = [told for kind, told in asked.read(0, 0)[0] if kind == "answer"]
    assert answer["new_tokens"] < 5 and asked.ended


def test_stop_ends_an_answer(server: DemoServer, slowly: threading.Event) -> None:
    events: Iterator[Event] = stream(server, question(server, new_tokens=500, beside="grid"))
    name = next(events)[1]["id"]
    until(lambda: server.queue._now is not None)  # a question that still waits is dropped, and has no answer
    assert json.loads(request(server, "POST", f"/stop?id={name}", b"")[2]) == {"stopped": name}
    slowly.set()
    rest = list(events)
    (answer,) = of_kind(rest, "answer")
    assert answer["new_tokens"] < 5 and rest[-1] == ("end", {}) and not of_kind(rest, "begin", 1)


@pytest.mark.parametrize("path", ["/follow?id=nobodys", "/follow?id=", "/follow"])
def test_what_is_not_there_any_more_cannot_be_followed(path: str, server: DemoServer) -> None:
    status, _, content = request(server, "GET", path)
    assert status == 404 and "ask it again" in json.loads(content)["error"]
    assert request(server, "POST", "/stop?id=nobodys", b"")[0] == 404
    assert request(server, "GET", "/follow?id=x&after=-1")[0] == 400
    assert request(server, "GET", "/follow?id=x", Origin="http://evil.example")[0] == 403


def test_an_error_in_the_models_turn_is_an_event(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("w3 w4 w5")

    monkeypatch.setattr(server.model, "answer", broken)
    events = list(stream(server, question(server)))
    assert of_kind(events, "error")[0]["error"] == "this failed; the console shows why" and events[-1][0] == "end"


def test_too_many_questions_are_refused_at_once(
    server: DemoServer, slowly: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.queue, "most", 1)
    first = stream(server, question(server))
    next(first)
    until(lambda: server.queue._now is not None)
    second = stream(server, question(server))
    next(second)
    status, headers, content = request(server, "POST", "/ask?question=w3", photo(), Content_Type="image/png")
    assert status == 503 and headers["Retry-After"] == "5" and "1 questions wait" in json.loads(content)["error"]
    slowly.set()
    assert list(first)[-1] == list(second)[-1] == ("end", {})


def test_the_queue_keeps_its_order_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, go, done = Queue(waiting=3, kept=2), threading.Event(), []

    def work(question: Question) -> None:
        assert go.wait(30)
        done.append(question)
        question.say("text", text="x")
        if len(done) == 2:
            raise RuntimeError("a fault")

    asked = [queue.ask(work)]
    until(lambda: queue._now is asked[0])
    asked += [queue.ask(work) for _ in range(3)]
    assert [queue.before(question) for question in asked] == [0, 1, 2, 3]
    with pytest.raises(Busy, match="3 questions wait"):
        queue.ask(work)
    assert all(queue.find(question.id) is question for question in asked) and queue.find("") is None
    asked[2].stop()
    asked.append(queue.ask(work))  # there is room again
    go.set()
    assert all(question.read(9, 30)[1] for question in asked)
    until(lambda: queue._now is None)
    assert done == [asked[0], asked[1], asked[3], asked[4]], "a fault, and what was stopped, hold nobody up"
    assert all(question.work is not work for question in done), "their images are let go"
    assert asked[1].read(0, 0)[0][-1][1]["status"] == 500 and asked[2].read(0, 0) == ([], True)
    assert [queue.find(question.id) is not None for question in asked] == [False, False, False, True, True]
    monkeypatch.setattr(demo_queue, "KEPT_SECONDS", 0.0)
    assert queue.find(asked[4].id) is None
    queue.close()
    until(lambda: not queue._thread.is_alive())
