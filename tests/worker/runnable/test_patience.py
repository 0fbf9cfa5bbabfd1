"""What takes too long is broken off; what does not is left alone."""

from __future__ import annotations

import time

import pytest

from worker.runnable.patience import patience


def test_a_loop_is_broken_off_though_it_takes_every_error():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="longer than 0 s"), patience(0.2):
        while True:
            try:
                time.sleep(0.001)
            except Exception:  # noqa: S110
                pass
    assert time.monotonic() - started < 10


def test_what_is_done_in_time_is_not():
    with patience(0.1):
        pass
    with pytest.raises(KeyError), patience(0.1):
        raise KeyError
    time.sleep(0.3)
