"""The one safetensors header parser: what it accepts is what the public library reads; what it refuses has a reason."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from app.errors import InputRefused
from app.limits import Limits
from app.safetensors_header import BITS, PACKED, parse_safetensors_header

F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def file(header: object, data: int = 16, *, raw: bytes | None = None, pad: bytes = b"") -> bytes:
    text = (json.dumps(header).encode() if raw is None else raw) + pad
    return len(text).to_bytes(8, "little") + text + bytes(data)


def parse(data: bytes, limits: Limits = Limits()):
    return parse_safetensors_header(data, len(data), limits)


def refused(data: bytes, limits: Limits = Limits()) -> str:
    with pytest.raises(InputRefused) as e:
        parse(data, limits)
    return e.value.type


def test_a_plain_file():
    header = parse(file({"__metadata__": {"format": "pt"}, "w": F32}, pad=b"   "))
    assert header.entries == {"w": ("F32", (4,), 0, 16)} and header.metadata == {"format": "pt"}


names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8).filter(
    lambda n: n[0] not in "/\\." and ":" not in n
)
shapes = st.lists(st.integers(0, 5), max_size=4)


@given(
    st.dictionaries(names, st.tuples(st.sampled_from(["F64", "F32", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "C64"]), shapes), min_size=1, max_size=5),
    st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_accepts_what_the_public_library_reads_and_reads_the_same(tensors, random):
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    items = list(header.items())
    random.shuffle(items)
    data = file(dict(items), at)
    assert {n: (e.dtype, list(e.shape)) for n, e in parse(data).entries.items()} == {n: (t["dtype"], list(t["shape"])) for n, t in deserialize(data)}


@given(st.binary(max_size=200) | st.builds(lambda raw, data: file(None, data, raw=b"{" + raw), st.binary(max_size=80), st.integers(0, 40)))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_parsed_or_refused(data):
    try:
        header = parse(data)
    except InputRefused:
        return
    assert header.data_start <= len(data)


@given(st.integers(0, 60), st.sampled_from(list(b'{}[]":,09-.eEtnx \\')))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_refused_or_still_tiles_the_file(at, byte):
    data = bytearray(file({"w": F32}))
    data[8 + at % (len(data) - 24)] = byte
    try:
        header = parse(bytes(data))
    except InputRefused:
        return
    assert sum(e.end - e.begin for e in header.entries.values()) == 16


@pytest.mark.parametrize(
    "entry",
    [
        F32 | {"shape": [True, 4]}, F32 | {"shape": [4.0]}, F32 | {"shape": [-4]}, F32 | {"shape": "4"}, F32 | {"shape": [2**63]},
        F32 | {"shape": [1] * 33 + [4]},
        F32 | {"shape": [2**32, 2**32], "data_offsets": [0, 0]}, F32 | {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]},
        F32 | {"data_offsets": [0, 16, 16]},
        F32 | {"data_offsets": [16, 0]}, F32 | {"data_offsets": [False, 16]}, F32 | {"dtype": "Q9"}, F32 | {"dtype": None}, F32 | {"dtype": []},
        F32 | {"extra": 1}, {}, None, 7,
        {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]},
    ],
)  # fmt: skip
def test_malformed_entries(entry):
    assert refused(file({"w": entry})) == "invalid-safetensors"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "invalid-safetensors"),
        (b'{"w":{"dtype":"F32","dtype":"I32","shape":[4],"data_offsets":[0,16]}}', "invalid-safetensors"),
        (b'{"__metadata__":{"a":1}}', "invalid-safetensors"), (b'{"__metadata__":{"a":"\\ud800"}}', "invalid-safetensors"),
        (b'{"w":NaN}', "invalid-safetensors"),
        (b'{"w":1e400}', "invalid-safetensors"), (b'{"w":' + b"9" * 5000 + b"}", "invalid-safetensors"), (b' {"w":1}', "invalid-safetensors"),
        (b'{"w":1}\n', "invalid-safetensors"),
        (b'{"\xff":1}', "invalid-safetensors"), (b"{" * 100 + b"}", "limit-depth"), (b'{"a":' + b"[" * 100 + b"}", "limit-depth"),
        (b'{"' + b'\\"' * 1000, "invalid-safetensors"),
        (b'{"w":"' + b"[" * 1000 + b'"}', "invalid-safetensors"),
    ],
)  # fmt: skip
def test_malformed_headers(raw, reason):
    assert refused(file(None, raw=raw)) == reason


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../b", "a\\..\\b", "C:\\x", "w\x00", "a\nb", "a\x1bb", "w\u202egnp", "\u200bw", "\ud800"]
)
def test_names_that_are_not_safe(name):
    assert refused(file({name: F32})) == "bad-tensor-name"


@pytest.mark.parametrize("name", ["a.b/c:d", "веса", "..w", "w..", "__import__", "a b", "$(x)"])
def test_names_that_are(name):
    assert list(parse(file({name: F32})).entries) == [name]


def test_limits():
    small = Limits(safetensors_header_bytes=150, tensors=2, tensor_name_chars=5, metadata_bytes=20)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    assert refused(file({"w" * 200: F32}), small) == "limit-header"
    assert refused(file({"w" * 6: F32}), small) == "limit-name"
    assert refused(file({"__metadata__": {"a": "x" * 30}, "w": empty}, 0), small) == "limit-metadata"
    assert refused(file({n: empty for n in "abc"}, 0), Limits(tensors=2)) == "limit-entries"
    assert parse(file({"__metadata__": {"a": "x" * 30, "format": PACKED}, "w": empty}, 0), Limits(metadata_bytes=20)).metadata["format"] == PACKED


@pytest.mark.parametrize(
    ("data", "what"), [(b"", "empty"), (b"1234567", "7 bytes"), (file({"w": F32}, 15), "truncated"), (file({"w": F32}, 17), "no tensor")]
)
def test_sizes_are_named(data, what):
    with pytest.raises(InputRefused, match=what):
        parse(data)


def test_a_header_larger_than_the_file():
    assert refused((2**64 - 1).to_bytes(8, "little") + bytes(100)) == "invalid-safetensors"
    assert refused((200).to_bytes(8, "little") + b"{" + bytes(100)) == "invalid-safetensors"
