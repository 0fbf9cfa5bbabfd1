"""The models of `benchmarks.quality`: where each is, what it learns from, and how what is left of it is scored, by one fixed protocol."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from demo.__main__ import model_folder
from worker.quality import Divergence, Perplexity

Score = Callable[[Mapping[str, torch.Tensor]], dict]


@dataclass(frozen=True)
class Subject:
    """Args:
    folder: of the model, as transformers loads it.
    calibration: a file; the scores have never seen it.
    names: of the matrices that are compressed; `targets` and `ignore` name the same ones in a recipe.
    columns: of `score`, which takes all weights and puts them into the model. Beside them it has `each`: what each sample loses (1 - cosine, KL), a list
        whose mean is what is lost in all.
    """

    title: str
    folder: Path
    calibration: Path
    names: list[str]
    targets: list[str]
    ignore: list[str]
    columns: tuple[str, ...]
    score: Score


def minilm(data: Path, work: Path) -> Subject:
    """Sentence embeddings: mean cosine to the original's on 250 test sentences, by `score_minilm.py`, which stands beside its sentences."""
    spec = importlib.util.spec_from_file_location("score_minilm", data / "score_minilm.py")
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)
    sentences = json.loads((data / "sentences.json").read_text())
    (calibration := work / "minilm.txt").write_text("\n".join(s.replace("\n", " ") for s in sentences["calibration"]) + "\n")
    model = protocol.load()
    names, original = protocol.linears(model), protocol.embed(model, sentences["test"])

    def score(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        _put(model, weights, names)
        cosines = (protocol.embed(model, sentences["test"]) * original).sum(1)
        return {"cosine": cosines.mean().item(), "cosine_min": cosines.min().item(), "each": (1 - cosines).tolist()}

    title = f"MiniLM: {len(names)} matrices, {len(sentences['calibration'])} sentences to learn from, {len(sentences['test'])} others to score"
    return Subject(title, model_folder(), calibration, names, ["encoder.layer.*.weight"], ["*LayerNorm*"], ("cosine", "cosine_min"), score)


def stories(data: Path, work: Path) -> Subject:
    """A small Llama: KL to the original, top-1 agreement and perplexity on 100 stories; 100 others are learned from."""
    from transformers import AutoModelForCausalLM

    folder = data / "stories260k-fp32"
    texts = json.loads((data / "stories_text" / "sampled_200.json").read_text())["token_ids"]
    (calibration := work / "stories.jsonl").write_text("\n".join(json.dumps({"input_ids": ids}) for ids in texts[:100]) + "\n")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("model.layers.")]
    test = [torch.tensor([ids]) for ids in texts[100:]]
    with torch.no_grad():
        original = [model(ids).logits[0] for ids in test]

    @torch.no_grad()
    def score(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
        _put(model, weights, names)
        divergence, perplexity, each = Divergence(), Perplexity(), []
        for ids, before in zip(test, original, strict=True):
            after, parts = model(ids).logits[0], len(divergence.kl)
            divergence.add(before, after)
            each.append(len(test) * sum(float(part.sum()) for part in divergence.kl[parts:]))
            perplexity.add(before[:-1], after[:-1], ids[0, 1:])
        return divergence.figures() | {"perplexity": perplexity.figures()["perplexity_after"], "each": [kl / divergence.positions for kl in each]}

    title = f"stories260k (Llama): {len(names)} matrices, 100 stories to learn from, {len(test)} others to score, {sum(map(torch.numel, test)):,} tokens"
    return Subject(title, folder, calibration, names, ["model.layers.*.weight"], ["*norm*"], ("kl", "kl_p99", "top1_agreement", "perplexity"), score)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@torch.no_grad()
def _put(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], names: list[str]) -> None:
    for name in names:
        model.get_parameter(name).copy_(weights[name])


SUBJECTS = {"minilm": minilm, "stories": stories}
