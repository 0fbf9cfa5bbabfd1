"""What a child may turn out to be: entries that the tests run in the jail. Their answers are progress lines, whose `stage` says something."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import torch

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p


def say(emit, text: str) -> None:
    emit({"event": "progress", "stage": str(text), "fraction": 0.5, "bytes_done": 1, "bytes_total": 2})


def good(inp, out, spec, emit):
    (out / "copy").write_bytes((inp / "given").read_bytes())
    say(emit, spec["seed"])
    emit({"event": "done"})


def parallel(inp, out, spec, emit):
    """Torch on several threads, late imports, and a thread of Python's."""
    x = torch.arange(1 << 20, dtype=torch.float32).reshape(1024, 1024)
    total = float((x @ x.T).sum(dtype=torch.float64))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(1))
    thread.start()
    thread.join()
    import wave  # noqa: F401  nobody has imported it before

    say(emit, f"{torch.get_num_threads()} {len(seen)} {total > 0}")
    emit({"event": "done"})


# How a child may end


def silent(inp, out, spec, emit):
    pass


def segfault(inp, out, spec, emit):
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def raising(inp, out, spec, emit):
    raise LookupError("a bug")


def endless(inp, out, spec, emit):
    while True:
        time.sleep(0.01)


def deaf(inp, out, spec, emit):
    """Closes its pipe and goes on."""
    os.closerange(3, 256)
    endless(inp, out, spec, emit)


def raw(inp, out, spec, emit):
    """Writes the spec's `line` to its pipe, `times`, as it is."""
    pipe = next(fd for fd in range(3, 64) if _is_pipe(fd))
    for _ in range(spec.get("times", 1)):
        data = spec["line"].encode()
        while data:
            data = data[os.write(pipe, data) :]
    if spec.get("stay"):
        endless(inp, out, spec, emit)


def _is_pipe(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    except OSError:
        pass
    try:
        return os.fstat(fd).st_mode & 0o170000 == 0o010000
    except OSError:
        return False


def torch_memory(inp, out, spec, emit):
    from worker.__main__ import run

    run(inp, out, spec, emit, work=lambda *_: torch.empty(spec["bytes"], dtype=torch.uint8))


def mapped_memory(inp, out, spec, emit):
    from worker.__main__ import run

    run(inp, out, spec, emit, work=lambda *_: mmap.mmap(-1, spec["bytes"]))


def python_memory(inp, out, spec, emit):
    from worker.__main__ import run

    run(inp, out, spec, emit, work=lambda *_: bytearray(spec["bytes"]))


def touched_memory(inp, out, spec, emit):
    held = b"x" * spec["bytes"]
    if spec["stay"]:
        time.sleep(60)
    emit({"event": "done", "bytes": len(held)})


def held_memory(inp, out, spec, emit):
    """Has `spec["bytes"]` resident, gives them back, and ends well."""
    _ = b"\1" * spec["bytes"]
    del _
    emit({"event": "done"})


def large_file(inp, out, spec, emit):
    from worker.__main__ import run

    def work(*_):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with (out / "large").open("wb", buffering=0) as f:
            for _ in range(4):
                f.write(bytes(1 << 20))

    run(inp, out, spec, emit, work=work)


# What a child may try


def about(inp, out, spec, emit):
    """What it has: descriptors, session, priority for the kernel's killer, environment."""
    fds = [fd for fd in range(256) if not _fails(lambda fd=fd: os.fstat(fd))]
    say(emit, f"fds {len(fds)} session {os.getsid(0) == os.getpid() if not _fails(lambda: os.getsid(0)) else '-'} env {len(os.environ)}")
    emit({"event": "done"})


def _fails(attempt) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _call(number: int, *args) -> None:
    """A system call by its number; raises OSError."""
    if libc.syscall(number, *[ctypes.c_void_p(a) if isinstance(a, int) else a for a in args]) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _limit_of_parent() -> None:
    """prlimit64 with a pointer whose lower half is 0, as a filter that compares 32 bits would let pass."""
    at = libc.mmap(ctypes.c_void_p(1 << 32), 4096, 3, 0x32 | 0x10, -1, 0)
    ctypes.memmove(at, struct.pack("<QQ", 999, 999), 16)
    _call(_PRLIMIT, os.getppid(), 7, at, 0)


def _clone_process() -> None:
    if libc.syscall(_CLONE, ctypes.c_void_p(signal.SIGCHLD), None, None, None, None) == 0:
        os._exit(0)
    raise OSError(ctypes.get_errno(), "clone")


_X86 = os.uname().machine == "x86_64"
_PRLIMIT, _CLONE = (302, 56) if _X86 else (261, 220)
_NUMBERS = {
    "ptrace": 101, "unshare": 272, "setns": 308, "mount": 165, "bpf": 321, "perf_event_open": 298, "keyctl": 250, "process_vm_readv": 310,
    "process_vm_writev": 311, "userfaultfd": 323, "pidfd_open": 434, "pidfd_getfd": 438, "io_uring_setup": 425, "memfd_create": 319, "execveat": 322,
    "open_by_handle_at": 304, "kexec_load": 246, "init_module": 175, "chroot": 161, "setuid": 105, "personality": 135, "tkill": 200,
    "rt_sigqueueinfo": 129, "clone3": 435, "seccomp": 317, "shmget": 29, "msgget": 68, "semget": 64, "inotify_init1": 294, "fanotify_init": 300,
    "setresuid": 117, "setresgid": 119, "setgroups": 116, "capset": 126, "add_key": 248, "request_key": 249, "sendmsg": 46, "recvmsg": 47, "sendmmsg": 307,
    "move_mount": 429, "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "pivot_root": 155, "umount2": 166, "finit_module": 313, "swapon": 167,
    "sethostname": 170, "acct": 163, "vmsplice": 278, "splice": 275, "mknodat": 259, "linkat": 265, "symlinkat": 266, "fchmodat": 268, "setxattr": 188,
    "kcmp": 312, "process_madvise": 440, "pidfd_send_signal": 424, "rt_tgsigqueueinfo": 297, "memfd_secret": 447, "io_uring_enter": 426, "mq_open": 240,
    "shmat": 30, "name_to_handle_at": 303, "timer_create": 222, "signalfd4": 289, "epoll_create1": 291, "setpgid": 109, "setsid": 112, "vfork": 58,
    "landlock_create_ruleset": 444, "modify_ldt": 154, "iopl": 172, "reboot": 169, "syslog": 103, "sched_setaffinity": 203, "quotactl": 179,
    "unknown": 1000,
} if _X86 else {"pidfd_open": 434, "io_uring_setup": 425, "clone3": 435, "unknown": 1000}  # fmt: skip


def attacks(inp: Path, out: Path, spec: dict) -> dict:
    """Name -> what must fail with an OSError. `spec["outside"]` is a file that exists, is readable, and is none of the job's."""
    outside, parent = spec["outside"], os.getppid()
    (out / "mine").write_bytes(b"mine")
    return {
        "read /etc/passwd": lambda: open("/etc/passwd"),
        "read a file outside": lambda: open(outside),
        "read it by a relative path": lambda: open(out / os.path.relpath(outside, out)),
        "write a file outside": lambda: open(outside, "w"),
        "truncate a file outside": lambda: os.truncate(outside, 0),
        "delete a file outside": lambda: os.unlink(outside),
        "list a folder outside": lambda: os.listdir(os.path.dirname(outside)),
        "list home": lambda: os.listdir(os.path.expanduser("~root")),
        "list /proc": lambda: os.listdir("/proc"),
        "read its environment": lambda: open("/proc/self/environ"),
        "read its memory map": lambda: open("/proc/self/maps"),
        "write its memory by file": lambda: open("/proc/self/mem", "r+b"),
        "read its parent's environment": lambda: open(f"/proc/{parent}/environ"),
        "read its parent's command": lambda: open(f"/proc/{parent}/cmdline"),
        "change its input": lambda: open(inp / "given", "ab"),
        "delete its input": lambda: os.unlink(inp / "given"),
        "rename its input": lambda: os.rename(inp / "given", out / "taken"),
        "write beside its input": lambda: open(inp / "new", "w"),
        "move a file outside": lambda: os.rename(out / "mine", os.path.dirname(outside) + "/moved"),
        "write code": lambda: open(torch.__file__, "ab"),
        "make a symbolic link": lambda: os.symlink("/etc/passwd", out / "link"),
        "make a hard link to its input": lambda: os.link(inp / "given", out / "hard"),
        "make a hard link to a file outside": lambda: os.link(outside, out / "hard"),
        "make a pipe by name": lambda: os.mkfifo(out / "fifo"),
        "change a mode": lambda: os.chmod(out / "mine", 0o4755),
        "change an owner": lambda: os.chown(out / "mine", 1, 1),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "clone a process": _clone_process,
        **{f"socket of family {family}": lambda family=family: socket.socket(family, socket.SOCK_DGRAM) for family in range(1, 46)},
        **{f"open {name}": lambda name=name: open(f"/dev/{name}", "r+b") for name in ("tty", "mem", "kmsg", "fuse", "kvm", "ptmx", "net/tun") if Path("/dev", name).exists()},
        "write to shared memory": lambda: open("/dev/shm/modelpress", "w"),
        "open a file that has no name outside": lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
        "make a hard link to what is its own": lambda: os.link(out / "mine", out / "again"),
        "type into a terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
        "TCP socket": lambda: socket.socket(socket.AF_INET),
        "UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "pair of sockets": socket.socketpair,
        "signal its parent": lambda: os.kill(parent, 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "signal a group": lambda: os.killpg(parent, 0),
        "signal by tgkill": lambda: _call(234 if _X86 else 131, parent, parent, 0),
        "own a pipe's signals": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent),
        "choose a pipe's signal": lambda: fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL),
        "limit its parent": _limit_of_parent,
        "outlive its parent": lambda: _call(157 if _X86 else 167, 1, 0),
        "become dumpable": lambda: _call(157 if _X86 else 167, 4, 1),
        **{f"call {name}": lambda number=number: _call(number, 0, 0, 0, 0, 0) for name, number in _NUMBERS.items()},
    }


def attack(inp, out, spec, emit):
    """Tries them all; says which were not refused."""
    tried = attacks(inp, out, spec)
    for name, attempt in tried.items():
        try:
            attempt()
        except OSError as e:
            if e.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EXDEV):
                continue
            name = f"{name}: {errno.errorcode.get(e.errno, e.errno)}"
        say(emit, f"! {name}")
    say(emit, f"tried {len(tried)}")
    emit({"event": "done"})


def busy(inp, out, spec, emit):
    """Computes without end, on two threads."""
    for _ in range(2):
        threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
    time.sleep(60)


def threads(inp, out, spec, emit):
    """As many threads as it gets."""
    ended, started = threading.Event(), []
    try:
        for _ in range(5000):
            started.append(threading.Thread(target=ended.wait))
            started[-1].start()
    except RuntimeError:
        started.pop()
    ended.set()
    for t in started:
        t.join()
    say(emit, str(len(started)))
    emit({"event": "done"})


def x32(inp, out, spec, emit):
    """A call by its x32 number ends the process."""
    libc.syscall(0x40000000 + 39)
    emit({"event": "done"})
