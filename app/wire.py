"""What h11 lets pass for the sake of old clients, and what two parsers in a row could read in two ways, is refused (RFC 9112, 2.2, 5.2, 6.3, 7.1).

`Strict` takes the place of h11's own buffer, which hands out the lines of a head, of trailers and of chunks: so every request of a connection goes through
it, and the bytes of a body never do. Whatever is wrong is an h11 protocol error: 400, and the end of the connection.

    line     = any bytes but CR, LF    each ends with CR LF; none but the first begins with space or tab
    length   = digits                  one Content-Length in a head, of one number, also where a second one says the same
    chunk    = 1-15 hex digits [; extension of 1,000 bytes without control characters]   sign, 0x, space and longer numbers are none
"""

from __future__ import annotations

import re

from h11 import LocalProtocolError
from h11._receivebuffer import ReceiveBuffer

LOOSE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\n[ \t]")  # a bare line feed, a bare carriage return, a folded line
CHUNK = re.compile(rb"[0-9A-Fa-f]{1,15}(;[\t\x20-\x7e\x80-\xff]{0,1000})?\r\n")
CHUNK_LINE = 15 + 1 + 1000 + 2
LENGTH = b"content-length:"


class Strict(ReceiveBuffer):
    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head or of trailers, without what ends them; None: they are not whole. Each byte is looked at once, as it comes."""
        if self._data[:2] == b"\r\n":
            self._extract(2)
            return []
        searched = max(0, self._multiple_lines_search - 3)
        end = self._data.find(b"\r\n\r\n", searched)
        if LOOSE.search(self._data, max(0, searched - 1), len(self._data) if end < 0 else end + 2):
            raise LocalProtocolError("a line that does not end in CR LF, or goes on in the next")
        if end < 0:
            self._multiple_lines_search = len(self._data)
            return None
        lines = self._extract(end + 4)[:-4].split(b"\r\n")
        lengths = [line for line in lines if line[: len(LENGTH)].lower() == LENGTH]
        if len(lengths) > 1 or any(b"," in line for line in lengths):
            raise LocalProtocolError("more than one Content-Length")
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line that announces a chunk."""
        line = super().maybe_extract_next_line()
        if len(self._data if line is None else line) > CHUNK_LINE or (line is not None and not CHUNK.fullmatch(line)):
            raise LocalProtocolError("no size of a chunk")
        return line
