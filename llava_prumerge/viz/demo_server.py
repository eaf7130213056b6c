"""The demo's server: a page, a queue of questions, answers word by word; who asks is checked, every error is a status and a line."""

from __future__ import annotations

import io
import json
import logging
import secrets
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.images import decode_image
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.viz import demo_requests as requests
from llava_prumerge.viz.demo_examples import Example, drawn_examples
from llava_prumerge.viz.demo_json import answer_json, looked_json, picture_addresses
from llava_prumerge.viz.demo_model import VIEWS, DemoModel
from llava_prumerge.viz.demo_queue import Busy, Question, Queue
from llava_prumerge.viz.demo_requests import Asked, RequestError
from llava_prumerge.viz.demo_responses import Responder
from llava_prumerge.viz.doors import LOOPBACK, Doors, GuardedServer
from llava_prumerge.viz.method_list import MethodList, takes_budget

logger = logging.getLogger("llava_prumerge.viz.demo")

PAGE = Path(__file__).with_name("page")
SOCKET_SECONDS = 30  # a client that stops sending, or takes nothing of what is sent, is let go
HEARTBEAT_SECONDS = 1.0  # between two signs of life to a client that waits; one that is gone is noticed by them
STREAM_SECONDS = 3600.0  # until a client that follows an answer is let go, however steadily it reads
IMAGE = "the uploaded file"
REFUSED = (SampleError, ReductionError, ValueError)


class DemoServer(GuardedServer):
    """The page and what can be asked there.

    Args:
        port: 0 takes a free one.
        model: answers.
        methods: what can be chosen.
        chosen: the name the page begins with.
        host: the address to serve; others than this machine can ask at any but a loopback one.
        allowed: names of tunnels and proxies that lead here.
        name: the model's, for the page.
        examples: offered on the page; drawn ones for None.
    """

    def __init__(
        self,
        port: int,
        model: DemoModel,
        methods: MethodList,
        chosen: str,
        host: str = LOOPBACK,
        allowed: tuple[str, ...] = (),
        name: str = "",
        examples: Sequence[Example] | None = None,
    ) -> None:
        self.model, self.methods, self.chosen, self.doors = model, methods, chosen, Doors(host, allowed)
        self.name, self.examples = name, drawn_examples() if examples is None else list(examples)
        self.queue, self.decoding = Queue(), threading.Lock()
        super().__init__((host, port), DemoHandler)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{name}:{self.server_port}"

    def server_close(self) -> None:
        """No answers after the end."""
        self.queue.close()
        super().server_close()


class DemoHandler(Responder):
    """One request."""

    server: DemoServer
    timeout = SOCKET_SECONDS

    def do_GET(self) -> None:
        """The page, what it offers, and answers on their way."""
        self.respond(
            {
                "/": self.page,
                "/methods": self.list_methods,
                "/settings": self.tell_settings,
                "/example": self.send_example,
                "/follow": self.follow_again,
            }
        )

    def do_POST(self) -> None:
        """A question: the image is the body, the rest stands in the address."""
        self.respond({"/ask": self.ask, "/look": self.look, "/stop": self.stop})

    def respond(self, routes: Mapping[str, Callable[[], None]]) -> None:
        """Check who asks, run the route, and turn every error into a status and a line."""
        try:
            self.check_origin()
            path = urlsplit(self.path).path
            if path not in routes:
                raise RequestError(HTTPStatus.NOT_FOUND, f"no {self.command} {path[:80]} here")
            routes[path]()
        except RequestError as error:
            self.unread = error.unread
            self.send_json({"error": str(error)}, error.status)
        except Busy as error:
            self.send_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "5"})
        except (ConnectionError, TimeoutError) as error:
            logger.info("the client went away: %s", error)
        except Exception as error:  # the page must say that something broke, and the console what
            self.send_json(*self.told_error(error))

    def told_error(self, error: Exception) -> tuple[dict[str, Any], HTTPStatus]:
        """What the page is told of an error, and its status; the console is told where it is ours."""
        if isinstance(error, REFUSED):
            return {"error": str(error)}, HTTPStatus.BAD_REQUEST
        trace = "".join(traceback.format_exception(error))
        logger.error("%s failed\n%s", self.told_path(), self.without_question(trace))
        return {"error": "this failed; the console shows why"}, HTTPStatus.INTERNAL_SERVER_ERROR

    def check_origin(self) -> None:
        """Refuse requests that other sites make a browser send: a name of theirs that leads here, or a form of theirs."""
        refused = self.server.doors.refusal(self.headers.get("Host", ""), self.headers.get("Origin"))
        if refused is not None:
            raise RequestError(HTTPStatus.FORBIDDEN, f"{refused}; open {self.server.address}")

    # ------------------------------------------------------------------ what is there

    def page(self) -> None:
        """The page; its own script and style may run, nothing else."""
        nonce = secrets.token_urlsafe(16)
        parts = {name: (PAGE / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
        body = parts["html"].replace("{nonce}", nonce).replace("{css}", parts["css"]).replace("{js}", parts["js"])
        policy = f"default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; script-src 'nonce-{nonce}'"
        policy += f"; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        kind = "text/html; charset=utf-8"
        self.send_body(body.encode(), kind, HTTPStatus.OK, {"Content-Security-Policy": policy})

    def list_methods(self) -> None:
        """Names with their settings, which take a budget, which one to begin with, and the examples."""
        server, blocks = self.server, self.server.methods.read()
        examples = [{"name": example.name, "question": example.question} for example in server.examples]
        self.send_json(
            {
                "methods": {name: json.dumps(block) for name, block in blocks.items()},
                "budgeted": [name for name, block in blocks.items() if takes_budget(block)],
                "chosen": server.chosen,
                "model": server.name,
                "places": server.model.places,
                "most": server.model.most,
                "max_bytes": requests.MAX_BYTES,
                "max_new_tokens": requests.MAX_NEW_TOKENS,
                "examples": examples,
            }
        )

    def tell_settings(self) -> None:
        """The settings of a method with a budget."""
        fields = requests.read_fields(self.path, ("method", "budget"))
        name, block = requests.read_method(fields, self.server.methods, self.server.chosen, self.server.model.most)
        self.send_json({"method": name, "reduction": block})

    def send_example(self) -> None:
        """An example's image, or a small one of it."""
        fields = requests.read_fields(self.path, ("number", "small"))
        number = requests.whole_number("number", fields["number"], len(self.server.examples) - 1, 0)
        example = self.server.examples[number]
        if fields["small"]:
            return self.send_body(example.thumbnail(), "image/jpeg", HTTPStatus.OK, {})
        return self.send_body(example.read(), "image/unknown", HTTPStatus.OK, {})

    # ------------------------------------------------------------------ questions

    def ask(self) -> None:
        """Answer a question about the image in the body, by one method or by two."""
        fields = requests.read_fields(self.path, requests.ASK_FIELDS)
        sides = [self.read_method(fields)]
        if fields["beside"]:
            sides.append((fields["beside"], self.server.methods.find(fields["beside"])))
        most = requests.MAX_NEW_TOKENS
        length = requests.whole_number("new_tokens", fields["new_tokens"] or str(requests.NEW_TOKENS), most)
        self.take_turn(self.answer, Asked(requests.read_question(fields), sides, length, self.read_image()))

    def look(self) -> None:
        """Draw the attention that patches of the image in the body receive, or what a method merges into what."""
        fields = requests.read_fields(self.path, requests.LOOK_FIELDS)
        sides, show = [self.read_method(fields)], fields["show"]
        if show not in VIEWS:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"show is one of {', '.join(VIEWS)}, not {show[:20]!r}")

        def drawn(asked: Asked, question: Question) -> None:
            image, (_, block) = decode_image(io.BytesIO(asked.image), IMAGE), asked.sides[0]
            question.say("look", **looked_json(self.server.model.look(image, asked.question, block, show), block))

        self.take_turn(drawn, Asked(requests.read_question(fields), sides, 0, self.read_image()))

    def answer(self, asked: Asked, question: Question) -> None:
        """Say the answers, in the model's turn."""
        model, image = self.server.model, decode_image(io.BytesIO(asked.image), IMAGE)
        for side, block, found in model.answers(image, asked.question, asked.sides, asked.new_tokens, question):
            pictures = {} if side else {"pictures": picture_addresses(model.pictures(image, found.seen))}
            question.say("answer", side=side, **answer_json(found, block), **pictures)

    def take_turn(self, work: Callable[[Asked, Question], None], asked: Asked) -> None:
        """Put what was asked into the queue, and tell the client what comes of it: all at once, or as it comes."""
        with self.server.decoding:  # what is no image need not wait; large ones are decoded one at a time
            decode_image(io.BytesIO(asked.image), IMAGE)

        def told(question: Question) -> None:
            try:
                work(asked, question)
            except Exception as error:
                content, status = self.told_error(error)
                question.say("error", status=status.value, **content)

        question = self.server.queue.ask(told)
        if "text/event-stream" in self.headers.get("Accept", ""):
            return self.follow(question, 0)
        said, after, over = [], 0, False
        with question.followed():
            while not over:
                news, over = question.read(after, SOCKET_SECONDS)
                said += news
                after += len(news)
        return self.send_json(*summary(said))

    def follow(self, question: Question, after: int) -> None:
        """Events of a question, from the first so many on, as they come."""
        self.server.limit(STREAM_SECONDS)
        self.send_head("text/event-stream; charset=utf-8", HTTPStatus.OK, {"X-Accel-Buffering": "no"})
        before, over = -1, False
        with question.followed():
            while not over:
                place = self.server.queue.before(question)
                beat = event("queue", {"id": question.id, "before": place}) if place != before else b": still here\n\n"
                self.send_slowly(beat)
                before = place
                news, over = question.read(after, HEARTBEAT_SECONDS)
                for kind, told in news:
                    after += 1
                    self.send_slowly(event(kind, told, after))
            self.send_slowly(event("end", {}))

    def follow_again(self) -> None:
        """The same, for a client whose connection broke."""
        fields = requests.read_fields(self.path, ("id", "after"))
        after = requests.whole_number("after", fields["after"] or "0", 10**6, 0)
        self.follow(self.find_question(fields["id"]), after)

    def stop(self) -> None:
        """End a question that its client does not want answered any more."""
        question = self.find_question(requests.read_fields(self.path, ("id",))["id"])
        question.stop()
        self.send_json({"stopped": question.id})

    def find_question(self, name: str) -> Question:
        """A question by the id that its client was told."""
        question = self.server.queue.find(name)
        if question is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "this question is not there any more; ask it again")
        return question

    def read_method(self, fields: dict[str, str]) -> tuple[str, dict[str, Any]]:
        """The method of a request."""
        return requests.read_method(fields, self.server.methods, self.server.chosen, self.server.model.most)

    def read_image(self) -> bytes:
        """The body."""
        length = requests.body_length(self.headers)
        body = self.rfile.read(length)
        if len(body) != length:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the image was cut off after {len(body)} of {length} bytes")
        self.server.has_read()
        return body


def event(kind: str, told: dict[str, Any], number: int | None = None) -> bytes:
    """A server-sent event."""
    name = "" if number is None else f"id: {number}\n"
    return f"{name}event: {kind}\ndata: {json.dumps(told)}\n\n".encode()


def summary(said: Sequence[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], HTTPStatus]:
    """Everything that was said of a question as one answer: the first side, the other as `beside`, or the error."""
    found: dict[str, Any] = {}
    for kind, told in said:
        if kind == "error":
            return {"error": told["error"]}, HTTPStatus(told["status"])
        content = {key: value for key, value in told.items() if key != "side"}
        if kind == "look" or (kind == "answer" and told["side"] == 0):
            found |= content
        elif kind == "answer":
            found["beside"] = content
    return found, HTTPStatus.OK
