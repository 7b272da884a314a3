"""A local web page for bundles: speak, draw, choose or type, and see what each build answers, side by side."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apps.runtime import BundleError
from apps.serve.models import EVERY_BUILD, Models
from apps.serve.web import Access, PageServer

TOKEN_VARIABLE = "MST_EDGE_TOKEN"
_SHORTEST_TOKEN = 16


def main(arguments: list[str]) -> int:
    """``mst-edge app serve BUNDLE...``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mst-edge app serve", description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="folders or zips, shown side by side")
    parser.add_argument(
        "--build",
        action="append",
        default=[],
        metavar="ID",
        help=f"show this build instead of the preferred one; may be repeated; {EVERY_BUILD}: every one",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; beyond this machine with a token")
    parser.add_argument("--port", type=int, default=8765, help="0: any free one")
    parser.add_argument("--json", action="store_true", help="one JSON object per event and request")
    chosen = parser.parse_intermixed_args(arguments)
    token = _token(chosen.host)
    with (
        Models.open(chosen.bundles, chosen.build) as models,
        _listening(chosen.host, chosen.port, models, token, as_json=chosen.json) as server,
    ):
        _ready(server, token, as_json=chosen.json)
        with _ended_by(signal.SIGTERM):
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)
    return 0


def _token(host: str) -> str:
    """What every call of the API must bring: from the environment, else made up where others can reach us.

    Raises:
        BundleError: the environment's can be guessed.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and len(given) < _SHORTEST_TOKEN:
        raise BundleError(f"is shorter than {_SHORTEST_TOKEN} characters", where=TOKEN_VARIABLE)
    return given or ("" if _is_loopback(host) else secrets.token_urlsafe(24))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _listening(host: str, port: int, models: Models, token: str, *, as_json: bool) -> Iterator[PageServer]:
    if not 0 <= port <= 65535:
        raise BundleError(f"must be from 0 to 65535, received {port}", where="--port")
    here = socket.gethostname().lower()
    access = Access(frozenset({host.lower(), here, f"{here}.local"}), token)
    try:
        server = PageServer((host, port), models, access, tell=_print_json if as_json else lambda record: None)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BundleError(f"port {port} is in use", where=host, fix="give another with --port") from None
        raise BundleError(f"cannot listen at port {port} ({error.strerror})", where=host) from None
    with server:
        yield server


def _ready(server: PageServer, token: str, *, as_json: bool) -> None:
    """Tells where the page is. The token stands behind ``#``: browsers keep that part to themselves."""
    url = server.url + (f"#token={token}" if token else "")
    models = server.models.about()["models"]
    if as_json:
        _print_json({"event": "ready", "url": url, "builds": [model["build"] for model in models]})
        return
    for model in models:
        for note in model["notes"]:
            print(f"note: {note}", file=sys.stderr)
        print(f"{model['bundle']}: {model['build']} ({model['kind']}), gate {model['gate']}")
    print(f"open {url}\nCtrl-C stops", flush=True)


def _print_json(record: Mapping[str, Any]) -> None:
    print(json.dumps(record), flush=True)


@contextmanager
def _ended_by(number: signal.Signals) -> Iterator[None]:
    """A signal ends the block as Ctrl-C does."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)
