"""What the fuzzer gives its bytes to: every reader of strangers' files, by name. A target returns, or raises one of its typed errors; anything else is a finding."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import struct
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import h11

from app.errors import ModelpressError
from app.formats import header_bytes_needed, sniff
from app.limits import Limits
from app.made import INDEX
from app.safetensors_header import parse_safetensors_header
from app.strict import parse_json
from app.wire import Strict
from worker.datasets.index import announced, load_index
from worker.datasets.sources import open_sources
from worker.formats import open_checkpoint
from worker.formats.archive import extract_zip
from worker.formats.packed_index import parse_index
from worker.formats.packed_reader import open_packed
from worker.formats.pickle_globals import check_global
from worker.formats.pickle_scan import scan_globals
from worker.formats.pickle_walk import Walk
from worker.formats.pt2_expressions import check_expression
from worker.formats.pt2_program import read_program
from worker.formats.pt2_treespec import check_treespec
from worker.formats.state_dict import find_tensors
from worker.formats.tar_walk import extract_tar
from worker.images import index, private
from worker.images.codecs import CODECS
from worker.images.learned import codec as learned
from worker.images.learned import model as learned_model
from worker.images.picture import FORMATS, open_picture
from worker.images.transform.coding import Damaged
from worker.kernels import chunks
from worker.kernels.chunks import CorruptPayload, Layout, decode_chunk
from worker.private import binaries, texts
from worker.samples.npy import parse_npy, read_npz

TYPED = (ModelpressError, CorruptPayload, Damaged, h11.ProtocolError)
LIMITS = Limits(expanded_bytes=16 << 20, materialised_bytes=16 << 20, image_pixels=1 << 18)
"""Smaller than the service's, so that an input which reaches one costs a fuzzer less."""

_SUFFIXES = sorted(FORMATS)
_NAMES = ("a.json", "a.jsonl", "a.txt", "tokenizer.json", "a.model", "a.bin", "a.py", "vocab.json")
_ROOM = Path(tempfile.gettempdir())
_LAYOUTS = [Layout("bytes", 1), *(Layout(kind, width) for kind in ("float", "int") for width in (1, 2, 4, 8)), *(Layout("codes", bits) for bits in range(1, 9))]


class _Scratch:
    """A file with the bytes under a name, alone in a folder, and a folder to write to; both are gone afterwards."""

    def __init__(self, name: str, data: bytes):
        self.name, self.data = name, data

    def __enter__(self) -> tuple[Path, Path]:
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_ROOM))
        inp, out = self.folder / "in", self.folder / "out"
        inp.mkdir()
        out.mkdir()
        (inp / self.name).write_bytes(self.data)
        return inp / self.name, out

    def __exit__(self, *_) -> None:
        found = {p.name for p in self.folder.iterdir()}
        shutil.rmtree(self.folder)
        if found != {"in", "out"}:
            raise AssertionError(f"something was written beside the scratch: {found}")


def _safetensors(data: bytes) -> None:
    parse_safetensors_header(data, len(data), LIMITS)


def _header(data: bytes) -> None:
    """The bytes as the JSON of a header that fits its length, of a file with 8 bytes of tensors."""
    parse_safetensors_header(struct.pack("<Q", len(data)) + data, 8 + len(data) + 8, LIMITS)


def _sniffed(data: bytes) -> None:
    name = ("a.safetensors", "a.pt", "a.zip", "a.tar", "a.pt2", "a.bin", "a", "a.npy")[data[0] % 8] if data else "a"
    head = data[1:]
    sniff(name, head[: header_bytes_needed(head[:8])], len(head), LIMITS)


def _pickle(data: bytes) -> None:
    find_tensors(Walk(data, LIMITS).result, LIMITS)


def _scan(data: bytes) -> None:
    scan_globals(data[1:], check_global, LIMITS, pickles=data[0] % 3 if data else 1)


def _checkpoint(data: bytes) -> None:
    """The bytes as the pickle of a checkpoint that is otherwise whole, and opened and read as a job does."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as z:
        z.writestr("archive/data.pkl", data)
        z.writestr("archive/version", "3\n")
        for key in range(4):
            z.writestr(f"archive/data/{key}", bytes(range(64)))
    _opened("model.pt", whole.getvalue())


def _opened(name: str, data: bytes) -> None:
    with _Scratch(name, data) as (path, out):
        checkpoint = open_checkpoint(path.parent, out, LIMITS)
        for tensor in checkpoint.tensors:
            checkpoint.read(tensor)


def _zip(data: bytes) -> None:
    with _Scratch("a.zip", data) as (path, out):
        extract_zip(path, out, LIMITS)


def _tar(data: bytes) -> None:
    with _Scratch("a.tar", data) as (path, out):
        extract_tar(path, out, LIMITS)


def _tar_fields(data: bytes) -> None:
    """The bytes as headers whose checksums are right, each followed by a block where it announces one."""
    blocks = bytearray()
    for at in range(0, min(len(data), 16 * 512), 512):
        block = bytearray(data[at : at + 512].ljust(512, b"\0"))
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
        blocks += block
    _tar(bytes(blocks) + bytes(1024))


def _npz(data: bytes) -> None:
    with _Scratch("a.npz", data) as (path, _):
        read_npz(path, LIMITS)


def _index(data: bytes) -> None:
    """The bytes as the index of a file that has every payload which it names."""
    payloads = {name.decode("utf-8", "replace") for name in re.findall(rb'"(?:payload|rest|bundle)": ?"([^"]*)"', data)}
    parse_index(data, payloads, 1 << 20, LIMITS)


def _packed(data: bytes) -> None:
    with _Scratch("a.safetensors", data) as (path, _), open_packed(path, LIMITS) as reader:
        for name in reader.tensors:
            reader.read(name)


def _chunk(data: bytes) -> None:
    """A chunk whose checksum is right. 0: layout; 1..2: values; 3..4: columns; then codec, planes, 0, escapes, body."""
    if len(data) < 13:
        return
    layout, count, columns = _LAYOUTS[data[0] % len(_LAYOUTS)], 1 + int.from_bytes(data[1:3], "little") % 4096, int.from_bytes(data[3:5], "little")
    head, body = data[5:13], data[13:]
    values = decode_chunk(memoryview(head + struct.pack("<I", chunks.crc32(body, chunks.crc32(head))) + body), layout, count, columns)
    if values.shape != (count,) or values.dtype != layout.dtype:
        raise AssertionError(f"{values.dtype} {values.shape} for {count} of {layout}")


def _dataset(name: str) -> Callable[[bytes], None]:
    """A file of a data set, opened and read as a job does."""

    def target(data: bytes) -> None:
        with _Scratch(name, data) as (path, out):
            for source in open_sources(path.parent, out, LIMITS):
                for array in source.arrays.values():
                    deque(array.rows(1000), maxlen=0)
                if source.table:
                    deque(source.table.batches(), maxlen=0)

    return target


def _image(data: bytes) -> None:
    """An image, opened and decoded as a job does; then the same without what it tells."""
    name = f"a{_SUFFIXES[data[0] % len(_SUFFIXES)]}" if data else "a.png"
    open_picture(name, data[1:], LIMITS)
    private.stripped(FORMATS[name[1:]], data[1:])


def _images_index(data: bytes) -> None:
    """The bytes as the index of coded images, each of which is there."""
    with _Scratch(INDEX, data) as (path, _):
        for name in itertools.islice(re.findall(rb'"file": ?"([a-z0-9.]{1,40})"', data), 100):
            (path.parent / name.decode()).touch()
        index.read(path.parent, tuple(CODECS), LIMITS)
        index.read_model(path.parent)


def _dataset_index(data: bytes) -> None:
    with _Scratch(INDEX, data) as (path, _):
        announced(load_index(path.parent, LIMITS))


def _learned(data: bytes) -> None:
    """0..3: bytes of the codec; the codec; an image that was coded with it, of 65,536 pixels at most."""
    size = int.from_bytes(data[:4], "little")
    model, coded = learned_model.loaded(data[4 : 4 + size]), data[4 + size :]
    width, height = learned.LearnedCodec({}, fitted=model).look(coded)[0]
    if width * height <= 1 << 16:
        learned.decode(coded, model)


def _private(data: bytes) -> None:
    """What tells of people is looked for in a file of any kind; what is left has the kind that it had."""
    name = _NAMES[data[0] % len(_NAMES)] if data else "a"
    binaries.look(name, data[1:])
    texts.look(name, data[1:].decode("utf-8", "replace"))


def _wire(data: bytes) -> None:
    """A connection's bytes, in two parts, as the API's parser takes them; a message that ends is answered, and the next one read."""
    connection = h11.Connection(h11.SERVER)
    connection._receive_buffer = Strict()
    cut = 1 + data[0] if data else 0
    for part in (*filter(None, (data[1:cut], data[cut:])), b""):
        connection.receive_data(part)
        for _ in range(2000):
            event = connection.next_event()
            if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                break
            if event is h11.PAUSED:
                if connection.our_state is not h11.SEND_RESPONSE:
                    return
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()


def _text(check: Callable) -> Callable[[bytes], None]:
    return lambda data: check(data.decode("utf-8", "surrogatepass" if data[:1] == b"\xed" else "replace"), ())


TARGETS: dict[str, Callable[[bytes], None]] = {
    "safetensors": _safetensors,
    "safetensors_header": _header,
    "sniff": _sniffed,
    "json": lambda data: parse_json(data),
    "pickle": _pickle,
    "pickle_scan": _scan,
    "checkpoint": _checkpoint,
    "zip": _zip,
    "tar": _tar,
    "tar_fields": _tar_fields,
    "pt2_program": lambda data: read_program(data, LIMITS),
    "pt2": lambda data: _opened("a.pt2", data),
    "pt2_treespec": _text(check_treespec),
    "pt2_expression": _text(check_expression),
    "npy": lambda data: parse_npy(data, "a.npy"),
    "npz": _npz,
    "packed_index": _index,
    "packed": _packed,
    "chunk": _chunk,
    **{f"dataset_{kind}": _dataset(f"a.{kind}") for kind in ("npy", "npz", "csv", "parquet", "arrow")},
    "dataset_index": _dataset_index,
    "image": _image,
    "images_index": _images_index,
    "learned_codec": _learned,
    "private": _private,
    "wire": _wire,
}


def run(name: str, data: bytes) -> str:
    """The typed error that a target ended with, "" where it took the bytes.

    Raises:
        whatever else it ended with.
    """
    try:
        TARGETS[name](data)
    except TYPED as e:
        return getattr(e, "type", type(e).__name__)
    return ""
