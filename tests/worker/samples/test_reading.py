"""Calibration files of every form, and what is wrong with others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from app.errors import InputRefused
from worker.samples import read

LINES = [f"line {i}" for i in range(9)]
IDS = [[1, 2, 3 + i] for i in range(9)]


def folder(tmp_path, name: str, content, of: str = "calibration"):
    (made := tmp_path / of).mkdir(exist_ok=True)
    path = made / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return made


def jsonl(values) -> str:
    return "".join(json.dumps(v) + "\n" for v in values)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "\ufeff" + "\r\n".join(LINES) + "\n\n"), ("a.jsonl", jsonl({"text": t, "id": 7} for t in LINES)), ("a.ndjson", jsonl(LINES)),
        ("a.json", json.dumps(LINES)),
    ],
)  # fmt: skip
def test_texts(tmp_path, name, content):
    samples = read(folder(tmp_path, name, content))
    assert samples.texts == LINES and not samples.tokens and not samples.arrays and len(samples) == 9


@pytest.mark.parametrize(
    "name, content", [("a.jsonl", jsonl({"input_ids": i} for i in IDS)), ("a.jsonl", jsonl(IDS)), ("a.json", json.dumps(IDS)), ("a.npy", np.array(IDS, dtype="i4"))]
)
def test_token_ids(tmp_path, name, content):
    samples = read(folder(tmp_path, name, content))
    assert [t.tolist() for t in samples.tokens] == IDS and not samples.texts and samples.tokens[0].dtype == np.int64


def test_arrays(tmp_path):
    x = np.random.default_rng(0).random((9, 4), dtype=np.float32)
    samples = read(folder(tmp_path, "a.npz", {"x": x, "y": np.arange(9)}))
    assert np.array_equal(samples.arrays["x"], x) and len(samples) == 9


@pytest.mark.parametrize(
    "name, content, kind, says",
    [
        ("a.txt", "one\ntwo\n", "too-few-samples", "2 samples; at least 8"),
        ("a.txt", "", "too-few-samples", "0 samples"),
        ("a.txt", b"\xff\xfe\n" * 9, "invalid-calibration", "not UTF-8 at byte 0"),
        ("a.csv", "x", "invalid-calibration", "'a.csv'"),
        ("a.jsonl", "{}\n" * 9, "invalid-calibration", "sample 0"),
        ("a.jsonl", jsonl([*LINES, [1]]), "invalid-calibration", "sample 9"),
        ("a.jsonl", jsonl([*IDS, [1, -1]]), "invalid-calibration", "sample 9"),
        ("a.jsonl", jsonl([*IDS, [1, True]]), "invalid-calibration", "sample 9"),
        ("a.jsonl", jsonl([*IDS, []]), "invalid-calibration", "sample 9"),
        ("a.jsonl", jsonl([{"text": "a", "input_ids": [1]}] * 9), "invalid-calibration", "'text', 'input_ids'"),
        ("a.jsonl", jsonl(LINES) + "{\n", "invalid-calibration", "line 10"),
        ("a.jsonl", '"a \\ud800"\n' * 9, "invalid-calibration", "sample 0 of 'a.jsonl' holds half"),
        ("a.npz", {"x": np.zeros((1_000_001, 0), dtype="f4")}, "limit-entries", "1000001 samples"),
        ("a.jsonl", "[" * 100_000, "limit-depth", "nested"),
        ("a.json", json.dumps({"calibration": LINES}), "invalid-calibration", "must hold a list"),
        ("a.npy", np.zeros((9, 2), dtype="f4"), "invalid-calibration", "float32"),
        ("a.npy", np.full((9, 2), -1), "invalid-calibration", "from -1 to -1"),
        ("a.npz", {"x": np.zeros((9, 2)), "y": np.zeros(8)}, "invalid-calibration", "'x' 9, 'y' 8"),
        ("a.npz", {"x": np.float32(1)}, "invalid-calibration", "single number"),
        ("a.npz", {"x": np.r_[np.zeros(8), np.nan]}, "invalid-calibration", "sample 8 of array 'x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path, name, content, kind, says):
    with pytest.raises(InputRefused, match=says) as e:
        read(folder(tmp_path, name, content))
    assert e.value.type == kind


def test_one_file_is_wanted(tmp_path):
    folder(tmp_path, "a.txt", "x")
    with pytest.raises(InputRefused, match="'a.txt', 'b.txt'"):
        read(folder(tmp_path, "b.txt", "x"))


LABELS = [0, 2, 1, 0, 0, 1, 2, 1, 0]


@pytest.mark.parametrize(
    "name, content",
    [
        ("l.npy", np.array(LABELS, dtype="u1")), ("l.npy", np.array(LABELS)[:, None]), ("l.npz", {"labels": np.array(LABELS)}), ("l.txt", "\n".join(map(str, LABELS))),
        ("l.jsonl", jsonl(LABELS)), ("l.jsonl", jsonl({"label": n} for n in LABELS)), ("l.json", json.dumps(LABELS)),
    ],
)  # fmt: skip
def test_labels(tmp_path, name, content):
    samples = read(folder(tmp_path, "a.txt", "\n".join(LINES)), folder(tmp_path, name, content, "labels"))
    assert samples.labels.tolist() == LABELS and samples.labels.dtype == np.int64


def test_labels_of_a_regression(tmp_path):
    samples = read(folder(tmp_path, "a.txt", "\n".join(LINES)), folder(tmp_path, "l.jsonl", jsonl([[n / 2, 1] for n in LABELS]), "labels"))
    assert samples.labels.shape == (9, 2) and samples.labels.dtype == np.float32


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("l.txt", "0\n1\n", "2 labels and 9 samples"), ("l.txt", "cat\n" * 9, "label 0 is 'cat'"), ("l.jsonl", jsonl([*LABELS[:8], None]), "label 8"),
        ("l.npy", np.r_[np.zeros(8), np.inf], "label 8"), ("l.npz", {"a": np.zeros(9), "b": np.zeros(9)}, "'a', 'b'"), ("l.bin", b"x", "'l.bin'"),
        ("l.npy", np.zeros((9, 1, 1)), "shape"), ("l.jsonl", jsonl([*[[1, 2]] * 8, [1]]), "label 8"),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_named(tmp_path, name, content, says):
    with pytest.raises(InputRefused, match=says) as e:
        read(folder(tmp_path, "a.txt", "\n".join(LINES)), folder(tmp_path, name, content, "labels"))
    assert e.value.type == "labels-mismatch"
