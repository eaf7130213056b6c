"""The demo's server: one page, one action; who asks is checked first, and every error is a status and a line."""

from __future__ import annotations

import base64
import io
import json
import logging
import secrets
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from llava_prumerge.data.errors import SampleError
from llava_prumerge.data.images import decode_image
from llava_prumerge.methods.base import ReductionError
from llava_prumerge.viz.demo_model import Answer, DemoModel
from llava_prumerge.viz.doors import LOOPBACK, Doors, GuardedServer
from llava_prumerge.viz.method_list import MethodList, with_budget

logger = logging.getLogger("llava_prumerge.viz.demo")

PAGE = Path(__file__).with_name("demo.html")
MAX_BYTES = 20 * 1024 * 1024
DISCARDED = 4 * MAX_BYTES
MAX_QUESTION = 2000  # characters
MAX_NEW_TOKENS = 512
SOCKET_SECONDS = 30  # a client that stops sending is let go
FIELDS = ("question", "method", "budget", "new_tokens")


class RequestError(ValueError):
    """A request that is refused, with its status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class DemoServer(GuardedServer):
    """The page and its one action.

    Args:
        port: 0 takes a free one.
        model: answers.
        methods: what can be chosen.
        chosen: the name the page begins with.
        host: the address to serve; others than this machine can ask at any but a loopback one.
        allowed: names of tunnels and proxies that lead here.
    """

    def __init__(
        self,
        port: int,
        model: DemoModel,
        methods: MethodList,
        chosen: str,
        host: str = LOOPBACK,
        allowed: tuple[str, ...] = (),
    ) -> None:
        self.model, self.methods, self.chosen, self.doors = model, methods, chosen, Doors(host, allowed)
        super().__init__((host, port), DemoHandler)

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{name}:{self.server_port}"


class DemoHandler(BaseHTTPRequestHandler):
    """One request."""

    server: DemoServer
    unread = 0  # bytes of a refused body to read and forget
    timeout = SOCKET_SECONDS
    server_version, sys_version = "llava_prumerge", ""

    def do_GET(self) -> None:
        """The page, and the methods it offers."""
        self.respond({"/": self.page, "/methods": self.list_methods})

    def do_POST(self) -> None:
        """A question: the image is the body, the rest stands in the address."""
        self.respond({"/ask": self.ask})

    def respond(self, routes: dict[str, Any]) -> None:
        """Check who asks, run the route, and turn every error into a status and a line."""
        try:
            self.check_origin()
            path = urlsplit(self.path).path
            if path not in routes:
                raise RequestError(HTTPStatus.NOT_FOUND, f"no {self.command} {path[:80]} here")
            routes[path]()
        except RequestError as error:
            self.send_json({"error": str(error)}, error.status)
        except (SampleError, ReductionError, ValueError) as error:
            self.send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (ConnectionError, TimeoutError) as error:
            logger.info("the client went away: %s", error)
        except Exception:  # the page must say that something broke, and the console what
            logger.error("%s failed\n%s", self.told_path(), self.without_question(traceback.format_exc()))
            self.send_json({"error": "this failed; the console shows why"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def check_origin(self) -> None:
        """Refuse requests that other sites make a browser send: a name of theirs that leads here, or a form of theirs."""
        refused = self.server.doors.refusal(self.headers.get("Host", ""), self.headers.get("Origin"))
        if refused is not None:
            raise RequestError(HTTPStatus.FORBIDDEN, f"{refused}; open {self.server.address}")

    def page(self) -> None:
        """The page; its own script and style may run, nothing else."""
        nonce = secrets.token_urlsafe(16)
        body = PAGE.read_text("utf-8").replace("{nonce}", nonce).encode()
        policy = f"default-src 'none'; connect-src 'self'; img-src data: blob:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        policy += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        self.send_body(body, "text/html; charset=utf-8", HTTPStatus.OK, {"Content-Security-Policy": policy})

    def list_methods(self) -> None:
        """Names with their settings, and which one to begin with."""
        methods = {name: json.dumps(block) for name, block in self.server.methods.read().items()}
        self.send_json({"methods": methods, "chosen": self.server.chosen, "max_bytes": MAX_BYTES})

    def ask(self) -> None:
        """Answer a question about the image in the body."""
        asked = self.read_fields()
        body = self.read_image_bytes()
        self.server.has_read()
        image = decode_image(io.BytesIO(body), "the uploaded file")
        block = self.server.methods.find(asked["method"])
        if asked["budget"]:
            block = with_budget(block, whole_number("budget", asked["budget"], self.server.model.most))
        new_tokens = whole_number("new_tokens", asked["new_tokens"] or "64", MAX_NEW_TOKENS)
        answer = self.server.model.answer(image, asked["question"], block, new_tokens)
        self.send_json(describe(answer, block))

    def read_fields(self) -> dict[str, str]:
        """The form's fields, each at most once."""
        given = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        unknown = sorted(set(given) - set(FIELDS))
        if unknown or any(len(values) > 1 for values in given.values()):
            raise RequestError(
                HTTPStatus.BAD_REQUEST, f"fields are {', '.join(FIELDS)}, each once; not {', '.join(given)[:80]}"
            )
        fields = {name: given.get(name, [""])[0].strip() for name in FIELDS}
        if not fields["question"] or len(fields["question"]) > MAX_QUESTION:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"a question has 1 to {MAX_QUESTION} characters")
        fields["method"] = fields["method"] or self.server.chosen
        return fields

    def read_image_bytes(self) -> bytes:
        """The body, whose size is known, and small enough, before any of it is read."""
        kind = self.headers.get_content_type()
        if not kind.startswith("image/"):  # a type that another site's form cannot send
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is {kind}; send an image as image/...")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the size of the image has to be said (Content-Length)")
        if int(length) > MAX_BYTES:
            self.unread = min(int(length), DISCARDED)
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the image has {length[:20]} bytes; at most {MAX_BYTES} are accepted",
            )
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the image was cut off after {len(body)} of {length} bytes")
        return body

    def send_json(self, content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        """One JSON object."""
        self.send_body(json.dumps(content).encode(), "application/json", status, {})

    def send_body(self, body: bytes, kind: str, status: HTTPStatus, headers: dict[str, str]) -> None:
        """A response that is not stored, sniffed or framed; the connection ends with it, read body or not."""
        self.close_connection = True
        self.send_response(status)
        common = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **common, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        while self.unread > 0:  # a client that is still sending would not see the answer if the connection broke now
            block = self.rfile.read(min(self.unread, 1 << 16))
            self.unread = self.unread - len(block) if block else 0

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


def whole_number(name: str, text: str, most: int) -> int:
    """A field between 1 and a limit."""
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{name} is a whole number from 1 to {most}, not {text[:20]!r}")
    return int(text)


def describe(answer: Answer, block: dict[str, Any]) -> dict[str, Any]:
    """An answer as JSON, its pictures as data addresses."""
    pictures = []
    for title, picture in answer.pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        pictures.append(
            {"title": title, "source": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
        )
    mean = sum(answer.layers) / len(answer.layers) if answer.layers else float(answer.kept)
    return {
        "answer": answer.text,
        "reduction": block,
        "tokens": {"full": answer.full, "kept": answer.kept, "layers": answer.layers, "mean": round(mean, 2)},
        "seconds": round(answer.seconds, 3),
        "new_tokens": answer.new_tokens,
        "pictures": pictures,
        "untrained": answer.untrained,
    }
