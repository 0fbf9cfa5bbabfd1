"""Requests as bytes, for what no client would send."""

from __future__ import annotations

import socket

CHUNKED = "Transfer-Encoding: chunked"


def raw(api, data: bytes, seconds: float = 5.0) -> bytes:
    """All that comes back until the server closes, or is silent."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=seconds) as s:
        answer = b""
        try:
            s.sendall(data)
        except (ConnectionError, TimeoutError):
            pass
        try:
            while piece := s.recv(1 << 16):
                answer += piece
        except (ConnectionError, TimeoutError):
            pass
    return answer


def request(api, *lines: str | bytes, body: bytes = b"", target: str = "/v1/artifacts?name=a.safetensors", method: str = "POST") -> bytes:
    """Of alice."""
    head = [f"{method} {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {api.keys['alice']}", *lines]
    return b"\r\n".join(x if isinstance(x, bytes) else x.encode("latin-1") for x in head) + b"\r\n\r\n" + body
