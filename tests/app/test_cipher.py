"""Encrypted objects: any range of any size comes back, and whatever was flipped, cut, swapped or moved is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app.errors import EncryptionKeyMissing, StorageDamaged
from app.storage.cipher import CHUNK, HEADER, TAG, Opening, Sealing, ident_of, plain_size, sealed_size
from app.storage.masters import Masters, new_line

KEY, IDENT = bytes(range(32)), bytes(range(16))
SIZES = st.one_of(st.integers(0, 40), st.builds(lambda n, d: max(0, n * CHUNK + d), st.integers(0, 3), st.integers(-20, 20)), st.integers(0, 3 * CHUNK))


def sealed(data: bytes, cuts: list[int] = (), key: bytes = KEY, ident: bytes = IDENT) -> bytes:
    made, edges = Sealing(key, ident), [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return made.head + b"".join(made.update(data[a:b]) for a, b in zip(edges, edges[1:])) + made.finish()


def read(blob: bytes, start: int, end: int, key: bytes = KEY) -> bytes:
    ident_of(blob[:HEADER])
    opening = Opening(key, blob[:HEADER], len(blob))
    low, high = opening.span(start, min(end, opening.size))
    return opening.open(blob[low:high], start, min(end, opening.size))


@examples(max_examples=150, deadline=None)
@given(SIZES, st.lists(st.integers(0, 3 * CHUNK), max_size=5), st.data())
def test_any_range_of_any_size_comes_back(size, cuts, draw):
    data = os.urandom(size)
    blob = sealed(data, cuts)
    assert len(blob) == sealed_size(size) and plain_size(len(blob)) == size
    start, end = sorted((draw.draw(st.integers(0, size)), draw.draw(st.integers(0, size))))
    assert read(blob, start, end) == data[start:end] and read(blob, 0, size) == data


@examples(max_examples=150, deadline=None)
@given(SIZES, st.data())
def test_whatever_was_changed_is_refused(size, draw):
    data = os.urandom(size)
    blob = bytearray(sealed(data))
    how = draw.draw(st.sampled_from(["flip", "cut", "grow", "swap", "other object", "other key"]))
    key = KEY
    if how == "flip":
        blob[draw.draw(st.integers(0, len(blob) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    elif how == "cut":
        chunk_ends = [HEADER + n * (CHUNK + TAG) for n in range(1, 4) if HEADER + n * (CHUNK + TAG) < len(blob)]
        del blob[draw.draw(st.one_of(st.integers(0, len(blob) - 1), *([st.sampled_from(chunk_ends)] if chunk_ends else []))) :]
    elif how == "grow":
        blob += blob[HEADER : HEADER + draw.draw(st.integers(1, CHUNK + TAG))]
    elif how == "swap":
        assume(size > 2 * CHUNK)
        one, two = HEADER, HEADER + CHUNK + TAG
        blob[one:two], blob[two : two + CHUNK + TAG] = blob[two : two + CHUNK + TAG], blob[one:two]
    elif how == "other object":
        blob[HEADER:] = sealed(data, key=os.urandom(32), ident=os.urandom(16))[HEADER:]
    else:
        key = os.urandom(32)
    with pytest.raises(StorageDamaged):
        read(bytes(blob), 0, max(size, 1), key)


def test_every_master_key_unwraps_and_the_first_one_wraps():
    lines = new_line("old"), (new := new_line("new"))
    old, both = Masters.parse(lines[0]), Masters.parse(f"# comment\n{new};{lines[0]}\n")
    envelope = old.wrap("aa", KEY)
    assert both.unwrap("aa", envelope) == KEY and both.wrapped_by(both.wrap("aa", KEY)) == "new"
    with pytest.raises(EncryptionKeyMissing, match="'old'"):
        Masters.parse(new).unwrap("aa", envelope)
    for ident, wrong in (("bb", old), ("aa", Masters({"old": bytes(32)}))):
        with pytest.raises(EncryptionKeyMissing, match="changed"):
            wrong.unwrap(ident, envelope)
    for text in ("", "a:b", "a:" + "A" * 43 + "=\na:" + "A" * 43 + "=", "a b:" + "A" * 43):
        with pytest.raises(ValueError, match="new-key"):
            Masters.parse(text)
