"""A report as JSON, or as a page for browsers. What stands in it came from a stranger's file, so the page escapes everything and runs nothing."""

from __future__ import annotations

import json
from html import escape

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response

from app.serve import send_blob
from app.storage import Storage
from app.verified import verified

MAX_PAGE = 8 << 20  # bytes of JSON that are made a page of; what is larger is sent as it is
ROWS = 2000
COLUMNS = ("name", "action", "reason", "dtype", "shape", "bytes_before", "bytes_after", "relative_error", "sqnr_db", "cosine", "sparsity")
STYLE = "body{font:14px system-ui;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:2px 8px;text-align:left}"


async def send_report(request: Request, storage: Storage, sha256: str, size: int) -> Response:
    if size > MAX_PAGE or not _wants_html(request.headers.get("accept", "")):
        response = await send_blob(request, storage, sha256, size, None, "application/json")
        response.headers["Vary"] = "Accept"
        return response
    text = b"".join([piece async for piece in verified(storage, sha256, size, 0, size)])
    page = await run_in_threadpool(_page, json.loads(text))
    return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'", "Vary": "Accept"})


def _wants_html(accept: str) -> bool:
    """Browsers name text/html; whoever names JSON, or does not care, gets that."""
    return "text/html" in accept and "application/json" not in accept


def _cell(value: object) -> str:
    return "" if value is None else escape(f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value))


def _table(head: tuple[str, ...] | list[str], rows: list[list]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{_cell(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table>"


def _columns(rows: list[dict]) -> tuple[str, ...]:
    """Of rows that are no tensors: what any of the first has, their lists and objects left to the JSON."""
    return tuple(dict.fromkeys(k for r in rows[:ROWS] for k, v in r.items() if not isinstance(v, (list, dict))))


def _page(report: dict) -> str:
    what, rows = ("tensors", report.get("tensors") or []) if "rows" not in report else (str(report.get("kind")), [r for r in report["rows"] if isinstance(r, dict)])
    columns = COLUMNS if what == "tensors" else _columns(rows)
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title><style>{STYLE}</style><h1>Report</h1>']
    for name in ("totals", "gates", "next", "quality", "search", "recipe", "output", "load_proof", "environment"):
        if isinstance(report.get(name), dict) and report[name]:
            parts.append(f"<h2>{name}</h2>" + _table(["", "value"], [[k, v] for k, v in report[name].items()]))
    parts.append(f"<h2>{escape(what)} ({len(rows)})</h2>" + _table(columns, [[r.get(c) for c in columns] for r in rows[:ROWS]]))
    if len(rows) > ROWS:
        parts.append(f"<p>The first {ROWS}; all are in the JSON.</p>")
    return "".join(parts)
