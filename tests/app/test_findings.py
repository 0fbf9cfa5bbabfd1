"""Checks side by side: what they say, and what is said of those that say nothing."""

from __future__ import annotations

import threading

from app.findings import FAIL, OK, WARN, Finding, Trouble, Watch, find


def raising(error: Exception):
    def check() -> str:
        raise error

    return check


def test_what_a_check_says():
    secret = ConnectionError("postgresql://user:password@host is away\nand more")
    assert find("a", lambda: "fine") == Finding("a", OK, "fine")
    assert find("a", raising(Trouble("do this", WARN))) == Finding("a", WARN, "do this")
    assert find("a", raising(secret)) == Finding("a", FAIL, "ConnectionError")
    assert find("a", raising(secret), frank=True).detail == "ConnectionError: postgresql://user:password@host is away"


def test_one_that_hangs_holds_up_no_other_and_is_begun_once():
    begun, free = [], threading.Event()

    def hangs() -> str:
        begun.append(1)
        free.wait()
        return "back"

    watch = Watch({"a": lambda: "fine", "b": hangs, "c": raising(Trouble("x"))}, seconds=0.2)
    for _ in range(3):
        assert [f.level for f in watch.look()] == [OK, FAIL, FAIL] and len(begun) == 1
    assert "no answer" in watch.look()[1].detail
    free.set()
    while watch.look()[1].level != OK:
        pass
    assert watch.look()[1] == Finding("b", OK, "back")
