"""Times as the API writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def rfc3339(seconds: float | None) -> str | None:
    """Seconds since the epoch as RFC 3339, in UTC with milliseconds."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch.

    Raises:
        ValueError: it is none, or names no moment.
    """
    if not _RFC3339.fullmatch(text):
        raise ValueError(f"{text[:100]!r} is not a time such as 2027-01-31T12:00:00Z")
    try:
        seconds = datetime.fromisoformat(text.upper()).timestamp()
        rfc3339(seconds)  # in UTC it may lie beyond the years that can be written
        return seconds
    except (ValueError, OverflowError) as e:
        raise ValueError(f"{text[:100]!r} names no moment: {e}") from None
