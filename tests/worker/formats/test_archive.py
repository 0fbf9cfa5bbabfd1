"""Archives: what people make is read; structure that readers disagree on is refused."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save
from uploads import refused, tarred, upload, zipped

from app.errors import InputRefused
from app.limits import Limits

MODEL = {"config.json": b'{"model_type": "x"}', "model.safetensors": save({"w": torch.arange(6.0)})}
NESTED = {f"top/{n}": d for n, d in MODEL.items()}


def good(tmp_path, name, data, prefix=""):
    c = upload(tmp_path, {name: data})
    assert torch.equal(c.read("w"), torch.arange(6.0)) and c.config == {"model_type": "x"} and c.weight_files == (f"{prefix}model.safetensors",)
    return c


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips(tmp_path, method):
    assert good(tmp_path, "m.zip", zipped({"top/": b""} | NESTED, method), "top/").container == "zip"


def test_a_zip_with_a_comment(tmp_path):
    good(tmp_path, "m.zip", zipped(MODEL, comment=b"made by hand"))


class _Stream(io.RawIOBase):
    """Cannot seek, so that zipfile writes data descriptors."""

    def __init__(self):
        self.data = io.BytesIO()

    def writable(self):
        return True

    def write(self, data):
        return self.data.write(data)


@pytest.mark.parametrize("force", [False, True])
def test_streamed_and_zip64_zips(tmp_path, force):
    out = _Stream()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in MODEL.items():
            with z.open(name, "w", force_zip64=force) as f:
                f.write(data)
    good(tmp_path, "m.zip", out.data.getvalue())


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars(tmp_path, format, mode):
    good(tmp_path, "m.tar.gz" if mode == "w:gz" else "m.tar", tarred({"./": b""} | {f"./{n}": d for n, d in MODEL.items()}, format, mode))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_unicode_names_in_tars(tmp_path, format):
    prefix = "ж" * 60 + "/" + "y" * 90 + "/"
    good(tmp_path, "m.tar", tarred({prefix + n: d for n, d in MODEL.items()}, format), prefix)


def test_files_of_a_desktop_are_not_weights(tmp_path):
    good(tmp_path, "m.zip", zipped(NESTED | {"__MACOSX/top/._model.safetensors": b"x", "top/._config.json": b"y"}), "top/")


BAD_NAMES = ["../x", "/x", "a/../../x", "C:x", "a\\x", "a\nb", "a\u202eb", "x" * 300, "/".join("a" * 40)]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a//x", "./x"])
def test_names_in_zips(tmp_path, name):
    assert refused(tmp_path, {"m.zip": zipped(MODEL | {name: b""})}) == "unsafe-archive"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_in_tars(tmp_path, name):
    assert refused(tmp_path, {"m.tar": tarred(MODEL | {name: b""})}) == "unsafe-archive"


@pytest.mark.parametrize("names", [("a", "A"), ("é", "e\u0301"), ("ß", "SS"), ("a", "a/b"), ("a/b", "a"), ("d/A/x", "d/a")])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_names_that_collide_somewhere(tmp_path, make, names):
    assert refused(tmp_path, {"m.zip" if make is zipped else "m.tar": make(MODEL | dict.fromkeys(names, b""))}) == "unsafe-archive"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE, b"V"])
def test_links_and_devices_in_tars(tmp_path, kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "/etc/passwd"
        t.addfile(info)
    assert refused(tmp_path, {"m.tar": out.getvalue()}) == "unsafe-archive"


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o140644, 0o040755])
def test_links_and_devices_in_zips(tmp_path, mode):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        info = zipfile.ZipInfo("x")
        info.external_attr = mode << 16
        z.writestr(info, "/etc/passwd")
    assert refused(tmp_path, {"m.zip": out.getvalue()}) == "unsafe-archive"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"path": "../x"}, "unsafe-archive"),
        ({"size": "1"}, "unsafe-archive"),
        ({"linkpath": "x"}, "unsafe-archive"),
        ({"GNU.sparse.realsize": "9"}, "limit-expand"),
        ({"comment": "fine"}, None),
    ],
)
def test_pax_headers(tmp_path, headers, reason):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
        for name, data in MODEL.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), dict(headers)
            t.addfile(info, io.BytesIO(data))
    data = out.getvalue()
    if reason is None:
        good(tmp_path, "m.tar", data)
    else:
        assert refused(tmp_path, {"m.tar": data}) == reason


def test_what_readers_pay_for_by_the_byte_is_bounded(tmp_path):
    """Records of a pax header, folders that only stand in names, a name behind a NUL, a size beyond the archive."""
    records = b"".join(b"6 %c=b\n" % (97 + i % 26) for i in range(10_000))
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, len(records)
    many = pax.tobuf() + records + bytes(-len(records) % 512)
    assert refused(tmp_path / "a", {"m.tar": many + bytes(1024)}) == "limit-entries"
    deep = {f"{i}/" + "/".join("abcdefghij") + "/f": b"" for i in range(30)}
    assert refused(tmp_path / "b", {"m.zip": zipped(deep)}, Limits(archive_entries=100)) == "limit-entries"
    hidden = tarfile.TarInfo("././@LongLink")
    hidden.type, hidden.size = tarfile.GNUTYPE_LONGNAME, 12
    assert refused(tmp_path / "c", {"m.tar": hidden.tobuf() + b"ok\0../../evil".ljust(512, b"\0") + tarfile.TarInfo("ok").tobuf() + bytes(1024)}) == "unsafe-archive"
    large = tarfile.TarInfo("w.bin")
    large.size = 8 << 30
    assert refused(tmp_path / "d", {"m.tar": large.tobuf(tarfile.GNU_FORMAT) + bytes(1024)}) == "limit-expand"


@pytest.mark.parametrize("name", ["con", "a/AUX.json", "a.", "b /c", "config.json:x", "lpt1.txt"])
def test_names_that_windows_takes_for_something_else(tmp_path, name):
    assert refused(tmp_path, {"m.zip": zipped({name: b"x", "m.safetensors": b""})}) == "unsafe-archive"


def test_a_global_pax_header_may_not_name_a_path(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "config.json"}) as t:
        t.addfile(tarfile.TarInfo("a"), io.BytesIO())
    assert refused(tmp_path, {"m.tar": out.getvalue()}) == "unsafe-archive"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("m.zip", b"#!/bin/sh\n" + zipped(MODEL), "unsafe-archive"), ("m.zip", zipped(MODEL) + b"x", "unsafe-archive"),
        ("m.zip", zipped(MODEL)[:-30], "invalid-archive"),
        ("m.zip", zipped({}), "invalid-archive"), ("m.zip", zipped(MODEL, comment=zipped({"x": b""})), "unsafe-archive"),
        ("m.zip", zipped(MODEL, zipfile.ZIP_BZIP2), "unsafe-archive"),
        ("m.zip", zipped(MODEL, zipfile.ZIP_LZMA), "unsafe-archive"), ("m.tar", tarred(MODEL) + b"x" * 512, "unsafe-archive"),
        ("m.tar", tarred(MODEL)[:1300], "invalid-archive"),
        ("m.tar", tarred({}), "invalid-archive"), ("m.tar.gz", gzip.compress(tarred(MODEL)) * 2, "unsafe-archive"),
        ("m.tar.gz", gzip.compress(tarred(MODEL)) + b"x", "unsafe-archive"),
        ("m.tar.gz", gzip.compress(tarred(MODEL))[:-9], "invalid-archive"), ("m.tar", random.Random(0).randbytes(2048), "invalid-archive"),
        ("m.zip", zipped({"a.txt": b""}), "no-tensors"),
    ],
)  # fmt: skip
def test_structure(tmp_path, name, data, reason):
    assert refused(tmp_path, {name: data}) == reason


@pytest.mark.parametrize("make", [lambda d: ("m.zip", zipped(d, zipfile.ZIP_DEFLATED)), lambda d: ("m.tar.gz", gzip.compress(tarred(d)))])
def test_expansion_and_counts_are_bounded(tmp_path, make):
    name, data = make(MODEL | {"zeros": bytes(200_000)})
    assert refused(tmp_path, {name: data}, Limits(expanded_bytes=50_000, expand_ratio=3)) == "limit-expand"
    assert refused(tmp_path, {name: data}, Limits(archive_entries=1)) == "limit-entries"
    assert upload(tmp_path, {name: data}).tensors.keys() == {"w"}


FIELDS = {"flags": (6, 8), "method": (8, 10), "crc": (14, 16), "csize": (18, 20), "size": (22, 24)}  # offsets in the local header, in the directory


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("where", [0, 1])
def test_the_two_directories_must_agree(tmp_path, field, where):
    data = bytearray(zipped(MODEL))
    at = FIELDS[field][where] + (0 if where == 0 else data.index(b"PK\x01\x02"))
    data[at] ^= 1
    assert refused(tmp_path, {"m.zip": bytes(data)}) == "unsafe-archive"


def test_members_may_not_share_data(tmp_path):
    data = bytearray(zipped({"a.bin": b"x" * 40, "b.bin": b"x" * 40}))
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    assert refused(tmp_path, {"m.zip": bytes(data)}) == "unsafe-archive"


def test_a_member_that_inflates_to_more_than_it_says(tmp_path):
    data = bytearray(zipped({"a.txt": bytes(5000)}, zipfile.ZIP_DEFLATED))
    for at in (22, data.index(b"PK\x01\x02") + 24):
        data[at : at + 4] = struct.pack("<I", 10)
    assert refused(tmp_path, {"m.zip": bytes(data)}) == "unsafe-archive"


@pytest.mark.parametrize(
    "name, data", [("m.zip", zipped(MODEL, zipfile.ZIP_DEFLATED)), ("m.tar", tarred(MODEL)), ("m.tar.gz", gzip.compress(tarred(MODEL)))]
)
def test_a_damaged_archive_is_refused_or_reads_the_same(tmp_path, name, data):
    """Each of 150 single-byte changes; a crash or other values would fail."""
    rng = random.Random(1)
    for i in range(150):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(i)
        folder.mkdir()
        try:
            c = upload(folder, {name: bytes(changed)})
        except InputRefused:
            continue
        assert name == "m.tar" or torch.equal(c.read("w"), torch.arange(6.0))  # a plain tar has no checksum of its content
