"""Sentence embeddings of an encoder, as the protocol of `benchmarks.subjects.minilm` has them."""

from __future__ import annotations

import torch


@torch.no_grad()
def embed(model, tokenizer, sentences: list[str]) -> torch.Tensor:
    """Mean over unpadded tokens of the last hidden state, normalised: [sentences, 384]."""
    out = []
    for i in range(0, len(sentences), 50):
        batch = tokenizer(sentences[i : i + 50], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        out.append(torch.nn.functional.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(out)
