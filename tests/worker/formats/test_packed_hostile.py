"""Packed files from an attacker: they end in InputRefused, or in exactly the original bytes."""

from __future__ import annotations

import io
import json
import resource
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from app.errors import InputRefused
from app.packed_dictionary import DICTIONARY
from worker.encoded import Codebook, Encoded, Quantized
from worker.formats import open_checkpoint
from worker.formats.packed import PACKED_NAME, PackedWriter, open_packed, pack_files, restore_packed
from worker.kernels.chunks import BYTES, Layout, encode_chunk
from worker.kernels.payload import chunks, write_payload


def quiet(nbytes: int) -> None:
    pass


def sample(work: Path, lossy: bool) -> bytes:
    """A small packed file with every codec in it."""
    from app.recipe import Quantize, parse_recipe
    from worker.methods.quantize import quantize_matrix

    torch.manual_seed(1)
    source = work / "in"
    source.mkdir()
    w = torch.randn(60, 50).mul(0.02)
    save_file({"w": w, "p": torch.where(w.abs() > 0.02, w, 0).bfloat16(), "c": torch.randn(20, 70), "g": torch.randn(9, 70), "i": torch.arange(64), "z": torch.zeros(30)}, source / "m.safetensors")
    (source / "config.json").write_text('{"a": [' + '1, ' * 60 + '1]}')
    (work / "scratch").mkdir()
    checkpoint = open_checkpoint(source, work / "scratch")
    if not lossy:
        pack_files(checkpoint, work / PACKED_NAME, lambda name: True, quiet)
    else:
        writer = PackedWriter(work / PACKED_NAME, checkpoint)
        for name, spec in checkpoint.tensors.items():
            codes = torch.randint(-8, 8, (60, 50), dtype=torch.int8)
            q = Quantized(codes, torch.rand(60, 1), None, 50, Quantize(method="quantize", num_bits=4)) if name == "w" else None
            if name == "c":
                levels = torch.randint(0, 7, (20, 70), dtype=torch.uint8)
                q = Codebook(levels, torch.randn(20 * 7, 7).half(), 10, 3, Quantize(method="quantize", num_bits=3))
            if name == "g":
                q = quantize_matrix(checkpoint.read(name), parse_recipe({"steps": [{"method": "quantize", "num_bits": 3, "scale_bits": 5, "symmetric": False}]}).steps[0])
            writer.write(Encoded(spec, "quantized" if q else "encoded", checkpoint.read(name), quantized=q, lossless=True))
        writer.finish()
    return (work / PACKED_NAME).read_bytes()


@pytest.fixture(scope="module", params=[False, True], ids=["files", "tensors"])
def good(request, tmp_path_factory) -> bytes:
    return sample(tmp_path_factory.mktemp("good"), request.param)


def restored(data: bytes, work: Path) -> dict[str, bytes]:
    (work / PACKED_NAME).write_bytes(data)
    restore_packed(work / PACKED_NAME, work / "out", quiet)
    return {p.relative_to(work / "out").as_posix(): p.read_bytes() for p in (work / "out").rglob("*") if p.is_file()}


def test_every_mutation_is_refused_or_harmless(good, tmp_path_factory):
    expected = restored(good, tmp_path_factory.mktemp("good"))
    kinds = set()

    @given(at=st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), min_size=1, max_size=3), cut=st.integers(0, 3))
    @settings(max_examples=400, deadline=None)
    def mutate(at, cut):
        bad = bytearray(good)
        for i, byte in at:
            bad[i] = byte
        bad = bad[: at[0][0]] if cut == 0 else bad
        try:
            assert restored(bytes(bad), tmp_path_factory.mktemp("bad")) == expected
            kinds.add("same")
        except InputRefused as e:
            kinds.add(e.type)

    mutate()
    assert "invalid-packed" in kinds and kinds <= {"same", "invalid-packed", "invalid-safetensors", "limit-header", "bad-tensor-name"}


def forge(index: dict | bytes, payloads: dict[str, bytes], metadata: dict | None = None) -> bytes:
    """A packed file with a true container around any index."""
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    payloads = payloads | {"modelpress.index": payload(np.frombuffer(text, np.uint8), BYTES)}
    header = {"__metadata__": {"format": "modelpress.packed", "version": "1", "index": "modelpress.index"} | (metadata or {})}
    at = 0
    for name, data in payloads.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at := at + len(data)]}
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(payloads.values())


def payload(values: np.ndarray, layout: Layout) -> bytes:
    out = io.BytesIO()
    with ThreadPoolExecutor(1) as pool:
        write_payload(out, chunks(values, layout), len(values), layout, pool)
    return out.getvalue()


TEXT = b"0123456789"
REST = {"modelpress.rest": payload(np.frombuffer(TEXT, np.uint8), BYTES)}
FILE = {"path": "a.txt", "size": 10, "sha256": "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"}
WEIGHT = {"w": payload(np.arange(4, dtype=np.uint32), Layout("float", 4))}
TENSOR = {"name": "w", "payload": "w", "shard": 0, "dtype": "F32", "shape": [4]}
TENSORS = {"kind": "tensors", "shards": [{"path": "m.safetensors"}], "tensors": [TENSOR]}
CODES = {"type": "int", "num_bits": 4, "rows": 2, "columns": 2, "group_size": 2, "scale_dtype": "F32", "scale_shape": [2, 1], "sections": [10, 10]}


CODEBOOK = {"type": "codebook", "num_bits": 2, "rows": 2, "columns": 2, "group_size": 2, "levels_dtype": "F16", "levels_shape": [2, 3]}
BOOK = {"w": payload(np.array([0, 1, 2, 0], np.uint8), Layout("codes", 2)) + payload(np.arange(6, dtype=np.uint16), Layout("float", 2))}
SIZES = {"sections": [len(payload(np.array([0, 1, 2, 0], np.uint8), Layout("codes", 2))), len(payload(np.arange(6, dtype=np.uint16), Layout("float", 2)))]}
CODEBOOK |= SIZES


GRID_PARTS = [payload(np.array(v, d), Layout(*k)) for v, d, k in (([0, 1, 2, 3], np.uint8, ("codes", 2)), ([1, 7], np.uint8, ("codes", 3)), ([1, 2], np.uint16, ("float", 2)))]
GRIDS = {"w": b"".join([*GRID_PARTS, *GRID_PARTS[1:]])}
GRID = {"type": "grid", "num_bits": 2, "rows": 2, "columns": 2, "group_size": 2, "scale_dtype": "F16", "scale_shape": [2, 1], "scale_bits": 3, "shared_by": 4,
        "exponent": 1, "offset": True, "zero": True, "sections": [len(p) for p in [*GRID_PARTS, *GRID_PARTS[1:]]]}  # fmt: skip
GOOD = {"shape": [2, 2]}


SMALL = {k: v for k, v in TENSOR.items() if k != "payload"} | {"size": 28}
PARTS = {"b": encode_chunk(np.arange(4, dtype=np.uint32) << 20, Layout("float", 4))}
SPARSE = np.where(np.arange(400) % 29 == 0, 1, 0).astype(np.uint8)
CONTEXTS = encode_chunk(SPARSE, Layout("codes", 2), columns=20)
assert len(PARTS["b"]) == 28 and CONTEXTS[0] == 5


def bundle(*changes: dict, **more) -> dict:
    """An index of the tensor `SMALL` with `changes`, each of which makes another."""
    return {"kind": "tensors", "shards": [{"path": "m.safetensors"}], "tensors": [SMALL | c for c in changes or ({},)], "bundle": "b"} | more


def in_payload(chunk: bytes, count: int, bits: int) -> bytes:
    """A payload of codes with one chunk."""
    return struct.pack("<BBBBIQQQ", 3, bits, 20, 0, 1, count, 32, 32 + len(chunk)) + chunk


def files(**changes) -> dict:
    return {"kind": "files", "rest": "modelpress.rest", "files": [FILE | changes]}


def tensors(**changes) -> dict:
    return TENSORS | {"tensors": [TENSOR | changes]}


def test_the_forger_can_make_good_files(tmp_path):
    assert restored(forge(files(), REST), tmp_path) == {"a.txt": TEXT}
    (tmp_path / "b").mkdir()
    assert list(restored(forge(TENSORS, WEIGHT), tmp_path / "b")) == ["m.safetensors"]
    (tmp_path / "c").mkdir()
    assert list(restored(forge(tensors(**GOOD, quantized=GRID), GRIDS), tmp_path / "c")) == ["m.safetensors"]


BAD_PATHS = ["../a", "/etc/a", "a/../../b", "C:/a", "a\\b", "a//b", "", ".", "a\x00b", "a\nb", "con/./x", "a" * 600, "/".join("a" * 40)]
SEGMENT = {"payload": "w", "name": "w", "offset": 0, "nbytes": 16, "dtype": "F32", "shape": [4]}
BAD_INDEXES = {
    **{f"path {p[:20]!r}": (files(path=p), REST) for p in BAD_PATHS},
    **{f"shard {p[:20]!r}": (TENSORS | {"shards": [{"path": p}]}, WEIGHT) for p in BAD_PATHS},
    **{f"weight map {p[:20]!r}": (TENSORS | {"shard_index": p}, WEIGHT) for p in BAD_PATHS if p},
    "same path": (files() | {"files": [FILE | {"size": 5}, FILE | {"size": 5}]}, REST),
    "same path in other case": (files() | {"files": [FILE | {"size": 5}, FILE | {"size": 5, "path": "A.TXT"}]}, REST),
    "file as folder": (files() | {"files": [FILE | {"size": 5}, FILE | {"size": 5, "path": "a.txt/b"}]}, REST),
    "wrong digest": (files(sha256="0" * 64), REST),
    "no digest": (files(sha256=""), REST),
    "negative size": (files(size=-1), REST),
    "huge size": (files(size=1 << 60), REST),
    "bomb": (files(size=1 << 40), REST),
    "size as text": (files(size="10"), REST),
    "size too large": (files(size=11), REST),
    "no rest": (files() | {"rest": None}, {}),
    "unknown field": (files() | {"x": 1}, REST),
    "unknown kind": (files() | {"kind": "folder"}, REST),
    "unused payload": (files(), REST | WEIGHT),
    "missing payload": (files(), {}),
    "payload twice": (TENSORS | {"tensors": [TENSOR, TENSOR | {"name": "v"}]}, WEIGHT),
    "index as rest": (files() | {"rest": "modelpress.index"}, {}),
    "overlapping segments": (files(size=40, segments=[SEGMENT, SEGMENT | {"payload": "v", "offset": 8}]), REST | WEIGHT | {"v": WEIGHT["w"]}),
    "unsorted segments": (files(size=42, segments=[SEGMENT | {"offset": 20}, SEGMENT | {"payload": "v"}]), REST | WEIGHT | {"v": WEIGHT["w"]}),
    "segment behind the end": (files(size=26, segments=[SEGMENT | {"offset": 20}]), REST | WEIGHT),
    "segment of other dtype": (files(size=26, segments=[SEGMENT | {"dtype": "I32"}]), REST | WEIGHT),
    "segment of other shape": (files(size=26, segments=[SEGMENT | {"shape": [5]}]), REST | WEIGHT),
    "segment of no dtype": (files(size=26, segments=[SEGMENT | {"dtype": "F33"}]), REST | WEIGHT),
    "tensors in kind files": (files() | {"tensors": [TENSOR], "shards": [{"path": "m.safetensors"}]}, REST | WEIGHT),
    "tensor name": (tensors(name="../w"), WEIGHT),
    "tensor name twice": (TENSORS | {"tensors": [TENSOR, TENSOR | {"payload": "v"}]}, WEIGHT | {"v": WEIGHT["w"]}),
    "tensor of other shape": (tensors(shape=[5]), WEIGHT),
    "tensor of other dtype": (tensors(dtype="U32"), WEIGHT),
    "tensor of no dtype": (tensors(dtype="X"), WEIGHT),
    "tensor that is huge": (tensors(shape=[1 << 50]), WEIGHT),
    "tensor of many dimensions": (tensors(shape=[4] + [1] * 40), WEIGHT),
    "tensor in no shard": (tensors(shard=1), WEIGHT),
    "alias to nothing": (TENSORS | {"aliases": {"v": "x"}}, WEIGHT),
    "alias over a tensor": (TENSORS | {"aliases": {"w": "w"}}, WEIGHT),
    "alias bomb": ({**tensors(shape=[1 << 24]), "aliases": {f"a{i}": "w" for i in range(1000)}}, WEIGHT),
    "alias name": (TENSORS | {"aliases": {"__metadata__": "w"}}, WEIGHT),
    "codebook of no matrix": (tensors(quantized=CODEBOOK | {"rows": 3}), BOOK),
    "codebooks too few": (tensors(shape=[2, 2], quantized=CODEBOOK | {"group_size": 1}), BOOK),
    "codebook of too many levels": (tensors(quantized=CODEBOOK | {"levels_shape": [1, 6]}), BOOK),
    "codebook of no levels": (tensors(quantized=CODEBOOK | {"levels_shape": [2, 0]}), BOOK),
    "codebook without its levels": (tensors(quantized=CODEBOOK | {"sections": CODEBOOK["sections"][:1]}), BOOK),
    "codebook in other sections": (tensors(quantized=CODEBOOK | {"sections": [10, 10]}), BOOK),
    "codebook of other bits": (tensors(quantized=CODEBOOK | {"num_bits": 3}), BOOK),
    "codebook of BF16": (tensors(quantized=CODEBOOK | {"levels_dtype": "BF16"}), BOOK),
    "codebook with scales": (tensors(quantized=CODEBOOK | {"scale_dtype": "F16"}), BOOK),
    "codebook of integers": (tensors(quantized=CODEBOOK, dtype="I32"), BOOK),
    "codebook of an unknown step": (tensors(quantized=CODEBOOK | {"step": 0}), BOOK),
    "code without a level": (tensors(quantized=CODEBOOK | {"levels_shape": [3, 2], "rows": 3}), BOOK),
    "code without a level, of one codebook": (tensors(quantized=CODEBOOK | {"levels_shape": [1, 2]}), BOOK),
    "grid of no matrix": (tensors(**GOOD, quantized=GRID | {"rows": 3}), GRIDS),
    "grid with too few scales": (tensors(**GOOD, quantized=GRID | {"scale_shape": [2, 2]}), GRIDS),
    "grid with a scale for three rows": (tensors(**GOOD, quantized=GRID | {"scale_shape": [3, 1]}), GRIDS),
    "grid without its offset": (tensors(**GOOD, quantized=GRID | {"sections": GRID["sections"][:3]}), GRIDS),
    "grid in other sections": (tensors(**GOOD, quantized=GRID | {"sections": GRID["sections"][::-1]}), GRIDS),
    "grid with an offset that it does not name": (tensors(**GOOD, quantized=GRID | {"offset": False, "zero": False}), GRIDS),
    "grid with a zero and no offset": (tensors(**GOOD, quantized=GRID | {"offset": False, "sections": GRID["sections"][:3]}), {"w": b"".join(GRID_PARTS)}),
    "grid of F32 above integers": (tensors(**GOOD, quantized=GRID | {"scale_dtype": "F32"}), GRIDS),
    "grid shared by part of a group": (tensors(**GOOD, quantized=GRID | {"shared_by": 3}), GRIDS),
    "grid shared by none": (tensors(**GOOD, quantized=GRID | {"shared_by": None}), GRIDS),
    "grid of floats under an exponent": (tensors(**GOOD, quantized=GRID | {"scale_bits": None, "sections": GRID["sections"][:3]}), GRIDS),
    "grid of a large exponent": (tensors(**GOOD, quantized=GRID | {"exponent": 127}), GRIDS),
    "grid with levels and an offset": (tensors(**GOOD, quantized=GRID | {"levels": True}), GRIDS),
    "grid with levels that are not there": (tensors(**GOOD, quantized=GRID | {"levels": True, "offset": False, "zero": False, "sections": GRID["sections"][:3]}), {"w": b"".join(GRID_PARTS)}),
    "grid with factors of inputs that are not there": (tensors(**GOOD, quantized=GRID | {"inputs": True}), GRIDS),
    "grid with factors of other inputs": (tensors(**GOOD, quantized=GRID | {"inputs": True, "sections": [*GRID["sections"], 0]}), GRIDS),
    "grid of 9 bits above": (tensors(**GOOD, quantized=GRID | {"scale_bits": 9}), GRIDS),
    "grid of integers": (tensors(**GOOD, quantized=GRID, dtype="I32"), GRIDS),
    "codebook bomb": (tensors(shape=[1 << 26], quantized=CODEBOOK | {"rows": 1, "columns": 1 << 26, "num_bits": 8, "group_size": 1, "levels_shape": [1 << 26, 256]}), BOOK),
    "scale bomb": (tensors(shape=[1 << 29, 0], quantized=CODES | {"rows": 1 << 29, "columns": 0, "scale_shape": [1 << 29, 1]}), WEIGHT),
    "bundle that is not filled": (bundle({"size": 27}), PARTS),
    "bundle that is too small": (bundle({"size": 29}), PARTS),
    "bundle of one tensor twice": (bundle({}, {"name": "v"}), PARTS),
    "bundle of nothing": (bundle({"size": 0}), PARTS),
    "bundle for no tensor": (TENSORS | {"bundle": "b"}, WEIGHT | PARTS),
    "no bundle": (bundle() | {"bundle": None}, {}),
    "bundle in kind files": (files() | {"bundle": "b"}, REST | PARTS),
    "bundle that is the index": (bundle(bundle="modelpress.index"), {}),
    "bundle and payload": (bundle({"payload": "w"}), PARTS | WEIGHT),
    "neither bundle nor payload": (bundle({"size": None}), PARTS),
    "bundle of other shape": (bundle({"shape": [5]}), PARTS),
    "bundle of other dtype": (bundle({"dtype": "F64"}), PARTS),
    "bundle of too many values": (bundle({"shape": [(1 << 19) + 1]}), PARTS),
    "bundle of too many levels": (bundle({"size": None, "shape": [1, 5000], "quantized": CODEBOOK | {"rows": 1, "columns": 5000, "num_bits": 8, "group_size": 1, "levels_shape": [5000, 256], "sections": [14, 14]}}), PARTS),
    "contexts in a payload": (tensors(shape=[20, 20], quantized=CODEBOOK | {"rows": 20, "columns": 20, "group_size": 20, "levels_shape": [1, 4], "sections": [32 + len(CONTEXTS), 50]}), {"w": in_payload(CONTEXTS, 400, 2) + payload(np.arange(4, dtype=np.uint16), Layout("float", 2))}),
    "codes of no matrix": (tensors(quantized=CODES | {"rows": 3}), WEIGHT),
    "codes of 9 bits": (tensors(quantized=CODES | {"num_bits": 9}), WEIGHT),
    "codes with too few scales": (tensors(quantized=CODES | {"scale_shape": [2, 2]}), WEIGHT),
    "codes in no sections": (tensors(quantized=CODES), WEIGHT),
    "codes of group size 0": (tensors(quantized=CODES | {"group_size": 0}), WEIGHT),
    "codes of integers": (tensors(quantized=CODES, dtype="I32"), WEIGHT),
    "codes of an unknown step": (tensors(quantized=CODES | {"step": 0}), WEIGHT),
    "not JSON": (b"{", REST),
    "deep JSON": (b'{"kind":' + b"[" * 100_000, REST),
    "not UTF-8": (b'{"kind":"\xff"}', REST),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_indexes_are_refused(case, tmp_path):
    index, payloads = BAD_INDEXES[case]
    (tmp_path / "inner").mkdir()
    with pytest.raises(InputRefused) as e:
        restored(forge(index, payloads), tmp_path / "inner")
    assert e.value.type == "invalid-packed", e.value.detail
    assert {p.name for p in tmp_path.iterdir()} == {"inner"}


def test_other_versions_are_refused_by_name(tmp_path):
    with pytest.raises(InputRefused, match="version 1"):
        restored(forge(files(), REST, {"version": "2"}), tmp_path)
    (tmp_path / PACKED_NAME).write_bytes(b"")
    with pytest.raises(InputRefused, match="empty"):
        open_packed(tmp_path / PACKED_NAME)


def test_a_claimed_terabyte_costs_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in (files(size=1 << 40), tensors(shape=[1 << 38])):
        with pytest.raises(InputRefused, match="restore to"):
            restored(forge(index, REST if index["kind"] == "files" else WEIGHT), tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_more_groups_for_a_factor_than_there_are_cost_nothing(tmp_path):
    found = []
    for i, shared in enumerate((4, 1 << 40)):
        (tmp_path / str(i)).mkdir()
        found.append(restored(forge(tensors(**GOOD, quantized=GRID | {"shared_by": shared}), GRIDS), tmp_path / str(i)))
    assert found[0] == found[1]


def test_a_matrix_of_no_columns_is_read(tmp_path):
    parts = [payload(np.zeros(0, np.uint8), Layout("codes", 4)), payload(np.ones(4, np.uint32), Layout("float", 4))]
    empty = CODES | {"rows": 4, "columns": 0, "scale_shape": [4, 1], "sections": [len(p) for p in parts]}
    assert list(restored(forge(tensors(shape=[4, 0], quantized=empty), {"w": b"".join(parts)}), tmp_path)) == ["m.safetensors"]


def test_a_bundle_of_the_forger_is_read(tmp_path):
    assert restored(forge(bundle(), PARTS), tmp_path)["m.safetensors"][-16:] == (np.arange(4, dtype=np.uint32) << 20).tobytes()


def frame(text: bytes, **changes) -> bytes:
    """An index as a frame of zstd, with its dictionary unless it is changed."""
    words = zstandard.ZstdCompressionDict(changes.pop("words", DICTIONARY), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=words, **{"write_checksum": True, "write_dict_id": False} | changes).compress(text)


TRUE = json.dumps(TENSORS).encode()
BAD_FRAMES = {
    "without a checksum": frame(TRUE, write_checksum=False),
    "without its size": frame(TRUE, write_content_size=False),
    "cut off": frame(TRUE)[:-5],
    "with more behind it": frame(TRUE) + b"x",
    "twice": frame(TRUE) * 2,
    "of another dictionary": frame(TRUE, words=DICTIONARY + b"and more"),
    "of 100 MB": frame(TRUE + b" " * 100_000_000),
    "head only": frame(TRUE)[:6],
    "magic only": frame(TRUE)[:4],
}


@pytest.mark.parametrize("case", [None, *BAD_FRAMES])
def test_bad_frames_of_an_index_are_refused(case, tmp_path):
    data = BAD_FRAMES[case] if case else frame(TRUE)
    header = {"__metadata__": {"format": "modelpress.packed", "version": "1", "index": "modelpress.index"}}
    header["w"] = {"dtype": "U8", "shape": [len(WEIGHT["w"])], "data_offsets": [0, len(WEIGHT["w"])]}
    header["modelpress.index"] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [len(WEIGHT["w"]), len(WEIGHT["w"]) + len(data)]}
    head = json.dumps(header).encode()
    whole = len(head).to_bytes(8, "little") + head + WEIGHT["w"] + data
    if case is None:
        assert list(restored(whole, tmp_path)) == ["m.safetensors"]
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputRefused) as e:
        restored(whole, tmp_path)
    assert e.value.type == "invalid-packed" and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
