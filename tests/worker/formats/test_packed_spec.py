"""A decoder of packed files made from docs/packed.md alone, with numpy, zstandard, json and zlib. It proves that the page is enough."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard

GOLDEN = Path(__file__).parent / "golden"
PAGE = (Path(__file__).parents[3] / "docs" / "packed.md").read_text()
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}


def container(data: bytes) -> tuple[dict[str, bytes], dict]:
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n])
    assert header.pop("__metadata__") == {"format": "modelpress.packed", "version": "1", "index": "modelpress.index"}
    payloads = {name: data[8 + n + e["data_offsets"][0] : 8 + n + e["data_offsets"][1]] for name, e in header.items()}
    index = payloads["modelpress.index"]
    if index[:4] == b"\x28\xb5\x2f\xfd":
        lines = PAGE.split("without the four spaces and the line ends:")[1].strip("\n").split("\n")
        assert all(line.startswith("    ") for line in lines)
        words = zstandard.ZstdCompressionDict("".join(line[4:] for line in lines).encode(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return payloads, json.loads(zstandard.ZstdDecompressor(dict_data=words).decompress(index))
    return payloads, json.loads(payload(index))


def payload(data: bytes) -> bytes:
    """The values of a payload as bytes; a code is one byte."""
    kind, width, log2, _, number, values = struct.unpack_from("<BBBBIQ", data)
    offsets = struct.unpack_from(f"<{number + 1}Q", data, 16)
    sizes = [min(1 << log2, values - (i << log2)) for i in range(number)]
    return b"".join(chunk(data[a:b], kind, width, n) for a, b, n in zip(offsets, offsets[1:], sizes, strict=False))


def chunk(data: bytes, kind: int, w: int, n: int, columns: int = 0) -> bytes:
    codec, planes, zero, escapes, crc = struct.unpack_from("<BBHII", data)
    body = data[12:]
    assert zero == 0 and crc == zlib.crc32(body, zlib.crc32(data[:8]))
    USED["codecs"].add(codec)
    if codec == 0:
        return dense(body, w, n) if kind == 3 else body
    if codec == 1:
        return body * n
    if codec == 4:
        (kept,) = struct.unpack_from("<I", body)
        mask, signs, *rest = table(body[4:], planes)
        if mask[0] == 5:
            mask = 0, np.packbits(np.frombuffer(contexts(mask[1], n, columns), np.uint8), bitorder="little").tobytes()
        return masked(mask, signs, merge(rest, kept, escapes, True), n, kept, w)
    if codec == 3:
        assert kind == 3 and planes == escapes == 0
        return rans(body, w, n)
    if codec == 5:
        assert kind == 3 and planes == escapes == 0
        return contexts(body, n, columns)
    if codec == 6:
        assert kind == 1 and w in (2, 4) and planes == 0
        return scaled(body, w, n, escapes)
    assert codec == 2
    parts = table(body, planes)
    if kind == 3:
        return symbols(plane(parts[0], -(-n // (8 // w)), 0), w, n)
    if planes == 1:
        return plane(parts[0], n * w, 0)
    return merge(parts, n, escapes, kind == 1)


def table(body: bytes, planes: int) -> list[tuple[int, bytes]]:
    out, at = [], 5 * planes
    for i in range(planes):
        coding, size = struct.unpack_from("<BI", body, 5 * i)
        USED["codings"].add(coding)
        out.append((coding, body[at : at + size]))
        at += size
    assert at == len(body)
    return out


def plane(part: tuple[int, bytes], m: int, escapes: int) -> bytes:
    coding, data = part
    if coding == 1:
        return data * m
    if coding == 2:
        data = zstandard.ZstdDecompressor().decompress(data)
    if coding == 3:
        top, f = struct.unpack_from("<BI", data)
        content, escaped = zstandard.ZstdDecompressor().decompress(data[5 : 5 + f]), list(data[5 + f :])
        assert len(escaped) == escapes
        nibbles = [(content[i // 2] >> 4 * (i % 2)) & 15 for i in range(m)]
        USED["escapes"] += escapes
        return bytes(escaped.pop(0) if r == 15 else (top - r) % 256 for r in nibbles)
    if coding == 6:
        return alias(data, m, escapes)
    assert len(data) == m
    return data


def alias(data: bytes, m: int, escapes: int) -> bytes:
    symbol, frequency, (words,) = data[:16], struct.unpack_from("<16H", data, 16), struct.unpack_from("<I", data, 48)
    assert sum(frequency) == 4096 and max(frequency) < 4096 and not symbol[15]
    state, word = list(struct.unpack_from("<64I", data, 52)), list(struct.unpack_from(f"<{words}H", data, 308))
    escaped = list(data[308 + 2 * words :])
    assert len(escaped) == escapes
    left, keeps, other = list(frequency), [256] * 16, list(range(16))
    few, many = [r for r in range(16) if frequency[r] < 256], [r for r in range(16) if frequency[r] >= 256]
    while few and many:
        s, l = few.pop(), many[-1]
        keeps[s], other[s] = left[s], l
        left[l] -= 256 - left[s]
        if left[l] < 256:
            few.append(many.pop())
    rank = [r for b in range(16) for r in [b] * keeps[b] + [other[b]] * (256 - keeps[b])]
    number, seen = [], [0] * 16
    for r in rank:
        number.append(seen[r])
        seen[r] += 1
    assert tuple(seen) == frequency
    word, escaped, out = iter(word), iter(escaped), bytearray()
    for i in range(m):
        x = state[i % 64]
        r = rank[x % 4096]
        x = frequency[r] * (x >> 12) + number[x % 4096]
        state[i % 64] = x << 16 | next(word) if x < 1 << 15 else x
        out.append(next(escaped) if r == 15 else symbol[r])
    assert set(state) == {1 << 15} and next(word, None) is None and next(escaped, None) is None
    USED["escapes"] += escapes
    return bytes(out)


def merge(parts: list[tuple[int, bytes]], n: int, escapes: int, floating: bool) -> bytes:
    p = [np.frombuffer(plane(part, n, escapes if i == 0 else 0), np.uint8).astype(np.uint64) for i, part in enumerate(parts)]
    w = len(p)
    if floating and w > 1:
        t = (p[1] >> 7) << 15 | p[0] << 7 | p[1] & 0x7F
        p[0], p[1] = t >> 8, t & 0xFF
    value = sum(x << np.uint64(8 * (w - 1 - i)) for i, x in enumerate(p))
    return value.astype(f"<u{w}").tobytes()


def masked(mask, signs, kept_values: bytes, n: int, kept: int, w: int) -> bytes:
    if mask[0] == 4:
        where, at = [], 0
        for gap in zstandard.ZstdDecompressor().decompress(mask[1]):
            at += gap
            if gap != 255:
                where.append(at)
                at += 1
    else:
        bits = plane(mask, (n + 7) // 8, 0)
        where = [i for i in range(n) if bits[i // 8] >> (i % 8) & 1]
    assert len(where) == kept
    bits = plane(signs, (n - kept + 7) // 8, 0)
    out, dropped = np.zeros(n, f"<u{w}"), np.setdiff1d(np.arange(n), where)
    for i, at in enumerate(dropped):
        out[at] = (bits[i // 8] >> (i % 8) & 1) << (8 * w - 1)
    out[where] = np.frombuffer(kept_values, f"<u{w}")
    return out.tobytes()


def dense(body: bytes, b: int, n: int) -> bytes:
    stream = int.from_bytes(body, "little")
    return bytes(stream >> (i * b) & ((1 << b) - 1) for i in range(n))


def symbols(body: bytes, b: int, n: int) -> bytes:
    p = 8 // b
    return bytes(body[i // p] >> (i % p * b) & ((1 << b) - 1) for i in range(n))


def scaled(body: bytes, w: int, n: int, escapes: int) -> bytes:
    low, top, depth, zero, columns, phase, a = struct.unpack_from("<BBBBIII", body)
    assert low in ((7, 10) if w == 2 else (7,)) and depth <= 4 and not zero and columns <= n and (phase < columns or phase == columns == a == 0)
    scales = np.frombuffer(zstandard.ZstdDecompressor().decompress(body[16 : 16 + a]) if a else b"", np.int8).astype(int)
    (b,) = struct.unpack_from("<I", body, 16 + a)
    tables = np.frombuffer(zstandard.ZstdDecompressor().decompress(body[20 + a : 20 + a + b]), np.uint8).astype(int)
    frequency = (tables[:512] + 256 * tables[512:]).reshape(2, 16, 16)
    assert set(frequency.sum(axis=2).reshape(-1)) <= {0, 4096}
    rows = -(-(phase + n) // columns) if columns else 0
    assert len(scales) == rows + columns
    contexts = [min(15, max(0, 8 + scales[j // columns] + scales[rows + j % columns])) if columns else 0 for j in range(phase, phase + n)]
    ranks, rest = turns(body[20 + a + b :], contexts, frequency[0])
    leads, rest = turns(rest, ranks, frequency[1])
    escaped, size = iter(rest[:escapes]), -(-n * (1 + low - depth) // 8)
    rests, planes = dense(rest[escapes : escapes + size], 1 + low - depth, n), b"".join(plane(part, n, 0) for part in table(rest[escapes + size :], w - 2))
    USED["escapes"] += escapes
    out = []
    for i in range(n):
        e = next(escaped) if ranks[i] == 15 else top - ranks[i]
        sign, tail = divmod(rests[i], 1 << low - depth)
        t = sign << 15 | e << low | leads[i] << low - depth | tail
        out.append(t << 16 | planes[i] << 8 | planes[n + i] if w == 4 else t)
    assert next(escaped, None) is None
    return np.array(out, f"<u{w}").tobytes()


def turns(data: bytes, contexts: list[int], frequency: np.ndarray) -> tuple[list[int], bytes]:
    (words,) = struct.unpack_from("<I", data)
    x, end = list(struct.unpack_from("<32I", data, 4)), 132 + 2 * words
    word, below, out = iter(np.frombuffer(data[132:end], "<u2").tolist()), np.cumsum(frequency, axis=1), []
    for i, context in enumerate(contexts):
        s = x[i % 32]
        symbol = int(np.searchsorted(below[context], s % 4096, "right"))
        f = int(frequency[context, symbol])
        s = f * (s >> 12) + s % 4096 - int(below[context, symbol]) + f
        x[i % 32] = s << 16 | next(word) if s < 1 << 16 else s
        out.append(symbol)
    assert set(x) == {1 << 16} and next(word, None) is None
    return out, data[end:]


def fp8(code: int) -> float:
    sign, e, m = code >> 7, code >> 3 & 15, code & 7
    return (-1) ** sign * (m / 8 * 2**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7))


def rans(body: bytes, b: int, n: int) -> bytes:
    lanes, size = 1 << body[0], 1 << b
    frequency = struct.unpack_from(f"<{size}H", body, 1)
    below = np.cumsum([0, *frequency])
    states = list(struct.unpack_from(f"<{lanes}I", body, 1 + 2 * size))
    words = list(np.frombuffer(body, "<u2", offset=1 + 2 * size + 4 * lanes))
    out, at = bytearray(), 0
    for i in range(n):
        x = states[i % lanes]
        code = int(np.searchsorted(below, x % 2**14, "right")) - 1
        out.append(code)
        x = frequency[code] * (x >> 14) + x % 2**14 - int(below[code])
        if x < 2**16:
            x, at = x << 16 | int(words[at]), at + 1
        states[i % lanes] = x
    assert set(states) == {2**16} and at == len(words) and below[-1] == 2**14
    return bytes(out)


class Bits:
    """The range coder of section 7."""

    def __init__(self, data: bytes):
        self.data, self.at, self.range, self.value = data + bytes(1 << 16), 4, 2**32 - 1, int.from_bytes((data + bytes(4))[:4], "big")

    def bit(self, p: int) -> int:
        bound = (self.range >> 16) * p
        bit = int(self.value < bound)
        self.range, self.value = (bound, self.value) if bit else (self.range - bound, self.value - bound)
        while self.range < 2**24:
            self.range, self.value, self.at = self.range << 8, self.value << 8 | self.data[self.at], self.at + 1
        return bit


def clip(x: int) -> int:
    return max(-2047, min(2047, x))


class Model:
    """States by context and weights by set, as section 7 has them."""

    def __init__(self, bits: Bits):
        self.bits, self.states, self.weights = bits, {}, {}

    def bit(self, contexts: tuple, chosen: int) -> int:
        keys = list(enumerate(contexts))
        states = [self.states.get(key, (1 << 21, 0)) for key in keys]
        s = [clip(round(256 * np.log((2 * (q >> 10) + 1) / (8191 - 2 * (q >> 10))))) for q, _ in states]
        w = self.weights.setdefault(chosen, [20480] * 3)
        d = clip(sum(a * b for a, b in zip(w, s, strict=True)) >> 16)
        p = round(65536 / (1 + np.exp(-d / 256)))
        bit = self.bits.bit(p)
        for key, (q, k) in zip(keys, states, strict=True):
            self.states[key] = q + ((2**22 * bit - q) * (131072 // (2 * k + 3)) >> 16), min(k + 1, 1023)
        self.weights[chosen] = [a + ((2**16 * bit - p) * b >> 15) for a, b in zip(w, s, strict=True)]
        return bit


def bucket(x: int) -> int:
    return x if x < 2 else 2 * x.bit_length() - 2 + (x >> (x.bit_length() - 2) & 1)


def contexts(body: bytes, n: int, columns: int) -> bytes:
    zero, depth, lag = struct.unpack_from("<BBI", body)
    bits = Bits(body[6:])
    flags, numbers = Model(bits), Model(bits)
    codes = np.full(n, zero, int)
    kept = dict.fromkeys(range(-1, columns + 1), 0)

    def off(j: int) -> int:
        return codes[j] - zero if 0 <= j < n else 0

    def sgn(j: int) -> int:
        return np.sign(off(j))

    for i in range(n):
        r, c = divmod(i, columns)
        held = int(np.count_nonzero(codes[r * columns : i] - zero))
        age = min(15, r.bit_length())
        around = sum(int(sgn(j) != 0) << b for b, j in enumerate((i - 1, i - 2, i - lag, i - 2 * lag, i - lag + 1, i - lag - 1)))
        dense = min(15, bucket(32 * (2 * kept[c] + kept[c - 1] + kept[c + 1]) // (r + 2)))
        if flags.bit(((min(31, kept[c]), age), (bucket(min(4095, held)), 16 * c // columns), (around, dense)), age):
            signs = 2 * sgn(i - 1) + 2 * sgn(i - lag) + sgn(i - 2) + sgn(i - 2 * lag) + sgn(i - lag + 1) + sgn(i - lag - 1)
            sizes = (2 * off(i - 1) + 2 * off(i - lag) + off(i - lag + 1) + off(i - lag - 1)) >> max(0, depth - 3)
            node = 1
            for _ in range(depth):
                node = 2 * node + numbers.bit((node, (signs, node), (max(-32, min(31, sizes)), node)), node)
            v = node - (1 << depth)
            kept[c] += 1
            codes[i] = v + (v >= zero)
    return codes.astype(np.uint8).tobytes()


def bundled(t: dict, data: bytes) -> list[bytes]:
    """The parts of a tensor in the bundle."""
    if "quantized" not in t:
        kind = 2 if t["dtype"][0] in "IUB" and t["dtype"] != "BF16" else 1
        n = int(np.prod(t["shape"], dtype=int))
        columns = int(np.prod(t["shape"][1:] if len(t["shape"]) > 1 else t["shape"], dtype=int))
        return [chunk(data, kind, ITEM[t["dtype"]], n, max(1, columns)) if n else b""]
    q, at, out = t["quantized"], 0, []
    rows, columns = q["rows"], q["columns"]
    kinds = [(1, 1, rows * columns) if q["type"] == "float" else (3, q["num_bits"], rows * columns)]
    beside = q.get("scale_shape") or q["levels_shape"]
    if q["type"] == "grid":
        kinds += grid_parts(q)
    kinds += [(1, ITEM[q.get("scale_dtype") or q["levels_dtype"]], beside[0] * beside[1]), (2, 1, beside[0] * beside[1])]
    for i, (size, (kind, w, n)) in enumerate(zip(q["sections"], kinds, strict=False)):
        out.append(chunk(data[at : at + size], kind, w, n, columns if i == 0 else 0))
        at += size
    return out


def tensors(payloads: dict[str, bytes], index: dict) -> dict[str, bytes]:
    """Every tensor of an index of kind tensors."""
    out, at = {}, 0
    for t in index["tensors"]:
        if "payload" in t:
            out[t["name"]] = tensor(t, payloads[t["payload"]])
            continue
        size = sum(t["quantized"]["sections"]) if "quantized" in t else t["size"]
        out[t["name"]] = tensor(t, payloads[index["bundle"]][at : at + size])
        at += size
    assert at == len(payloads[index["bundle"]] if "bundle" in index else b"")
    return out


def tensor(t: dict, data: bytes) -> bytes:
    if "payload" not in t:
        sections = bundled(t, data)
    elif "quantized" in t:
        ends = np.cumsum([0, *t["quantized"]["sections"]])
        sections = [payload(data[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    else:
        sections = [payload(data)]
    if "quantized" not in t:
        return sections[0]
    q = t["quantized"]
    rows, columns = q["rows"], q["columns"]
    if q["type"] == "codebook":
        return looked_up(q, sections, rows, columns)
    if q["type"] == "grid":
        assert t["dtype"] == "F32"
        value = gridded(q, sections, rows, columns)
        if q.get("inputs"):
            value = value * by_row(q, np.frombuffer(sections.pop(0), np.float16).astype(np.float32).reshape(-1, columns))
        assert not sections
        return placed(q, value.astype(np.float32))
    if q["type"] == "int":
        codes = np.frombuffer(sections[0], np.uint8).astype(np.float32) - (1 << (q["num_bits"] - 1))
    else:
        codes = np.array([fp8(c) for c in sections[0]], np.float32)
    scale = np.frombuffer(sections[1], {"F32": np.float32, "F16": np.float16}[q["scale_dtype"]]).astype(np.float32).reshape(q["scale_shape"])
    zero = np.frombuffer(sections[2], np.int8).astype(np.float32).reshape(q["scale_shape"]) if len(sections) == 3 else np.zeros_like(scale)
    g = np.arange(columns) // q["group_size"]
    scale, zero = by_row(q, scale), by_row(q, zero)
    value = (codes.reshape(rows, columns) - zero[:, g]) * scale[:, g]
    assert t["dtype"] == "F32"
    return placed(q, value.astype(np.float32))


def placed(q: dict, value: np.ndarray) -> bytes:
    if "experts" in q:
        value = value.reshape(q["experts"], q["rows"] // q["experts"], q["columns"])
        return (value.transpose(0, 2, 1) if q.get("transposed") else value).tobytes()
    return (value.T if q.get("transposed") else value).tobytes()


def by_row(q: dict, one: np.ndarray) -> np.ndarray:
    """What there is once for each expert, for each of its rows."""
    return np.repeat(one, q["rows"] // q["experts"], 0) if "experts" in q and len(one) == q["experts"] else one


def grid_parts(q: dict) -> list[tuple[int, int, int]]:
    """(kind, width, values) of what follows the codes."""
    rows, groups = q["scale_shape"]
    one = [(1, ITEM[q["scale_dtype"]], rows * groups)]
    if "scale_bits" in q:
        one = [(3, q["scale_bits"], rows * groups), (1, 2, rows * -(-groups * q["group_size"] // q["shared_by"]))]
    last = [(1, 2, q.get("experts", 1) * q["columns"])] * q.get("inputs", False)
    return [(1, 4, 1 << q["num_bits"])] * q.get("levels", False) + one * (2 if q.get("offset") else 1) + last


def gridded(q: dict, sections: list[bytes], rows: int, columns: int) -> np.ndarray:
    codes = np.frombuffer(sections.pop(0), np.uint8).reshape(rows, columns).astype(np.float32)
    levels = np.frombuffer(sections.pop(0), np.float32) if q.get("levels") else None
    offset, g = q.get("offset", False), np.arange(columns) // q["group_size"]

    def factor() -> np.ndarray:
        if "scale_bits" not in q:
            return by_row(q, np.frombuffer(sections.pop(0), {"F32": np.float32, "F16": np.float16}[q["scale_dtype"]]).astype(np.float32).reshape(q["scale_shape"]))
        u = np.frombuffer(sections.pop(0), np.uint8).astype(np.float32).reshape(q["scale_shape"]) - (0 if offset else 1 << q["scale_bits"] - 1)
        above = np.frombuffer(sections.pop(0), np.float16).astype(np.float32).reshape(len(u), -1)
        h = np.arange(u.shape[1]) // (q["shared_by"] // q["group_size"])
        return by_row(q, above[:, h] * u) * np.float32(2.0 ** q.get("exponent", 0))

    scale = factor()
    if levels is not None:
        return levels[codes.astype(int)] * scale[:, g]
    if not offset:
        return (codes - (1 << q["num_bits"] - 1)) * scale[:, g]
    below = factor()
    value = codes * scale[:, g] - below[:, g]
    if q.get("zero"):
        z = np.clip(np.round(np.divide(below, scale, out=np.zeros_like(below), where=scale != 0)), 0, 2 ** q["num_bits"] - 1)
        value[codes == z[:, g]] = 0
    return value


def looked_up(q: dict, sections: list[bytes], rows: int, columns: int) -> bytes:
    codes = np.frombuffer(sections[0], np.uint8).reshape(rows, columns)
    levels = np.frombuffer(sections[1], {"F32": np.float32, "F16": np.float16}[q["levels_dtype"]]).reshape(q["levels_shape"])
    groups = max(1, -(-columns // q["group_size"]))
    if len(levels) == q.get("experts") != rows * groups:
        levels, groups = by_row(q, levels), 1
    value = np.zeros((rows, columns), np.float32)
    for r in range(rows):
        for c in range(columns):
            value[r, c] = levels[0 if len(levels) == 1 else r * groups + c // q["group_size"], codes[r, c]]
    return placed(q, value)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


USED: dict = {}


@pytest.fixture(autouse=True)
def used():
    USED.update(codecs=set(), codings=set(), escapes=0)


def test_the_golden_files_are_decoded_by_the_page_alone():
    payloads, index = container((GOLDEN / "files.packed.safetensors").read_bytes())
    assert index["kind"] == "files"
    rest, at = payload(payloads[index["rest"]]), 0
    for f in index["files"]:
        out = b""
        for s in f.get("segments", []):
            gap = s["offset"] - len(out)
            part = payload(payloads[s["payload"]])
            assert sha256(part) == EXPECTED["weights"][s["name"]] and len(part) == s["nbytes"] == np.prod(s["shape"], dtype=int) * ITEM[s["dtype"]]
            out += rest[at : at + gap] + part
            at += gap
        gap = f["size"] - len(out)
        out += rest[at : at + gap]
        at += gap
        assert sha256(out) == f["sha256"] == EXPECTED["files"][f["path"]]
    assert at == len(rest)
    assert USED["codecs"] == {0, 1, 2, 4} and USED["codings"] == {0, 1, 2, 3, 4} and USED["escapes"]


def test_the_golden_tensors_are_decoded_by_the_page_alone():
    payloads, index = container((GOLDEN / "tensors.packed.safetensors").read_bytes())
    assert index["kind"] == "tensors" and index["shards"] == [{"path": "model.safetensors"}]
    found = {name: sha256(data) for name, data in tensors(payloads, index).items()}
    found |= {alias: found[name] for alias, name in index["aliases"].items()}
    assert found == EXPECTED["tensors"]
    assert index["steps"][0]["method"] == "quantize"


def test_the_golden_codebooks_are_decoded_by_the_page_alone():
    payloads, index = container((GOLDEN / "codebooks.packed.safetensors").read_bytes())
    assert {name: sha256(data) for name, data in tensors(payloads, index).items()} == EXPECTED["codebooks"]
    assert {3, 5} < USED["codecs"] and 5 in USED["codings"] and index["bundle"] == "modelpress.bundle"
    assert [t["name"] for t in index["tensors"] if "payload" in t] == ["frequent"]


def test_the_golden_grids_are_decoded_by_the_page_alone():
    payloads, index = container((GOLDEN / "grids.packed.safetensors").read_bytes())
    assert {name: sha256(data) for name, data in tensors(payloads, index).items()} == EXPECTED["grids"]
    assert any("payload" in t for t in index["tensors"]) and "bundle" in index


@pytest.mark.parametrize("kind", ["files", "tensors", "codebooks", "grids"])
def test_the_reader_still_reads_them(kind, tmp_path):
    from worker.formats.packed import open_packed, restore_packed
    from worker.formats.packed_parts import tensor_bytes

    path = GOLDEN / f"{kind}.packed.safetensors"
    assert path.stat().st_size < 20_000
    with open_packed(path) as packed:
        expected = EXPECTED["weights" if kind == "files" else kind]
        assert {name: sha256(tensor_bytes(packed.read(name))) for name in packed.names} == {n: h for n, h in expected.items() if n in packed.names}
    digests = restore_packed(path, tmp_path, lambda nbytes: None)["files"]
    assert kind != "files" or digests == EXPECTED["files"]


def written(folder: Path, dense, q) -> tuple[dict[str, bytes], dict]:
    """Payloads and index of a packed file, `folder`/packed, of one tensor."""
    from safetensors.torch import save_file

    from worker.encoded import Encoded
    from worker.formats import open_checkpoint
    from worker.formats.packed import PackedWriter

    save_file({"w": dense}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder, folder)
    writer = PackedWriter(folder / "packed", checkpoint)
    writer.write(Encoded(checkpoint.tensors["w"], "quantized", dense, quantized=q))
    writer.finish()
    return container((folder / "packed").read_bytes())


@pytest.mark.parametrize("strategy, transposed", [("tensor", False), ("channel", True), ("group", False)])
def test_codebooks_are_decoded_by_the_page_alone(tmp_path, strategy, transposed):
    import torch

    from app.recipe import Quantize
    from worker.encoded import Codebook

    torch.manual_seed(3)
    rows, columns = 40, 75
    group_size = 20 if strategy == "group" else columns
    count = {"tensor": 1, "channel": rows, "group": rows * 4}[strategy]
    codes = torch.where(torch.rand(rows, columns) < 0.7, 2, torch.randint(0, 6, (rows, columns))).to(torch.uint8)
    q = Codebook(codes, torch.randn(count, 6).half(), group_size, 3, Quantize(method="quantize", num_bits=3), transposed)
    dense = (q.dequantize().T if transposed else q.dequantize()).contiguous()
    payloads, index = written(tmp_path, dense, q)
    assert tensors(payloads, index)["w"] == dense.numpy().tobytes()
    assert 5 in USED["codecs"]


@pytest.mark.parametrize("fields", [{"scale_bits": 6}, {"scale_bits": 4, "group_size": 16, "symmetric": False}, {"symmetric": False, "zero_point": "float", "strategy": "tensor"}, {"type": "nf"}, {"type": "nf", "scale_bits": 7}])
@pytest.mark.parametrize("sparsity", [0, 0.7])
def test_grids_are_decoded_by_the_page_alone(tmp_path, fields, sparsity):
    import torch
    from safetensors.torch import load_file, save_file

    from worker import pipeline

    w = torch.randn(6, 300, generator=torch.Generator().manual_seed(8)) + 1
    for folder in ("in", "packed", "safetensors"):
        (tmp_path / folder).mkdir()
    save_file({"w.weight": w}, tmp_path / "in" / "model.safetensors")
    steps = [{"method": "prune", "sparsity": sparsity}] * bool(sparsity) + [{"method": "quantize", "num_bits": 3, "scale_search": "mse"} | fields]
    for output in ("packed", "safetensors"):
        spec = {"recipe": {"steps": steps}, "output": {"format": output}, "sanitize": "report", "seed": 0, "gates": {}, "beside": {}}
        pipeline.run(tmp_path / "in", tmp_path / output, spec, lambda event: None)
    expected = load_file(tmp_path / "safetensors" / "files" / "model.safetensors")["w.weight"]
    payloads, index = container((tmp_path / "packed" / "files" / "model.packed.safetensors").read_bytes())
    assert tensors(payloads, index)["w.weight"] == expected.numpy().tobytes()
    assert (expected == 0).sum() >= 6 * int(300 * sparsity) and (expected - w * (expected != 0 if sparsity else 1)).norm() < 0.4 * w.norm()


@pytest.mark.parametrize("fields", [{}, {"scale_bits": 5}, {"symmetric": False, "group_size": 9}, {"type": "nf", "strategy": "tensor"}], ids=str)
@pytest.mark.parametrize("experts", [None, 3])
def test_factors_of_inputs_are_decoded_by_the_page_alone(tmp_path, fields, experts):
    from dataclasses import replace

    import torch

    from app.recipe import Quantize
    from app.strict import validate
    from worker.schemes import assembled, joined, scheme_of

    step = validate(Quantize, {"method": "quantize", "num_bits": 3, "algorithm": "awq"} | fields)
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(8))
    scheme = scheme_of(step, w)
    whole = step.strategy == "tensor"
    alone = replace(scheme, group_size=w.numel() // (experts or 1)) if whole else scheme
    found = [alone.parameters(part) for part in (w.reshape(experts or 1, 1, -1) if whole else w.chunk(experts or 1))]
    codes = torch.cat([scheme.encode_rows(part, p) for part, p in zip(w.chunk(experts or 1), found, strict=True)])
    q = assembled(scheme, scheme.stored(codes), joined(found, 0), step, False, experts, torch.rand(experts or 1, 40) + 0.5)
    dense = q.dequantize().reshape(w.shape if experts is None else (3, 2, 40)).contiguous()
    payloads, index = written(tmp_path, dense, q)
    assert index["tensors"][0]["quantized"]["inputs"] and tensors(payloads, index)["w"] == dense.numpy().tobytes()
    from worker.formats.packed_reader import PackedReader

    with PackedReader(tmp_path / "packed") as packed:
        assert torch.equal(packed.read("w"), dense)


def test_codes_by_their_frequency_are_decoded_by_the_page_alone():
    from worker.kernels.chunks import Layout, encode_chunk

    codes = np.random.default_rng(1).choice(16, 30_000, p=np.r_[3:11, 11:3:-1] / 112).astype(np.uint8)
    assert chunk(encode_chunk(codes, Layout("codes", 4)), 3, 4, len(codes)) == codes.tobytes()
    assert USED["codecs"] == {3}


def test_exponents_by_their_frequency_are_decoded_by_the_page_alone():
    from worker.kernels.chunks import Layout, encode_chunk

    values = np.random.default_rng(2).standard_normal(70_001).astype(np.float32).view(np.uint32)
    values[::999] = 1 << 30
    assert chunk(encode_chunk(values, Layout("float", 4)), 1, 4, len(values)) == values.tobytes()
    assert USED["codings"] == {0, 6} and USED["escapes"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("phase", [0, 17])
def test_scaled_floats_are_decoded_by_the_page_alone(dtype, phase):
    from worker.kernels.chunks import Layout, encode_chunk
    from worker.kernels.scaled import Place

    r = np.random.default_rng(3)
    w = (r.standard_normal((160, 100)) * np.exp(r.standard_normal(100)) * np.exp(r.standard_normal((160, 1)))).reshape(-1)[phase:].astype(np.float32)
    w[::700] *= 1e-7
    values = w.astype(np.float16).view(np.uint16) if dtype == "float16" else w.view(np.uint32)
    values = (values >> 16).astype(np.uint16) if dtype == "bfloat16" else values
    data = encode_chunk(values, Layout("float", values.itemsize), place=Place(100, phase))
    assert data[0] == 6 and struct.unpack_from("<II", data, 16) == (100, phase)
    assert chunk(data, 1, values.itemsize, len(values)) == values.tobytes()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "step", [{"num_bits": 4, "strategy": "tensor", "symmetric": False}, {"num_bits": 3, "type": "nf", "strategy": "tensor"}, {"num_bits": 4, "group_size": 32, "scale_bits": 6}], ids=str
)
def test_experts_are_decoded_by_the_page_alone(tmp_path, step, transposed):
    import torch
    from safetensors.torch import save_file

    from app.recipe import parse_recipe
    from worker.formats import open_checkpoint
    from worker.formats.packed import PackedWriter
    from worker.methods import apply, plan

    torch.manual_seed(3)
    hidden, inner = 48, 20
    shapes = {"m.experts.gate_up_proj": (3, 2 * inner, hidden), "m.experts.down_proj": (3, hidden, inner)}
    save_file({n: torch.randn(s).transpose(1, 2 if transposed else 1).contiguous() for n, s in shapes.items()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path, tmp_path)
    plans = plan(checkpoint, parse_recipe({"steps": [{"method": "quantize"} | step]}), "packed")
    writer = PackedWriter(tmp_path / "packed", checkpoint)
    encoded = [apply(p, checkpoint.read(n)) for n, p in plans.items()]
    for e in encoded:
        writer.write(e)
    writer.finish()
    payloads, index = container((tmp_path / "packed").read_bytes())
    assert [t["quantized"]["experts"] for t in index["tensors"]] == [3, 3]
    got = tensors(payloads, index)
    assert all(got[e.spec.name] == e.dense.numpy().tobytes() for e in encoded)
