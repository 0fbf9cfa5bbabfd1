"""The jail as a child of a real zygote meets it: a list of attacks, the probe that every worker starts with, and the filter, call by call."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from worker import child, jailed, seccomp, zygote
from worker.syscalls import ALLOWED, ARCHITECTURES
from worker.zygote import Limits, Zygote

PROBE = """
import json, os, sys
from worker import jailed
if os.getuid() == 0 and sys.argv[1] == "nobody":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(json.dumps(jailed.probe()))
"""


@pytest.mark.parametrize("user", ["me", "nobody"])
def test_the_probe_holds_with_and_without_privileges(user):
    """In a process of its own: the probe forks, and this one has run torch."""
    done = subprocess.run([sys.executable, "-c", PROBE, user], env=os.environ | {"TMPDIR": "/tmp"}, capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout)
    assert report["holds"] and report["seccomp"] and report["landlock"] >= 3 and report["escaped"] == [], report


def test_every_attack_fails(follow, rooms, tmp_path):
    outside = tmp_path / "elsewhere" / "secret"
    outside.parent.mkdir()
    outside.write_bytes(b"secret")
    ended, told = follow("attack", outside=str(outside))
    assert ended.how == "done", ended
    *escaped, tried = [p["stage"] for p in told]
    assert escaped == []
    assert int(tried.split()[1]) >= (170 if os.uname().machine == "x86_64" else 100)
    assert outside.read_bytes() == b"secret" and (rooms[0] / "given").read_bytes() == b"given"
    assert sorted(p.name for p in rooms[1].iterdir()) == ["mine"] and sorted(p.name for p in rooms[0].iterdir()) == ["given"]


def test_the_attacks_are_real(tmp_path, monkeypatch):
    """Outside the jail they succeed (those that do no harm there): it is the jail that stops them, and not a mistake in the test."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    from entries import attacks

    harmless = (
        "read a file outside", "read it by a relative path", "read its environment", "read its memory map", "list /proc", "list a folder outside",
        "make a symbolic link", "make a hard link to its input", "make a pipe by name", "change a mode", "change its input", "write a file outside",
        "write beside its input", "TCP socket", "UDP socket", "Unix socket", "signal its parent", "own a pipe's signals",
    )  # fmt: skip
    for name in ("in", "out", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"secret")
    (tmp_path / "in" / "given").write_bytes(b"given")
    tried = attacks(tmp_path / "in", tmp_path / "out", {"outside": str(tmp_path / "elsewhere" / "secret")})
    with open(os.devnull) as null:
        tried["own a pipe's signals"] = lambda: fcntl.fcntl(null, fcntl.F_SETOWN, 0)
        for name in harmless:
            with contextlib.suppress(AttributeError):  # what was opened is closed again
                tried[name]().close()


def test_torch_threads_and_late_imports_work_inside(follow):
    ended, told = follow("parallel")
    assert ended.how == "done", ended
    assert told[0]["stage"] == "2 1 True"


def test_cpu_and_threads_have_bounds(follow):
    ended, _ = follow("busy", limits=Limits(4 << 30, 1 << 20, 2, cpu=1))
    assert ended.how == "deadline"
    ended, told = follow("threads", limits=Limits(64 << 30, 1 << 20, 2))
    assert ended.how == "done" and 100 < int(told[0]["stage"]) <= 512 + 4 * os.cpu_count() or os.geteuid() and not jailed.probe()["namespaces"]


def test_what_the_kernel_says_of_a_jailed_process(tmp_path):
    """Another user where it was root, no capability but the one to read, no way to a privilege, the filter."""
    code = "import sys; from pathlib import Path; from worker import jail; print(jail.apply([], [Path(sys.argv[1])], None, None).user, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        user = child.stdout.readline().strip()
        found = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if ":\t" in line)
        child.stdin.close()
    assert (found["NoNewPrivs"], found["Seccomp"], found["CapInh"].strip("0"), found["CapAmb"].strip("0")) == ("1", "2", "", "")
    if user == "another":
        assert {*found["Uid"].split(), *found["Gid"].split()} & {"0"} == set() and found["Groups"].strip() == "" and int(found["CapPrm"], 16) == 4
    else:
        assert int(found["CapPrm"], 16) == 0 and (user == "own") == (os.geteuid() != 0)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can turn into somebody else to try")
def test_every_attack_of_an_ordinary_user_fails():
    """The zygote, the child and their folders are those of `nobody`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        rooms = [Path(folder, name) for name in ("in", "out", "spec.json")]
        rooms[0].mkdir(), rooms[1].mkdir(), (rooms[0] / "given").write_bytes(b"given")
        outside = Path(folder, "secret")
        outside.write_bytes(b"secret")
        rooms[2].write_text(json.dumps({"outside": str(outside)}))
        for path in (Path(folder), outside, *rooms, rooms[0] / "given"):
            os.chown(path, 65534, 65534)
        zygote.PRELOAD["entries:attack"] = ("torch", "worker.__main__", "entries")
        user = Nobody("entries:attack")
        told = []
        try:
            ended = child.run(user, *rooms, Limits(1 << 30, 1 << 20, 2), stop=lambda: False, seconds=120, progress=told.append)
        finally:
            user.close()
        assert ended.how == "done", ended
        assert [p["stage"] for p in told[:-1]] == [] and told[-1]["stage"].startswith("tried")
        assert outside.read_bytes() == b"secret"


class Nobody(Zygote):
    """A zygote without any privilege."""

    program = (
        "-c", f"import importlib, os, sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from worker import jail, zygote; a = sys.argv\n"
        "[importlib.import_module(m) for m in a[3:]]\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); jail._libc.prctl(4, 1, 0, 0, 0)\n"
        "found = [p for p in zygote.installation() if os.access(p, os.R_OK)]; zygote.installation = lambda: found\n"
        "zygote.main(int(a[1]), int(a[2]), *a[3:])",
    )  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is a door of x86_64 alone")
def test_an_x32_call_ends_the_process(follow):
    ended, _ = follow("x32")
    assert ended.how == "crashed" and "code -31" in ended.why  # SIGSYS


def test_no_call_is_both_allowed_and_judged():
    """A call whose arguments are judged must not stand in the list that lets it pass."""
    dangerous = {  # socket, fork, exec, kill, link, symlink, ptrace, mknod, unshare, execveat, io_uring
        "x86_64": {41, 57, 58, 59, 62, 86, 88, 101, 133, 272, 322, 425},
        "aarch64": {33, 36, 37, 97, 117, 129, 198, 221, 281, 425},
    }
    for machine, (_, special) in ARCHITECTURES.items():
        assert not ALLOWED[machine] & (set(special.values()) | dangerous[machine])
        assert len(seccomp.program(machine)) < 4096  # BPF_MAXINSNS


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_judges_arguments_as_it_says(machine):
    """The program itself, run over calls by a small interpreter of classic BPF."""
    audit, special = ARCHITECTURES[machine]
    clone, own, prctl, tgkill, prlimit, ioctl = (special[n] for n in ("clone", "fcntl", "prctl", "tgkill", "prlimit64", "ioctl"))
    program, pid = seccomp.program(machine), os.getpid()
    for number, args, verdict in [
        (clone, (0x00010F00,), "allow"), (clone, (17,), "EPERM"), (clone, (0x40010F00,), "EPERM"), (clone, (0x00011F00,), "EPERM"),
        (ioctl, (0, 0x5401), "allow"), (ioctl, (0, 0x5451), "allow"), (ioctl, (0, 0x5412), "EPERM"), (ioctl, (0, 0x4680), "EPERM"), (special["clone3"], (), "ENOSYS"), (special["openat2"], (), "ENOSYS"),
        (own, (0, 3), "allow"), (own, (0, 8), "EPERM"), (own, (0, 10), "EPERM"), (own, (0, 15), "EPERM"), (own, (0, 1030), "allow"),
        (prctl, (15,), "allow"), (prctl, (1,), "EPERM"), (prctl, (4,), "EPERM"), (prctl, (0x53564D41,), "allow"),
        (tgkill, (pid,), "allow"), (tgkill, (pid + 1,), "EPERM"), (tgkill, (0xFFFFFFFF,), "EPERM"),
        (prlimit, (0, 7, 0), "allow"), (prlimit, (0, 7, 4096), "EPERM"), (prlimit, (0, 7, 1 << 32), "EPERM"), (9999, (), "EPERM"),
        *[(n, (), "allow") for n in ALLOWED[machine]],
    ]:  # fmt: skip
        assert _run(program, audit, number, args) == verdict, (number, args)
    for request, verdict in ((0x5412, "EPERM"), (0x5423, "EPERM"), (0x4680, "allow"), (0x5401, "allow")):  # with devices
        assert _run(seccomp.program(machine, devices=True), audit, ioctl, (0, request)) == verdict
    assert _run(program, 0x40000003, min(ALLOWED[machine]), ()) == "kill"  # another architecture's numbers


def _run(program: list[bytes], audit: int, number: int, args: tuple) -> str:
    data = struct.pack("<IIQ6Q", number, audit, 0, *args, *[0] * (6 - len(args)))
    at = accumulator = 0
    while True:
        code, jt, jf, k = struct.unpack("<HBBI", program[at])
        at += 1
        if code == 0x06:
            return {0x7FFF0000: "allow", 0x80000000: "kill", 0x00050001: "EPERM", 0x00050026: "ENOSYS"}[k]
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += jt if taken else jf
