"""What a promise was broken on once: odd files, odd bounds, odd labels."""

from __future__ import annotations

import decimal
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_jobs import carried_out, there_and_back

from app.errors import InputRefused


@pytest.mark.parametrize("data, reason", [(b"a,b\n" + b"1,x\n" * 300_000 + b"2,\xe9\n", "UTF-8"), (b"a,b\n1," + b"x" * (9 << 20) + b"\n2,y\n", "longer"), (b"a,b\r" + b"1,2\r" * 300_000, "longer")])
def test_a_csv_that_shows_late_what_it_is_stays_text(data, reason, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(data)
    report, _, back = there_and_back(tmp_path / "in")
    assert reason in report["rows"][0]["reason"] and (back / "a.csv").read_bytes() == data


def test_types_that_hold_no_nan_for_equal_and_negative_scales_come_back(tmp_path):
    nan = float("nan")
    union = pa.UnionArray.from_dense(pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32()), [pa.array([1.5, nan]), pa.array(["x"])])
    table = pa.table({"view": pa.array([[1.5, nan], None, []], pa.list_view(pa.float64())), "union": union, "tens": pa.array([decimal.Decimal(100), None, None], pa.decimal128(5, -2))})
    (tmp_path / "in").mkdir()
    with pa.ipc.new_file(str(tmp_path / "in" / "a.arrow"), table.schema) as f:
        f.write_table(table)
    _, _, back = there_and_back(tmp_path / "in")
    got = pa.ipc.open_file(str(back / "a.arrow")).read_all()
    assert got.schema.equals(table.schema) and repr(got.to_pydict()) == repr(table.to_pydict())


UNION = pa.dense_union([pa.field("a", pa.int64()), pa.field("b", pa.string())])


def _no_union() -> pa.Array:
    return pa.UnionArray.from_dense(pa.array([], pa.int8()), pa.array([], pa.int32()), [pa.array([], pa.int64()), pa.array([], pa.string())], ["a", "b"])


@pytest.mark.parametrize(
    "columns",
    [
        {"dense": UNION, "sparse": pa.sparse_union([pa.field("a", pa.int8())]), "nested": pa.struct([pa.field("u", UNION)]), "list": pa.list_(UNION), "x": pa.float32(), "text": pa.dictionary(pa.int8(), pa.string())},
        {"dense": _no_union(), "nested": pa.StructArray.from_arrays([_no_union()], ["u"])},
        {"list": pa.ListArray.from_arrays(pa.array([0, 0, 0], pa.int32()), _no_union()), "x": pa.array([1.5, None])},
    ],
    ids=["no batch", "a batch without rows", "rows without any"],
)
def test_unions_without_rows_come_back(columns, tmp_path):
    schema = pa.schema({n: getattr(c, "type", c) for n, c in columns.items()})
    (tmp_path / "in").mkdir()
    with pa.ipc.new_file(str(tmp_path / "in" / "a.arrow"), schema) as f:
        if isinstance(next(iter(columns.values())), pa.Array):
            f.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
    _, _, back = there_and_back(tmp_path / "in")
    given, got = (pa.ipc.open_file(str(folder / "a.arrow")).read_all() for folder in (tmp_path / "in", back))
    assert got.schema.equals(schema, check_metadata=True) and got.to_pydict() == given.to_pydict()


@pytest.mark.parametrize("bound", [{"max_abs_error": 1.7e308}, {"max_rel_error": 0.9999999}])
def test_the_largest_bounds_come_back(bound, tmp_path):
    (tmp_path / "in").mkdir()
    values = np.array([1.5, np.nan, -np.inf, 1e308, -2.0] * 9)
    pq.write_table(pa.table({"x": values}), tmp_path / "in" / "a.parquet")
    report, _, back = there_and_back(tmp_path / "in", {"method": "quantize", **bound})
    got = pq.read_table(back / "a.parquet")["x"].to_numpy()
    finite = np.isfinite(values)
    assert got[~finite].tobytes() == values[~finite].tobytes() and (np.abs(got - values)[finite] <= bound.get("max_abs_error", np.abs(values[finite]))).all()
    assert report["rows"][0]["exceptions"] >= 18


def test_a_folder_may_have_the_name_of_what_is_stored(tmp_path):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as z:
        for name in ("a.csv", "a.csv.parquet/b.csv"):
            z.writestr(name, "a,b\n1,x\n2,y\n")
    _, _, back = there_and_back(tmp_path / "in")
    assert {p.relative_to(back).as_posix() for p in back.rglob("*.csv")} == {"a.csv", "a.csv.parquet/b.csv"}


@pytest.mark.parametrize("names, labels, why", [(["y", "x"], [1, None, 2, 1], "nulls"), (["y", "x", "y"], [1, 1, 2, 2], "several")])
def test_labels_are_there_and_in_one_column(names, labels, why, tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_arrays([pa.array(labels), pa.array([1.0, 2, 3, 4]), pa.array(labels)][: len(names)], names=names), tmp_path / "in" / "a.parquet")
    with pytest.raises(InputRefused, match=why):
        carried_out(tmp_path / "in", tmp_path / "out", {"method": "prune", "keep": 0.5, "label": "y"})
