"""A way to PostgreSQL on which the answer to COMMIT, or the COMMIT itself, is lost. Everything else passes through."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = b"COMMIT\0"


HOW = ("answer lost", "commit lost", "commit late")
LATE = 0.4  # seconds


class Lossy:
    """A proxy on `port` before the server's own. It breaks the connection at `times` COMMITs, once `after` others have passed, of transactions that
    have said `having`:

    answer lost     the server has carried it out, and nobody hears of it
    commit lost     it never reaches the server, which rolls back
    commit late     the client's connection breaks at once, and the server carries it out while the client is trying again
    """

    def __init__(self, server: int):
        self.server = server
        self.spoil("answer lost", times=0)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def spoil(self, how: str, after: int = 0, times: int = 1, having: str = "") -> None:
        self.how, self.after, self.times, self.having = how, after, times, having.encode()

    def _spoilt(self, said: bytes) -> bool:
        """Whether the COMMIT that has just come is one to be lost."""
        if self.having not in said:
            return False
        if self.after > 0 or self.times == 0:
            self.after -= self.after > 0
            return False
        self.times -= 1
        return True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.server))
            except OSError:
                client.close()
                continue
            cut = threading.Event()  # from now on nothing of the server's reaches the client
            threading.Thread(target=self._asks, args=(client, server, cut), daemon=True).start()
            threading.Thread(target=self._answers, args=(client, server, cut), daemon=True).start()

    def _asks(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        said = b""  # since the last COMMIT
        while data := _received(client):
            said += data
            ends = COMMIT in data
            if ends and self._spoilt(said):
                cut.set()
                if self.how == "commit lost":
                    break
                if self.how == "commit late":
                    _close(client)
                    time.sleep(LATE)
                _sent(server, data)
                return  # the server's answer ends it
            said = b"" if ends else said
            _sent(server, data)
        _close(server)

    def _answers(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        while (data := _received(server)) and not cut.is_set():
            _sent(client, data)
        _close(client)
        _close(server)


def _received(s: socket.socket) -> bytes:
    try:
        return s.recv(1 << 16)
    except OSError:
        return b""


def _sent(s: socket.socket, data: bytes) -> None:
    try:
        s.sendall(data)
    except OSError:
        pass  # the other direction finds out


def _close(s: socket.socket) -> None:
    try:
        s.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    s.close()


@contextmanager
def lossy(server: int) -> Iterator[Lossy]:
    """Args: server: the port of the real one."""
    made = Lossy(server)
    try:
        yield made
    finally:
        made.listener.close()
