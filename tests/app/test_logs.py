"""Lines of a log: one per record whatever is in it, and about what they are."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import logs
from app.config import settings
from app.logs import about


@pytest.fixture(scope="module")
def kept():
    """The root logger as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = before[0], before[1]


def written(formatter: logging.Formatter, message: str, *args, **more) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(logs.About())
    log = logging.Logger("a.logger")
    log.addHandler(handler)
    log.error(message, *args, **more)
    return stream.getvalue()


@given(st.text(max_size=200))
def test_a_record_is_one_line_of_json_that_says_what_was_said(text):
    line = written(logs.Json(), "said %s", text)
    assert line.count("\n") == 1 and line.isascii() and line[:-1].isprintable()
    assert json.loads(line)["message"] == f"said {text}"


@given(st.text(max_size=200))
def test_nobody_makes_a_line_of_text_that_looks_like_a_record(text):
    first, *rest = written(logs.Text(), "said %s", text)[:-1].split("\n")
    assert " ERROR   a.logger: said " in first and all(line.startswith("    ") for line in rest)
    assert not any(ord(c) < 32 and c not in "\t" for line in (first, *rest) for c in line)


def test_a_record_says_what_it_is_about():
    with about(request="r-1", job_id="j"), about(attempt=2):
        inner = json.loads(written(logs.Json(), "x"))
        text = written(logs.Text(), "x")
    outer = json.loads(written(logs.Json(), "x"))
    assert (inner["request_id"], inner["job_id"], inner["attempt"], inner["level"], inner["logger"]) == ("r-1", "j", 2, "ERROR", "a.logger")
    assert inner["time"].endswith("Z") and inner["pid"] > 0 and not {"request_id", "job_id", "attempt", "taskName"} & outer.keys()
    assert text.endswith("a.logger: x [request_id=r-1 job_id=j attempt=2]\n")


def test_an_error_keeps_its_traceback():
    try:
        raise ValueError("bad\n2026-01-01 INFO forged")
    except ValueError:
        line, text = written(logs.Json(), "x", exc_info=True), written(logs.Text(), "x", exc_info=True)
    assert "ValueError: bad" in json.loads(line)["exc_info"] and line.count("\n") == 1
    assert all(part.startswith("    ") for part in text[:-1].split("\n")[1:])


def test_what_one_thread_is_about_another_is_not():
    told = []
    with about(request="mine"):
        thread = threading.Thread(target=lambda: told.append(json.loads(written(logs.Json(), "x"))))
        thread.start()
        thread.join()
    assert "request_id" not in told[0]


def test_a_file_turns_over_and_stays_bounded(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(settings(), "log_file", tmp_path / "api.log")
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    logs.setup("api")
    for n in range(200):
        logging.getLogger("app.x").info("line %s", n)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + logs.FILES and all(f.stat().st_size <= 2000 for f in files)
    last = json.loads((tmp_path / "api.log").read_text().splitlines()[-1])
    assert (last["message"], last["part"]) == ("line 199", "api")


@pytest.mark.parametrize("given, first", [("json", "{"), ("text", "2"), (None, "{")])
def test_the_format_is_chosen(given, first):
    code = "from app import logs; import logging; logs.setup('x'); logging.getLogger('app.x').info('hello')"
    environment = {"MODELPRESS_LOG_FORMAT": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], env={"PATH": "/usr/bin"} | environment, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(first) and "hello" in done.stderr and done.stdout == ""
