"""Processes that end with the one that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, sig: int = signal.SIGKILL) -> None:
    """Ask the kernel for `sig` when the thread that started this process ends. For a parent that is gone already, end now.

    Args:
        parent: the parent's process id, taken before the fork.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def tied():
    """A `preexec_fn` that ties a child to the process that calls `tied`."""
    parent = os.getpid()
    return lambda: die_with_parent(parent)
