"""What a data set tells beside its rows is found, and taken out; the rows stay."""

from __future__ import annotations

import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_jobs import REENCODE, carried_out, there_and_back

MAIL, HOME = "ada.lovelace@example.com", "/home/ada/secret/run.py"
ROWS = {"x": [1.5, 2.5, 3.5], "email": ["a@example.com", "b@example.com", None]}


@pytest.fixture
def given(tmp_path):
    """A zip of a table that says who made it where, a text beside it, and a key."""
    schema = pa.schema([pa.field("x", pa.float64(), metadata={"source": HOME, "unit": "m"}), pa.field("email", pa.string())])
    about = {"creator": {"library": "ours", "author": "Ada Lovelace"}, "columns": ["x", "email"]}
    table = pa.table(ROWS, schema=schema).replace_schema_metadata({"pandas": json.dumps(about), "origin": f"written by {MAIL}", "licence": "MIT"})
    (inp := tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "t.parquet")
    with zipfile.ZipFile(inp / "d.zip", "w") as z:
        z.comment = f"packed by {MAIL}".encode()
        z.write(tmp_path / "t.parquet", "home/ada/t.parquet")
        z.writestr("README.md", f"Ask {MAIL}.\nTwo columns.\n")
        z.writestr(".env", "TOKEN=1\n")
    return inp


def test_it_is_reported_and_everything_comes_back(given):
    report, _, back = there_and_back(given, sanitize="report")
    found = report["sanitized"]["findings"]
    assert report["sanitized"]["mode"] == "report" and MAIL not in json.dumps(report) and HOME not in json.dumps(report)
    places = [f["where"] for f in found]
    for expected in ("the path of a file", "t.parquet: metadata.origin", "t.parquet: metadata.pandas.creator.author", "t.parquet: metadata of x.source", "README.md: line 1", ".env", "d.zip: comment", "t.parquet/email"):
        assert any(expected in place for place in places), (expected, places)
    assert pq.read_table(back / "home/ada/t.parquet").schema.metadata[b"origin"] == f"written by {MAIL}".encode()
    assert (back / ".env").read_text() == "TOKEN=1\n"


def test_it_is_stripped_and_the_rows_stay(given):
    report, stored, back = there_and_back(given, REENCODE, sanitize="strip")
    assert sorted(p.relative_to(back).as_posix() for p in back.rglob("*") if p.is_file()) == ["README.md", "t.parquet"]
    table = pq.read_table(back / "t.parquet")
    assert table.to_pydict() == ROWS and table.schema.metadata[b"licence"] == b"MIT" and table.schema.field("x").metadata[b"unit"] == b"m"
    assert json.loads(table.schema.metadata[b"pandas"])["columns"] == ["x", "email"] and (back / "README.md").read_text() == "Ask (removed).\nTwo columns.\n"
    everything = b"".join(p.read_bytes() for folder in (stored, back) for p in folder.rglob("*") if p.is_file())
    assert not [secret for secret in (MAIL.encode(), HOME.encode(), b"Lovelace", b"TOKEN") if secret in everything]
    assert {r["name"]: r["action"] for r in report["rows"]}[".env"] == "dropped"


def test_columns_whose_names_say_people_are_dropped_or_hashed_by_name(given):
    report, _, back = there_and_back(given, {"method": "columns", "hash": ["email"]}, REENCODE)
    assert report["sanitized"]["mode"] == "strip"  # the default of what changes values
    got = pq.read_table(back / "t.parquet")["email"].to_pylist()
    assert len(got[0]) == 32 and got[2] is None and "@" not in got[0]


def test_what_pandas_says_of_its_columns_is_no_finding(tmp_path):
    (tmp_path / "in").mkdir()
    columns = [{"name": "x", "field_name": "x", "pandas_type": "float64", "numpy_type": "float64", "metadata": None}]
    about = {"index_columns": [{"kind": "range", "name": None, "start": 0, "stop": 3, "step": 1}], "column_indexes": [], "columns": columns, "creator": {"library": "pyarrow", "version": "26.0.1"}, "pandas_version": "2.3.0"}
    pq.write_table(pa.table({"x": [1.0, 2.0]}).replace_schema_metadata({"pandas": json.dumps(about), "huggingface": json.dumps({"info": {"features": {"x": {"dtype": "float64", "_type": "Value"}}}})}), tmp_path / "in" / "t.parquet")
    assert carried_out(tmp_path / "in", tmp_path / "out", REENCODE)["sanitized"] == {"mode": "report", "findings": []}
