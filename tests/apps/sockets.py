"""HTTP as bytes on a socket: what a client library would refuse to send can be sent."""

from __future__ import annotations

import json
import socket


def say(port, raw: bytes, seconds: float = 20) -> bytes:
    """What the server sends for these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(raw)
        said = b""
        while block := connection.recv(1 << 16):
            said += block
    return said


def ask(port, method: str, path: str, body: bytes = b"", **headers: str):
    """Status, headers and JSON (or text) of an answer."""
    lines = {"Host": f"127.0.0.1:{port}", **({"Content-Length": str(len(body))} if method == "POST" else {})}
    lines.update({name.replace("_", "-"): value for name, value in headers.items()})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    said = say(port, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    top, _, content = said.partition(b"\r\n\r\n")
    first, *rest = top.decode().split("\r\n")
    found = dict(line.split(": ", 1) for line in rest)
    answer = json.loads(content) if found["Content-Type"].startswith("application/json") else content.decode()
    return int(first.split()[1]), found, answer
