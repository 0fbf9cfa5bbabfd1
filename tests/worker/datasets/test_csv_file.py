"""A csv comes back byte for byte, as a table with types or as text."""

from __future__ import annotations

import csv
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_jobs import carried_out, there_and_back
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import InputRefused
from worker.datasets import csv_file, csv_lines
from worker.datasets.csv_dialect import DELIMITERS, Text

_FIELDS = st.sampled_from(["", "1", "-7", "007", "1.50", "-0.0", "1e5", "nan", "2020-01-02", "2020-01-02 03:04:05", "a", "é,b", 'say "x"', " 1", "two\nlines", "True"])


def _given(tmp_path, data: bytes | str, name: str = "t.csv"):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return tmp_path / "in"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.lists(_FIELDS, min_size=3, max_size=3), min_size=1, max_size=8), delimiter=st.sampled_from(DELIMITERS), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n"]), ended=st.booleans(),
)  # fmt: skip
def test_whatever_is_written_comes_back(rows, delimiter, quoting, newline, ended, tmp_path_factory):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=newline)
    writer.writerows([["a", "b", "c"], *rows])
    folder = tmp_path_factory.mktemp("c")
    path = folder / "t.csv"
    path.write_bytes((text := out.getvalue() if ended else out.getvalue().removesuffix(newline)).encode())
    found = csv_file.open_csv(path, "t.csv")
    if not isinstance(found, Text):
        dialect, table = found
        assert b"".join(csv_lines.lines(table.batches(), table.schema, dialect)).decode() == text and table.rows == len(rows)


def test_columns_have_types_where_their_text_follows(tmp_path):
    text = "id,price,score,day,at,code,note\n" + "".join(f"{i},{i / 4:.2f},{i / 7!r},2020-01-{1 + i % 28:02d},2020-01-01 00:00:{i % 60:02d},{i:04d},\"x, {i}\"\n" for i in range(400))
    report, stored, back = there_and_back(_given(tmp_path, text))
    assert (back / "t.csv").read_text() == text
    types = {r["name"].split("/")[1]: r["type"] for r in report["rows"]}
    assert types == {"id": "int64", "price": "decimal128(18, 2)", "score": "double", "day": "date32[day]", "at": "timestamp[s]", "code": "string", "note": "string"}
    assert report["totals"]["ratio"] > 3
    assert pq.read_table(stored / "data" / "t.csv.parquet")["code"].to_pylist()[7] == "0007"


@pytest.mark.parametrize("data", [b"a,b\n\xff,1\n", 'a,b\n"1",x\n2,y\n', "a,b\n1,2\n\n3,4\n", "a,b\n", "a,b\r\n1,2\n3,4\r\n", "a\rb,c\n1,2\n", "a" * 200_000 + ",b\n1,2\n"])
def test_what_is_no_table_is_kept_as_text(data, tmp_path):
    report, _, back = there_and_back(folder := _given(tmp_path, data))
    assert (back / "t.csv").read_bytes() == (folder / "t.csv").read_bytes()
    assert report["rows"][0]["type"] == "text" and report["rows"][0]["reason"]


@pytest.mark.parametrize("data, reason, told", [("a,b\n1,2\n3\n", "invalid-table", "Row #3"), ("a,b\n1,2,3\n", "invalid-table", "Expected 2"), ("", "invalid-table", "empty"), (b"a,b\n\0,1\n", "kind-mismatch", "binary"), (b'\na2;"b"."\r50\n;x"\r\n', "invalid-table", "1 below")])
def test_ragged_lines_are_refused(data, reason, told, tmp_path):
    with pytest.raises(InputRefused) as e:
        carried_out(_given(tmp_path, data), tmp_path / "out", {"method": "reencode"})
    assert e.value.type == reason and told in e.value.detail


def test_columns_are_dropped_and_hashed(tmp_path):
    text = "id,mail,x\n" + "".join(f"{i},user{i % 3}@example.org,{i}.5\n" for i in range(30))
    report, stored, back = there_and_back(_given(tmp_path, text), {"method": "columns", "drop": ["id"], "hash": ["mail"]})
    lines = (back / "t.csv").read_text().splitlines()
    assert lines[0] == "mail,x" and len({line.split(",")[0] for line in lines[1:]}) == 3 and lines[1].split(",")[0] == lines[4].split(",")[0]
    assert not any(b"example.org" in p.read_bytes() for p in stored.rglob("*") if p.is_file())
    assert [(r["name"], r["action"]) for r in report["rows"]] == [("t.csv/id", "dropped"), ("t.csv/mail", "encoded"), ("t.csv/x", "encoded")]
    assert "kept nowhere" in report["rows"][1]["note"]


def test_a_bound_holds_for_the_numbers_of_a_csv(tmp_path):
    r = np.random.default_rng(0)
    text = "id,x,y\n" + "".join(f"{i},{r.normal():.4f},{r.normal()!r}\n" for i in range(500))
    report, _, back = there_and_back(_given(tmp_path, text), {"method": "quantize", "max_abs_error": 0.01})
    before, after = (np.array([[float(f) for f in line.split(",")] for line in t.splitlines()[1:]]) for t in (text, (back / "t.csv").read_text()))
    assert (before[:, 0] == after[:, 0]).all() and 0.005 < np.abs(before - after).max() <= 0.01
    assert [r["action"] for r in report["rows"]] == ["encoded", "quantized", "quantized"]
