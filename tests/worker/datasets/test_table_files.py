"""Tables come back as they were: types, nulls, bits, and the schema with its metadata."""

from __future__ import annotations

import datetime
import decimal
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from data_jobs import carried_out, there_and_back

from app.errors import InputRefused
from worker.datasets import table_files, tables
from worker.datasets.same import same
from worker.datasets.tables import Table

_DOUBLES = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", struct.pack("<Q", n))[0])  # all bits, so NaNs of any payload
_LEAVES = {
    pa.int8(): st.integers(-128, 127), pa.uint64(): st.integers(0, 2**64 - 1), pa.int32(): st.integers(-5, 5), pa.float64(): _DOUBLES | st.sampled_from([0.0, -0.0, 1.5]),
    pa.float32(): st.floats(width=32), pa.float16(): st.floats(width=16).map(np.float16), pa.bool_(): st.booleans(), pa.string(): st.text(max_size=5), pa.large_string(): st.sampled_from(["", "é", "a"]),
    pa.binary(): st.binary(max_size=4), pa.binary(3): st.binary(min_size=3, max_size=3), pa.date32(): st.dates(), pa.date64(): st.dates(datetime.date(1900, 1, 1)), pa.null(): st.none(),
    pa.timestamp("us", "Europe/Berlin"): st.integers(-(10**15), 10**15), pa.timestamp("ns"): st.integers(-(10**18), 10**18), pa.time64("us"): st.integers(0, 86399999999),
    pa.duration("s"): st.integers(-(10**9), 10**9), pa.decimal128(9, 2): st.integers(-(10**9) + 1, 10**9 - 1).map(lambda n: decimal.Decimal(n).scaleb(-2)),
    pa.decimal256(40, 3): st.integers(-(10**30), 10**30).map(lambda n: decimal.Decimal(n).scaleb(-3)), pa.month_day_nano_interval(): st.just((1, 2, 3)),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["x", "y"]),
}  # fmt: skip


@st.composite
def _typed(draw, deep: int = 2):
    shape = draw(st.sampled_from(["leaf", "leaf", "list", "fixed", "struct", "map"] if deep else ["leaf"]))
    if shape == "leaf":
        kind = draw(st.sampled_from(list(_LEAVES)))
        return kind, _LEAVES[kind]
    inner, values = draw(_typed(deep=deep - 1))
    if pa.types.is_dictionary(inner) or pa.types.is_null(inner):
        inner, values = pa.int8(), _LEAVES[pa.int8()]
    values = values | st.none()
    if shape == "list":
        return pa.list_(inner), st.lists(values, max_size=3)
    if shape == "fixed":
        return pa.list_(inner, 2), st.lists(values, min_size=2, max_size=2)
    if shape == "map":
        return pa.map_(pa.string(), inner), st.lists(st.tuples(st.sampled_from("ab"), values), max_size=2, unique_by=lambda kv: kv[0])
    return pa.struct([("a", inner), ("b", pa.int16())]), st.fixed_dictionaries({"a": values, "b": st.integers(0, 9)})


@st.composite
def _tables(draw):
    count = draw(st.integers(0, 20))
    columns, fields = [], []
    for i in range(draw(st.integers(1, 4))):
        kind, values = draw(_typed())
        columns.append(pa.array(draw(st.lists(values | st.none(), min_size=count, max_size=count)), kind))
        fields.append(pa.field(draw(st.sampled_from(["a", "b.c", "é", f"f{i}"])) + str(i), kind, metadata=draw(st.sampled_from([None, {"k": "v"}]))))
    return pa.table(columns, pa.schema(fields, metadata=draw(st.sampled_from([None, {b"m": b"\xff"}]))))


def _of(table: pa.Table) -> Table:
    return Table(table.schema, len(table), lambda: iter(table.to_batches(max_chunksize=7)))


def _equal(a: pa.Table, b: pa.Table) -> bool:
    whole = [pa.Table.from_batches(t.to_batches(), t.schema).combine_chunks() for t in (a, b)]
    return a.schema.equals(b.schema, check_metadata=True) and all(same(x.chunk(0), y.chunk(0)) if x.num_chunks else not y.num_chunks for x, y in zip(whole[0].columns, whole[1].columns, strict=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(table=_tables(), numbers=st.booleans())
def test_any_table_comes_back(table, numbers, tmp_path_factory):
    stem = tmp_path_factory.mktemp("t") / "x"
    written = table_files.write(_of(table), stem, 3, numbers, {}, lambda n: None)
    back = pa.Table.from_batches(list(table_files.read(written.stored, stem)), table_files.schema_of(written.stored["schema"]))
    assert _equal(table, back)


def _many(count: int) -> pa.Table:
    r = np.random.default_rng(0)
    return pa.table({
        "id": np.arange(count), "walk": np.cumsum(r.normal(size=count)), "noise": r.normal(size=count).astype("f4"), "who": [f"user {i % 50}" for i in range(count)],
        "on": pa.array([datetime.date(2020, 1, 1) + datetime.timedelta(i // 10) for i in range(count)]), "maybe": [None if i % 3 else i / 4 for i in range(count)],
        "never": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, "i1")), pa.array(["used", "not used"])),
    })  # fmt: skip


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_a_file_comes_back_and_what_is_stored_opens(name, tmp_path):
    table = _many(3000)
    (tmp_path / "in").mkdir()
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / "in" / name)
        table = pq.read_table(tmp_path / "in" / name)
    else:
        with pa.ipc.new_file(str(tmp_path / "in" / name), table.schema) as out:
            out.write_table(table, max_chunksize=500)
    report, stored, back = there_and_back(tmp_path / "in", {"method": "reencode", "container": "parquet", "level": 3})
    got = pq.read_table(back / name) if name.endswith("parquet") else pa.ipc.open_file(pa.OSFile(str(back / name))).read_all()
    assert _equal(table, got)
    rows = {r["name"].split("/")[1]: r for r in report["rows"]}
    assert rows.keys() == set(table.column_names) and rows["id"]["coding"] == "delta_binary_packed" and report["totals"]["ratio"] > 1
    plain = pq.read_table(stored / "data" / f"{name}.parquet")
    assert plain["who"].to_pylist() == table["who"].to_pylist() and plain["walk"].equals(table["walk"])


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 1 << 18)
    batch = _many(4000).drop_columns(["never"]).to_batches()[0]
    peaks = []
    for times in (4, 40):
        table = Table(batch.schema, times * len(batch), lambda times=times: (batch for _ in range(times)))
        held = pa.total_allocated_bytes()
        peak = 0

        def progress(nbytes):
            nonlocal peak
            peak = max(peak, pa.total_allocated_bytes() - held)

        written = table_files.write(table, tmp_path / f"{times}", 1, True, {}, progress)
        assert sum(written.stored["groups"]) == table.rows
        peaks.append(peak)
    assert peaks[1] < 1.3 * peaks[0] + (1 << 20)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("name, spoil", [("t.parquet", _cut), ("t.parquet", lambda d: b"PAR1" + bytes(100) + d[-8:]), ("t.arrow", _cut), ("t.arrow", lambda d: d[:200] + bytes(300) + d[500:]), ("t.feather", lambda d: b"FEA1" + d)])
def test_what_is_damaged_is_refused(name, spoil, tmp_path):
    good = tmp_path / "good"
    if name.endswith("parquet"):
        pq.write_table(_many(200), good)
    else:
        with pa.ipc.new_file(str(good), _many(200).schema) as out:
            out.write_table(_many(200))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(spoil(good.read_bytes()))
    with pytest.raises(InputRefused) as e:
        carried_out(tmp_path / "in", tmp_path / "out", {"method": "reencode"})
    assert e.value.type == "invalid-table"


def test_rows_that_a_small_file_only_announces_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"a": pa.array(np.zeros(1 << 20, "i1"))}), tmp_path / "in" / "t.parquet")
    tables._FEW, kept = 1 << 10, tables._FEW
    try:
        with pytest.raises(InputRefused) as e:
            carried_out(tmp_path / "in", tmp_path / "out", {"method": "reencode"})
    finally:
        tables._FEW = kept
    assert e.value.type == "limit-expand"


def test_nulls_that_take_no_byte_are_counted(tmp_path):
    batch = pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.null(), (1 << 31) - 1, [None])], names=["n"])
    with pa.ipc.new_file(tmp_path / "a.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InputRefused) as e:
        tables.open_arrow(tmp_path / "a.arrow", "a.arrow")
    assert e.value.type == "limit-expand"
