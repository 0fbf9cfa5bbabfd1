"""Data sets: ratio and speed both ways beside parquet, npz and blosc2, and what a classifier learns from a part of MNIST.

    .venv/bin/python -m benchmarks.datasets sizes --mnist mnist.npz --out FILE.json [--only NAME] [--embeddings E.npy]
    .venv/bin/python -m benchmarks.datasets accuracy --mnist mnist.npz --out FILE.json --seed N [--seed M] [--noise 0.05]
    .venv/bin/python -m benchmarks.datasets table --out FILE.json

Each call adds its rows to FILE. `sizes`: one thread, files in a warm cache; MB/s are bytes in memory a second, ours with the comparison of all that was written. Every way is asserted to give back the
same. `accuracy`: a network of one hidden layer (256), Adam, 600 steps of 128 rows, whatever part of the 60,000 rows it sees; scored on the 10,000 test rows; wrong labels stand in the
training rows alone, drawn for each seed.
"""

from __future__ import annotations

import argparse
import datetime
import decimal
import io
import json
import os
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from app.job_spec import parse_job
from app.steps.dataset import PruneRows
from worker.datasets import job, pruning
from worker.datasets.hardness import hardness

ANY = "00000000-0000-0000-0000-000000000000"
KEEPS, NOISE = (0.5, 0.2, 0.05), (0.0, 0.05)
WAYS = {
    "random": {"saliency": "random"}, "kmeans": {"saliency": "kmeans"}, "el2n": {"saliency": "el2n"}, "grand": {"saliency": "grand"},
    "el2n, hardest 10 % dropped": {"saliency": "el2n", "drop_hardest": 0.1}, "grand, hardest 10 % dropped": {"saliency": "grand", "drop_hardest": 0.1},
}  # fmt: skip
_HIDDEN, _STEPS, _BATCH, _RATE = 256, 600, 128, 1e-3
_SEEDS, _EPOCHS = 2, 2  # of the networks that score rows


def wide_csv(rows: int = 2000, columns: int = 300) -> str:
    """Sensors: walks and noise of four decimals, counters, categories, a few empty fields."""
    r = np.random.default_rng(0)
    made = [np.cumsum(r.normal(size=rows)) if i % 3 == 0 else r.normal(size=rows) * 10 ** (i % 4) if i % 3 == 1 else r.integers(0, 5, rows) for i in range(columns)]
    text = [[f"{v:.4f}" if m.dtype.kind == "f" else str(v) for v in m] for m in made]
    lines = (",".join("" if (i * 7 + j) % 97 == 0 else text[j][i] for j in range(columns)) for i in range(rows))
    return ",".join(f"s{j}" for j in range(columns)) + "\n" + "\n".join(lines) + "\n"


def mixed_table(rows: int = 100_000) -> pa.Table:
    """Nulls, text, dates, decimals, nested lists."""
    r = np.random.default_rng(1)
    words = [f"customer-{i:04d}" for i in range(500)]
    return pa.table({
        "id": np.arange(rows), "who": [words[i] for i in r.integers(0, 500, rows)], "when": pa.array(np.cumsum(r.integers(0, 100, rows)), pa.timestamp("s", "Europe/Berlin")),
        "day": pa.array(r.integers(17000, 19000, rows).astype("i4"), pa.date32()), "price": pa.array([decimal.Decimal(int(n)).scaleb(-2) for n in r.integers(0, 100000, rows)], pa.decimal128(12, 2)),
        "score": pa.array(np.where(r.random(rows) < 0.1, np.nan, r.normal(size=rows)), from_pandas=True), "text": [f"order {i * 7919 % 100003} of {words[i % 500]}" for i in range(rows)],
        "items": [r.integers(0, 1000, n).tolist() if n else None for n in r.integers(0, 6, rows)], "tags": [[[words[i % 9]], []] if i % 3 else None for i in range(rows)],
    })  # fmt: skip


def sets(mnist: Path, embeddings: Path | None) -> dict[str, tuple[str, bytes, dict[str, np.ndarray] | pa.Table]]:
    """By name: the name of a file, its bytes, and what is in it."""
    from sklearn.datasets import load_digits

    def npz(**arrays):
        np.savez(out := io.BytesIO(), **arrays)
        return out.getvalue(), arrays

    with np.load(mnist) as f:
        x, y = f["x_train"], f["y_train"]
        found = {"MNIST": ("mnist.npz", *npz(**dict(f)))}
    digits, classes = load_digits(return_X_y=True)
    found["digits"] = ("digits.npz", *npz(x=digits, y=classes))
    if embeddings:
        found["embeddings"] = ("embeddings.npz", *npz(embeddings=np.load(embeddings)))
    text = wide_csv().encode()
    found["wide csv"] = ("wide.csv", text, pa.csv.read_csv(io.BytesIO(text)))
    pq.write_table(mixed_table(), out := io.BytesIO(), compression="none")
    found["mixed parquet"] = ("mixed.parquet", out.getvalue(), pq.read_table(io.BytesIO(out.getvalue())))
    assert len(x) == len(y)
    return found


def _timed(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def ours(name: str, data: bytes, steps: list[dict]) -> tuple[int, float, float, dict, bytes]:
    """Bytes, seconds to write and to restore, the report, and the restored file."""
    with tempfile.TemporaryDirectory() as work:
        inp = Path(work, "in")
        inp.mkdir()
        (inp / name).write_bytes(data)

        def run(source: Path, out: str, recipe: list[dict]):
            spec = parse_job({"input": ANY, "recipe": {"steps": recipe}}, kind="dataset").model_dump(mode="json")
            job.run(source, Path(work, out), spec, lambda event: None)

        _, there = _timed(lambda: run(inp, "out", steps))
        report = json.loads(Path(work, "out", "report.json").read_text())
        _, back = _timed(lambda: run(Path(work, "out", "files"), "back", [{"method": "restore"}]))
        return report["totals"]["bytes_after"], there, back, report, Path(work, "back", "files", name).read_bytes()


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as f:
        return dict(f)


def others(content: dict[str, np.ndarray] | pa.Table) -> dict[str, tuple]:
    """By the name of a way: write and read; arrays go into parquet as one column of bytes for each row, or of numbers."""
    import blosc2

    tables = isinstance(content, pa.Table)

    def as_table(array: np.ndarray) -> pa.Table:
        flat = np.ascontiguousarray(array.reshape(len(array), -1))
        return pa.table({"a": pa.FixedSizeListArray.from_arrays(flat.reshape(-1), flat.shape[1]) if flat.shape[1] > 1 else flat[:, 0]})

    def parquet(level: int):
        def write():
            out = []
            for t in [content] if tables else map(as_table, content.values()):
                pq.write_table(t, sink := io.BytesIO(), compression="zstd", compression_level=level)
                out.append(sink.getvalue())
            return out

        return write, lambda out: [pq.read_table(io.BytesIO(b), use_threads=False) for b in out]

    found = {f"parquet, zstd {level}": parquet(level) for level in (3, 19)}
    if not tables:

        def npz():
            np.savez_compressed(out := io.BytesIO(), **content)
            return [out.getvalue()]

        found["npz (deflate)"] = (npz, lambda out: [_arrays(b) for b in out])
        for level in (5, 9):
            options = {"codec": blosc2.Codec.ZSTD, "clevel": level, "nthreads": 1}
            found[f"blosc2, shuffle + zstd {level}"] = (
                lambda options=options: [blosc2.compress2(np.ascontiguousarray(a), typesize=a.itemsize, filters=[blosc2.Filter.SHUFFLE], **{k: v for k, v in options.items()}) for a in content.values()],
                lambda out: [blosc2.decompress2(b) for b in out],
            )
    return found


def same(a, b) -> bool:
    return a.equals(b) if isinstance(a, pa.Table) else a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() and a[k].dtype == b[k].dtype for k in a)


def sizes(mnist: Path, embeddings: Path | None, only: str | None) -> list[dict]:
    rows = []
    for title, (name, data, content) in sets(mnist, embeddings).items():
        if only and title != only:
            continue
        plain = len(data) if name.endswith("csv") else content.nbytes if isinstance(content, pa.Table) else sum(a.nbytes for a in content.values())

        def add(way: str, nbytes: int, there: float, back: float, **more):
            rows.append({"set": title, "bytes": plain, "way": way, "stored": nbytes, "ratio": round(plain / nbytes, 3), "write_mbs": round(plain / 1e6 / there, 1), "read_mbs": round(plain / 1e6 / back, 1)} | more)
            print(rows[-1], flush=True)

        for level in (3, 9):
            for container in ("any", "parquet") if isinstance(content, pa.Table) else ("any",):
                nbytes, there, back, report, restored = ours(name, data, [{"method": "reencode", "level": level, "container": container}])
                exact = restored == data if name.endswith("csv") else same(content, pq.read_table(io.BytesIO(restored)) if name.endswith("parquet") else _arrays(restored))
                assert exact, (title, level)
                add(f"reencode, level {level}" + (", all in parquet" if container == "parquet" else ""), nbytes, there, back, exact=True, ways=sorted({r["coding"] for r in report["rows"]}))
        if title == "embeddings":
            for step in ({"max_abs_error": 1e-3}, {"max_rel_error": 1e-3}):
                nbytes, there, back, report, restored = ours(name, data, [{"method": "quantize", **step}])
                a, b = content["embeddings"].astype("f8"), _arrays(restored)["embeddings"].astype("f8")
                ((kind, bound),) = step.items()
                assert (np.abs(a - b) <= (bound if kind == "max_abs_error" else bound * np.abs(a))).all()
                add(f"quantize, {kind} {bound}", nbytes, there, back, exceptions=report["rows"][0]["exceptions"], abs_error=report["rows"][0]["abs_error"])
            import pcodec

            codes = np.rint(content["embeddings"].astype("f8") / 2e-3).astype("i4").reshape(-1)
            out, there = _timed(lambda: pcodec.standalone.simple_compress(codes, pcodec.ChunkConfig(compression_level=8)))
            _, back = _timed(lambda: pcodec.standalone.simple_decompress(out))
            add("multiples of 2e-3 by pcodec", len(out), there, back)
        for way, (write, read) in others(content).items():
            out, there = _timed(write)
            _, back = _timed(lambda: read(out))
            add(way, sum(map(len, out)), there, back)
        if name.endswith("csv"):
            out, there = _timed(lambda: _zipped(data))
            add("zip (deflate) of the text", len(out), there, _timed(lambda: zipfile.ZipFile(io.BytesIO(out)).read("a"))[1])
    return rows


def _zipped(data: bytes) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a", data)
    return out.getvalue()


def learned(x: torch.Tensor, y: torch.Tensor, xt: torch.Tensor, yt: torch.Tensor, seed: int) -> float:
    """The share of test rows that a network says rightly which has learned from x, y."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    g = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        rows = torch.randint(len(x), (_BATCH,), generator=g)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net(xt).argmax(1) == yt).float().mean())


def accuracy(mnist: Path, seed: int, noise: float) -> list[dict]:
    with np.load(mnist) as f:
        x, y, xt, yt = (f[n] for n in ("x_train", "y_train", "x_test", "y_test"))
    x, xt = (a.reshape(len(a), -1).astype("f4") / 255 for a in (x, xt))
    y, test = y.astype("i8"), (torch.from_numpy(xt), torch.from_numpy(yt.astype("i8")))
    rows = []
    r = np.random.default_rng(seed)
    labels = y.copy()
    wrong = r.choice(len(y), round(noise * len(y)), replace=False)
    labels[wrong] = (labels[wrong] + r.integers(1, 10, len(wrong))) % 10
    all_ = torch.from_numpy(x), torch.from_numpy(labels)
    scores = {kind: hardness(*all_, 10, kind, _SEEDS, _EPOCHS, seed).numpy() for kind in ("el2n", "grand")}
    rows.append({"seed": seed, "noise": noise, "keep": 1.0, "way": "all rows", "accuracy": learned(*all_, *test, seed)})
    for keep in KEEPS:
        for way, fields in WAYS.items():
            step = PruneRows(method="prune", keep=keep, label="y", seeds=_SEEDS, epochs=_EPOCHS, **fields)
            kept = torch.from_numpy(pruning.ranked(x, labels, 10, scores.get(step.saliency), step, seed))
            rows.append({"seed": seed, "noise": noise, "keep": keep, "way": way, "accuracy": round(learned(all_[0][kept], all_[1][kept], *test, seed), 5), "wrong_kept": round(float(np.isin(kept.numpy(), wrong).mean()), 5)})
    return rows


def table(rows: dict) -> str:
    """Markdown."""
    lines = ["| set | way | ratio | write MB/s | read MB/s |", "|---|---|---|---|---|"]
    lines += [f"| {r['set']} | {r['way']} | {r['ratio']:.3f} | {r['write_mbs']:.0f} | {r['read_mbs']:.0f} |" for r in rows.get("sizes", [])]
    by: dict[tuple, list[float]] = {}
    for r in rows.get("accuracy", []):
        by.setdefault((r["way"], r["noise"], r["keep"]), []).append(100 * r["accuracy"])
    cells = [(n, k) for n in NOISE for k in KEEPS]

    def cell(found: list[float]) -> str:
        return f"{statistics.mean(found):.2f} ± {statistics.pstdev(found):.2f}" if found else "-"

    lines += ["", "| rows kept by | " + " | ".join(f"{k:.0%}{', 5 % wrong' if n else ''}" for n, k in cells) + " |", "|---|" + "---|" * len(cells)]
    lines += [f"| {way} | " + " | ".join(cell(by.get((way, n, k), [])) for n, k in cells) + " |" for way in WAYS]
    lines += ["| all rows | " + " | ".join(cell(by.get(("all rows", n, 1.0), [])) if k == KEEPS[0] else "" for n, k in cells) + " |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("sizes", "accuracy", "table"))
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, help="float32 [n, d], as .npy")
    parser.add_argument("--only", help="one set")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--noise", type=float, action="append")
    asked = parser.parse_args()
    rows = json.loads(asked.out.read_text()) if asked.out.exists() else {"sizes": [], "accuracy": []}
    torch.set_num_threads(1)
    if asked.part == "sizes":
        found = sizes(asked.mnist, asked.embeddings, asked.only)
        names = {r["set"] for r in found}
        rows["sizes"] = [r for r in rows["sizes"] if r["set"] not in names] + found
    for seed, noise in [(s, n) for s in asked.seed or () for n in asked.noise or NOISE] if asked.part == "accuracy" else ():
        rows["accuracy"] = [r for r in rows["accuracy"] if (r["seed"], r["noise"]) != (seed, noise)] + accuracy(asked.mnist, seed, noise)
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")  # each is kept, whatever comes of the next
    if asked.part != "table":
        rows["when"], rows["cores"] = datetime.date.today().isoformat(), os.cpu_count()
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
