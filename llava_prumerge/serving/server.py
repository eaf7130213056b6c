"""transformers' server with one model of ours behind it, asked by our own prompts, and closed to what is not meant for it."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import transformers.cli.serve
import transformers.cli.serving.model_manager
import transformers.cli.serving.server
from fastapi import HTTPException
from transformers import BatchFeature
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import Modality

from llava_prumerge.data.images import decode_base64
from llava_prumerge.ground.errors import InputError
from llava_prumerge.harness.session import Session
from llava_prumerge.inference.conversations import Part, Turn
from llava_prumerge.viz.doors import Doors

MOST_BYTES = 64 << 20
"""Of a request, its images included."""
EXPECTED = ("add_generation_prompt", "tools", "return_tensors", "return_dict", "tokenize", "load_audio_from_video")
"""What the server tells a processor that turns messages into a model's arguments; more comes from a request."""


class ServedModel(ModelManager):  # type: ignore[misc]
    """In the place of the part of transformers' server that loads models: it has one, which stays.

    Args:
        session: the model with its method.
        **given: what the server gives; `force_model` is the model's name.
    """

    def __init__(self, session: Session, **given: Any) -> None:
        self.session, self.processor = session, ServedProcessor(session)
        super().__init__(**given)

    def load_model_and_processor(self, model_id_and_revision: str, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The model, for its own name alone."""
        if model_id_and_revision != self.process_model_name(self.force_model):
            raise HTTPException(404, f"the model here is {self.force_model!r}")
        return self.session.model, self.processor

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Text and images; our classes are in none of transformers' lists."""
        return Modality.VLM

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """This model; not what lies in this machine's cache."""
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "llava_prumerge"}]

    def shutdown(self) -> None:
        """Nothing: the model stays, whoever asks."""


class ServedProcessor:
    """In the place of a processor: requests become what an evaluation of ours would ask. All else is the tokenizer's.

    The server hands its processor on as a tokenizer, too, where a request names texts that end the answer.

    Args:
        session: the model with its method.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.tokenizer = session, session.processor.tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.tokenizer(*given, **named)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **named: Any) -> BatchFeature:
        """A request's messages as the model takes them.

        Raises:
            HTTPException: 400 with what cannot be asked, such as an image that is an address.
        """
        more = [name for name in named if name not in EXPECTED]
        try:
            conversation = [Turn(one["role"], tuple(map(_read_part, one["content"]))) for one in messages]
            if more or named.get("tools"):
                raise InputError(f"{', '.join(more) or 'tools'}: not offered by this server")
            return BatchFeature(self.session.conversations([conversation]))
        except InputError as error:
            raise HTTPException(400, " ".join(str(error).split())) from error


def _read_part(part: Mapping[str, Any]) -> Part:
    if part["type"] == "text":
        return str(part["text"])
    if part["type"] != "image":
        raise InputError(f"a part of type {part['type']!r}; text and images can be asked about")
    source = str(part["url"])
    if not source.startswith("data:"):
        raise InputError(
            "an image comes inside the request, as data:image/png;base64,...; addresses and paths are not followed"
        )
    return decode_base64(source, "the image")


class Guard:
    """Answers requests by the names of this machine that are small enough, and lets nothing else through.

    Args:
        app: the server, an ASGI application.
        doors: decides by Host and Origin.
        most: bytes of a request.
    """

    def __init__(self, app: Any, doors: Doors, most: int = MOST_BYTES) -> None:
        self.app, self.doors, self.most = app, doors, most

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        length = headers.get("content-length", "0")
        refusal = self.doors.refusal(headers.get("host", ""), headers.get("origin"))
        if scope["type"] != "http" or refusal is not None:
            return await _refuse(send, 403, refusal or "only HTTP")
        if "transfer-encoding" in headers:  # a body of unknown length
            return await _refuse(send, 411, "a request says its length")
        if not length.isdecimal() or int(length) > self.most:
            return await _refuse(send, 413, f"a request may have {self.most:,} bytes")
        return await self.app(scope, receive, send)


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def _in_place_of(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def bindable(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        InputError: it cannot be served.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
            return int(trial.getsockname()[1])
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be served: {error.strerror or error}; see --host and --port") from error


def start(
    session: Session, name: str, host: str, port: int, allowed: tuple[str, ...] = (), background: bool = False
) -> Any:
    """Run transformers' server until it is interrupted, or in a thread.

    Args:
        session: the model with its method.
        name: how requests call the model.
        host, port: where to serve.
        allowed: names of tunnels and proxies that lead here.
        background: in a thread; the server's `kill_server` ends it.
    """
    doors, build = Doors(host, allowed), transformers.cli.serving.server.build_server

    def guarded(*given: Any, **named: Any) -> Any:
        app = build(*given, **named)
        app.add_middleware(Guard, doors=doors)
        return app

    model: Callable[..., ServedModel] = functools.partial(ServedModel, session)
    with (
        _in_place_of(transformers.cli.serving.model_manager, "ModelManager", model),
        _in_place_of(transformers.cli.serving.server, "build_server", guarded),
    ):
        return transformers.cli.serve.Serve(name, host=host, port=port, non_blocking=background)
