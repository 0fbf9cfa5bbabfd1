"""A bound on how long a library may take over a stranger's numbers: Python that loops as often as a config.json says is broken off."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes, _raise_in.restype = (ctypes.c_ulong, ctypes.py_object), ctypes.c_int


_AGAIN = 2.0  # seconds


class _Stopped(BaseException):
    """No Exception, so that nobody takes it for an error of his own."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """End the block with TimeoutError once it has taken so long. By a thread, for the jail has no timers; a single call into C is not broken off.

    Raises:
        TimeoutError
    """
    thread, lock, state, done = threading.get_ident(), threading.Lock(), {"over": False, "stopped": False}, threading.Event()

    def stop() -> None:
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not state["over"]:
                    state["stopped"] = True
                    _raise_in(thread, _Stopped)
            wait = _AGAIN  # it may have been raised where Python passes exceptions over: in a finalizer, or a callback of the garbage collector

    threading.Thread(target=stop, daemon=True).start()
    try:
        yield
    except _Stopped:
        done.set()
        raise TimeoutError(f"it takes longer than {seconds:.0f} s") from None
    finally:
        done.set()
        with lock:
            state["over"] = True
            if state["stopped"]:
                _raise_in(thread, ctypes.py_object())  # NULL: where the block ended before it was raised
