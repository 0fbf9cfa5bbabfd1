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


def test_one_that_is_passed_over_is_followed_by_another(monkeypatch):
    """As exceptions in finalizers are."""
    monkeypatch.setattr("worker.runnable.patience._AGAIN", 0.1)
    passed_over = []
    with pytest.raises(TimeoutError), patience(0.1):
        while True:
            try:
                time.sleep(0.001)
            except BaseException as e:
                if passed_over:
                    raise
                passed_over.append(e)
    assert len(passed_over) == 1
