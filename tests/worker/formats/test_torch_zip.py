"""PyTorch checkpoints: what torch.save writes is read as torch reads it; nothing in them ever runs."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uploads import Calls, checkpoint_of, payload, refused, saved, upload, zipped

from app.errors import InputRefused
from app.limits import Limits
from worker.checkpoint import DTYPES
from worker.formats.pickle_walk import Walk


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def read(tmp_path, value, **options) -> dict[str, torch.Tensor]:
    c = upload(tmp_path, {"m.pt": saved(value, **options)})
    return {name: c.read(c.aliases.get(name, name)) for name in (*c.tensors, *c.aliases)}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype(tmp_path, dtype):
    bits = torch.arange(64, dtype=torch.uint8) % 2 if dtype == torch.bool else torch.arange(64, dtype=torch.uint8)
    tensor = bits.view(dtype).reshape(2, -1)
    assert same(read(tmp_path, {"w": tensor})["w"], tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    assert same(read(tmp_path, OrderedDict(w=torch.ones(3)), pickle_protocol=protocol)["w"], torch.ones(3))


def test_shapes_views_names_and_parameters(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "scalar": torch.tensor(3), "empty": torch.empty(0, 5), "transposed": base.t(), "rows": base[1:3], "step": base[::2, 1::2],
        "expanded": torch.ones(3, 1).expand(3, 100),
        "a.b/c:d é": torch.zeros(2), "parameter": torch.nn.Parameter(torch.ones(2)), "buffer": torch.nn.Buffer(torch.ones(2)),
    }  # fmt: skip
    got = read(tmp_path, state)
    assert got.keys() == state.keys() and all(same(got[n], t) and got[n].is_contiguous() for n, t in state.items())


def test_ties_become_aliases_and_different_views_do_not(tmp_path):
    w = torch.ones(2, 3)
    c = upload(tmp_path, {"m.pt": saved({"embed": w, "head": w, "view": w.t(), "part": w[1:], "copy": w.clone()})})
    assert c.aliases == {"head": "embed"} and list(c.tensors) == ["embed", "view", "part", "copy"]


def test_segments_are_the_storages(tmp_path):
    w = torch.arange(6.0)
    data = saved({"a": w, "b": w, "c": w[2:], "h": torch.ones(5).bfloat16(), "f": torch.zeros(3).to(torch.float8_e4m3fn), "e": torch.empty(0)})
    c = upload(tmp_path, {"m.pt": data})
    segments = c.segments["m.pt"]
    assert [(s.dtype, s.nbytes, s.tensors) for s in segments] == [("F32", 24, ("a", "c", "b")), ("BF16", 10, ("h",)), ("F8_E4M3", 3, ("f",))]
    assert data[segments[0].offset :][:24] == w.numpy().tobytes()
    assert all(a.offset + a.nbytes <= b.offset for a, b in zip(segments, segments[1:], strict=False))


def model_and_optimizer():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model", "module"])
def test_a_state_dict_is_found_and_the_rest_is_named(tmp_path, key):
    state, optimizer = model_and_optimizer()
    value = {"epoch": 3, key: state, "optimizer": optimizer, "loss": torch.tensor(0.5), "rng_state": torch.get_rng_state(), "note": "os.system('x')"}
    c = upload(tmp_path, {"m.ckpt": saved(value)})
    assert all(same(c.read(n), t) for n, t in state.items()) and c.tensors.keys() == state.keys()
    assert {d.name for d in c.dropped} == {"epoch", "optimizer", "loss", "rng_state", "note"}
    assert next(d for d in c.dropped if d.name == "optimizer").nbytes == sum(t.nbytes for s in optimizer["state"].values() for t in s.values())


def test_several_models_keep_their_places_in_their_names(tmp_path):
    state, _ = model_and_optimizer()
    assert read(tmp_path, {"generator": state, "critic": [{"w": torch.ones(2)}]}).keys() == {"generator.weight", "generator.bias", "critic.0.w"}


def test_weights_beside_a_wrapper_are_not_lost(tmp_path):
    assert read(tmp_path, {"weights": {"w": torch.ones(2)}, "bias": torch.ones(3)}).keys() == {"weights.w", "bias"}


def test_prefixes_of_parallel_training_are_left_alone(tmp_path):
    assert list(read(tmp_path, {"state_dict": {"module.w": torch.ones(2)}})) == ["module.w"]


def test_plain_values_of_every_kind_are_taken_as_data(tmp_path):
    value = {
        "w": torch.ones(1),
        "s": {1, 2},
        "f": frozenset([1]),
        "d": torch.float32,
        "v": torch.device("cpu"),
        "z": torch.Size([1]),
        "c": 1j,
        "b": b"abc",
        "i": 1 << 70,
    }
    value |= {"dd": defaultdict(list, {1: [2]}), "n": Counter("aab"), "t": (1, (2, None, True))}
    assert list(read(tmp_path, value)) == ["w"]


def test_deflated_records_are_inflated_into_scratch(tmp_path):
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(1000), "v": torch.ones(4)}))) as z:
        data = zipped({n: z.read(n) for n in z.namelist()}, zipfile.ZIP_DEFLATED)
    c = upload(tmp_path, {"m.pt": data})
    assert same(c.read("w"), torch.zeros(1000)) and same(c.read("v"), torch.ones(4)) and c.segments["m.pt"] == []


def test_a_tensor_that_is_written_to_leaves_the_file_alone(tmp_path):
    data = saved({"w": torch.ones(4)})
    c = upload(tmp_path, {"m.pt": data})
    c.read("w").zero_()
    assert (tmp_path / "in" / "m.pt").read_bytes() == data and same(c.read("w"), torch.ones(4))


def test_a_changed_byte_is_noticed(tmp_path):
    data = bytearray(saved({"w": torch.ones(100)}))
    data[data.index(b"\x80?\x00\x00\x80?") + 5] ^= 1
    assert refused(tmp_path, {"m.pt": bytes(data)}) == "unsafe-archive"


@pytest.mark.parametrize("wrap", [checkpoint_of, lambda p: p, lambda p: pickle.dumps(1, 2) * 6 + p], ids=["zip", "legacy", "after junk"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_payload_is_refused_and_does_not_run(tmp_path, wrap, protocol):
    canary = tmp_path / "canary"
    assert refused(tmp_path, {"m.pt": wrap(payload(canary, protocol))}) == "unsafe-pickle"
    assert not canary.exists()


@pytest.mark.parametrize(
    "value", [torch.nn.Linear(1, 1), Calls(print, "x"), Calls(getattr, "x", "upper"), Calls(torch.load, "x"), Calls(OrderedDict.fromkeys, "ab")]
)
def test_objects_and_calls_are_refused(tmp_path, value):
    assert refused(tmp_path, {"m.pt": saved({"w": torch.ones(1), "x": value})}) == "unsafe-pickle"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"w": torch.eye(3).to_sparse()}, "invalid-tensor"), ({"w": torch.empty(3, device="meta")}, "invalid-tensor"),
        ({"w": torch.ones(2).cfloat().conj()}, "invalid-tensor"),
        ({"w": 1}, "no-tensors"), (7, "no-tensors"), ({"optimizer": {"x": torch.ones(1)}}, "no-tensors"), ({"": torch.ones(1)}, "bad-tensor-name"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "bad-tensor-name"), ({"x" * 600: torch.ones(1)}, "limit-name"),
        ({"__metadata__": torch.ones(1)}, "bad-tensor-name"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_has_a_reason(tmp_path, value, reason):
    assert refused(tmp_path, {"m.pt": saved(value)}) == reason


def test_old_files_and_torchscript_are_never_loaded(tmp_path):
    old, script = tmp_path / "old", tmp_path / "script"
    for p in (old, script):
        p.mkdir()
    assert refused(old, {"m.pt": saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False)}) == "format-not-allowed"
    data = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), data)
    assert refused(script, {"m.pt": data.getvalue()}) == "format-not-allowed"


def text(s: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(s)) + s


def tensor(shape=b"K\x04\x85", stride=b"K\x01\x85", offset=b"K\x00", kind=b"FloatStorage", key=b"0", location=b"cpu", numel=b"K\x04") -> bytes:
    """Opcodes of a tensor on a storage of four floats."""
    pid = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(location) + numel + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + offset + shape + stride + b"\x89)tR"


def one(value: bytes) -> bytes:
    return checkpoint_of(b"\x80\x02}" + text(b"w") + value + b"s.", {"0": bytes(16)})


def test_the_hand_written_tensor_is_good(tmp_path):
    assert same(upload(tmp_path, {"m.pt": one(tensor())}).read("w"), torch.zeros(4))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor(offset=b"K\x01"), "invalid-tensor"), (tensor(shape=b"K\x05\x85"), "invalid-tensor"), (tensor(stride=b"K\x02\x85"), "invalid-tensor"),
        (tensor(stride=b"J\xff\xff\xff\xff\x85"), "invalid-tensor"), (tensor(shape=b"K\x02K\x02\x86"), "invalid-tensor"),
        (tensor(shape=b"\x88\x85"), "invalid-tensor"),
        (tensor(shape=b"G" + bytes(8) + b"\x85"), "invalid-tensor"), (tensor(key=b"../0"), "invalid-tensor"), (tensor(key=b"1"), "invalid-tensor"),
        (tensor(location=b"meta"), "invalid-tensor"), (tensor(location=b"../x"), "invalid-tensor"), (tensor(numel=b"K\x05"), "invalid-tensor"),
        (tensor(numel=b"\x8a\x08" + b"\xff" * 7 + b"\x7f"), "invalid-tensor"), (tensor(kind=b"DoubleStorage"), "invalid-tensor"),
        (tensor(kind=b"float32"), "invalid-tensor"),
        (tensor(kind=b"ObjectStorage"), "unsafe-pickle"), (tensor(shape=b"J\x00\x00\x00\x7f\x85", stride=b"K\x00\x85"), "limit-materialised"),
        (tensor(shape=b"(" + b"K\x01" * 40 + b"t", stride=b"(" + b"K\x01" * 40 + b"t"), "invalid-tensor"),
        (tensor(shape=b"(K\x00" + b"J\xff\xff\xff\x7f" * 3 + b"t", stride=b"(" + b"K\x01" * 4 + b"t"), "invalid-tensor"),
        (tensor() + b"}b", "unsafe-pickle"), (b"K\x07Q", "invalid-pickle"), (b"P0\n", "invalid-pickle"), (b"]q\x00h\x00a", "invalid-pickle"),
        (b"]" * 100 + b"a" * 99, "limit-depth"), (b"K\x00" + b"\x85" * 100, "limit-depth"), (b"h\x09", "invalid-pickle"),
        (b"r\xff\xff\xff\x7fN", "invalid-pickle"),
        (b"\x8b\xff\xff\xff\xff", "invalid-pickle"), (b"\x8e" + b"\xff" * 7 + b"\x3f", "invalid-pickle"),
        (b"\x95" + b"\xff" * 7 + b"\x00N", "invalid-pickle"),
        (b"I" + b"9" * 5000 + b"\nN", "invalid-pickle"), (b"}" + b")Ns", "invalid-pickle"), (b"}K\x01Ns" + b"(K\x01NK\x01Nu", "invalid-pickle"),
        (b"\x82\x01", "unsafe-pickle"), (b"ccollections\nOrderedDict\n)\x81", "unsafe-pickle"), (b"(ios\nsystem\n", "unsafe-pickle"),
        (b"a", "invalid-pickle"), (b"\xff", "invalid-pickle"),
        (text(b"torch") + text(b"load") + b"\x93", "unsafe-pickle"), (text(b"torch") + text(b"serialization.os.system") + b"\x93", "unsafe-pickle"),
        (text(b"os") + text(b"system") + b"20" + b"\x93", "unsafe-pickle"), (b"ctorch\nserialization.os.system\n", "unsafe-pickle"),
    ],
)  # fmt: skip
def test_hand_written_pickles(tmp_path, value, reason):
    assert refused(tmp_path, {"m.pt": one(value)}) == reason


def test_shared_containers_cost_nothing(tmp_path):
    dag = b"\x80\x02(](" + tensor() + b"eq\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(8)) + b"t."
    c = upload(tmp_path, {"m.pt": checkpoint_of(dag, {"0": bytes(16)})})
    assert len(c.tensors) + len(c.aliases) == 1


def test_limits_of_a_walk():
    many = b"\x80\x02](" + b"K\x01" * 1000 + b"e."
    assert len(Walk(many).result) == 1000
    for limits in (Limits(pickle_opcodes=100), Limits(tensors=0)):
        with pytest.raises(InputRefused) as e:
            Walk(many, limits)
        assert e.value.type == "limit-entries"


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_walked_or_refused(data):
    try:
        Walk(b"\x80\x02" + data)
    except InputRefused:
        pass


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.tuples(v, v) | st.dictionaries(st.text(max_size=3), v, max_size=3),
    max_leaves=12,
)


@given(values, st.sampled_from([2, 3, 4, 5]))
@settings(max_examples=60, deadline=None)
def test_plain_data_walks_to_itself(value, protocol):
    assert Walk(pickle.dumps(value, protocol)).result == value


def test_what_one_opcode_copies_is_counted():
    """A container that is written once and copied by every further opcode costs more than the file's bytes."""
    keys = b"".join(b"K" + bytes([i]) + b"N" for i in range(200))
    head, limits = b"\x80\x02}q\x00(" + keys + b"u0", Limits(dict_keys=300)
    items = b"]q\x02(" + b"K\x01" * 2000 + b"e0"
    for body in (b"ccollections\nCounter\nq\x01" + b"h\x01h\x00\x85R0" * 100, items + b"ctorch\nSize\nq\x01" + b"h\x01h\x02\x85R0" * 100):
        with pytest.raises(InputRefused) as e:
            Walk(head + body + b"N.", limits)
        assert e.value.type == "limit-entries"
    long = b"(" + b"K\x01" * 1000 + b"tq\x03"
    for name in (b"ctorch\ndevice\n", b"ccollections\nOrderedDict\n"):
        with pytest.raises(InputRefused, match="1000 arguments"):
            Walk(b"\x80\x02" + name + long + b"R.", limits)
