"""Rows are dropped where they are like others or teach little; which ones is told, and what stays is as it was."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_jobs import carried_out, there_and_back
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InputRefused, InvalidJobSpec
from worker.datasets import hardness
from worker.datasets.coreset import coreset
from worker.datasets.near import near
from worker.datasets.quotas import quotas


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(1, 60), distance=st.floats(0.05, 1.5), metric=st.sampled_from(["euclidean", "cosine"]), scale=st.sampled_from([1.0, 2.0**-60, 2.0**80]), common=st.sampled_from([0, 1 << 16]))
def test_near_rows_by_the_plain_way(seed, count, distance, metric, scale, common):
    """`scale` and `common` (what all rows have in common) change no number of the rows' distances but their unit."""
    x = np.random.default_rng(seed).integers(-2, 3, (count, 3)).astype("f4")
    moved = x * np.float32(scale) if metric == "cosine" else (x + common) * np.float32(scale)
    kept, pairs, distances = near(moved, distance if metric == "cosine" else distance * scale, metric)
    distances = distances if metric == "cosine" else [d / scale for d in distances]

    def apart(a, b):
        if metric == "euclidean":
            return float(np.linalg.norm(a.astype("f8") - b.astype("f8")))
        return 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 9.0

    reference: list[int] = []
    for i in range(count):
        if all(apart(x[i], x[j]) > distance + 1e-7 for j in reference):
            reference.append(i)
    assert kept.tolist() == reference or any(abs(apart(x[i], x[j]) - distance) < 1e-6 for i in range(count) for j in range(i))
    assert sorted([*kept.tolist(), *(i for i, _ in pairs)]) == list(range(count)) and all(j in set(kept.tolist()) for _, j in pairs)
    assert all(abs(apart(x[i], x[j]) - d) < 1e-5 for (i, j), d in zip(pairs, distances, strict=True))


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), share=st.floats(0.01, 1), balance=st.sampled_from(["proportional", "equal"]))
def test_quotas_add_up(sizes, share, balance):
    keep = max(1, int(share * sum(sizes)))
    found = quotas(np.array(sizes), keep, balance)
    assert found.sum() == keep and (found <= sizes).all() and (found >= 0).all()
    if balance == "equal":
        assert all(a == b or a == size for a, size in zip(found, sizes, strict=True) for b in [found.max()] if a < b - 1)


def test_equal_rows_are_dropped_and_listed(tmp_path):
    (tmp_path / "in").mkdir()
    r = np.random.default_rng(0)
    x = r.normal(size=(50, 4)).astype("f4")
    x[[7, 20, 49]] = x[3]
    y = np.arange(50) % 2
    y[20] = 5
    np.savez(tmp_path / "in" / "d.npz", x=x, y=y, other=np.arange(3))
    report, stored, back = there_and_back(tmp_path / "in", {"method": "dedup"})
    got = np.load(back / "d.npz")
    same = [i for i in (7, 49) if y[i] == y[3]]
    left = [i for i in range(50) if i not in same]
    assert (got["x"] == x[left]).all() and (got["y"] == y[left]).all() and (got["other"] == np.arange(3)).all()
    (selection,) = report["selections"]
    assert selection["duplicates"] == [[i, 3] for i in same] and selection["positions"] == left and (np.load(stored / "kept" / "0.npy") == left).all()
    assert {r["name"]: r["action"] for r in report["rows"]} == {"d.npz/x": "pruned", "d.npz/y": "pruned", "d.npz/other": "encoded"}
    assert there_and_back(tmp_path / "in", {"method": "dedup", "by": ["x"]})[0]["selections"][0]["dropped"] == 3


def test_equal_rows_of_a_table(tmp_path):
    (tmp_path / "in").mkdir()
    table = pa.table({"a": [1, 1, None, 1, None], "b": ["x", "x", None, "y", None], "l": [[1], [1], None, [1], None]})
    pq.write_table(table, tmp_path / "in" / "t.parquet")
    report, _, back = there_and_back(tmp_path / "in", {"method": "dedup"})
    assert pq.read_table(back / "t.parquet").to_pylist() == [table.to_pylist()[i] for i in (0, 2, 3)]
    assert report["selections"][0]["duplicates"] == [[1, 0], [4, 2]]


def test_near_rows_are_dropped(tmp_path):
    (tmp_path / "in").mkdir()
    x = np.array([[0, 0], [3, 4], [0, 0.01], [3, 4.5]], "f4")
    np.save(tmp_path / "in" / "x.npy", x)
    report, _, back = there_and_back(tmp_path / "in", {"method": "dedup", "distance": 0.1})
    assert (np.load(back / "x.npy") == x[[0, 1, 3]]).all() and report["selections"][0]["distances"] == pytest.approx([0.01], abs=1e-6)


def test_grand_is_the_length_of_the_gradient():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 5, generator=g), torch.tensor([0, 1, 2, 0, 1, 2])
    net = hardness._network(5, 3, g)
    found = hardness._scores(net, x, y, "grand")
    for i in range(6):
        grads = torch.autograd.grad(torch.nn.functional.cross_entropy(hardness._forward(net, x[i : i + 1])[1], y[i : i + 1]), net)
        assert found[i].item() == pytest.approx(torch.cat([p.reshape(-1) for p in grads]).norm().item(), rel=1e-4)


def test_a_coreset_has_a_row_of_every_cluster():
    r = np.random.default_rng(0)
    centres = r.normal(size=(8, 3)) * 100
    x = (centres[np.arange(400) % 8] + r.normal(size=(400, 3))).astype("f4")
    kept = coreset(x, 40, 0)
    assert len(np.unique(kept)) == 40 and set(kept % 8) == set(range(8))


def _digits(folder, count=400, noise=0):
    from sklearn.datasets import load_digits

    folder.mkdir()
    x, y = load_digits(return_X_y=True)
    y[:noise] = (y[:noise] + 3) % 10
    np.savez(folder / "d.npz", x=x[:count].astype("f4"), y=y[:count], size=np.array([8, 8]))


@pytest.mark.parametrize("saliency", ["grand", "el2n", "kmeans", "random"])
def test_a_share_of_each_class_is_kept(saliency, tmp_path):
    _digits(tmp_path / "in")
    step = {"method": "prune", "keep": 0.25, "saliency": saliency, "label": "y", "seeds": 1, "epochs": 2, "balance": "equal"}
    report, _, back = there_and_back(tmp_path / "in", step, seed=1)
    got, all_ = np.load(back / "d.npz"), np.load(tmp_path / "in" / "d.npz")
    (selection,) = report["selections"]
    assert (got["x"] == all_["x"][selection["positions"]]).all() and (got["y"] == all_["y"][selection["positions"]]).all() and (got["size"] == 8).all()
    assert set(np.bincount(got["y"])) == {10} and selection["kept"] == 100


def test_wrong_labels_are_the_hardest(tmp_path):
    _digits(tmp_path / "in", 800, noise=40)
    step = {"method": "prune", "keep": 0.5, "saliency": "el2n", "label": "y", "seeds": 2, "epochs": 6}
    hardest = carried_out(tmp_path / "in", tmp_path / "a", step)["selections"][0]["positions"]
    without = carried_out(tmp_path / "in", tmp_path / "b", step | {"drop_hardest": 0.1})["selections"][0]["positions"]
    assert sum(i < 40 for i in hardest) > 35 and sum(i < 40 for i in without) < 8


@pytest.mark.parametrize(
    "step, where",
    [({"saliency": "el2n"}, "label"), ({"saliency": "kmeans", "drop_hardest": 0.1}, "drop_hardest"), ({"saliency": "grand", "label": "y", "keep": 0.95, "drop_hardest": 0.1}, "drop_hardest")],
)
def test_what_makes_no_sense_is_refused_at_once(step, where, tmp_path):
    with pytest.raises(InvalidJobSpec) as e:
        carried_out(tmp_path, tmp_path / "out", {"method": "prune", "keep": 0.5} | step)
    assert e.value.pointer == f"/recipe/steps/0/{where}"


@pytest.mark.parametrize("step, where", [({"label": "z"}, "label"), ({"label": "x"}, "label"), ({"label": "y", "features": ["size"]}, "features/0")])
def test_labels_that_are_none_are_refused(step, where, tmp_path):
    _digits(tmp_path / "in", 50)
    with pytest.raises(InputRefused) as e:
        carried_out(tmp_path / "in", tmp_path / "out", {"method": "prune", "keep": 0.5} | step)
    assert e.value.type == "not-selectable" and e.value.pointer == f"/recipe/steps/0/{where}"
