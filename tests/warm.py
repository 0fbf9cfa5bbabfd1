"""Programs of the service without the wait for their imports: a process that has imported their libraries, and none of our code, forks each of them.

    tests ── SOCK_SEQPACKET ── warm process ── fork ──> python -m MODULE (its own pid, environment, folder and output)
      └────────────────── pipe: how it ended ──────────────────┘

Our own modules are imported in the fork: they read their settings while they are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from app.parent import die_with_parent, tied

LIBRARIES = (
    "alembic.command", "anyio._backends._asyncio", "celery.app.base", "celery.worker.state", "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.serialization", "email_validator", "fastapi", "httpx_sse", "kombu.transport.redis", "limits", "obstore.store", "prometheus_client.openmetrics",
    "psycopg", "pydantic.v1", "pydantic_settings", "pyrage", "pythonjsonlogger.json", "re2", "rich.progress", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm", "sse_starlette", "statistics", "typer", "uvicorn.lifespan.on", "uvicorn.loops.auto", "uvicorn.protocols.http.h11_impl", "yaml", "zstandard",
)  # fmt: skip


class Started:
    """A program under way, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, pipe: int):
        self.pid, self.pipe, self.returncode = pid, pipe, None

    def poll(self, timeout: float | None = 0) -> int | None:
        if self.returncode is None and select.select([self.pipe], [], [], timeout)[0]:
            self.returncode = json.loads(os.read(self.pipe, 100))
            os.close(self.pipe)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _process() -> socket.socket:
    """One for all tests of this process, with which it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], preexec_fn=tied(), cwd=Path(__file__).parents[1])
    return ours


def start(module: str, *arguments: str, env: dict[str, str], stdout, stderr) -> Started:
    """`python -m MODULE ARGUMENTS` in the root of the project. Args: env: all of it; stdout, stderr: open files."""
    reading, writing = os.pipe()
    message = json.dumps({"module": module, "arguments": arguments, "env": env}).encode()
    socket.send_fds(_process(), [message], [writing, stdout.fileno(), stderr.fileno()])
    os.close(writing)
    return Started(json.loads(_process().recv(100)), reading)


def run(module: str, *arguments: str, env: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess:
    """The same to its end, with what it wrote, as text."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = start(module, *arguments, env=env, stdout=out, stderr=err)
        try:
            started.wait(timeout)
        except subprocess.TimeoutExpired:
            started.kill()
            raise
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess([module, *arguments], started.returncode, out.read(), err.read())


def _serve(requests: socket.socket) -> None:
    for library in LIBRARIES:
        if importlib.util.find_spec(library):
            importlib.import_module(library)
    waiting, under_way = select.poll(), {}
    waiting.register(requests, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready in under_way:
                pid, pipe = under_way.pop(ready)
                waiting.unregister(ready)
                os.close(ready)
                os.write(pipe, json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
                os.close(pipe)
                continue
            message, fds, _, _ = socket.recv_fds(requests, 1 << 18, 3)
            if not message:
                return
            parent = os.getpid()
            if not (pid := os.fork()):
                _become(parent, json.loads(message), fds)
            handle = os.pidfd_open(pid)
            under_way[handle] = pid, fds[0]
            waiting.register(handle, select.POLLIN)
            for fd in fds[1:]:
                os.close(fd)
            requests.send(json.dumps(pid).encode())


def _become(parent: int, request: dict, fds: list[int]) -> None:
    """The program, in the fork; returns never."""
    code = 1
    try:
        die_with_parent(parent)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(fds[1], 1)
        os.dup2(fds[2], 2)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = [request["module"], *request["arguments"]]
        sys.path[0] = os.getcwd()
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    _serve(socket.socket(fileno=int(sys.argv[1])))
