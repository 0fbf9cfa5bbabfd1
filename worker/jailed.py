"""Proves the jail on this machine: a child locks itself in and tries what must fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from worker import jail
from worker.zygote import installation

_MANY = 2000  # threads


def attempts(outside: Path) -> dict[str, Callable]:
    """What a hostile file might make its parser do. `outside` is a file that the jail does not open."""
    return {
        "read a file outside": lambda: outside.read_bytes(),
        "write a file outside": lambda: outside.write_bytes(b""),
        "list the processes": lambda: os.listdir("/proc"),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "start threads without end": _threads,
        **{f"open a socket of {family.name}": lambda family=family: socket.socket(family) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_NETLINK)},
        "map memory that others see": lambda: os.memfd_create("x"),
        "write to shared memory": lambda: open("/dev/shm/modelpress-jail", "w"),
        "make a link": lambda: os.link(outside, outside.with_name("inside") / "link"),
        "become root": lambda: os.setuid(0),
        "signal its parent": lambda: os.kill(os.getppid(), signal.SIGCONT),
        "change a mode": lambda: os.chmod(outside, 0o777),
    }


def _threads() -> None:
    """As many as it gets; each ends at once it is told to."""
    ended, started = threading.Event(), []
    try:
        for _ in range(_MANY):
            started.append(threading.Thread(target=ended.wait, daemon=True))
            started[-1].start()
    except RuntimeError as e:
        raise OSError(str(e)) from None
    finally:
        ended.set()


def exposed(home: Path) -> Path | None:
    """The folder of the installation, which every child may read, that `home` (database, keys) lies in; None when it lies in none."""
    return next((p for p in installation() if home.resolve().is_relative_to(p.resolve())), None)


def probe() -> dict:
    """Fork, lock in, try.

    Returns:
        what took effect, `holds`, and `escaped`: the attempts that succeeded. A process that is forked here must not have run torch.
    """
    with tempfile.TemporaryDirectory(prefix="modelpress-jail-") as folder:
        outside, inside = Path(folder, "outside"), Path(folder, "inside")
        outside.write_bytes(b"x")
        inside.mkdir()
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.write(writing, json.dumps(_try(inside, outside)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as told:
            data = told.read()
        os.waitpid(pid, 0)
    return json.loads(data) if data else {"holds": False, "error": "the child that tried the jail died"}


def _try(inside: Path, outside: Path) -> dict:
    tried, escaped = attempts(outside), []
    try:
        got = jail.apply([], [inside], 1 << 30, 1 << 20)
    except OSError as e:
        return {"holds": False, "error": str(e)}
    for name, attempt in tried.items():
        try:
            attempt()
        except OSError:
            continue
        escaped.append(name)
    (inside / "allowed").write_bytes(b"x")
    return got.report() | {"escaped": escaped, "holds": got.holds and not escaped}
