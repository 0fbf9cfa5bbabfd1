"""What a child left behind, looked at as a stranger's."""

from __future__ import annotations

import json
import os

import pytest

from worker import result
from worker.result import Unusable


def test_regular_files_in_order(tmp_path):
    for path in ("b/c", "a", "b/a.json", "b/.x"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    assert result.files(tmp_path) == ["a", "b/.x", "b/a.json", "b/c"]


LEFT = {
    "nothing": lambda p: None,
    "an empty folder": lambda p: (p / "a").mkdir(),
    "a link": lambda p: (p / "a").symlink_to("/etc/passwd"),
    "a link to a folder": lambda p: (p / "a").symlink_to("/etc"),
    "a second name of a file": lambda p: ((p / "a").write_bytes(b"x"), os.link(p / "a", p / "b")),
    "a pipe": lambda p: os.mkfifo(p / "a"),
    "a name with a line's end": lambda p: (p / "a\nb").write_bytes(b"x"),
    "a name with an escape": lambda p: (p / "a\x1b[2J").write_bytes(b"x"),
    "a name that is no text": lambda p: open(os.fsencode(p) + b"/a\xff", "w").close(),
    "a name of another system": lambda p: (p / "..\\a").write_bytes(b"x"),
    "a deep folder": lambda p: os.makedirs(p / "/".join("d" * 40)) or (p / "/".join("d" * 40) / "a").write_bytes(b"x"),
}


@pytest.mark.parametrize("what", LEFT)
def test_anything_else_is_unusable(tmp_path, what):
    LEFT[what](tmp_path)
    with pytest.raises(Unusable) as e:
        result.files(tmp_path)
    assert str(e.value).isprintable()


def test_too_many_files_are_unusable(tmp_path, monkeypatch):
    monkeypatch.setattr(result, "MAX_FILES", 3)
    for i in range(4):
        (tmp_path / str(i)).write_bytes(b"")
    with pytest.raises(Unusable, match="more than 3"):
        result.files(tmp_path)


def test_a_report(tmp_path):
    text = json.dumps({"environment": {"python": "3.11"}, "tensors": []})
    (tmp_path / "report.json").write_text(text)
    assert result.report(tmp_path / "report.json") == (text.encode(), json.loads(text))


TWICE, NAN = '{"environment": {}, "environment": {}}', '{"environment": {}, "x": NaN}'
BAD = ["", "{", "[]", "3", "{}", '{"environment": 3}', TWICE, NAN, "[" * 100_000, "\udcff"]


@pytest.mark.parametrize("text", BAD)
def test_a_bad_report_is_unusable(tmp_path, text):
    (tmp_path / "report.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Unusable):
        result.report(tmp_path / "report.json")


def test_a_report_that_is_missing_large_or_a_link_is_unusable(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("/proc/self/status")
    (tmp_path / "large").write_text('{"environment": {}}' + " " * 100)
    monkeypatch.setattr(result, "MAX_REPORT", 64)
    for name in ("missing", "link", "large"):
        with pytest.raises(Unusable):
            result.report(tmp_path / name)


FOUND = {"recipe": {"steps": [{"method": "quantize", "num_bits": 4, "targets": ["a"]}]}, "search": {"met": True}}


def test_what_a_search_has_found(tmp_path):
    (tmp_path / "search.json").write_text(json.dumps(FOUND))
    found = result.searched(tmp_path / "search.json")
    assert found["search"] == {"met": True} and found["recipe"]["steps"][0]["strategy"] == "channel"


@pytest.mark.parametrize("steps", [[{"method": "auto"}], [{"method": "restore"}], [{"method": "lossless"}], [{"method": "prune", "recover": {"steps": 9}}], [{"method": "x"}], []])
def test_no_other_recipe_comes_out_of_a_search(tmp_path, steps):
    (tmp_path / "search.json").write_text(json.dumps(FOUND | {"recipe": {"steps": steps}}))
    with pytest.raises(Unusable):
        result.searched(tmp_path / "search.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"recipe": 1, "search": {}}', json.dumps(FOUND | {"search": 1})])
def test_a_search_that_left_something_else(tmp_path, text):
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(Unusable):
        result.searched(tmp_path / "search.json")
    with pytest.raises(Unusable):
        result.searched(tmp_path / "nothing.json")
