"""The jail of the process that parses strangers' files: namespaces, Landlock, a seccomp allow-list, resource limits.

`apply` is called in the child, after its imports and before it opens a file of the job. From then on it can read its input and the Python
installation, write below its output folder, use memory and threads, and nothing else: no network, no other process, no program.

Sources: landlock(7), seccomp(2), user_namespaces(7). Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from worker.syscalls import ALLOWED, ARCHITECTURES

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_NAME, _PR_SET_VMA = 4, 22, 38, 15, 0x53564D41
_F_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_THREAD = 0x08000000, 0x10000000, 0x40000000, 0x00010000

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

    @property
    def holds(self) -> bool:
        """Landlock from ABI 3 on (truncation) and seccomp; namespaces are one more wall where the system lets us build it."""
        return self.landlock >= 3 and self.seccomp

    def report(self) -> dict:
        return asdict(self) | {"holds": self.holds}


def apply(
    read: Iterable[Path], write: Iterable[Path], memory: int | None, file_bytes: int | None, devices: Iterable[Path] = (), open_files: int = 256
) -> Jail:  # fmt: skip
    """Lock this process in, for good.

    Args:
        read, write: files and folders; what does not exist is skipped.
        memory: bytes that the address space may grow by.
        file_bytes: the largest file that may be written.
        devices: files that may be read, written and spoken to (ioctl).

    Raises:
        JailError: a part that the kernel offers could not be put in place.
    """
    os.umask(0o077)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    namespaces = _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0
    _limit(memory, file_bytes, open_files)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    return Jail(namespaces, _landlock(list(read), list(write), list(devices)), _seccomp())


def _limit(memory: int | None, file_bytes: int | None, open_files: int) -> None:
    for which, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, open_files), (resource.RLIMIT_FSIZE, file_bytes)):
        if value is not None:
            resource.setrlimit(which, (value, value))
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


# Classic BPF over `struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}`.
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH = 0, 4


def _arg(i: int) -> int:
    return 16 + 8 * i


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k & 0xFFFFFFFF)


def _program(machine: str) -> list[bytes]:
    """Allow what is listed, threads, prctl to name one, and signals to this process; everything else is refused with EPERM."""
    audit, special = ARCHITECTURES[machine]
    enosys, eperm = _op(_RETURN, _REFUSE | errno.ENOSYS), _op(_RETURN, _REFUSE | errno.EPERM)
    allow = _op(_RETURN, _ALLOW)
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, audit, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NR)]
    if machine == "x86_64":
        code += [_op(_GREATER_EQUAL, 0x40000000, 0, 1), _op(_RETURN, _KILL)]  # the x32 numbers are a second door to the same calls
    for number in sorted(ALLOWED[machine]):
        code += [_op(_EQUAL, number, 0, 1), allow]
    for name in ("clone3", "openat2", "faccessat2"):  # libc falls back on older calls
        code += [_op(_EQUAL, special[name], 0, 1), enosys]
    code += [_op(_EQUAL, special["clone"], 0, 4), _op(_LOAD, _arg(0)), _op(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, eperm]
    code += [_op(_EQUAL, special["tgkill"], 0, 4), _op(_LOAD, _arg(0)), _op(_EQUAL, os.getpid(), 0, 1), allow, eperm]
    code += [_op(_EQUAL, special["prctl"], 0, 5), _op(_LOAD, _arg(0)), _op(_EQUAL, _PR_SET_NAME, 1, 0), _op(_EQUAL, _PR_SET_VMA, 0, 1), allow, eperm]
    code += [_op(_EQUAL, special["fcntl"], 0, 6), _op(_LOAD, _arg(1))]  # not to have the kernel signal another process
    code += [_op(_EQUAL, command, 3 - i, 0) for i, command in enumerate(_F_SIGNALS)] + [allow, eperm]
    null = [_op(_LOAD, _arg(2)), _op(_EQUAL, 0, 0, 3), _op(_LOAD, _arg(2) + 4), _op(_EQUAL, 0, 0, 1)]  # both halves: limits are read, never set
    code += [_op(_EQUAL, special["prlimit64"], 0, 6), *null, allow, eperm]
    return [*code, eperm]


def _seccomp() -> bool:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return False
    code = _program(machine)
    buffer = ctypes.create_string_buffer(b"".join(code), 8 * len(code))
    filter_ = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, filter_, 0, 0), "seccomp")
    return True
