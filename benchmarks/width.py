"""Feed-forward layers of MiniLM made narrower: parameters, forward time side by side, and cosine to the original with and without recovery.

    .venv/bin/python -m benchmarks.width --sentences FILE [--sparsity 0.5] [--steps 400] [--threads 1]

FILE is a JSON object with lists of sentences under `calibration` (gradients and training see these alone) and `test` (scored). Forward times are medians of
runs in one process that take turns, on batches of 50 sentences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from app.job_spec import parse_job
from benchmarks.embeddings import embed
from demo.__main__ import model_folder
from worker import calibrating, pipeline
from worker.__main__ import ANY_ID
from worker.recovering import Recovery

ROUNDS = 15


def silent(event: dict) -> None: ...


def made(folder: Path, out: Path, step: dict, beside: dict[str, str]) -> tuple[Path, float]:
    """The folder of the result, and the seconds that it took."""
    out.mkdir(parents=True)
    body = {"input": ANY_ID, "recipe": {"steps": [{"method": "prune", "mask_structure": "ffn-width"} | step]}, "calibration": ANY_ID}
    spec = parse_job(body).model_dump(mode="json") | {"beside": beside}
    start = time.monotonic()
    pipeline.run(folder, out, spec, silent, Recovery(folder, out, spec, silent) if "recover" in step else None)
    return out / "files", time.monotonic() - start


@torch.no_grad()
def forward_times(models: list, batch: dict) -> list[float]:
    """Median seconds of each; they take turns."""
    times = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, own in zip(models, times, strict=True):
            start = time.perf_counter()
            model(**batch)
            own.append(time.perf_counter() - start)
    return [statistics.median(own[2:]) for own in times]


def main() -> None:
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sentences, folder = json.loads(asked.sentences.read_text()), Path(model_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = embed(original, tokenizer, sentences["test"])
    batch = tokenizer(sentences["test"][:50], padding=True, truncation=True, max_length=128, return_tensors="pt")
    print(f"MiniLM, width - {asked.sparsity:.0%}, {len(sentences['test'])} sentences scored, {len(sentences['calibration'])} for gradients and training, {asked.threads} threads")
    print(f"{'':34}{'parameters':>12}{'MB':>8}{'forward ms':>12}{'original ms':>13}{'cosine':>9}{'made in s':>11}")
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
        work = Path(d)
        (work / "data").mkdir()
        (work / "data" / "sentences.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences["calibration"]))
        (work / "statistics").mkdir()
        start = time.monotonic()
        calibrating.run(folder, work / "statistics", {"beside": {"calibration": str(work / "data")}, "seed": 0, "device": "cpu"}, silent)
        print(f"gradients in {time.monotonic() - start:.1f} s", flush=True)
        beside = {"calibration": str(work / "data"), "statistics": str(work / "statistics" / calibrating.NAME)}
        for saliency, norm, recover in (
            ("magnitude", "l2", 0), ("gradient", "l1", 0), ("taylor", "l1", 0), ("fisher", "l1", 0), ("magnitude", "l2", asked.steps), ("fisher", "l1", asked.steps),
        ):  # fmt: skip
            step = {"saliency": saliency, "norm": norm, "sparsity": asked.sparsity} | ({"recover": {"steps": recover}} if recover else {})
            files, seconds = made(folder, work / f"{saliency}-{norm}-{recover}", step, beside)
            model = AutoModel.from_pretrained(files, dtype=torch.float32).eval()
            cosine = (embed(model, tokenizer, sentences["test"]) * wanted).sum(1).mean().item()
            ours, theirs = forward_times([model, original], batch)
            parameters, size = sum(p.numel() for p in model.parameters()), sum(p.stat().st_size for p in files.glob("*.safetensors")) / 1e6
            name = f"{saliency} {norm}" + (f", {recover} steps of recovery" if recover else "")
            print(f"{name:34}{parameters:12,}{size:8.1f}{1e3 * ours:12.1f}{1e3 * theirs:13.1f}{cosine:9.4f}{seconds:11.1f}", flush=True)


if __name__ == "__main__":
    main()
