"""Digests of chunks: however the bytes come in pieces, and whichever part is asked for."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from app import chunks

SMALL = 64  # bytes of a chunk, in the place of 4 MiB


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=5 * SMALL), cuts=st.lists(st.integers(0, 5 * SMALL), max_size=6), copied=st.booleans())
def test_digests_of_all_and_of_each_chunk(data, cuts, copied):
    before, chunks.CHUNK = chunks.CHUNK, SMALL
    try:
        digest, at = chunks.Chunked(), 0
        for cut in sorted({min(c, len(data)) for c in cuts} | {len(data)}):
            digest.update(data[at:cut])
            digest, at = digest.copy() if copied else digest, cut
        each = [hashlib.sha256(data[i : i + SMALL]).digest() for i in range(0, len(data), SMALL)]
        assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
        assert digest.chunks() == (b"".join(each) if len(each) > 1 else None)
        for start in range(0, 3):
            parts = [*chunks.parted(data, start * SMALL + 7)]
            assert b"".join(parts) == data and all(len(p) <= SMALL for p in parts)
    finally:
        chunks.CHUNK = before
