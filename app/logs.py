"""Logs: one line per record, JSON for machines or text for people, with what the line is about: the request and the job.

    {"time": .., "level": .., "logger": .., "message": .., "part": .., "pid": .., "request_id": .., "job_id": .., "attempt": ..}

`about` says so for everything that its body logs, in this thread and in what the event loop and the thread pool run for it. Nothing of a stranger's ends a
line or moves the cursor; no API key, no address with a query and no body is ever logged.
"""

from __future__ import annotations

import logging
import logging.handlers
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

from app.config import settings

FILE_BYTES, FILES = 20 << 20, 4  # of one log file; how many older ones are kept
QUIET = ("amqp", "asyncio", "botocore", "celery", "httpcore", "httpx", "kombu", "multipart", "urllib3", "uvicorn.access")  # heard from WARNING on
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_job: ContextVar[dict] = ContextVar("job", default={})
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_part = ""


@contextmanager
def about(*, request: str | None = None, **job) -> Iterator[None]:
    """What is logged in the body is about this request and job (`job_id`, `attempt`)."""
    tokens = request_id.set(request or request_id.get()), _job.set(_job.get() | job)
    try:
        yield
    finally:
        request_id.reset(tokens[0])
        _job.reset(tokens[1])


class About(logging.Filter):
    """Puts what a record is about onto it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.part = _part
        if (ident := request_id.get()) is not None:
            record.request_id = ident
        for name, value in _job.get().items():
            setattr(record, name, value)
        return True


class Json(JsonFormatter):
    def __init__(self):
        names = {"levelname": "level", "name": "logger", "process": "pid"}
        super().__init__("%(levelname)s %(name)s %(message)s %(part)s %(process)d", rename_fields=names, json_ensure_ascii=True)

    def add_fields(self, log_data, record, message_dict) -> None:
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        super().add_fields(log_data, record, message_dict)
        log_data.pop("taskName", None)


class Text(logging.Formatter):
    """What follows a record's first line is indented, so that nobody can make a line that looks like a record."""

    def __init__(self):
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = " ".join(f"{name}={getattr(record, name)}" for name in ("request_id", "job_id", "attempt") if hasattr(record, name))
        text = super().format(record) + (f" [{ids}]" if ids and not record.exc_info else "")
        return _CONTROL.sub("\ufffd", text).replace("\n", "\n    ")


def setup(part: str) -> None:
    """Logging of this process, called once at its start: to MODELPRESS_LOG_FILE, which turns over and stays bounded, else to stderr."""
    global _part
    _part = part
    file = settings().log_file
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILES) if file else logging.StreamHandler()
    wanted = settings().log_format or ("text" if file is None and sys.stderr.isatty() else "json")
    handler.setFormatter(Text() if wanted == "text" else Json())
    handler.addFilter(About())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings().log_level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
