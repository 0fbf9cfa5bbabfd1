"""A server that webhooks are sent to: answers as the path says, and keeps what it got."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`/500` answers 500, `/503/7` adds Retry-After: 7, `/302` redirects to /redirected, `/flaky/2` answers 500 twice and then 200, `/slow` answers once the receiver ends,
    `/drip` sends its head a byte at a time, `/flood` an endless body; anything else is 200."""

    port: int
    got: list[Got] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    ended: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def add(self, got: Got) -> int:
        """How many there were for this path before."""
        with self._changed:
            self.got.append(got)
            self._changed.notify_all()
            return sum(g.path == got.path for g in self.got) - 1

    def wait(self, count: int, seconds: float = 30) -> list[Got]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.got) >= count, seconds), f"{len(self.got)} of {count} arrived"
            return list(self.got)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["Content-Length"]))
        earlier = receiver.add(Got(self.path, dict(self.headers.items()), body))
        _, kind, *rest = self.path.split("/")
        if kind == "slow":
            receiver.ended.wait(30)
        if kind == "drip":
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 10_000:
                if receiver.ended.wait(0.05) or self.wfile.write(bytes([byte])) is None:
                    return
        elif kind == "flood":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not receiver.ended.is_set():
                self.wfile.write(b"x" * 65536)
        elif kind == "nonsense":
            self.wfile.write(b"\x00\x01 no HTTP at all\r\n\r\n")
        elif kind == "bomb":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(1000)) + b"\r\n")
        else:
            status = (500 if earlier < int(rest[0]) else 200) if kind == "flaky" else int(kind) if kind.isdigit() else 200
            self.send_response(status)
            if status == 503 and rest:
                self.send_header("Retry-After", rest[0])
            if status == 302:
                self.send_header("Location", "/redirected")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # the sender has hung up

    def log_message(self, *_) -> None:
        pass


@contextmanager
def receiving(wrap=None) -> Iterator[Receiver]:
    """Args: wrap: makes a TLS socket of the listening one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.receiver = receiver = Receiver(server.server_address[1])
    if wrap:
        server.socket = wrap(server.socket)
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    yield receiver
    receiver.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()
