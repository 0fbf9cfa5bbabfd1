"""Quality of the data-free methods on MiniLM: mean cosine of its sentence embeddings to the original's, every stored bit counted.

    .venv/bin/python -m benchmarks.quality [--sentences FILE]

FILE is a JSON list of sentences, or an object with a list under `test`; without it the demo's sentences are used. The recipes touch the 36 encoder
matrices; each result goes through `packed` and back before it is scored.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from demo.__main__ import model_folder
from demo.score import SENTENCES
from worker import pipeline

TARGETS = ["encoder.layer.*.weight"]
IGNORE = ["*LayerNorm*"]
WEIGHTS = 10_616_832


def recipes() -> dict[str, dict]:
    out = {}
    for bits in (8, 4, 3, 2):
        for search in ("absmax", "mse"):
            out[f"int{bits} group 128 {search}"] = {"method": "quantize", "num_bits": bits, "group_size": 128, "scale_search": search}
    for bits in (4, 3, 2):
        out[f"int{bits} group 64 mse"] = {"method": "quantize", "num_bits": bits, "group_size": 64, "scale_search": "mse"}
        out[f"uint{bits} group 128 mse"] = {"method": "quantize", "num_bits": bits, "group_size": 128, "scale_search": "mse", "symmetric": False}
    out["fp8 channel"] = {"method": "quantize", "num_bits": 8, "type": "float"}
    for scope in ("row", "tensor", "global"):
        out[f"50 % pruned, {scope}"] = {"method": "prune", "sparsity": 0.5, "scope": scope}
    out["2:4"] = {"method": "prune", "mask_structure": "2:4"}
    return out


@torch.no_grad()
def embed(model, tokenizer, sentences: list[str]) -> torch.Tensor:
    """Mean over unpadded tokens of the last hidden state, normalised: [sentences, 384]."""
    out = []
    for i in range(0, len(sentences), 50):
        batch = tokenizer(sentences[i : i + 50], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        out.append(torch.nn.functional.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(out)


def main() -> None:
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("--sentences", type=Path)
    given = parser.parse_args().sentences
    sentences = json.loads(given.read_text()) if given else list(SENTENCES)
    sentences = sentences["test"] if isinstance(sentences, dict) else sentences
    folder = model_folder()
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    original = embed(model, tokenizer, sentences)
    print(f"MiniLM, {len(sentences)} sentences, {WEIGHTS:,} weights\n{'recipe':28}{'bits/weight':>12}{'error':>9}{'cosine':>9}{'seconds':>9}")
    for name, step in recipes().items():
        with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as d:
            out, start = Path(d, "out"), time.monotonic()
            spec = {"recipe": {"steps": [step | {"targets": TARGETS, "ignore": IGNORE}]}, "output": {"format": "packed"}, "sanitize": "report"}
            pipeline.run(folder, out, spec, lambda event: None)
            seconds = time.monotonic() - start
            rows = [r for r in json.loads((out / "report.json").read_text())["tensors"] if r["action"] in ("quantized", "pruned")]
            restore = {"recipe": {"steps": [{"method": "restore"}]}, "output": {"format": "original"}, "sanitize": "report"}
            pipeline.run(out / "files", Path(d, "back"), restore, lambda event: None)
            model.load_state_dict(load_file(Path(d, "back", "files", "model.safetensors")), strict=False)
            cosine = (embed(model, tokenizer, sentences) * original).sum(1).mean().item()
            bits = 8 * sum(r["bytes_after"] for r in rows) / sum(r["bytes_before"] / 4 for r in rows)
            error = sum(r["relative_error"] for r in rows) / len(rows)
            print(f"{name:28}{bits:12.3f}{error:9.4f}{cosine:9.4f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
