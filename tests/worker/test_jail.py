"""What a hostile file might make its parser do, tried inside; and what the parser needs, allowed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from worker import jail, jailed

ROOT = Path(__file__).parents[2]
PROLOGUE = """
import ctypes, os, resource, signal, socket, sys, threading
from pathlib import Path
from worker import jail
from worker.zygote import installation
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
"""


def attempt(body: str, tmp_path: Path, before: str = "", **limits) -> subprocess.CompletedProcess:
    """Run `body` in a fresh jailed process; `before` runs ahead of the jail."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir(exist_ok=True)
    outside.write_text("secret")
    bounds = {"memory": 1 << 30, "file_bytes": 1 << 20} | limits
    lock = f"got = jail.apply(installation(), [inside], {bounds['memory']}, {bounds['file_bytes']})\nassert got.holds, got\n"
    code = PROLOGUE + textwrap.dedent(before) + lock + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code, inside, outside], cwd=ROOT, capture_output=True, text=True, timeout=60)


REFUSED = {
    "read outside": "outside.read_text()",
    "stat is all it gets of /etc": "open('/etc/passwd').read()",
    "another process's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "its own environment": "open('/proc/self/environ').read()",
    "its memory by name": "open('/proc/self/mem', 'r+b')",
    "write outside": "outside.write_text('x')",
    "write to the installation": "open(jail.__file__, 'a')",
    "truncate outside": "os.truncate(outside, 0)",
    "remove outside": "os.unlink(outside)",
    "rename out": "(inside / 'a').write_text('x'); os.rename(inside / 'a', outside)",
    "a symbolic link": "os.symlink(outside, inside / 'link')",
    "a hard link": "os.link(outside, inside / 'link')",
    "a FIFO": "os.mkfifo(inside / 'fifo')",
    "a mode": "os.chmod(outside, 0o777)",
    "an owner": "os.chown(outside, 1, 1)",
    "a program": "os.execv('/bin/true', ['true'])",
    "a fork": "os.fork()",
    "TCP": "socket.create_connection(('127.0.0.1', 1), 1)",
    "a Unix socket": "socket.socket(socket.AF_UNIX)",
    "a pair of sockets": "socket.socketpair()",
    "its parent's death": "os.kill(os.getppid(), signal.SIGTERM)",
    "a thread of its parent": "assert ctypes.CDLL(None, use_errno=True).syscall(234, os.getppid(), os.getppid(), 0) == 0 or (_ for _ in ()).throw(OSError())",
    "ptrace": "assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 or (_ for _ in ()).throw(OSError())",
    "io_uring": "assert ctypes.CDLL(None).syscall(425, 1, 0) >= 0 or (_ for _ in ()).throw(OSError())",
    "new namespaces": "assert ctypes.CDLL(None).unshare(0x10000000) == 0 or (_ for _ in ()).throw(OSError())",
    "more of a resource": "ctypes.CDLL(None).setrlimit(7, (ctypes.c_ulong * 2)(4096, 4096)) == 0 or (_ for _ in ()).throw(OSError())",
    "forgetting its parent": "assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0 or (_ for _ in ()).throw(OSError())",
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, tmp_path):
    done = attempt(f"try:\n    {REFUSED[what]}\nexcept OSError:\n    sys.exit(7)\n", tmp_path)
    assert done.returncode == 7, done.stderr
    assert (tmp_path / "outside").read_text() == "secret"


def test_bounds_of_memory_and_files(tmp_path):
    done = attempt("try:\n    bytearray(600 << 20)\nexcept MemoryError:\n    sys.exit(7)\n", tmp_path, memory=256 << 20)
    assert done.returncode == 7, done.stderr
    body = "f = open(inside / 'big', 'wb', buffering=0)\ntry:\n    [f.write(bytes(1 << 20)) for _ in range(3)]\nexcept OSError as e:\n    sys.exit(e.errno)\n"
    assert attempt(body, tmp_path).returncode == 27


def test_what_a_parser_needs_is_allowed(tmp_path):
    body = """
        torch.set_num_threads(2)
        x = torch.randn(512, 512)
        threads = [threading.Thread(target=lambda: (x @ x).sum()) for _ in range(3)]
        [t.start() for t in threads], [t.join() for t in threads]
        (inside / "a" ).write_bytes(bytes(1000))
        (inside / "sub").mkdir()
        (inside / "a").rename(inside / "sub" / "b")
        import torch.distributions, zipfile, tempfile
        with tempfile.TemporaryFile(dir=inside) as f:
            f.write(b"x")
        assert (inside / "sub" / "b").stat().st_size == 1000
    """
    done = attempt(body, tmp_path, before="import torch\n", memory=4 << 30)
    assert done.returncode == 0, done.stderr


def test_the_probe_holds_here_and_notices_a_hole(monkeypatch):
    walls = {"namespaces": None, "user": None, "landlock": jail.landlock_abi(), "seccomp": True}
    assert jailed.probe() | {"namespaces": None, "user": None} == walls | {"holds": True, "escaped": []}
    monkeypatch.setattr(jailed, "attempts", lambda outside: {"nothing hard": lambda: os.getpid()})
    assert jailed.probe()["escaped"] == ["nothing hard"] and not jailed.probe()["holds"]
