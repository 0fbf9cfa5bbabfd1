"""The lines that h11 is handed: the same however the bytes arrive, and what is loose is refused."""

from __future__ import annotations

import h11
from hypothesis import given
from hypothesis import strategies as st

from app.wire import Strict

HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\n"
PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"a", b"X: a\r\n", b"Content-Length: 3\r\n", b"content-length:3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"3", b";", b"0\r\n", b"\0"])


def events(pieces: list[bytes]) -> list:
    """What h11 makes of them, with the bodies joined; ends at the first error."""
    conn, found, body = h11.Connection(h11.SERVER, 1 << 16), [], b""
    conn._receive_buffer = Strict()
    for piece in pieces:
        conn.receive_data(piece) if piece else None
        while True:
            try:
                event = conn.next_event()
            except h11.RemoteProtocolError:
                return [*found, body, "refused"]
            if event in (h11.NEED_DATA, h11.PAUSED):
                break
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                found.append((type(event), getattr(event, "headers", None) and list(event.headers)))
    return [*found, body]


@given(st.lists(PIECES, max_size=12).map(b"".join), st.data())
def test_how_the_bytes_arrive_makes_no_difference(rest, data):
    whole = HEAD + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    assert events([whole]) == events([whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]) == events([whole[i : i + 1] for i in range(len(whole))])


@given(st.lists(PIECES, max_size=8).map(b"".join))
def test_a_head_that_passes_has_whole_lines_and_one_length(rest):
    whole = HEAD + rest + b"\r\n\r\n"
    if (found := events([whole]))[0] == b"":
        return
    head = whole[: whole.find(b"\r\n\r\n")]
    lines = head.split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line or line[:1] in (b" ", b"\t") for line in lines)
    assert sum(line.lower().startswith(b"content-length") for line in lines) <= 1 and found[0][0] is h11.Request
