"""Who may ask the demo's page, and how long: names it answers to, and limits on slow, endless and many clients."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import socketserver
import threading
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from llava_prumerge.ground.errors import InputError

LOOPBACK = "127.0.0.1"
OWN_NAMES = frozenset({LOOPBACK, "localhost", "::1"})
CLIENTS = 32  # at a time; one more is turned away
READING_SECONDS = 180.0  # until all of a request has come, however steadily it drips

logger = logging.getLogger("llava_prumerge.viz.demo")


def host_name(place: str) -> str | None:
    """The name in a Host header or an origin, in lower case and without its port; None where it is none."""
    try:
        found = urlsplit(place if "://" in place else f"//{place}")
        _ = found.port  # one that is no number is no place
    except ValueError:
        return None
    return found.hostname if not found.username and not found.query and not found.fragment else None


class Doors:
    """Decides by the names in a request's head.

    A page of another site can make a browser send requests here, by a form, or by a name of theirs that leads here. Whoever means
    this page calls it by a name of this machine, by one that `--allow-host` gives, or, where it serves more than this machine, by
    a number. The port is left open: a tunnel or proxy has its own.

    Args:
        host: the address that is served.
        allowed: more names, of tunnels and proxies.
    """

    def __init__(self, host: str = LOOPBACK, allowed: tuple[str, ...] = ()) -> None:
        self.is_open = host not in OWN_NAMES
        self.allowed = frozenset(name.lower() for name in allowed)
        self.names = OWN_NAMES | self.allowed | ({host.lower()} if self.is_open else frozenset())

    def refusal(self, host: str, origin: str | None) -> str | None:
        """Why a request with these headers is not answered, or None."""
        name = host_name(host)
        if name is None or not (name in self.names or (self.is_open and _is_number(name))):
            return f"host {host[:80]!r} is not this page; a name of a tunnel or proxy is given with --allow-host"
        if origin is None:
            return None
        sender = host_name(origin) if origin.startswith(("http://", "https://")) else None
        same = origin.partition("://")[2].lower() == host.lower()
        return (
            None
            if sender is not None and (same or sender in self.allowed)
            else f"requests from {origin[:80]!r} are not answered"
        )


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class GuardedServer(ThreadingHTTPServer):
    """An HTTP server that lets go of clients that send too slowly or without end, and turns away those that are too many."""

    daemon_threads = True
    reading_seconds = READING_SECONDS

    def __init__(self, place: tuple[str, int], handler: Any, clients: int = CLIENTS) -> None:
        self._room = threading.BoundedSemaphore(clients)
        self.ends: dict[int, threading.Timer] = {}  # by thread
        self.asking: dict[int, socket.socket] = {}
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        try:
            super().__init__(place, handler)
        except OSError as error:
            raise InputError(
                f"{place[0]}:{place[1]} cannot be served: {error.strerror or error}; see --host and --port"
            ) from error

    def server_bind(self) -> None:
        """Without the base class's look-up of this host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the client, if there is room."""
        if not self._room.acquire(blocking=False):
            logger.warning("a client was turned away: there are too many")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The client's thread, with an end to how long its request may take to come."""
        self.asking[threading.get_ident()] = request
        self.limit(self.reading_seconds)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.has_read()
            del self.asking[threading.get_ident()]
            self._room.release()

    def limit(self, seconds: float) -> None:
        """Let this thread's client go after so long, in place of an earlier limit."""
        self.has_read()
        end = threading.Timer(seconds, _hang_up, [self.asking[threading.get_ident()]])
        end.daemon = True
        self.ends[threading.get_ident()] = end
        end.start()

    def has_read(self) -> None:
        """All of this thread's request has come: answering it may take its time."""
        if (end := self.ends.pop(threading.get_ident(), None)) is not None:
            end.cancel()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or sent what is no request, is no fault of ours and no traceback."""
        logger.debug("a connection ended early", exc_info=True)


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
