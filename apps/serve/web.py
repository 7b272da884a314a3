"""A small HTTP server for the page: standard library alone, and distrustful of whoever connects.

One request per connection. A connection has a deadline and a budget of bytes, there is a bound on how many are open,
and nothing that a client says becomes a path: the page's few files are read once, at start.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import ipaddress
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from apps.runtime import BundleError
from apps.serve.models import MOST_SECONDS, BusyError, Models

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEAD_BYTES = 80_000
_LINGER_S = 2.0
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Cache-Control": "no-store",
    "Connection": "close",
}


@dataclass(frozen=True)
class Limits:
    """What one client may take.

    Attributes:
        body_bytes: of an upload.
        request_s: from connecting to the last byte of the request, and again for sending the answer.
        wait_s: for others' inferences to end.
        connections: at once; more are turned away.
    """

    body_bytes: int = 8 << 20
    request_s: float = 15.0
    wait_s: float = 20.0
    connections: int = 16


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        names: hosts besides addresses and ``localhost`` that a browser may have been told; all others are somebody
            else's name for this machine (DNS rebinding).
        token: asked of every call of the API; empty for none.
    """

    names: frozenset[str] = field(default_factory=frozenset)
    token: str = ""

    def knows(self, host: str) -> bool:
        """Whether ``host``, as in a ``Host`` header, is this server by a name that nobody else can own."""
        name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdigit() else host
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name.lower() in {"localhost", *self.names}
        return True

    def admits(self, authorization: str) -> bool:
        """Whether an ``Authorization`` header holds the token, compared in constant time."""
        given = authorization.removeprefix("Bearer ").encode("utf-8", "surrogateescape")
        return not self.token or hmac.compare_digest(given, self.token.encode())


class RefusedError(Exception):
    """A request that gets no answer but ``status`` and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves the page and its API at ``host:port`` (0: any free one), see ``serve_forever`` and ``url``.

    Args:
        tell: called with a record of every request.

    Raises:
        OSError: the address is taken, or none of this machine's.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False  # a second server on the same port would take every other request
    request_queue_size = 32

    def __init__(
        self,
        address: tuple[str, int],
        models: Models,
        access: Access,
        limits: Limits | None = None,
        tell: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        self.models, self.access, self.tell = models, access, tell
        self.limits = limits or Limits()
        self.assets = _assets()
        self._slots = threading.BoundedSemaphore(self.limits.connections)
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Binds, without asking a name server who this is."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.server_name, self.server_name)
        return f"http://{f'[{host}]' if ':' in host.strip('[]') and host[0] != '[' else host}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        request.settimeout(1.0)
        with contextlib.suppress(OSError):  # gone already
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away or fall silent are no errors of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class _Patience(io.RawIOBase):
    """A socket to read from until a deadline, and no more bytes than ``left``."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._until, self.left = connection, time.monotonic() + seconds, _HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(seconds)
        got = self._connection.recv_into(buffer, min(len(buffer), max(0, self.left)) or 1)
        self.left -= got
        if self.left < 0:
            raise TimeoutError
        return got


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mst-edge", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._begin, self._said = time.perf_counter_ns(), (0, 0)
        self._patience = _Patience(self.connection, self.server.limits.request_s)
        self.rfile = io.BufferedReader(self._patience)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, route: Callable[[str, Mapping[str, list[str]]], tuple[str, bytes]]) -> None:
        unread = self.command == "POST"
        try:
            path, query = self._target()
            content_type, body = route(path, query)
            status, unread = HTTPStatus.OK, False
        except RefusedError as error:
            status, content_type, body = error.status, "application/json", _json({"error": str(error)})
        except BundleError as error:
            status, content_type = HTTPStatus.UNPROCESSABLE_ENTITY, "application/json"
            body = _json({"error": str(error)})
        except BusyError:
            status, content_type = HTTPStatus.SERVICE_UNAVAILABLE, "application/json"
            body = _json({"error": "others are being answered: try again"})
        except OSError:
            self.close_connection = True
            return
        except Exception:
            traceback.print_exc()
            status, content_type = HTTPStatus.INTERNAL_SERVER_ERROR, "application/json"
            body = _json({"error": "a bug of ours: its traceback is where the server was started"})
        self._send(status, content_type, body)
        if unread:
            self._let_it_read()

    def _target(self) -> tuple[str, Mapping[str, list[str]]]:
        """Path and query, of a request to this server by a name of its own."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "one Host header is needed")
        if not self.server.access.knows(hosts[0]):
            raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "this server goes by another name: open it by address")
        try:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query, keep_blank_values=True, max_num_fields=16)
        except ValueError:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "not an address") from None
        if asked.path.startswith("/api/"):
            self._check_who_asks(hosts[0])
        return asked.path, query

    def _check_who_asks(self, host: str) -> None:
        origin = self.headers.get("Origin")
        foreign = origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())
        if foreign or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise RefusedError(HTTPStatus.FORBIDDEN, "asked by a page of somebody else")
        if not self.server.access.admits(self.headers.get("Authorization", "")):
            raise RefusedError(
                HTTPStatus.UNAUTHORIZED, "the token is missing or wrong: open the link as it was printed"
            )

    def _get(self, path: str, query: Mapping[str, list[str]]) -> tuple[str, bytes]:
        if path in self.server.assets:
            return self.server.assets[path]
        if path == "/api/bundles":
            limits = {"body_bytes": self.server.limits.body_bytes, "seconds": MOST_SECONDS}
            return "application/json", _json({**self.server.models.about(), "limits": limits})
        raise RefusedError(*self._elsewhere(path, "/api/predict"))

    def _post(self, path: str, query: Mapping[str, list[str]]) -> tuple[str, bytes]:
        if path != "/api/predict":
            raise RefusedError(*self._elsewhere(path, "/api/bundles", *self.server.assets))
        (kind,), (frame,) = query.get("kind", [""])[:1], query.get("frame", ["0"])[:1]
        kinds = self.server.models.kinds()
        if kind not in kinds or frame not in ("0", "1"):
            known = ", ".join(sorted(kinds))
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"kind must be one of {known}, frame 0 or 1")
        data = self._body()
        said = self.server.models.answer(kind, data, frame=frame == "1", wait_s=self.server.limits.wait_s)
        return "application/json", _json(said)

    @staticmethod
    def _elsewhere(path: str, *others: str) -> tuple[HTTPStatus, str]:
        """Why ``path`` has no answer; it may be there for another method."""
        if path in others:
            return HTTPStatus.METHOD_NOT_ALLOWED, "asked in the wrong way: GET to look, POST to predict"
        return HTTPStatus.NOT_FOUND, "there is nothing of this name"

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") is not None or not lengths:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Content-Length must be one whole number")
        most = self.server.limits.body_bytes
        if len(lengths[0]) > 12 or int(lengths[0]) > most:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"larger than {most / (1 << 20):.0f} MB")
        length = int(lengths[0])
        self._patience.left += length
        try:
            data = self.rfile.read(length)
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the rest of the request did not come") from None
        if len(data) < length:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request ended early")
        return data

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.connection.settimeout(self.server.limits.request_s)
        self.request_version = self.protocol_version  # to what is no request, too, with a head
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "POST" if self.path.startswith("/api/predict") else "GET")
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self._said = (int(status), len(body))

    def _let_it_read(self) -> None:
        """Takes in what the client still sends: closing on unread bytes would cost it our answer."""
        try:
            self.connection.shutdown(socket.SHUT_WR)
            until = time.monotonic() + _LINGER_S
            while (seconds := until - time.monotonic()) > 0:
                self.connection.settimeout(seconds)
                if not self.connection.recv(1 << 16):
                    return
        except OSError:
            return

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself: bad request lines, unknown methods."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(status, "application/json", _json({"error": status.description or status.phrase}))
        self._let_it_read()

    def finish(self) -> None:
        super().finish()
        status, sent = self._said
        if status:
            took_ms = round((time.perf_counter_ns() - self._begin) / 1e6, 3)
            path = getattr(self, "path", "").partition("?")[0][:200]
            record = {"method": self.command or "", "path": path, "status": status, "bytes": sent, "ms": took_ms}
            self.server.tell({"event": "request", "client": self.client_address[0], **record})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the standard library's name)
        """Requests are told by ``finish``."""


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode()


def _assets() -> dict[str, tuple[str, bytes]]:
    """The page's files by path: type and content."""
    found = {}
    for file in (resources.files(__package__) / "assets").iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        found[path] = (_TYPES[file.name.rpartition(".")[2]], file.read_bytes())
    return found
