"""The jail of the process that parses strangers' files: another user, namespaces, Landlock, a seccomp allow-list, resource limits.

`apply` is called in the child, after its imports and before it opens a file of the job. From then on it can read its input and the Python
installation, write below its output folder, use memory and threads, and nothing else: no network, no other process, no program.

| wall | as root | as an ordinary user |
|---|---|---|
| user | one of its own, nobody else's; of root's capabilities only the one to read what Landlock lets it | stays |
| namespaces | network, IPC, host name | the same, in a user namespace, where the system has these for everybody |
| Landlock, seccomp, limits | the same | the same |

There is no PID and no mount namespace: the child can neither start nor signal a process, nor look at one; which files there are for it Landlock says.

Sources: landlock(7), seccomp(2), user_namespaces(7), capabilities(7). Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from worker import seccomp

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 2, 4, 8
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x04000000, 0x08000000, 0x10000000, 0x40000000
_APART = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
_USERS, _NOBODY = 0x70000000, 65534
_CAP_DAC_READ_SEARCH = 1 << 2

_LANDLOCK = {"create": 444, "add": 445, "restrict": 446}  # the same numbers on every architecture
_READ, _READDIR = 1 << 2, 1 << 3
_WRITE, _REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE = 1 << 1, 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 13, 1 << 14
_IOCTL = 1 << 15  # of devices
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # file rights by ABI; later: one more (device ioctls)


class JailError(OSError):
    """The kernel refused a part of the jail. The child must not go on."""


@dataclass(frozen=True)
class Jail:
    """What took effect."""

    namespaces: bool
    landlock: int  # its ABI; 0 where the kernel has none
    seccomp: bool
    user: str  # `another` than root, `own` of whoever is not root, or `root` where that could not be left

    @property
    def holds(self) -> bool:
        """Landlock from ABI 3 on (truncation) and seccomp; namespaces and another user are further walls where the system lets us build them."""
        return self.landlock >= 3 and self.seccomp

    def report(self) -> dict:
        return asdict(self) | {"holds": self.holds}


def apply(
    read: Iterable[Path], write: Iterable[Path], memory: int | None, file_bytes: int | None, devices: Iterable[Path] = (), open_files: int = 256,
    cpu: int | None = None, tasks: int = 512,
) -> Jail:  # fmt: skip
    """Lock this process in, for good. Where it is root, the folders in `write` become those of the user that it turns into.

    Args:
        read, write: files and folders; what does not exist is skipped.
        memory: bytes that the address space may grow by.
        file_bytes: the largest file that may be written.
        devices: files, or folders of them, that may be read, written and spoken to (ioctl).
        cpu: seconds of all threads together; SIGXCPU ends the process.
        tasks: threads, where the user is nobody else's or has a namespace (else they would count with others of his; the memory bounds them, too).

    Raises:
        JailError: a part that the kernel offers could not be put in place.
    """
    os.umask(0o077)
    write, devices = list(write), list(devices)
    namespaces, user = _apart(write)
    _libc.prctl(_PR_SET_DUMPABLE, int(bool(devices)), 0, 0, 0)  # CUDA writes the names of its threads below /proc/self, which is root's where this is 0
    _limit(memory, file_bytes, open_files, cpu, tasks if namespaces or user == "another" else None)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    return Jail(namespaces, _landlock(list(read), write, devices), seccomp.install(bool(devices)), user)


def _apart(write: list[Path]) -> tuple[bool, str]:
    """Namespaces and another user, as far as they are to be had; no capability but the one to read. Returns whether there are namespaces, and `Jail.user`."""
    if os.geteuid():
        namespaces, user = _libc.unshare(_CLONE_NEWUSER | _APART) == 0, "own"
    else:
        namespaces = _libc.unshare(_APART) == 0
        user = "another" if _capabilities() & _CAP_DAC_READ_SEARCH and _become_another(write) else "root"
        namespaces = namespaces or (user == "root" and _libc.unshare(_CLONE_NEWUSER | _APART) == 0)
    kept = _CAP_DAC_READ_SEARCH if user == "another" else 0
    header, sets = struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", kept, kept, 0, 0, 0, 0)
    _check(_libc.capset(header, sets), "capset")
    return namespaces, user


def _capabilities() -> int:
    """The permitted ones of this process."""
    return next(int(line.split()[1], 16) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm:"))


def _become_another(write: list[Path]) -> bool:
    """Turn from root into a user who is nobody else: not even another child's. Where so high a number is none (a container's), into `nobody`."""
    parent, signal_at_its_end = os.getppid(), ctypes.c_int()
    _libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(signal_at_its_end), 0, 0, 0)
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    for user in (_USERS + os.getpid(), _NOBODY):
        with contextlib.suppress(OSError):
            for path in write:
                os.chown(path, user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            _libc.prctl(_PR_SET_PDEATHSIG, signal_at_its_end, 0, 0, 0)  # the kernel forgets it when the user changes
            if os.getppid() != parent:
                os._exit(1)
            return True
    return False


def _limit(memory: int | None, file_bytes: int | None, open_files: int, cpu: int | None, tasks: int | None) -> None:
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: open_files, resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_CPU: cpu, resource.RLIMIT_NPROC: tasks}
    for which, value in bounds.items():
        if value is not None:
            resource.setrlimit(which, (value, value + (which == resource.RLIMIT_CPU)))  # at the harder one of CPU the kernel says no more than SIGKILL
    if memory is not None:  # torch maps gigabytes that it never touches: bound the growth, not the whole
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


def _check(result: int, what: str) -> int:
    if result < 0:
        raise JailError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_abi() -> int:
    """0 where the kernel has no Landlock."""
    return max(0, _libc.syscall(_LANDLOCK["create"], None, 0, 1))


def _landlock(read: list[Path], write: list[Path], devices: list[Path]) -> int:
    """Allow `read`, `write` and `devices`, and nothing else of the file system; no TCP (ABI 4), no signals or abstract sockets outwards (ABI 6)."""
    if (abi := landlock_abi()) < 1:
        return 0
    handled = _HANDLED.get(abi, (1 << 16) - 1)
    attributes = struct.pack("<QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = _check(_libc.syscall(_LANDLOCK["create"], attributes, len(attributes), 0), "landlock_create_ruleset")
    changes = _WRITE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
    for paths, rights in ((read, _READ | _READDIR), (write, _READ | _READDIR | changes), (devices, _READ | _WRITE | _IOCTL)):
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            allowed = rights & handled if path.is_dir() else rights & handled & (_READ | _WRITE | _TRUNCATE | _IOCTL)
            _check(_libc.syscall(_LANDLOCK["add"], rules, 1, struct.pack("<Qi", allowed, fd), 0), f"landlock_add_rule {path}")
            os.close(fd)
    _check(_libc.syscall(_LANDLOCK["restrict"], rules, 0), "landlock_restrict_self")
    os.close(rules)
    return abi
