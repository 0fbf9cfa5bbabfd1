"""The seccomp filter of the jail: an allow-list of system calls (`syscalls`), some of them judged by their arguments. Source: seccomp(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from worker.syscalls import ALLOWED, ARCHITECTURES, FOR_DEVICES

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NAME, _PR_SET_SECCOMP, _PR_SET_VMA = 15, 22, 0x53564D41
_F_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_CLONE_THREAD, _CLONE_REFUSED = 0x00010000, 0x7E023000  # refused: new namespaces, a tracer, a pidfd
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS (isatty), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_TTY_IOCTLS = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD: never, whatever else a device needs

# Classic BPF over `struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}`.
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH = 0, 4


def _arg(i: int) -> int:
    return 16 + 8 * i


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k & 0xFFFFFFFF)


def program(machine: str, devices: bool = False) -> list[bytes]:
    """Allow what is listed, threads, prctl to name one, and signals to this process; everything else is refused with EPERM.

    Args:
        devices: whether it has devices to speak to, whose ioctls nobody can list; `FOR_DEVICES` are allowed then.
    """
    audit, special = ARCHITECTURES[machine]
    enosys, eperm = _op(_RETURN, _REFUSE | errno.ENOSYS), _op(_RETURN, _REFUSE | errno.EPERM)
    allow = _op(_RETURN, _ALLOW)
    code = [_op(_LOAD, _ARCH), _op(_EQUAL, audit, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NR)]
    if machine == "x86_64":
        code += [_op(_GREATER_EQUAL, 0x40000000, 0, 1), _op(_RETURN, _KILL)]  # the x32 numbers are a second door to the same calls
    for number in sorted(ALLOWED[machine] | (FOR_DEVICES[machine] if devices else frozenset())):
        code += [_op(_EQUAL, number, 0, 1), allow]
    for name in ("clone3", "openat2", "faccessat2"):  # libc falls back on older calls
        code += [_op(_EQUAL, special[name], 0, 1), enosys]
    code += [_op(_EQUAL, special["clone"], 0, 5), _op(_LOAD, _arg(0)), _op(_ANY_BIT, _CLONE_REFUSED, 2, 0), _op(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, eperm]
    code += [_op(_EQUAL, special["tgkill"], 0, 4), _op(_LOAD, _arg(0)), _op(_EQUAL, os.getpid(), 0, 1), allow, eperm]
    code += [_op(_EQUAL, special["prctl"], 0, 5), _op(_LOAD, _arg(0)), _op(_EQUAL, _PR_SET_NAME, 1, 0), _op(_EQUAL, _PR_SET_VMA, 0, 1), allow, eperm]
    listed, otherwise = (_TTY_IOCTLS, allow) if devices else (_IOCTLS, eperm)
    code += [_op(_EQUAL, special["ioctl"], 0, len(listed) + 3), _op(_LOAD, _arg(1))]
    code += [_op(_EQUAL, request, len(listed) - i, 0) for i, request in enumerate(listed)] + [otherwise, eperm if devices else allow]
    code += [_op(_EQUAL, special["fcntl"], 0, 6), _op(_LOAD, _arg(1))]  # not to have the kernel signal another process
    code += [_op(_EQUAL, command, 3 - i, 0) for i, command in enumerate(_F_SIGNALS)] + [allow, eperm]
    null = [_op(_LOAD, _arg(2)), _op(_EQUAL, 0, 0, 3), _op(_LOAD, _arg(2) + 4), _op(_EQUAL, 0, 0, 1)]  # both halves: limits are read, never set
    code += [_op(_EQUAL, special["prlimit64"], 0, 6), *null, allow, eperm]
    return [*code, eperm]


def install(devices: bool) -> bool:
    """Filter this process's calls from now on; it must have no_new_privs. False where this architecture's calls are not known here.

    Raises:
        OSError: the kernel refused.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return False
    code = program(machine, devices)
    buffer = ctypes.create_string_buffer(b"".join(code), 8 * len(code))
    filter_ = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(buffer))
    if _libc.prctl(_PR_SET_SECCOMP, 2, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return True
